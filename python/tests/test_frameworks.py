"""What libraries make of a snapshot: they must take it for what it is, and never crash on it."""

import asyncio
import dataclasses
import json
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from detached import snapshot
from oddscache import CachedMarket, CachedSnapshot, OddsCache


def held() -> CachedSnapshot:
    """A snapshot of a cache: its values are made when they are asked for."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    found = cache.get_betpawa_snapshot(7)
    assert found
    return found[1]


@pytest.mark.parametrize("make", [held, snapshot, lambda: held().markets[0]])
def test_orjson(make: Any) -> None:
    """orjson once took our classes for dataclasses and read the values of fields after they were freed."""
    value = make()
    with pytest.raises(TypeError):
        orjson.dumps(value)
    written = orjson.loads(orjson.dumps(value, default=dataclasses.asdict))
    assert list(written) == [field.name for field in dataclasses.fields(value)]


def test_fastapi() -> None:
    """A route may return a snapshot, with and without saying so. A declared one was once written as an empty object."""
    app = FastAPI()
    kept = held()

    @app.get("/declared")
    async def declared() -> CachedSnapshot:
        return kept

    @app.get("/dict")
    async def in_a_dict() -> dict[int, CachedSnapshot]:
        return {1: kept}

    @app.get("/market")
    async def market() -> CachedMarket:
        return kept.markets[0]

    @app.get("/undeclared")
    async def undeclared():  # type: ignore[no-untyped-def]
        return kept

    async def get(path: str) -> Any:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            answer = await client.get(path)
            assert answer.status_code == 200
            return answer.json()

    one = asyncio.run(get("/declared"))
    assert one["snapshot_id"] == kept.snapshot_id
    assert one["markets"][0]["outcomes"] == json.loads(json.dumps(kept.markets[0].outcomes))
    assert asyncio.run(get("/dict")) == {"1": one}
    assert asyncio.run(get("/market")) == one["markets"][0]
    assert asyncio.run(get("/undeclared"))["markets"][0]["outcomes"] == one["markets"][0]["outcomes"]
    assert "/declared" in asyncio.run(get("/openapi.json"))["paths"]
