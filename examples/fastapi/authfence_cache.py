"""A cache of the application's own that is safe to have.

It follows what the sidecar evicts (/v1/changes) and holds a lease (/v1/lease).
While the lease is good, most requests are answered without leaving the process;
when it has run out, every request asks the sidecar, as without a cache. So
whatever fails, no request is answered from what a commit superseded more than
max_staleness (2 s by default) before it:

    async with Client("unix:/run/authfence/http.sock") as client, Cache(client) as cache:
        answer = await cache.authenticate(token)

Entries holds the rules and does no I/O; Cache feeds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from authfence_client import Answer, Client, Event, Refused, encode

log = logging.getLogger(__name__)

API_KEY, ORGANIZATION = "api_key", "organization"
Ref = tuple[str, str]  # (API_KEY, hex SHA-256 of the token) or (ORGANIZATION, id)
Position = tuple[int, int]  # term, number: the order of all changes

LEASE_EVERY = 0.25  # seconds between two asks for a lease, less jitter
RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # seconds until the stream is asked for again, less jitter


class Mark(NamedTuple):
    """A position within its epoch, as "b1946ac92492d234/7-42". Positions of two epochs do not compare."""

    epoch: str
    position: Position

    @classmethod
    def parse(cls, text: str) -> Mark:
        epoch, _, position = text.partition("/")
        term, _, number = position.partition("-")
        if not epoch or not term.isdecimal() or not number.isdecimal():
            raise ValueError("want epoch/position, for instance b1946ac92492d234/7-42")
        return cls(epoch, (int(term), int(number)))

    def __str__(self) -> str:
        return f"{self.epoch}/{self.position[0]}-{self.position[1]}"


class Instant(NamedTuple):
    """One reading of two clocks. One that cannot be set, and counts suspend where
    the system has such a one; and the wall clock, which counts a suspend anywhere
    but can be set. For a lease the one that has gone farther counts."""

    steady: float
    wall: float

    @classmethod
    def now(cls) -> Instant:
        return cls(time.clock_gettime(_STEADY), time.time())

    def within(self, length: float, now: Instant) -> bool:
        # A clock that was set back no longer tells how much time has passed.
        return 0 <= now.steady - self.steady < length and 0 <= now.wall - self.wall < length


_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease(NamedTuple):
    began: Instant  # read before the ask was sent
    left: float
    at: Mark  # the stream must have come as far


@dataclass
class Entry:
    answer: Answer
    organization: str
    ends: float  # of the wall clock


class Entries:
    """What was answered, and the right to answer it again. Nothing here waits: in an
    event loop each method is one step."""

    def __init__(self, max_entries: int = 10_000, max_floors: int = 50_000, max_age: float = 3600.0) -> None:
        self.position: Mark | None = None  # of the last event; None: nothing is known
        self.resets = 0
        self._max_entries, self._max_floors, self._max_age = max_entries, max_floors, max_age
        self._start: Position = (0, 0)  # before it nothing is known of any ref
        self._floors: OrderedDict[Ref, Position] = OrderedDict()  # last change of a ref, oldest first
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # by ref of the key, least used first
        self._members: dict[str, set[str]] = {}  # keys of an organization
        self._lease: Lease | None = None
        self._offered: Lease | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def leased(self, now: Instant) -> bool:
        return self._lease is not None and self._lease.began.within(self._lease.left, now)

    def reset(self, at: Mark | None) -> None:
        """Forget everything, and go on from a position; from None: keep nothing until the next reset."""
        self._forget(at.position if at else (0, 0))
        self.position, self._lease, self._offered = at, None, None
        self.resets += 1

    def change(self, at: Mark, changes: list[dict[str, Any]]) -> None:
        """Evict what a change names, and refuse from now on what is older than it."""
        if self.position is None or at.epoch != self.position.epoch:
            raise ValueError("a change without a reset before it")
        if at.position <= self.position.position:
            return  # told before
        for change in changes:
            kind = change["kind"]
            if change.get("wide") or kind not in (API_KEY, ORGANIZATION):
                self._forget(at.position)  # an entry is made of both kinds
                continue
            for id in change.get("refs", ()):
                self._raise((kind, id), at.position)
                for key in (id,) if kind == API_KEY else tuple(self._members.get(id, ())):
                    self._evict(key)
        self.position = at
        self._grant()

    def offer(self, lease: Lease) -> None:
        """Take a lease, now or once the stream has come as far as it needs."""
        self._offered = lease
        self._grant()

    def keep(self, key: str, answer: Answer) -> bool:
        """Keep an answer, unless something that is newer than it is known."""
        if answer.stale or not answer.position or self.position is None:
            return False
        try:
            at = Mark.parse(answer.position)
        except ValueError:
            return False
        if at.epoch != self.position.epoch or at.position < self._start:
            return False
        organization = answer.principal.organization_id
        for ref in ((API_KEY, key), (ORGANIZATION, organization)):
            if at.position < self._floors.get(ref, (0, 0)):
                return False
        ends = time.time() + self._max_age * random.uniform(0.8, 1)
        if answer.principal.expires_at is not None:
            ends = min(ends, answer.principal.expires_at.timestamp())
        self._evict(key)
        self._entries[key] = Entry(answer, organization, ends)
        self._members.setdefault(organization, set()).add(key)
        if len(self._entries) > self._max_entries:
            self._evict(next(iter(self._entries)))
        return True

    def get(self, key: str, at_least: Mark | None, now: Instant) -> Answer | None:
        """An answer that may be given again, as new as at_least."""
        if not self.leased(now) or (at_least is not None and not self._reached(at_least)):
            return None
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now.wall >= entry.ends:
            self._evict(key)
            return None
        self._entries.move_to_end(key)
        return entry.answer

    def _reached(self, at: Mark) -> bool:
        return self.position is not None and at.epoch == self.position.epoch and at.position <= self.position.position

    def _grant(self) -> None:
        offered = self._offered
        if offered is None or not self._reached(offered.at):
            return
        self._offered = None
        if self._lease is None or self._lease.began.steady + self._lease.left < offered.began.steady + offered.left:
            self._lease = offered

    def _raise(self, ref: Ref, position: Position) -> None:
        self._floors.pop(ref, None)
        self._floors[ref] = position
        if len(self._floors) > self._max_floors:
            # For the ref that is forgotten, start stands in. What is kept has
            # survived every change so far and needs neither.
            _, dropped = self._floors.popitem(last=False)
            self._start = max(self._start, dropped)

    def _evict(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        members = self._members[entry.organization]
        members.discard(key)
        if not members:
            del self._members[entry.organization]

    def _forget(self, start: Position) -> None:
        self._entries.clear()
        self._members.clear()
        self._floors.clear()
        self._start = start


class Cache:
    """Answers from memory while it may, and asks the sidecar otherwise. In place of a Client."""

    def __init__(self, client: Client, entries: Entries | None = None) -> None:
        self._client = client
        self._entries = entries or Entries()
        self._tasks: list[asyncio.Task[None]] = []
        self._hits = self._kept = self._not_kept = 0

    async def __aenter__(self) -> Cache:
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._renew())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def authenticate(self, token: str, at_least: str | None = None) -> Answer:
        """Who the token stands for; or Refused. As Client.authenticate."""
        key = hashlib.sha256(encode(token)).hexdigest()
        try:
            demand = Mark.parse(at_least) if at_least is not None else None
        except ValueError:
            return await self._client.authenticate(token, at_least)  # which says what is wrong with it
        if (answer := self._entries.get(key, demand, Instant.now())) is not None:
            self._hits += 1
            return answer
        answer = await self._client.authenticate(token, at_least)
        if self._entries.keep(key, answer):
            self._kept += 1
        else:
            self._not_kept += 1
        return answer

    def status(self) -> dict[str, Any]:
        """For a health check, and for metrics."""
        return {
            "position": str(self._entries.position or ""),
            "leased": self._entries.leased(Instant.now()),
            "entries": len(self._entries),
            "hits": self._hits,
            "kept": self._kept,
            "not_kept": self._not_kept,
            "resets": self._entries.resets,
        }

    async def _follow(self) -> None:
        """Keep to the stream. Whatever cannot be read is a reason to forget everything and begin anew."""
        wait = RETRY_FIRST
        while True:
            try:
                async with self._client.changes(str(self._entries.position or "")) as events:
                    async for event in events:
                        self._apply(event)
                        wait = RETRY_FIRST
            except Refused:
                log.info("the stream of changes is cut off: asking for it again")
            except Exception as error:
                self._entries.reset(None)
                log.warning("the stream of changes cannot be read: beginning anew", extra={"error": type(error).__name__})
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, RETRY_MOST)

    def _apply(self, event: Event) -> None:
        if event.name == "reset":
            self._entries.reset(Mark.parse(event.id) if event.id else None)
        elif event.name == "change":
            self._entries.change(Mark.parse(event.id), json.loads(event.data))

    async def _renew(self) -> None:
        """Ask for leases. Without an answer the one that there is runs out."""
        while True:
            began = Instant.now()
            try:
                position, left = await self._client.lease()
                self._entries.offer(Lease(began, left, Mark.parse(position)))
            except Refused:
                pass
            except Exception as error:
                log.warning("the lease cannot be read", extra={"error": type(error).__name__})
            await asyncio.sleep(LEASE_EVERY * random.uniform(0.5, 1))
