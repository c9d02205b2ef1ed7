"""The application's own interface, on a cache without a database."""

import gc
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from detached import AT, KICKOFF, UTC, market, snapshot
from oddscache import CachedSnapshot, OddsCache
from plain import Market, Snapshot, all_plain, plain
from waiting import eventually


def test_what_was_put_is_found() -> None:
    """Each lookup returns what was put, equal by value, in real dicts keyed as the application keys them."""
    cache = OddsCache()
    own, other = snapshot(7, 1, 70), snapshot(7, 2, 71)
    rival = snapshot(7, 0, 72)
    cache.put_betpawa_snapshot(7, 1, own, kickoff=KICKOFF)
    cache.put_betpawa_snapshot(7, 2, other)
    cache.put_competitor_snapshot(7, "sportybet", rival)
    cache.put_competitor_snapshot(8, "bet9ja", snapshot(8, 0, 73), KICKOFF)

    assert cache.get_betpawa_snapshots([7, 8, 9]) == {7: {1: own, 2: other}}
    assert cache.get_competitor_snapshots([7, 8, 9]) == {7: {"sportybet": rival}, 8: {"bet9ja": snapshot(8, 0, 73)}}
    assert cache.get_betpawa_snapshot(7) == {1: own, 2: other}
    assert cache.get_competitor_snapshot(7) == {"sportybet": rival}
    assert cache.get_betpawa_snapshot(8) is None
    assert cache.get_betpawa_snapshot(9) is None
    assert cache.get_competitor_snapshot(9) is None
    for found in (cache.get_betpawa_snapshots([7]), cache.get_competitor_snapshots([7, 8])):
        assert all_plain(found)
    assert type(cache.get_betpawa_snapshot(7)) is dict
    assert type(cache.get_competitor_snapshot(7)) is dict
    assert sorted(cache.event_ids()) == [7, 8]
    assert cache.kickoff(7) == KICKOFF
    assert cache.kickoff(9) is None


def test_every_field_comes_back() -> None:
    """All fields of a snapshot and a market come back with the values and types that were put."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    found = cache.get_betpawa_snapshots([7])[7][1]
    assert plain(found) == Snapshot(
        snapshot_id=70,
        event_id=7,
        bookmaker_id=1,
        captured_at=AT,
        last_confirmed_at=AT + timedelta(minutes=5),
        markets=(
            Market(
                betpawa_market_id="5000",
                betpawa_market_name="Over/Under",
                line=2.5,
                handicap_type="goals",
                handicap_home=-1.5,
                handicap_away=1.5,
                outcomes=[
                    {"name": "Over", "odds": 1.9, "is_active": True, "extra": {"deep": [1, "two", None]}},
                    {"name": "Under", "odds": 1.85, "is_active": False},
                ],
                market_groups=["main", "goals"],
                unavailable_at=AT,
            ),
            plain(snapshot()).markets[1],
        ),
    )
    first = found.markets[0]
    assert type(first.line) is float
    assert type(first.outcomes[0]["odds"]) is float
    assert first.outcomes[0]["is_active"] is True
    assert first.outcomes[1]["is_active"] is False
    assert list(first.outcomes[0])[:3] == ["name", "odds", "is_active"]
    assert found.captured_at.tzinfo is not None
    assert found.captured_at.utcoffset() == timedelta(0)


def test_values_that_json_allows_come_back() -> None:
    """Odds that are missing, integers or not finite in no way, empty lists and any text survive the cache."""
    odd = [
        {"name": "", "odds": None, "is_active": True},
        {"name": 'Ünïcødé \U0001f3c6 "quoted"\n', "odds": 2, "is_active": True},
        {"name": "precise", "odds": 1.0000000000000002, "is_active": True, "n": 2**53 + 1, "none": None, "yes": True},
    ]
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot(markets=(market(outcomes=odd, market_groups=[]), market(outcomes=[]))))
    first, second = cache.get_betpawa_snapshots([7])[7][1].markets
    assert first.outcomes == odd
    assert first.market_groups == []
    assert second.outcomes == []


def test_dataclasses_can_be_put() -> None:
    """The application's own dataclasses need no conversion before they are put."""
    cache = OddsCache()
    given = plain(snapshot())
    cache.put_betpawa_snapshot(7, 1, given)
    cache.put_competitor_snapshot(7, "bet9ja", given)
    assert plain(cache.get_betpawa_snapshots([7])[7][1]) == given
    assert plain(cache.get_competitor_snapshots([7])[7]["bet9ja"]).markets == given.markets


