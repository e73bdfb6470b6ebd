"""The rules of Entries, and how the stream is read. python3 -m unittest"""

from __future__ import annotations

import asyncio
import time
import unittest
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

from authfence_cache import Entries, Instant, Lease, Mark
from authfence_client import MAX_EVENT_BYTES, Answer, Event, Principal, Refused, bearer, encode, events

EPOCH, OTHER = "00000000000000e1", "00000000000000e2"


def mark(number: int, epoch: str = EPOCH) -> Mark:
    return Mark(epoch, (1, number))


def answer(at: Mark, organization: str = "acme", **principal: Any) -> Answer:
    return Answer(Principal("id", organization, {"orders": frozenset({"read"})}, **principal), str(at))


def of(kind: str, *refs: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "op": "update", "refs": list(refs)}]


def leased(**bounds: Any) -> Entries:
    """Entries at position 10 with a lease of a minute."""
    entries = Entries(**bounds)
    entries.reset(mark(10))
    entries.offer(Lease(Instant.now(), 60.0, mark(10)))
    return entries


class TestEntries(unittest.TestCase):
    def held(self, entries: Entries, key: str = "k", at_least: Mark | None = None) -> bool:
        return entries.get(key, at_least, Instant.now()) is not None

    def test_a_change_of_the_key_evicts_it_and_refuses_what_is_older(self) -> None:
        entries = leased()
        self.assertTrue(entries.keep("k", answer(mark(10))))
        self.assertTrue(self.held(entries))
        entries.change(mark(11), of("api_key", "k"))
        self.assertFalse(self.held(entries))
        self.assertFalse(entries.keep("k", answer(mark(10))))  # a slow fill
        self.assertTrue(entries.keep("k", answer(mark(11))))
        self.assertTrue(entries.keep("other", answer(mark(10))))

    def test_a_change_of_the_organization_evicts_its_keys(self) -> None:
        entries = leased()
        for key, organization in (("a", "acme"), ("b", "acme"), ("c", "other")):
            self.assertTrue(entries.keep(key, answer(mark(10), organization)))
        entries.change(mark(11), of("organization", "acme"))
        self.assertEqual([self.held(entries, key) for key in "abc"], [False, False, True])
        self.assertFalse(entries.keep("a", answer(mark(10))))

    def test_a_wide_change_or_one_of_an_unknown_kind_evicts_everything(self) -> None:
        wide = [{"kind": "organization", "op": "truncate", "wide": True}]
        for changes in (wide, of("something new", "x")):
            entries = leased()
            entries.keep("k", answer(mark(10)))
            entries.change(mark(11), changes)
            self.assertFalse(self.held(entries))
            self.assertFalse(entries.keep("k", answer(mark(10))))
            self.assertTrue(entries.keep("k", answer(mark(11))))
            self.assertTrue(self.held(entries))  # the lease goes on

    def test_an_answer_ahead_of_the_stream_survives_what_it_has_seen(self) -> None:
        entries = leased()
        self.assertTrue(entries.keep("k", answer(mark(12))))
        entries.change(mark(11), of("api_key", "other"))
        self.assertTrue(self.held(entries))
        entries.change(mark(13), of("api_key", "k"))
        self.assertFalse(self.held(entries))

    def test_a_reset_forgets_everything_and_what_is_older(self) -> None:
        entries = leased()
        entries.keep("k", answer(mark(10)))
        entries.reset(mark(20))
        entries.offer(Lease(Instant.now(), 60.0, mark(20)))
        self.assertFalse(self.held(entries))
        self.assertFalse(entries.keep("k", answer(mark(19))))
        self.assertTrue(entries.keep("k", answer(mark(20))))
        entries.reset(mark(1, OTHER))
        entries.offer(Lease(Instant.now(), 60.0, mark(1, OTHER)))
        self.assertFalse(entries.keep("k", answer(mark(99))))  # of an epoch that is over
        self.assertTrue(entries.keep("k", answer(mark(1, OTHER))))
        entries.reset(None)
        self.assertFalse(entries.keep("k", answer(mark(1, OTHER))))
        self.assertRaises(ValueError, entries.change, mark(2, OTHER), of("api_key", "k"))

    def test_a_lease_counts_once_the_stream_has_come_as_far(self) -> None:
        entries = Entries()
        entries.reset(mark(10))
        entries.keep("k", answer(mark(10)))
        entries.offer(Lease(Instant.now(), 60.0, mark(12)))
        entries.change(mark(11), of("api_key", "other"))
        self.assertFalse(self.held(entries))
        entries.change(mark(12), of("api_key", "other"))
        self.assertTrue(self.held(entries))
        entries.reset(mark(1, OTHER))
        self.assertFalse(entries.leased(Instant.now()))
        entries.offer(Lease(Instant.now(), 60.0, mark(12)))  # of an epoch that is over
        self.assertFalse(entries.leased(Instant.now()))

    def test_a_lease_is_over_by_either_clock(self) -> None:
        began = Instant(100.0, 5000.0)
        for steady, wall, good in (
            (101.9, 5001.9, True),
            (102.0, 5001.0, False),  # the wall clock was set back a little
            (100.5, 5002.0, False),  # a suspend that only the wall clock counts
            (100.5, 4999.0, False),  # set back before the ask
        ):
            self.assertEqual(began.within(2.0, Instant(steady, wall)), good, (steady, wall))
        entries = Entries()
        entries.reset(mark(10))
        entries.offer(Lease(began, 2.0, mark(10)))
        entries.offer(Lease(Instant(100.5, 5000.5), 1.0, mark(10)))  # a shorter one takes nothing back
        self.assertTrue(entries.leased(Instant(101.9, 5001.9)))

    def test_an_answer_ends_when_it_says(self) -> None:
        entries = leased()
        soon = datetime.now(timezone.utc) + timedelta(seconds=30)
        entries.keep("k", answer(mark(10), expires_at=soon))
        now = Instant.now()
        self.assertIsNotNone(entries.get("k", None, now))
        self.assertIsNone(entries.get("k", None, Instant(now.steady, soon.timestamp())))

    def test_what_says_nothing_of_its_age_is_not_kept(self) -> None:
        entries = leased()
        principal = answer(mark(10)).principal
        for each in (Answer(principal), Answer(principal, "garbage"), Answer(principal, str(mark(10)), stale=True)):
            self.assertFalse(entries.keep("k", each))

    def test_a_demand_is_met_by_what_the_stream_has_told(self) -> None:
        entries = leased()
        entries.keep("k", answer(mark(10)))
        self.assertTrue(self.held(entries, at_least=mark(10)))
        self.assertFalse(self.held(entries, at_least=mark(11)))
        self.assertFalse(self.held(entries, at_least=mark(10, OTHER)))
        entries.change(mark(11), of("api_key", "other"))
        self.assertTrue(self.held(entries, at_least=mark(11)))

    def test_memory_is_bounded(self) -> None:
        entries = leased(max_entries=10, max_floors=20)
        for n in range(100):
            self.assertTrue(entries.keep(f"k{n}", answer(mark(10), f"o{n}")))
        self.assertEqual(len(entries), 10)
        self.assertTrue(self.held(entries, "k99"))
        for n in range(100):
            entries.change(mark(11 + n), of("api_key", f"x{n}"))
        self.assertTrue(self.held(entries, "k99"))  # it has survived them all
        # What is forgotten of a ref makes an answer wait, never go wrong.
        self.assertFalse(entries.keep("x5", answer(mark(15))))
        self.assertFalse(entries.keep("new", answer(mark(15))))
        self.assertTrue(entries.keep("new", answer(mark(110))))
        self.assertLessEqual(len(entries._floors), 20)
        self.assertLessEqual(len(entries._members), 10)

    def test_a_repeated_event_changes_nothing(self) -> None:
        entries = leased()
        entries.change(mark(11), of("api_key", "k"))
        entries.keep("k", answer(mark(11)))
        entries.change(mark(11), of("api_key", "k"))
        entries.change(mark(10), of("api_key", "k"))
        self.assertTrue(self.held(entries))


