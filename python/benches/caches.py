"""Opens one of the two caches that are compared. Imports only what that one needs, because the memory is measured."""

import json
from importlib import import_module
from typing import Literal, TypeAlias, cast

from application import INLINE_MARKETS, Cache

Kind: TypeAlias = Literal["floor", "ours"]
KINDS: tuple[Kind, ...] = ("floor", "ours")


def load_code(kind: Kind) -> None:
    """Imports the code of the cache, before its memory is measured."""
    import_module("oddscache" if kind == "ours" else "floor")


def open_cache(kind: Kind, url: str) -> Cache:
    """A cache that holds everything."""
    if kind == "ours":
        import oddscache

        followed = oddscache.OddsCache.connect(url, naive_times=True)
        followed.ready(60)
        return cast(Cache, followed)
    import floor

    loaded = floor.PlainCache()
    loaded.load(url)
    return loaded


def list_json(cache: Cache) -> bytes:
    """The event list as our cache writes it."""
    import oddscache

    assert isinstance(cache, oddscache.OddsCache)
    markets = [market if line is None else (market, line) for market, line in INLINE_MARKETS.items()]
    return cache.event_list_json(markets=markets)


def wait_for(cache: Cache, xid: int) -> None:
    """Waits until our cache shows a transaction. The floor follows nothing."""
    import oddscache

    assert isinstance(cache, oddscache.OddsCache)
    cache.wait_for(xid)


def version(cache: Cache) -> int:
    """How often our cache has published."""
    import oddscache

    assert isinstance(cache, oddscache.OddsCache)
    return int(cache.version)


def canonical(listed: bytes) -> bytes:
    """A list as JSON in one form: 2 and 2.0 are the same number, and so are a time with and without zeros."""
    text = json.loads(listed, parse_int=float)
    for event in text:
        event["kickoff"] = _time(event["kickoff"])
        for odds in event["odds"]:
            odds["last_confirmed_at"] = _time(odds["last_confirmed_at"])
            for market in odds["markets"]:
                market["unavailable_since"] = _time(market["unavailable_since"])
    return json.dumps(text, sort_keys=True).encode()


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<6}"
