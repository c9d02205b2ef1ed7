"""The application of `wsgi_app`, for uvicorn: it connects when it is imported, and a task counts changes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from wsgi_app import PARENT, cache

seen: list[int] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async def count() -> None:
        async for change in cache.changes():
            seen.extend(change.event_ids)

    await cache.wait_ready(20)
    counting = asyncio.create_task(count())
    yield
    counting.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def answer() -> dict[str, Any]:
    held = cache.get_betpawa_snapshots([1]).get(1, {})
    return {
        "pid": os.getpid(),
        "forked": os.getpid() != PARENT,
        "odds": [market.outcomes[0]["odds"] for market in held[1].markets],
        "changes": len(seen),
    }
