"""What the application does with snapshots: inline odds, and the event list. It runs unchanged on both caches."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol


class Market(Protocol):
    @property
    def betpawa_market_id(self) -> str: ...
    @property
    def betpawa_market_name(self) -> str: ...
    @property
    def line(self) -> float | None: ...
    @property
    def handicap_type(self) -> str | None: ...
    @property
    def handicap_home(self) -> float | None: ...
    @property
    def handicap_away(self) -> float | None: ...
    @property
    def outcomes(self) -> list[dict[str, Any]]: ...
    @property
    def market_groups(self) -> list[Any]: ...
    @property
    def unavailable_at(self) -> datetime | None: ...


class Snapshot(Protocol):
    @property
    def bookmaker_id(self) -> int: ...
    @property
    def captured_at(self) -> datetime: ...
    @property
    def last_confirmed_at(self) -> datetime: ...
    @property
    def markets(self) -> tuple[Market, ...]: ...


class Cache(Protocol):
    """What the two caches have in common."""

    def get_betpawa_snapshots(self, event_ids: Iterable[int]) -> Mapping[int, Mapping[int, Snapshot]]: ...
    def get_competitor_snapshots(self, event_ids: Iterable[int]) -> Mapping[int, Mapping[str, Snapshot]]: ...
    def event_ids(self) -> list[int]: ...
    def kickoff(self, event_id: int) -> datetime | None: ...


# The markets that the event list shows, and the line that each must have. None: any line.
INLINE_MARKETS: dict[str, float | None] = {"3743": None, "5000": 2.5, "3795": None, "4693": None}


def margin(outcomes: list[dict[str, Any]]) -> float | None:
    """The bookmaker's margin in per cent."""
    total = 0.0
    for outcome in outcomes:
        odds = outcome["odds"]
        if not odds or odds <= 0:
            return None
        total += 1 / odds
    return round((total - 1) * 10_000) / 100 if outcomes else None


def build_inline_odds(snapshot: Snapshot) -> list[dict[str, Any]]:
    inline = []
    for market in snapshot.markets:
        market_id = market.betpawa_market_id
        if market_id not in INLINE_MARKETS:
            continue
        line = INLINE_MARKETS[market_id]
        if line is not None and market.line != line:
            continue
        outcomes = market.outcomes
        unavailable_at = market.unavailable_at
        inline.append(
            {
                "betpawa_market_id": market_id,
                "betpawa_market_name": market.betpawa_market_name,
                "line": market.line,
                "margin": margin(outcomes),
                "outcomes": [
                    {"name": outcome["name"], "odds": outcome["odds"], "is_active": outcome["is_active"]}
                    for outcome in outcomes
                ],
                "available": unavailable_at is None,
                "unavailable_since": unavailable_at,
            }
        )
    return inline


def inline_odds(cache: Cache, event_ids: Iterable[int]) -> dict[int, dict[int, list[dict[str, Any]]]]:
    """A page of the event list: our own odds of some events."""
    return {
        event_id: {bookmaker_id: build_inline_odds(snapshot) for bookmaker_id, snapshot in snapshots.items()}
        for event_id, snapshots in cache.get_betpawa_snapshots(event_ids).items()
    }


def event_list(cache: Cache) -> list[dict[str, Any]]:
    """All events in the shape of `event_list_json`, by kickoff, then id."""
    events = sorted((kickoff, event_id) for event_id in cache.event_ids() if (kickoff := cache.kickoff(event_id)))
    ids = [event_id for _, event_id in events]
    betpawa = cache.get_betpawa_snapshots(ids)
    competitors = cache.get_competitor_snapshots(ids)
    listed = []
    for kickoff, event_id in events:
        odds = [_bookmaker("betpawa", snapshot) for _, snapshot in sorted(betpawa.get(event_id, {}).items())]
        odds += [_bookmaker(source, snapshot) for source, snapshot in sorted(competitors.get(event_id, {}).items())]
        listed.append({"event_id": event_id, "kickoff": kickoff, "odds": odds})
    return listed


def _bookmaker(name: str, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "bookmaker": name,
        "bookmaker_id": snapshot.bookmaker_id,
        "last_confirmed_at": snapshot.last_confirmed_at,
        "markets": build_inline_odds(snapshot),
    }


def walk(cache: Cache) -> int:
    """Reads every attribute of every market once, keeps nothing, and returns how many markets there are."""
    markets = 0
    for event_id in cache.event_ids():
        for snapshots in cache.get_betpawa_snapshots([event_id]).values():
            markets += sum(map(_read, snapshots.values()))
        for competitors in cache.get_competitor_snapshots([event_id]).values():
            markets += sum(map(_read, competitors.values()))
    return markets


def _read(snapshot: Snapshot) -> int:
    _ = (snapshot.bookmaker_id, snapshot.captured_at, snapshot.last_confirmed_at)
    for market in snapshot.markets:
        _ = (market.betpawa_market_id, market.betpawa_market_name, market.line, market.handicap_type)
        _ = (market.handicap_home, market.handicap_away, market.unavailable_at, market.market_groups)
        for outcome in market.outcomes:
            _ = (outcome["name"], outcome["odds"], outcome["is_active"])
    return len(snapshot.markets)
