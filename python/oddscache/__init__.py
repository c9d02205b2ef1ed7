"""The latest betting odds of every upcoming event, held in memory and kept equal to PostgreSQL.

with OddsCache.connect("postgresql://oddscache@localhost/odds") as cache:
    cache.ready(timeout=60)
    for bookmaker_id, snapshot in (cache.get_betpawa_snapshot(4711) or {}).items():
        for market in snapshot.markets:
            print(bookmaker_id, market.betpawa_market_name, market.outcomes)
"""

import dataclasses
from typing import Any

from ._cache import INLINE_MARKETS, Fault, OddsCache, Status
from ._errors import Closed, ConfigError, Error, Lagged, NotReady, NotShown, TooStale
from ._events import Changes
from ._native import CachedMarket, CachedSnapshot, Change, Cut, Relay, View

__all__ = [
    "INLINE_MARKETS",
    "CachedMarket",
    "CachedSnapshot",
    "Change",
    "Changes",
    "Closed",
    "ConfigError",
    "Cut",
    "Error",
    "Fault",
    "Lagged",
    "NotReady",
    "NotShown",
    "OddsCache",
    "Relay",
    "Status",
    "TooStale",
    "View",
]


def _pydantic_schema(cls: Any, source: Any, handler: Any) -> Any:
    """Lets a route of FastAPI declare that it returns the class: it is written as the dict of its fields."""
    from pydantic_core import core_schema

    written = core_schema.plain_serializer_function_ser_schema(
        dataclasses.asdict, return_schema=core_schema.dict_schema()
    )
    return core_schema.is_instance_schema(cls, serialization=written)


def _like_a_dataclass(cls: Any, required: str, **defaults: Any) -> None:
    """Lets `dataclasses.fields`, `asdict` and `replace` accept a compiled class, and with them FastAPI and pydantic.

    The attributes go to the base of the class. orjson would crash on a class that has them itself: it drops a field's
    value before it has written it.
    """
    fields = [(name, Any, dataclasses.field()) for name in required.split()]
    for name, default in defaults.items():
        made = dataclasses.field(default_factory=default) if callable(default) else dataclasses.field(default=default)
        fields.append((name, Any, made))
    shape = dataclasses.make_dataclass(cls.__name__, fields, frozen=True)
    base = cls.__base__
    for name in ("__dataclass_fields__", "__dataclass_params__", "__match_args__"):
        setattr(base, name, getattr(shape, name))
    base.__replace__ = lambda self, /, **changes: dataclasses.replace(self, **changes)
    base.__get_pydantic_core_schema__ = classmethod(_pydantic_schema)


_like_a_dataclass(CachedSnapshot, "snapshot_id event_id bookmaker_id captured_at last_confirmed_at", markets=tuple)
_like_a_dataclass(
    CachedMarket,
    "betpawa_market_id betpawa_market_name",
    line=None,
    handicap_type=None,
    handicap_home=None,
    handicap_away=None,
    outcomes=list,
    market_groups=list,
    unavailable_at=None,
)