def test_the_latest_put_counts() -> None:
    """A second put of the same event and bookmaker replaces the first, and a snapshot held before keeps its values."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot(), KICKOFF)
    before = cache.get_betpawa_snapshots([7])
    cache.put_betpawa_snapshot(7, 1, snapshot(snapshot_id=99, markets=()))
    assert cache.get_betpawa_snapshots([7])[7][1].snapshot_id == 99
    assert cache.get_betpawa_snapshots([7])[7][1].markets == ()
    assert before == {7: {1: snapshot()}}
    assert cache.kickoff(7) == KICKOFF


@pytest.mark.parametrize("ids", [[7], (7,), {7}, frozenset([7]), {7: "x"}, {7: 1}.keys(), range(6, 9)])
def test_ids_are_any_iterable(ids: Any) -> None:
    """Event ids may come in any iterable, which is read once."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    assert list(cache.get_betpawa_snapshots(ids)) == [7]
    assert list(cache.get_betpawa_snapshots(iter(ids))) == [7]
    assert cache.get_competitor_snapshots(ids) == {}
    assert cache.get_betpawa_snapshots(event_ids=ids).keys() == {7}


def test_unknown_ids_are_absent() -> None:
    """Ids that no event has are absent, also negative ones, and ones that no column can hold."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    assert cache.get_betpawa_snapshots([]) == {}
    assert cache.get_betpawa_snapshots([-7, 0, 2**63, -(2**63) - 1, 10**30, 7]) == {7: {1: snapshot()}}
    for unknown in (-7, 2**63, 10**30):
        assert cache.get_betpawa_snapshot(unknown) is None
        assert cache.get_competitor_snapshot(unknown) is None
        assert cache.kickoff(unknown) is None
    assert cache.get_betpawa_snapshots([7, 7, 7]).keys() == {7}


def test_lookups_are_isolated_from_callers() -> None:
    """Whatever a caller does to returned dicts and lists, the next lookup is as before."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    cache.put_competitor_snapshot(7, "bet9ja", snapshot(bookmaker_id=0))

    found = cache.get_betpawa_snapshots([7])
    found.update({8: {}})
    found[7].clear()
    one = cache.get_betpawa_snapshot(7)
    assert one
    kept = one.pop(1)
    rivals = cache.get_competitor_snapshot(7)
    assert rivals
    rivals["x"] = kept
    cache.get_competitor_snapshots([7])[7].clear()
    for held in (kept, cache.get_betpawa_snapshots([7])[7][1]):
        outcomes = held.markets[0].outcomes
        outcomes[0]["odds"] = 99.0
        outcomes[0]["extra"]["deep"].append(1)
        outcomes.append({})
        held.markets[0].market_groups.append("x")

    assert cache.get_betpawa_snapshots([7]) == {7: {1: snapshot()}}
    assert cache.get_betpawa_snapshot(7) == {1: snapshot()}
    assert cache.get_competitor_snapshots([7]) == {7: {"bet9ja": snapshot(bookmaker_id=0)}}
    assert cache.get_competitor_snapshot(7) == {"bet9ja": snapshot(bookmaker_id=0)}
    assert kept == snapshot()


def test_the_cache_is_isolated_from_what_was_put() -> None:
    """Changing a list after it was put does not change the cache."""
    cache = OddsCache()
    mine = snapshot()
    cache.put_betpawa_snapshot(7, 1, mine)
    mine.markets[0].outcomes[0]["odds"] = 99.0
    mine.markets[0].market_groups.clear()
    assert cache.get_betpawa_snapshots([7]) == {7: {1: snapshot()}}


def test_lists_are_new_at_each_access() -> None:
    """A market of a cache makes new lists and dicts at each access; a market of a program keeps those it was given."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    held = cache.get_betpawa_snapshots([7])[7][1].markets[0]
    assert held.outcomes is not held.outcomes
    assert held.outcomes[0] is not held.outcomes[0]
    assert held.market_groups is not held.market_groups
    mine: list[dict[str, Any]] = [{"name": "1"}]
    assert market(outcomes=mine).outcomes is mine


@pytest.mark.parametrize("aware", [True, False])
def test_evict_expired(aware: bool) -> None:
    """Eviction removes and counts the events that kicked off by the cutoff, which may be naive (UTC) or in any zone."""
    cache = OddsCache()
    for event_id in range(4):
        kickoff = KICKOFF + timedelta(hours=event_id)
        cache.put_betpawa_snapshot(
            event_id, 1, snapshot(event_id), kickoff=kickoff if aware else kickoff.replace(tzinfo=None)
        )
        cache.put_competitor_snapshot(event_id, "bet9ja", snapshot(event_id, 0), kickoff=kickoff)
    cutoff = KICKOFF + timedelta(hours=1, minutes=30)
    cutoff = cutoff.astimezone(timezone(timedelta(hours=-7))) if aware else cutoff.replace(tzinfo=None)
    assert cache.evict_expired(cutoff) == 2
    assert sorted(cache.event_ids()) == [2, 3]
    assert cache.get_competitor_snapshots(range(4)).keys() == {2, 3}
    assert cache.evict_expired(cutoff) == 0


def test_an_event_without_a_kickoff_is_not_evicted() -> None:
    """The application may put a snapshot before it knows the kickoff; no cutoff removes that event."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    assert cache.kickoff(7) is None
    assert cache.evict_expired(datetime(2100, 1, 1)) == 0
    assert cache.event_ids() == [7]