class TestStream(unittest.TestCase):
    def read(self, *chunks: bytes) -> list[Event]:
        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        async def collect() -> list[Event]:
            return [event async for event in events(body())]

        return asyncio.run(collect())

    def test_events_are_whole_however_they_arrive(self) -> None:
        text = (
            "retry: 250\n\nid: e/1-1\nevent: reset\ndata: {}\n\n: alive\n\n"
            'id: e/1-2\r\nevent: change\r\ndata: ["\u0085\u2028"]\r\n\r\n'
            "event: reset\ndata: {}\n\nid: e/1-3\nevent: cha"
        ).encode()
        want = [Event("reset", "e/1-1", "{}"), Event("change", "e/1-2", '["\u0085\u2028"]'), Event("reset", "", "{}")]
        for size in (1, 2, 3, 7, len(text)):
            self.assertEqual(self.read(*(text[i : i + size] for i in range(0, len(text), size))), want)

    def test_a_line_without_end_is_refused(self) -> None:
        self.assertRaises(ValueError, self.read, *[b"x" * (1 << 20)] * (MAX_EVENT_BYTES // (1 << 20) + 1))


class TestToken(unittest.TestCase):
    def test_what_is_no_token_is_refused_alike(self) -> None:
        self.assertEqual(bearer(["bEARER  a.b~c+/="]), "a.b~c+/=")
        for values in ([], ["Basic eDp5"], [""]):
            with self.assertRaises(Refused) as refused:
                bearer(values)
            self.assertEqual((refused.exception.status, refused.exception.headers["WWW-Authenticate"]), (401, "Bearer"))
        for values in (["Bearer"], ["Bearer a b"], ["Bearer a", "Bearer a"]):
            with self.assertRaises(Refused) as refused:
                bearer(values)
            self.assertEqual(refused.exception.code, "invalid_request")
        for token in ("", "a,b", "a\nb", "a b", "schlüssel", "\ud800"):
            self.assertRaises(Refused, encode, token)


class TestInstant(unittest.TestCase):
    def test_it_reads_both_clocks(self) -> None:
        self.assertAlmostEqual(Instant.now().wall, time.time(), delta=60)
        self.assertTrue(Instant.now().within(60.0, Instant.now()))


if __name__ == "__main__":
    unittest.main()
