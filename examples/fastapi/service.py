"""A service that authenticates at the authfence sidecar.

    uvicorn service:app       asks the sidecar for every request
    uvicorn service:cached    keeps a cache of its own

AUTHFENCE_SIDECAR is where the sidecar listens; default unix:/run/authfence/http.sock.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request

from authfence_cache import Cache
from authfence_client import Client, Principal, Refused
from authfence_fastapi import authenticated_at_least, refused, require


def create(own_cache: bool) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as parts:
            client = await parts.enter_async_context(
                Client(os.environ.get("AUTHFENCE_SIDECAR", "unix:/run/authfence/http.sock"))
            )
            app.state.authfence = await parts.enter_async_context(Cache(client)) if own_cache else client
            yield

    app = FastAPI(title="orders")
    app.router.lifespan_context = lifespan  # from FastAPI 0.93 on: FastAPI(lifespan=lifespan)
    app.add_exception_handler(Refused, refused)

    @app.get("/v1/me")
    async def me(principal: Principal = Depends(authenticated_at_least)) -> dict[str, Any]:
        return {
            "key": principal.key_id,
            "organization": principal.organization_id,
            "name": principal.columns.get("name"),
        }

    @app.get("/v1/orders")
    async def list_orders(principal: Principal = Depends(require("orders", "read"))) -> dict[str, Any]:
        return {"organization": principal.organization_id, "orders": ["1001", "1002"]}

    @app.post("/v1/orders", status_code=201)
    async def create_order(principal: Principal = Depends(require("orders", "write"))) -> dict[str, Any]:
        return {"organization": principal.organization_id, "order": "1003"}

    @app.get("/healthz")
    async def health(request: Request) -> dict[str, Any]:
        # Without a lease the service is slower and as safe: no reason to take it
        # out of the load balancer.
        return {"status": "alive", "cache": request.app.state.authfence.status() if own_cache else None}

    return app


app = create(own_cache=False)
cached = create(own_cache=True)
