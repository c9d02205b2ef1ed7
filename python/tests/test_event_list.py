"""The event list as JSON equals what Python makes from the snapshots."""

import concurrent.futures
import json
import random
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import pytest

from database import Database, market, utc_now
from detached import snapshot
from oddscache import CachedSnapshot, OddsCache, View
from rows import margin

DEFAULT: tuple[Any, ...] = ("3743", ("5000", 2.5), "3795", "4693")


def time_text(moment: datetime | None) -> datetime | None:
    return moment and moment.astimezone(timezone.utc)


def entry(bookmaker: str, snapshot: CachedSnapshot, markets: Iterable[Any]) -> dict[str, Any]:
    wanted = [each if isinstance(each, tuple) else (each, None) for each in markets]

    def shown(market_id: str, line: float | None) -> bool:
        return any(market_id == an_id and (a_line is None or line == a_line) for an_id, a_line in wanted)

    return {
        "bookmaker": bookmaker,
        "bookmaker_id": snapshot.bookmaker_id,
        "last_confirmed_at": time_text(snapshot.last_confirmed_at),
        "markets": [
            {
                "betpawa_market_id": m.betpawa_market_id,
                "betpawa_market_name": m.betpawa_market_name,
                "line": m.line,
                "margin": margin(m.outcomes),
                "outcomes": [{name: o[name] for name in ("name", "odds", "is_active")} for o in m.outcomes],
                "available": m.unavailable_at is None,
                "unavailable_since": time_text(m.unavailable_at),
            }
            for m in snapshot.markets
            if shown(m.betpawa_market_id, m.line)
        ],
    }


def expected(view: View, ids: Iterable[int], markets: Iterable[Any] = DEFAULT) -> list[dict[str, Any]]:
    """The list, built from what lookups return."""
    found = []
    for event_id in ids:
        own = view.get_betpawa_snapshot(event_id) or {}
        others = view.get_competitor_snapshot(event_id) or {}
        if event_id not in view.event_ids():
            continue
        odds = [entry("betpawa", own[key], markets) for key in sorted(own)]
        odds += [entry(source, others[source], markets) for source in sorted(others)]
        names = view.names(event_id)
        assert names is not None
        bookmakers = names.pop("bookmakers")
        for row in odds:
            row["bookmaker_slug"] = bookmakers.get(row["bookmaker_id"], {}).get("slug")
            row["bookmaker_name"] = bookmakers.get(row["bookmaker_id"], {}).get("name")
        found.append({"event_id": event_id, "kickoff": time_text(view.kickoff(event_id)), **names, "odds": odds})
    return found


def read(text: bytes) -> Any:
    """Parses the list, and its times."""
    assert type(text) is bytes

    def times(row: dict[str, Any]) -> dict[str, Any]:
        for name in ("kickoff", "last_confirmed_at", "unavailable_since"):
            if row.get(name) is not None:
                assert row[name].endswith("Z")
                row[name] = datetime.fromisoformat(row[name].replace("Z", "+00:00"))
        return row

    return json.loads(text, object_hook=times)


def fill(database: Database, count: int) -> None:
    chance = random.Random(count)
    with database.transaction():
        for event_id in range(1, count + 1):
            # Times with six digits: Python 3.10 reads no other fractions.
            kickoff = (utc_now().replace(microsecond=0), 5 + chance.random())
            database.event(event_id)
            database.execute(
                "UPDATE events SET kickoff = %s::timestamp + %s * interval '1 hour' WHERE id = %s",
                kickoff[0],
                round(kickoff[1] * 3600) / 3600,
                event_id,
            )
            rows = [
                market("3743", [round(chance.uniform(1.01, 9), 2) for _ in range(3)]),
                market("5000", (1.8, 2.0), line=2.5, unavailable_at=datetime(2026, 1, 1, 12, 30, 15)),
                market("5000", (1.8, 2.0), line=3.5),
                market("3795", (None, 2.0), betpawa_market_name='"ü\\'),
                market("4693", ()),
                market("other"),
            ]
            at = datetime(2026, 5, 1, 12, 0, event_id)
            for bookmaker_id in range(1, 1 + event_id % 3):
                database.snapshot(event_id, bookmaker_id, rows, captured_at=at)
            for source in ("sportybet", "bet9ja")[: event_id % 2 + 1]:
                database.competitor_snapshot(database.competitor(event_id, source), rows[:3], captured_at=at)


