"""A FastAPI application that answers from the cache. Run it: DATABASE_URL=... uvicorn application:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from oddscache import CachedSnapshot, OddsCache, TooStale


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with OddsCache.connect(os.environ["DATABASE_URL"]) as cache:
        await cache.wait_ready(timeout=60)
        app.state.odds = cache
        yield


app = FastAPI(lifespan=lifespan)


def inline_odds(snapshot: CachedSnapshot) -> list[dict[str, Any]]:
    return [
        {"market": market.betpawa_market_name, "line": market.line, "outcomes": market.outcomes}
        for market in snapshot.markets
        if market.betpawa_market_id == "3743" or (market.betpawa_market_id == "5000" and market.line == 2.5)
    ]


@app.get("/events/{event_id}")
async def event(event_id: int, request: Request) -> dict[str, Any]:
    try:
        view = request.app.state.odds.view(max_age=10)  # Both lookups below show one committed state.
    except TooStale as stale:
        raise HTTPException(503, f"the odds are {stale.age:.0f} s old") from stale
    own, competitors = view.get_betpawa_snapshot(event_id), view.get_competitor_snapshot(event_id)
    if own is None and competitors is None:
        raise HTTPException(404, "no such event")
    return {
        "betpawa": {key: inline_odds(snapshot) for key, snapshot in (own or {}).items()},
        "competitors": {source: inline_odds(snapshot) for source, snapshot in (competitors or {}).items()},
    }


@app.get("/events")
async def events(request: Request) -> Response:
    return Response(request.app.state.odds.event_list_json(), media_type="application/json")


@app.get("/health")
async def health(request: Request) -> dict[str, Any]:
    cache = request.app.state.odds
    return {"status": cache.status.name, "age": cache.age, "events": len(cache.event_ids())}
