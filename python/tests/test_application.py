"""Functions that were written for SQLAlchemy's rows give the same for snapshots of the cache."""

import random
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

import rows
from database import Database, market, utc_now
from detached import snapshot as make
from oddscache import CachedSnapshot, OddsCache


def write_events(database: Database, count: int) -> None:
    """Several events, two snapshots each by two bookmakers, with all kinds of markets."""
    chance = random.Random(count)

    def odds(n: int) -> list[float | None]:
        return [None if chance.random() < 0.05 else round(chance.uniform(1.01, 20), 2) for _ in range(n)]

    for event_id in range(1, count + 1):
        database.event(event_id)
        for bookmaker_id in (1, 1, 2, 2):
            inactive = [{"name": "Yes", "odds": 1.5, "is_active": False}, {"name": "No", "odds": 2}]
            database.snapshot(
                event_id,
                bookmaker_id,
                [
                    market("3743", odds(3)),
                    *(market("5000", odds(2), line=line, market_groups=["main", "goals"]) for line in (1.5, 2.5, 3.5)),
                    market("3795", outcomes=inactive, market_groups=None),
                    market("4693", odds(2), unavailable_at=utc_now()),
                    market("1096783", odds(2), handicap_type="home", handicap_home=-1.0, handicap_away=1.0),
                    market("1", []),
                ],
                last_confirmed_at=utc_now() + timedelta(minutes=1) if event_id % 2 else None,
            )


def test_functions_for_rows_work_on_snapshots(database: Database, cache: OddsCache) -> None:
    """Each of the application's functions returns the same for a row of SQLAlchemy and for our snapshot of it."""
    write_events(database, 8)
    view = cache.wait_for(database.xid())
    url = database.url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    with Session(engine) as session:
        of_rows: dict[int, dict[int, rows.OddsSnapshot]] = {}
        for row in session.scalars(select(rows.OddsSnapshot).order_by(rows.OddsSnapshot.snapshot_id)):
            of_rows.setdefault(row.event_id, {})[row.bookmaker_id] = row
        ours = view.get_betpawa_snapshots(of_rows)
        assert {event_id: set(found) for event_id, found in ours.items()} == {n: {1, 2} for n in range(1, 9)}

        for_one: list[Callable[[object], object]] = [rows.build_inline_odds, rows.markets_by_group, rows.handicaps]
        for event_id, by_bookmaker in of_rows.items():
            for bookmaker_id, row in by_bookmaker.items():
                held = ours[event_id][bookmaker_id]
                assert held.snapshot_id == row.snapshot_id
                for function in for_one:
                    assert function(held) == function(row)
                    assert function(row)
                other = by_bookmaker[3 - bookmaker_id]
                moved = rows.outcome_changes(other, row)
                assert moved
                assert rows.outcome_changes(ours[event_id][3 - bookmaker_id], held) == moved
                assert rows.outcome_changes(row, held) == []
            best = rows.best_odds(by_bookmaker.values(), "3743")
            assert best
            assert rows.best_odds(ours[event_id].values(), "3743") == best
    engine.dispose()


def test_the_application_merges_lookups() -> None:
    """The application updates one returned dict with another, and sorts and filters snapshots as it did its own."""
    cache = OddsCache()
    for event_id in (1, 2):
        cache.put_betpawa_snapshot(event_id, 1, make(event_id))
        cache.put_competitor_snapshot(event_id, "bet9ja", make(event_id, 0))
    found = cache.get_betpawa_snapshots([1])
    found.update(cache.get_betpawa_snapshots([2]))
    merged: dict[int | str, CachedSnapshot] = dict(found[1].items())
    merged.update(cache.get_competitor_snapshots([1])[1].items())
    assert list(merged) == [1, "bet9ja"]
    assert found | {} == cache.get_betpawa_snapshots([1, 2])
