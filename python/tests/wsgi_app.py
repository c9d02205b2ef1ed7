"""A WSGI application that connects when it is imported: with gunicorn's --preload, before the workers are forked."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from oddscache import OddsCache

cache = OddsCache.connect(os.environ["DATABASE_URL"])
cache.ready(20)
PARENT = os.getpid()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    held = cache.get_betpawa_snapshots([1]).get(1, {})
    start_response("200 OK", [("Content-Type", "application/json")])
    answer = {
        "pid": os.getpid(),
        "forked": os.getpid() != PARENT,
        "bookmakers": sorted(held),
        "odds": [market.outcomes[0]["odds"] for market in held[1].markets] if 1 in held else [],
        "warm": cache.is_warm,
        "epoch": cache.epoch,
        "listed": len(json.loads(cache.event_list_json())),
    }
    return [json.dumps(answer).encode()]