def test_clear_and_stats() -> None:
    """`stats` counts what the application counted, and `clear` empties the cache."""
    cache = OddsCache()
    empty = cache.stats()
    counted = ("betpawa_events", "competitor_events", "total_snapshots", "total_markets")
    assert [empty[name] for name in counted] == [0, 0, 0, 0]
    cache.put_betpawa_snapshot(7, 1, snapshot())
    cache.put_betpawa_snapshot(7, 2, snapshot(bookmaker_id=2))
    cache.put_betpawa_snapshot(8, 1, snapshot(8))
    cache.put_competitor_snapshot(8, "bet9ja", snapshot(8, 0))
    stats = cache.stats()
    assert type(stats) is dict
    assert [stats[name] for name in counted] == [2, 1, 4, 8]
    assert stats["memory_bytes"] > empty["memory_bytes"]
    cache.clear()
    assert [cache.stats()[name] for name in counted] == [0, 0, 0, 0]
    assert cache.event_ids() == []
    assert cache.get_betpawa_snapshots([7, 8]) == {}


def test_times_are_naive_on_request() -> None:
    """With naive_times=True every time is naive UTC, as the application's old loaders gave them."""
    cache = OddsCache(naive_times=True)
    cache.put_betpawa_snapshot(7, 1, snapshot(), kickoff=KICKOFF)
    found = cache.get_betpawa_snapshots([7])[7][1]
    assert found.captured_at == AT.replace(tzinfo=None)
    assert found.last_confirmed_at == (AT + timedelta(minutes=5)).replace(tzinfo=None)
    assert found.markets[0].unavailable_at == AT.replace(tzinfo=None)
    assert cache.kickoff(7) == KICKOFF.replace(tzinfo=None)


def test_other_zones_become_utc() -> None:
    """A time that was put in another zone comes back as the same moment, in UTC."""
    zone = timezone(timedelta(hours=5, minutes=30))
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot(captured_at=AT.astimezone(zone)), kickoff=KICKOFF.astimezone(zone))
    found = cache.get_betpawa_snapshots([7])[7][1].captured_at
    assert (found, found.utcoffset()) == (AT, timedelta(0))
    kickoff = cache.kickoff(7)
    assert kickoff
    assert (kickoff, kickoff.utcoffset()) == (KICKOFF, timedelta(0))


def test_callbacks_get_ids_and_source() -> None:
    """A callback gets the ids as a list of int and the source, in the thread that puts, until it is removed."""
    cache = OddsCache()
    calls: list[tuple[list[int], str, int]] = []

    def callback(event_ids: list[int], source: str) -> None:
        calls.append((event_ids, source, threading.get_ident()))

    remove = cache.on_update(callback)
    here = threading.get_ident()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    cache.put_competitor_snapshot(8, "bet9ja", snapshot(8, 0))
    assert calls == [([7], "betpawa", here), ([8], "bet9ja", here)]
    assert type(calls[0][0]) is list
    remove()
    remove()
    cache.put_betpawa_snapshot(7, 1, snapshot(snapshot_id=71))
    assert len(calls) == 2


def test_a_callback_sees_the_change() -> None:
    """When a callback runs, lookups already return what it was told of; it may also put into the cache."""
    cache = OddsCache()
    seen: list[int] = []

    def callback(event_ids: list[int], source: str) -> None:
        seen.extend(cache.get_betpawa_snapshots(event_ids))
        if event_ids == [7]:
            cache.put_betpawa_snapshot(8, 1, snapshot(8))

    cache.on_update(callback)
    cache.put_betpawa_snapshot(7, 1, snapshot())
    assert seen == [7, 8]


