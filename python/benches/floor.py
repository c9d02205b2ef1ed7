"""The floor: the interface of the application's cache, plainly written.

Dicts of frozen dataclasses, filled from PostgreSQL by psycopg, which parses the JSON columns. This is what a Python
programmer writes first, and it is fast to read: a lookup copies nothing, and every attribute is a stored object. It
does not follow the database. It is neither tuned (no slots, no interned strings) nor slowed down.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg


@dataclass(frozen=True)
class CachedMarket:
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
class CachedSnapshot:
    snapshot_id: int
    event_id: int
    bookmaker_id: int
    captured_at: datetime
    last_confirmed_at: datetime
    markets: tuple[CachedMarket, ...] = ()


class PlainCache:
    def __init__(self) -> None:
        self._betpawa: dict[int, dict[int, CachedSnapshot]] = {}
        self._competitors: dict[int, dict[str, CachedSnapshot]] = {}
        self._kickoffs: dict[int, datetime] = {}

    def get_betpawa_snapshots(self, event_ids: Iterable[int]) -> dict[int, dict[int, CachedSnapshot]]:
        return {event_id: self._betpawa[event_id] for event_id in event_ids if event_id in self._betpawa}

    def get_competitor_snapshots(self, event_ids: Iterable[int]) -> dict[int, dict[str, CachedSnapshot]]:
        return {event_id: self._competitors[event_id] for event_id in event_ids if event_id in self._competitors}

    def get_betpawa_snapshot(self, event_id: int) -> dict[int, CachedSnapshot] | None:
        return self._betpawa.get(event_id)

    def get_competitor_snapshot(self, event_id: int) -> dict[str, CachedSnapshot] | None:
        return self._competitors.get(event_id)

    def event_ids(self) -> list[int]:
        return list(self._kickoffs)

    def kickoff(self, event_id: int) -> datetime | None:
        return self._kickoffs.get(event_id)

    def load(self, url: str) -> None:
        """Reads the latest snapshots of all upcoming events, from one state of the database."""
        with psycopg.connect(url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._kickoffs = dict(connection.execute(_EVENTS).fetchall())
            markets = _markets(connection, "market_odds", _LATEST)
            for snapshot_id, event_id, bookmaker_id, captured_at, confirmed_at in connection.execute(_LATEST):
                self._betpawa.setdefault(event_id, {})[bookmaker_id] = CachedSnapshot(
                    snapshot_id, event_id, bookmaker_id, captured_at, confirmed_at, tuple(markets.get(snapshot_id, ()))
                )
            markets = _markets(connection, "competitor_market_odds", _COMPETITORS_LATEST)
            rows = connection.execute(_COMPETITORS_LATEST)
            for snapshot_id, event_id, source, captured_at, confirmed_at in rows:
                self._competitors.setdefault(event_id, {})[source] = CachedSnapshot(
                    snapshot_id, event_id, 0, captured_at, confirmed_at, tuple(markets.get(snapshot_id, ()))
                )


def _markets(connection: psycopg.Connection[tuple[Any, ...]], table: str, latest: str) -> dict[int, list[CachedMarket]]:
    """The markets of the latest snapshots. A server-side cursor: all rows at once would leave holes in the memory."""
    markets: dict[int, list[CachedMarket]] = {}
    query = f"""
        select m.snapshot_id, m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, m.handicap_home,
               m.handicap_away, m.outcomes, coalesce(m.market_groups, '[]'), m.unavailable_at
        from {table} m
        join ({latest}) latest on latest.id = m.snapshot_id
        order by m.snapshot_id, m.id"""
    with connection.cursor("markets") as rows:
        rows.itersize = 5000
        rows.execute(query.encode())
        for snapshot_id, *columns in rows:
            markets.setdefault(snapshot_id, []).append(CachedMarket(*columns))
    return markets


_EVENTS = "select id, kickoff from events where kickoff > now() at time zone 'UTC' - interval '2 hours'"

_LATEST = """
    select s.id, s.event_id, s.bookmaker_id, s.captured_at, coalesce(s.last_confirmed_at, s.captured_at)
    from odds_snapshots s
    join (select max(s.id) as id
          from odds_snapshots s
          join events e on e.id = s.event_id
          where e.kickoff > now() at time zone 'UTC' - interval '2 hours'
          group by s.event_id, s.bookmaker_id) newest on newest.id = s.id"""

_COMPETITORS_LATEST = """
    select s.id, c.betpawa_event_id, c.source, s.captured_at, coalesce(s.last_confirmed_at, s.captured_at)
    from competitor_odds_snapshots s
    join competitor_events c on c.id = s.competitor_event_id
    join (select max(s.id) as id
          from competitor_odds_snapshots s
          join competitor_events c on c.id = s.competitor_event_id
          join events e on e.id = c.betpawa_event_id
          where c.deleted_at is null and e.kickoff > now() at time zone 'UTC' - interval '2 hours'
          group by s.competitor_event_id) newest on newest.id = s.id"""
