"""Ask the authfence sidecar who a token stands for.

No framework is needed here, only httpx. A Client is made once a process, in its
event loop, and shared by all requests:

    async with Client("unix:/run/authfence/http.sock") as client:
        answer = await client.authenticate(token)
        answer.principal.can("invoices", "write")

Whatever is not a clear yes is Refused: a sidecar that is gone, or that answers
what it should not, is 503 and never lets anybody in.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType, TracebackType
from typing import Any

import httpx

WILDCARD = "*"  # every resource, or every action of a resource

# One event of the stream of changes: what NATS carries has a mebibyte at most.
MAX_EVENT_BYTES = 4 << 20

# The sidecar says that a silent stream lives every 10 s.
STREAM_SILENCE = 25.0


@dataclass(frozen=True)
class Principal:
    """Who a request comes from. It is good for the request that it was made for."""

    key_id: str
    organization_id: str
    permissions: Mapping[str, frozenset[str]]
    expires_at: datetime | None = None  # when the key stops working by itself
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    organization_columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def can(self, resource: str, action: str) -> bool:
        """Whether the key may do the action on the resource."""
        if not resource or not action:
            return False
        granted = self.permissions.get(resource, frozenset()) | self.permissions.get(WILDCARD, frozenset())
        return action in granted or WILDCARD in granted


@dataclass(frozen=True)
class Answer:
    """A principal, and how fresh it is."""

    principal: Principal
    position: str = ""  # as new as this, at least; empty when nothing can be said
    stale: bool = False  # no guarantee holds


class Refused(Exception):
    """The request is not let in: what to answer instead."""

    def __init__(self, status: int, code: str, headers: Mapping[str, str] | None = None, detail: str = "") -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.headers = {"Cache-Control": "no-store", **(headers or {})}
        self.detail = detail


def unavailable(retry_after: str = "1") -> Refused:
    return Refused(503, "temporarily_unavailable", {"Retry-After": retry_after})


def malformed() -> Refused:
    return Refused(401, "invalid_request", {"WWW-Authenticate": 'Bearer error="invalid_request"'})


def grant_missing() -> Refused:
    return Refused(403, "insufficient_scope", {"WWW-Authenticate": 'Bearer error="insufficient_scope"'})


_BEARER = re.compile(r"bearer +([^ ]+)", re.IGNORECASE)
_TOKEN = re.compile(rb"[!-+\--~]+")  # visible ASCII but the comma


def bearer(authorization: Sequence[str]) -> str:
    """The token in the Authorization headers of a request, of which one is wanted."""
    values = [value.strip(" \t") for value in authorization]
    if not values or (len(values) == 1 and values[0].split(" ")[0].lower() != "bearer"):
        raise Refused(401, "unauthorized", {"WWW-Authenticate": "Bearer"})  # Basic, say, is no token
    found = _BEARER.fullmatch(values[0])
    if len(values) > 1 or not found:
        raise malformed()
    return found[1]


def encode(token: str) -> bytes:
    """The bytes of a token, of which the hash is its name everywhere."""
    encoded = token.encode("ascii", "ignore")
    if len(encoded) != len(token) or not _TOKEN.fullmatch(encoded):
        raise malformed()
    return encoded


@dataclass(frozen=True)
class Event:
    """One server-sent event of the stream of changes."""

    name: str
    id: str
    data: str


class Client:
    """Asks the sidecar over pooled connections.

    address: unix:/path of its socket, or http://127.0.0.1:7600.
    timeout: seconds for each of: a free connection, connecting, sending, the
    answer. The sidecar itself gives up after 2 s, with a better answer than ours.
    connections: how many requests may ask at once; the others wait.
    """

    def __init__(self, address: str, *, timeout: float = 3.0, connections: int = 64) -> None:
        self._http = _pool(address, timeout, connections)
        self._side = _pool(address, timeout, 2)  # so that a lease never waits behind requests
        self._timeout = timeout

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()
        await self._side.aclose()

    async def authenticate(self, token: str, at_least: str | None = None) -> Answer:
        """Who the token stands for; or Refused.

        at_least: a position (of a barrier's receipt, of an earlier answer) that the
        answer must not be older than.
        """
        headers = {"Authorization": b"Bearer " + encode(token)}
        if at_least is not None:
            headers["X-Authfence-At-Least"] = at_least.encode("ascii", "replace")
        response = await _get(self._http, "/v1/authenticate?body=json", headers)
        if response.status_code != 200:
            raise _refusal(response)
        try:
            return _answer(response.json())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise unavailable() from None

    async def lease(self) -> tuple[str, float]:
        """The position that a follower must have come to, and the seconds that are left."""
        response = await _get(self._side, "/v1/lease", {})
        if response.status_code != 200:
            raise _refusal(response)
        try:
            body = response.json()
            return str(body["position"]), float(body["left_ms"]) / 1000
        except (ValueError, KeyError, TypeError):
            raise unavailable() from None

    @asynccontextmanager
    async def changes(self, last_event_id: str = "") -> AsyncIterator[AsyncIterator[Event]]:
        """Follow what is evicted, from after an event or from the beginning."""
        headers = {"Accept-Encoding": "identity"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        timeout = httpx.Timeout(self._timeout, read=STREAM_SILENCE)
        try:
            async with self._side.stream("GET", "/v1/changes", headers=headers, timeout=timeout) as response:
                if response.status_code != 200:
                    raise unavailable(response.headers.get("Retry-After", "1"))
                yield events(response.aiter_raw())
        except (httpx.HTTPError, httpx.StreamError):
            raise unavailable() from None


def _pool(address: str, timeout: float, connections: int) -> httpx.AsyncClient:
    path = address.removeprefix("unix:")
    local = path != address
    if not local and not address.startswith(("http://", "https://")):
        raise ValueError(f"address {address!r}: want unix:/path or http://host:port")
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=60.0)
    return httpx.AsyncClient(
        base_url="http://authfence" if local else address,
        transport=httpx.AsyncHTTPTransport(uds=path if local else None, limits=limits),
        timeout=timeout,
        trust_env=False,  # a proxy or a netrc is for other hosts
    )


async def _get(http: httpx.AsyncClient, target: str, headers: Mapping[str, bytes]) -> httpx.Response:
    for last in (False, True):
        try:
            return await http.get(target, headers=headers)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A pooled connection that the sidecar had closed. To ask again is harmless.
            if last:
                break
        except httpx.HTTPError:
            break
    raise unavailable()


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Server-sent events out of bytes. One that is cut off is none.

    By hand, because splitlines() and httpx's aiter_lines() also break lines at
    characters that JSON may hold.
    """
    rest = b""
    name, id = "", ""
    data: list[str] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise ValueError("a line without end")
        for line in lines:
            key, _, value = line.removesuffix(b"\r").decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if key == "event":
                name = value
            elif key == "id":
                id = value
            elif key == "data":
                data.append(value)
            elif not key and not value and name:
                yield Event(name, id, "\n".join(data))
                name, id, data = "", "", []


def _refusal(response: httpx.Response) -> Refused:
    """What the sidecar refused with, passed on as it is; anything else is 503."""
    status = response.status_code
    if status not in (400, 401, 403, 503):
        return unavailable()
    headers = {name: response.headers[name] for name in ("WWW-Authenticate", "Retry-After") if name in response.headers}
    if status == 503:
        headers.setdefault("Retry-After", "1")
    try:
        body: Any = response.json()
        return Refused(status, str(body["error"]), headers, str(body.get("error_description", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Refused(status, "refused", headers)


def _answer(body: Any) -> Answer:
    expires_at = body.get("expires_at")
    principal = Principal(
        key_id=str(body["key_id"]),
        organization_id=str(body["organization_id"]),
        permissions=_permissions(body.get("permissions")),
        expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
        columns=MappingProxyType(dict(body.get("columns", {}))),
        organization_columns=MappingProxyType(dict(body.get("organization_columns", {}))),
    )
    return Answer(principal, str(body.get("position", "")), bool(body.get("stale", False)))


def _permissions(document: Any) -> Mapping[str, frozenset[str]]:
    """What has another form than {"invoices": ["read", "write"]} grants nothing."""
    if not isinstance(document, dict):
        return MappingProxyType({})
    return MappingProxyType(
        {
            resource: frozenset(action for action in actions if action)
            for resource, actions in document.items()
            if isinstance(actions, list) and all(isinstance(action, str) for action in actions)
        }
    )
