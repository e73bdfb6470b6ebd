"""Authentication as a dependency of FastAPI.

    app.state.authfence is a Client or a Cache, made in the application's lifespan;
    app.add_exception_handler(Refused, refused)

    @app.get("/v1/orders")
    async def list_orders(principal: Principal = Depends(require("orders", "read"))): ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from fastapi import Depends, Request
from fastapi.responses import JSONResponse

from authfence_client import Answer, Principal, Refused, bearer, grant_missing


class Authenticator(Protocol):
    async def authenticate(self, token: str, at_least: str | None = None) -> Answer: ...


Dependency = Callable[[Request], Awaitable[Principal]]


async def authenticated(request: Request) -> Principal:
    """The principal of a request, no staler than the sidecar promises."""
    return await _authenticate(request, None)


async def authenticated_at_least(request: Request) -> Principal:
    """The same, as fresh as the request demands by X-Authfence-At-Least: a position
    that a barrier's receipt gave. It costs a read of Postgres while the sidecar is
    not there yet, so it is for routes whose callers are trusted with that."""
    return await _authenticate(request, request.headers.get("x-authfence-at-least"))


def require(resource: str, action: str, by: Dependency = authenticated) -> Dependency:
    """A dependency that lets in keys which may do the action on the resource, and no others."""

    async def permitted(principal: Principal = Depends(by)) -> Principal:
        if not principal.can(resource, action):
            raise grant_missing()
        return principal

    return permitted


async def _authenticate(request: Request, at_least: str | None) -> Principal:
    authenticator: Authenticator = request.app.state.authfence
    answer = await authenticator.authenticate(bearer(request.headers.getlist("authorization")), at_least)
    return answer.principal


async def refused(_: Request, refusal: Exception) -> JSONResponse:
    """Answers a request that is Refused, with the status and the headers of the sidecar."""
    assert isinstance(refusal, Refused)
    body = {"error": refusal.code}
    if refusal.detail:
        body["error_description"] = refusal.detail
    return JSONResponse(body, refusal.status, dict(refusal.headers))