def test_one_failing_callback_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a callback is logged with its traceback; the other callbacks and the put go on."""
    cache = OddsCache()
    calls: list[str] = []

    def failing(event_ids: list[int], source: str) -> None:
        calls.append("failing")
        raise RuntimeError("a bug of the application")

    cache.on_update(lambda event_ids, source: calls.append("first"))
    cache.on_update(failing)
    cache.on_update(lambda event_ids, source: calls.append("last"))
    cache.put_betpawa_snapshot(7, 1, snapshot())
    assert calls == ["first", "failing", "last"]
    assert cache.event_ids() == [7]
    records = [record for record in caplog.records if record.name.startswith("oddscache") and record.exc_info]
    assert len(records) == 1
    assert records[0].exc_info
    assert "a bug of the application" in str(records[0].exc_info[1])


def test_a_callback_may_be_removed_while_callbacks_run() -> None:
    """A callback that removes itself, or adds another, breaks no loop."""
    cache = OddsCache()
    calls: list[str] = []
    removers: list[Callable[[], None]] = []

    def once(event_ids: list[int], source: str) -> None:
        calls.append("once")
        removers[0]()
        cache.on_update(lambda event_ids, source: calls.append("added"))

    removers.append(cache.on_update(once))
    cache.on_update(lambda event_ids, source: calls.append("other"))
    cache.put_betpawa_snapshot(7, 1, snapshot())
    calls.clear()
    cache.put_betpawa_snapshot(7, 1, snapshot(snapshot_id=71))
    assert sorted(calls) == ["added", "other"]


def test_a_detached_cache_says_so() -> None:
    """A cache without a database has the status `detached`, and needs no wait."""
    cache = OddsCache()
    assert cache.status.name == "detached"
    assert str(cache.status)
    assert list(cache.status.faults) == []
    cache.put_betpawa_snapshot(7, 1, snapshot())
    view = cache.view()
    assert len(view) == 1
    assert view.get_betpawa_snapshot(7) == {1: snapshot()}


def test_a_view_never_changes() -> None:
    """A view shows one state, whatever is put later, also after close."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot(), KICKOFF)
    cache.put_competitor_snapshot(7, "bet9ja", snapshot(bookmaker_id=0))
    view = cache.view()
    version = view.version
    cache.put_betpawa_snapshot(7, 1, snapshot(snapshot_id=99))
    cache.put_betpawa_snapshot(8, 1, snapshot(8))
    assert cache.version > version
    cache.close()
    assert view.get_betpawa_snapshots([7, 8]) == {7: {1: snapshot()}}
    assert view.get_betpawa_snapshot(7) == {1: snapshot()}
    assert view.get_competitor_snapshots([7, 8]) == {7: {"bet9ja": snapshot(bookmaker_id=0)}}
    assert view.get_competitor_snapshot(7) == {"bet9ja": snapshot(bookmaker_id=0)}
    assert view.get_competitor_snapshot(8) is None
    assert (view.event_ids(), view.kickoff(7), len(view), view.version) == ([7], KICKOFF, 1, version)


def test_threads_put_and_look_up_at_once() -> None:
    """Lookups in other threads see whole snapshots while a thread puts: no error, no mixture."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot(snapshot_id=0, markets=(market(line=0.0), market(line=0.0))))
    stop = threading.Event()
    seen: set[int] = set()
    wrong: list[object] = []

    def look() -> None:
        while not stop.is_set():
            found = cache.get_betpawa_snapshots([7])[7][1]
            lines = {each.line for each in found.markets}
            seen.add(found.snapshot_id)
            if lines != {float(found.snapshot_id)}:
                wrong.append((found.snapshot_id, lines))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(1, 300):
        markets = (market(line=float(n)), market(line=float(n)))
        cache.put_betpawa_snapshot(7, 1, snapshot(snapshot_id=n, markets=markets))
    eventually(lambda: len(seen) > 1)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_detached_cache_is_freed() -> None:
    """A cache with a callback that refers to it is freed by the collector, and its callback with it."""

    class Canary:
        alive = 0

        def __init__(self) -> None:
            Canary.alive += 1

        def __del__(self) -> None:
            Canary.alive -= 1

    def use() -> None:
        cache = OddsCache()
        canary = Canary()
        cache.on_update(lambda event_ids, source: print(cache, canary))

    use()
    gc.collect()
    assert Canary.alive == 0


def test_snapshots_outlive_the_cache() -> None:
    """A snapshot stays readable after its cache was closed and dropped."""

    def one() -> CachedSnapshot:
        with OddsCache() as cache:
            cache.put_betpawa_snapshot(7, 1, snapshot())
            return cache.get_betpawa_snapshots([7])[7][1]

    held = one()
    gc.collect()
    assert held == snapshot()
    assert held.captured_at.tzinfo == UTC