def by_kickoff(view: View) -> list[int]:
    def key(event_id: int) -> tuple[datetime, int]:
        kickoff = view.kickoff(event_id)
        assert kickoff
        return kickoff, event_id

    return sorted(view.event_ids(), key=key)


def test_the_whole_list(database: Database, cache: OddsCache) -> None:
    """The list equals the one made from snapshots: all events by kickoff, also after each of some changes."""
    assert cache.event_list_json() == b"[]"
    fill(database, 12)
    for change in (
        "SELECT 1",
        "UPDATE market_odds SET unavailable_at = '2026-02-02 02:02:02' WHERE betpawa_market_id = '3743'",
        "UPDATE odds_snapshots SET last_confirmed_at = '2026-06-01 01:02:03' WHERE event_id % 2 = 0",
        "UPDATE events SET kickoff = kickoff + interval '3 hours' WHERE id = 3",
        "DELETE FROM odds_snapshots WHERE event_id = 4",
    ):
        database.execute(change)
        view = cache.wait_for(database.xid())
        listed = read(cache.event_list_json())
        assert listed == expected(view, by_kickoff(view)), change
        assert len(listed) == 12
        assert cache.event_list_json() == cache.event_list_json()


def test_some_events(database: Database, cache: OddsCache) -> None:
    """With ids the list has these events, in this order; absent ones are left out."""
    fill(database, 6)
    view = cache.wait_for(database.xid())
    ids = [5, -1, 2, 10**30, 6]
    assert read(cache.event_list_json(ids)) == expected(view, [5, 2, 6])
    assert read(cache.event_list_json(event_ids=iter(ids))) == expected(view, [5, 2, 6])
    assert cache.event_list_json([]) == b"[]"
    assert cache.event_list_json([99]) == b"[]"


@pytest.mark.parametrize("markets", [(), ("other",), (("5000", 3.5), "other"), ("5000",), [("3743", None)], DEFAULT])
def test_other_markets(database: Database, cache: OddsCache, markets: Any) -> None:
    """`markets` chooses what is shown, by id or by id and line; several choices live beside each other."""
    fill(database, 5)
    view = cache.wait_for(database.xid())
    for _ in range(2):
        assert read(cache.event_list_json(markets=markets)) == expected(view, by_kickoff(view), markets)
        assert read(cache.event_list_json([2, 1], markets)) == expected(view, [2, 1], markets)
        assert read(cache.event_list_json()) == expected(view, by_kickoff(view))


def test_lists_in_many_threads(database: Database, cache: OddsCache) -> None:
    """Threads that ask for lists at once, with different markets, each get a right one."""
    fill(database, 8)
    view = cache.wait_for(database.xid())
    choices: list[tuple[Any, ...]] = [("3743",), ("5000",), ("other", ("5000", 3.5))]
    right = [expected(view, by_kickoff(view), choice) for choice in choices]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        lists = list(pool.map(lambda n: cache.event_list_json(markets=choices[n % 3]), range(120)))
    assert [read(text) for text in lists] == [right[n % 3] for n in range(120)]


def test_a_detached_list() -> None:
    """A cache without a database lists what was put, an event without kickoff with null."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    listed = json.loads(cache.event_list_json())
    assert [(each["event_id"], each["kickoff"], len(each["odds"])) for each in listed] == [(7, None, 1)]


def test_naive_times_do_not_change_the_list(database: Database) -> None:
    """With naive_times the list is the same: JSON always says UTC."""
    fill(database, 3)
    with OddsCache.connect(database.url) as aware, OddsCache.connect(database.url, naive_times=True) as naive:
        aware.ready(10)
        naive.ready(10)
        assert naive.event_list_json() == aware.event_list_json()
