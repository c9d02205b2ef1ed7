"""Snapshots to put into a cache without a database."""

from datetime import datetime, timedelta, timezone
from typing import Any

from oddscache import CachedMarket, CachedSnapshot

UTC = timezone.utc
AT = datetime(2026, 3, 1, 12, 30, 15, 250001, tzinfo=UTC)
KICKOFF = AT + timedelta(hours=5)


def market(**fields: Any) -> CachedMarket:
    """A market that has a value in each field."""
    given: dict[str, Any] = {
        "betpawa_market_id": "5000",
        "betpawa_market_name": "Over/Under",
        "line": 2.5,
        "handicap_type": "goals",
        "handicap_home": -1.5,
        "handicap_away": 1.5,
        "outcomes": [
            {"name": "Over", "odds": 1.9, "is_active": True, "extra": {"deep": [1, "two", None]}},
            {"name": "Under", "odds": 1.85, "is_active": False},
        ],
        "market_groups": ["main", "goals"],
        "unavailable_at": AT,
    }
    return CachedMarket(**{**given, **fields})


def snapshot(event_id: int = 7, bookmaker_id: int = 1, snapshot_id: int = 70, **fields: Any) -> CachedSnapshot:
    given: dict[str, Any] = {
        "captured_at": AT,
        "last_confirmed_at": AT + timedelta(minutes=5),
        "markets": (market(), market(betpawa_market_id="3743", line=None, unavailable_at=None)),
    }
    return CachedSnapshot(snapshot_id=snapshot_id, event_id=event_id, bookmaker_id=bookmaker_id, **{**given, **fields})
