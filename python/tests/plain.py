"""The application's own dataclasses: what the package's classes must behave like."""

import dataclasses
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from oddscache import CachedSnapshot


@dataclass(frozen=True)
class Market:
    betpawa_market_id: str
    betpawa_market_name: str
    line: float | None = None
    handicap_type: str | None = None
    handicap_home: float | None = None
    handicap_away: float | None = None
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    market_groups: list[Any] = field(default_factory=list)
    unavailable_at: datetime | None = None


@dataclass(frozen=True)
class Snapshot:
    snapshot_id: int
    event_id: int
    bookmaker_id: int
    captured_at: datetime
    last_confirmed_at: datetime
    markets: tuple[Market, ...] = ()


MARKET = tuple(Market.__dataclass_fields__)
SNAPSHOT = tuple(Snapshot.__dataclass_fields__)


def plain(snapshot: CachedSnapshot) -> Snapshot:
    """The same values as a dataclass. Reads each attribute once, and checks the types that callers rely on."""
    assert type(snapshot.markets) is tuple
    markets = []
    for market in snapshot.markets:
        values = {name: getattr(market, name) for name in MARKET}
        assert type(values["outcomes"]) is list
        assert all(type(outcome) is dict for outcome in values["outcomes"])
        assert type(values["market_groups"]) is list
        markets.append(Market(**values))
    values = {name: getattr(snapshot, name) for name in SNAPSHOT}
    return Snapshot(**{**values, "markets": tuple(markets)})


def all_plain(found: dict[int, dict[Any, CachedSnapshot]]) -> dict[int, dict[Any, Snapshot]]:
    """What a lookup of several events returned, as dataclasses."""
    assert type(found) is dict
    assert all(type(snapshots) is dict for snapshots in found.values())
    return {
        event_id: {key: plain(snapshot) for key, snapshot in snapshots.items()} for event_id, snapshots in found.items()
    }


def differences(held: Any, expected: Any, path: str = "") -> list[str]:
    """Where two values of lookups differ."""
    if dataclasses.is_dataclass(held) and type(held) is type(expected):
        pairs = [(field.name, getattr(held, field.name), getattr(expected, field.name)) for field in fields(held)]
    elif isinstance(held, dict) and isinstance(expected, dict) and held.keys() == expected.keys():
        pairs = [(key, held[key], expected[key]) for key in expected]
    elif isinstance(held, (list, tuple)) and type(held) is type(expected) and len(held) == len(expected):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(held, expected, strict=True))]
    else:
        return [] if held == expected else [f"{path}: held {held!r}, expected {expected!r}"]
    return [line for name, a, b in pairs for line in differences(a, b, f"{path}/{name}")]
