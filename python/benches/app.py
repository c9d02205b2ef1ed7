"""A FastAPI application around one of the caches: app.py KIND URL PORT. It is the application's shape at its least."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from application import Cache, inline_odds
from caches import KINDS, list_json, open_cache


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    kind = next(kind for kind in KINDS if kind == sys.argv[1])
    app.state.cache = open_cache(kind, sys.argv[2])
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/odds")
async def odds(request: Request, ids: str) -> Response:
    cache: Cache = request.app.state.cache
    page = inline_odds(cache, map(int, ids.split(",")))
    body = orjson.dumps(page, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
    return Response(body, media_type="application/json")


@app.get("/list")
async def listed(request: Request) -> Response:
    return Response(list_json(request.app.state.cache), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", access_log=False)
