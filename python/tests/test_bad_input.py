"""Wrong input is a Python exception with a sentence, never a panic, and leaves the cache as it was."""

import asyncio
import copy
import logging
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

import oddscache
import programs
from database import Database, market
from detached import market as make_market
from detached import snapshot
from oddscache import CachedMarket, CachedSnapshot, OddsCache

Call = Callable[[OddsCache], Any]
WRONG_IDS = [None, 1, 1.5, "1", [1.0], ["1"], [None], [[1]], [1, "x"], {"a": 1}, object()]


@pytest.fixture
def filled() -> OddsCache:
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    return cache


@pytest.mark.parametrize("ids", WRONG_IDS, ids=repr)
def test_wrong_ids(filled: OddsCache, ids: Any) -> None:
    """Ids that are no iterable of int are a TypeError that says what is wanted."""
    calls: list[Call] = [
        lambda cache: cache.get_betpawa_snapshots(ids),
        lambda cache: cache.get_competitor_snapshots(ids),
        lambda cache: cache.view().get_betpawa_snapshots(ids),
        lambda cache: cache.view().get_competitor_snapshots(ids),
    ]
    if ids is not None:
        calls.append(lambda cache: cache.event_list_json(ids))
    for call in calls:
        with pytest.raises(TypeError, match="int"):
            call(filled)


@pytest.mark.parametrize("event_id", [None, 1.0, "1", b"1", [1], object()], ids=repr)
def test_wrong_id(filled: OddsCache, event_id: Any) -> None:
    """An id that is no int is a TypeError."""
    for call in (
        filled.get_betpawa_snapshot,
        filled.get_competitor_snapshot,
        filled.kickoff,
        filled.view().get_betpawa_snapshot,
        filled.view().kickoff,
    ):
        with pytest.raises(TypeError, match="int"):
            call(event_id)


def test_an_iterator_that_fails(filled: OddsCache) -> None:
    """An exception that the ids' iterator raises comes through."""

    def ids() -> Any:
        yield 7
        raise ZeroDivisionError("from the iterator")

    for call in (filled.get_betpawa_snapshots, filled.get_competitor_snapshots, filled.event_list_json):
        with pytest.raises(ZeroDivisionError, match="from the iterator"):
            call(ids())
    assert filled.get_betpawa_snapshots([7])


def test_an_iterator_that_uses_the_cache(filled: OddsCache) -> None:
    """The ids' iterator may itself use the cache, and close it: no deadlock, no crash."""

    def ids() -> Any:
        yield from filled.get_betpawa_snapshots([7])
        filled.put_betpawa_snapshot(8, 1, snapshot(8))
        yield from filled.event_ids()
        filled.event_list_json()
        filled.close()
        yield 7

    assert filled.get_betpawa_snapshots(ids()).keys() >= {7}
    with pytest.raises(oddscache.Closed):
        filled.event_ids()


def test_a_million_ids(filled: OddsCache) -> None:
    """A million ids at once are just slower."""
    assert filled.get_betpawa_snapshots(range(-500_000, 500_000)) == {7: {1: snapshot()}}
    assert filled.get_competitor_snapshots(list(range(1_000_000))) == {}
    assert filled.event_list_json(range(10**6)).startswith(b'[{"event_id":7,')


def _with(**fields: Any) -> CachedSnapshot:
    return snapshot(markets=(make_market(**fields),))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (None, ""),
        (1, ""),
        ({}, ""),
        (snapshot(snapshot_id="x"), "snapshot_id"),  # type: ignore[arg-type]
        (snapshot(captured_at="2026-01-01"), "captured_at"),
        (snapshot(last_confirmed_at=5), "last_confirmed_at"),
        (_with(betpawa_market_id=5), "betpawa_market_id"),
        (_with(betpawa_market_name=None), "betpawa_market_name"),
        (_with(line="2.5"), "line"),
        (_with(handicap_type=1), "handicap_type"),
        (_with(handicap_home="x"), "handicap_home"),
        (_with(outcomes=5), "outcomes"),
        (_with(outcomes=[5]), "outcome"),
        (_with(outcomes=[{"name": 5}]), "name"),
        (_with(outcomes=[{"name": "x", "odds": "2"}]), "odds"),
        (_with(outcomes=[{1: 2}]), "key"),
        (_with(outcomes=[{"name": "x", "extra": object()}]), "outcome"),
        (_with(market_groups={"a": 1}), "market_groups"),
        (_with(market_groups=[object()]), "market_groups"),
        (_with(unavailable_at="x"), "unavailable_at"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_snapshots(filled: OddsCache, wrong: Any, word: str) -> None:
    """A snapshot with a wrong field is a TypeError or ValueError that names the field; nothing is put."""
    puts: list[Call] = [
        lambda cache: cache.put_betpawa_snapshot(7, 1, wrong),
        lambda cache: cache.put_competitor_snapshot(7, "bet9ja", wrong),
    ]
    for put in puts:
        with pytest.raises((TypeError, ValueError, AttributeError, RecursionError)) as error:
            put(filled)
        assert word in str(error.value)
    assert filled.get_betpawa_snapshots([7]) == {7: {1: snapshot()}}
    assert filled.get_competitor_snapshots([7]) == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.put_betpawa_snapshot("7", 1, snapshot()),
        lambda c: c.put_betpawa_snapshot(7, None, snapshot()),
        lambda c: c.put_betpawa_snapshot(7, 1, snapshot(), kickoff="soon"),
        lambda c: c.put_betpawa_snapshot(7, 1, snapshot(), kickoff=5),
        lambda c: c.put_betpawa_snapshot(2**63, 1, snapshot()),
        lambda c: c.put_betpawa_snapshot(7, -(2**70), snapshot()),
        lambda c: c.put_competitor_snapshot(7, 5, snapshot()),
        lambda c: c.put_competitor_snapshot(7, None, snapshot()),
        lambda c: c.put_competitor_snapshot(7, "\ud800", snapshot()),
        lambda c: c.evict_expired(None),
        lambda c: c.evict_expired(5),
        lambda c: c.evict_expired(timedelta(1)),
        lambda c: c.evict_expired("2026-01-01"),
        lambda c: c.on_update(None),
        lambda c: c.on_update("x"),
        lambda c: c.view("x"),
        lambda c: c.view(max_age=-1),
        lambda c: c.view(max_age=float("nan")),
        lambda c: c.view(max_age=True),
        lambda c: c.ready("x"),
        lambda c: c.ready(-1),
        lambda c: c.wait_for("x"),
        lambda c: c.wait_for(-1),
        lambda c: c.wait_for(2**64),
        lambda c: c.event_list_json(markets=5),
        lambda c: c.event_list_json(markets=[5]),
        lambda c: c.event_list_json(markets=[("5000",)]),
        lambda c: c.event_list_json(markets=[("5000", "x")]),
        lambda c: c.event_list_json(markets=[("5000", 2.5, 1)]),
        lambda c: c.get_betpawa_snapshots(),
        lambda c: OddsCache(1),  # type: ignore[call-arg, arg-type]
        lambda c: OddsCache(unknown=1),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments(filled: OddsCache, call: Call) -> None:
    """Wrong arguments are a TypeError, a ValueError or an error of the package with a sentence, at once."""
    with pytest.raises((TypeError, ValueError, OverflowError, oddscache.Error)) as error:
        call(filled)
    assert len(str(error.value).split()) > 2
    assert "panic" not in f"{type(error.value)} {error.value}".lower()
    assert filled.get_betpawa_snapshots([7]) == {7: {1: snapshot()}}


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("nonsense", {}),
        ("mysql://x@y/z", {}),
        ("postgresql://x:se\0cret@y/z", {}),
        ("postgresql://x@y/z?unknown=1", {}),
        ("postgresql://x@y:99999/z", {}),
        ("postgresql://x@y/z", {"lookback": -1}),
        ("postgresql://x@y/z", {"lookback": "2h"}),
        ("postgresql://x@y/z", {"lookback": float("nan")}),
        ("postgresql://x@y/z", {"lookback": float("inf")}),
        ("postgresql://x@y/z", {"lookback": 10**400}),
        ("postgresql://x@y/z", {"read_timeout": -0.1}),
        ("postgresql://x@y/z", {"warmup_connections": "2"}),
        ("postgresql://x@y/z", {"app_schema": None}),
        ("postgresql://x@y/z", {"audit_budget": float("nan")}),
        ("postgresql://x@y/z", {"listen_url": 5}),
        ("postgresql://x@y/z", {"listen_url": "nonsense"}),
        ("postgresql://x@y/z", {"unknown": 1}),
        (None, {}),
        (b"postgresql://x@y/z", {}),
    ],
    ids=repr,
)
def test_wrong_settings(url: Any, options: dict[str, Any]) -> None:
    """What `connect` cannot understand is a ConfigError or a TypeError, at once, without the password."""
    with pytest.raises((ValueError, TypeError)) as error:
        OddsCache.connect(url, **options).close()
    assert isinstance(error.value, (oddscache.ConfigError, TypeError))
    assert str(error.value)
    assert "cret" not in str(error.value)


def test_a_closed_cache(database: Database) -> None:
    """Every call on a closed cache raises `Closed`, connected or not; close, repr and leaving `with` do not."""
    database.event(1)
    database.snapshot(1, 1, [market()])
    detached = OddsCache()
    connected = OddsCache.connect(database.url)
    connected.ready(10)
    held = connected.get_betpawa_snapshots([1])[1][1]
    calls: list[Call] = [
        lambda c: c.get_betpawa_snapshots([1]),
        lambda c: c.get_competitor_snapshots([1]),
        lambda c: c.get_betpawa_snapshot(1),
        lambda c: c.get_competitor_snapshot(1),
        lambda c: c.put_betpawa_snapshot(1, 1, held),
        lambda c: c.put_competitor_snapshot(1, "x", held),
        lambda c: c.evict_expired(datetime(2026, 1, 1)),
        lambda c: c.clear(),
        lambda c: c.stats(),
        lambda c: c.view(),
        lambda c: c.view(max_age=0),
        lambda c: c.ready(),
        lambda c: c.ready(1),
        lambda c: asyncio.run(c.wait_ready(1)),
        lambda c: c.wait_for(5),
        lambda c: asyncio.run(c.wait_for_async(5)),
        lambda c: c.changes(),
        lambda c: c.on_update(lambda event_ids, source: None),
        lambda c: c.event_list_json(),
        lambda c: c.event_list_json([1]),
        lambda c: c.event_ids(),
        lambda c: c.kickoff(1),
        lambda c: c.age,
        lambda c: c.status,
        lambda c: c.epoch,
        lambda c: c.version,
        lambda c: c.is_warm,
    ]
    kept: list[str] = []
    for cache in (detached, connected):
        cache.close()
        for number, call in enumerate(calls):
            raised = None
            try:
                call(cache)
            except Exception as error:
                raised = error
            if not isinstance(raised, oddscache.Closed) or "closed" not in str(raised):
                kept.append(f"{'detached' if cache is detached else 'connected'}, call {number}: {raised!r}")
        cache.close()
        assert "closed" in repr(cache)
        with cache:
            pass
    assert not kept, "\n".join(kept)
    assert held.markets[0].outcomes


def test_a_cache_cannot_be_pickled(filled: OddsCache) -> None:
    """Pickling or copying a cache is a TypeError that says what to do instead."""
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="connect"):
            call(filled)


def test_views_and_changes_cannot_be_made(filled: OddsCache) -> None:
    """The classes that only a cache makes cannot be called."""
    for cls in (oddscache.View, oddscache.Change, oddscache.Cut):
        with pytest.raises(TypeError):
            cls()


def test_values_of_any_type_can_be_held_in_dataclasses() -> None:
    """As with dataclasses, a constructed market holds what it is given; `==` and repr ask the values."""

    class Bad:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("from the value")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            raise ZeroDivisionError("from the value")

    bad = CachedMarket("1", "x", line=Bad())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        _ = bad == CachedMarket("1", "x", line=Bad())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        repr(bad)


def test_endless_values() -> None:
    """Values that contain themselves, or are nested very deeply, are an error or print as in a dataclass: no crash."""
    programs.run_code(
        """
        from detached import AT, market, snapshot
        from oddscache import CachedMarket, CachedSnapshot, OddsCache

        cycle, deep = [], []
        cycle.append({"again": cycle})
        for _ in range(100_000):
            deep = [deep]
        cache = OddsCache()
        for endless in (cycle, deep):
            for fields in ({"outcomes": [{"name": "x", "extra": endless}]}, {"market_groups": endless}):
                try:
                    cache.put_betpawa_snapshot(7, 1, snapshot(markets=(market(**fields),)))
                except (TypeError, ValueError, RecursionError) as error:
                    assert str(error)
                else:
                    raise AssertionError("was put")
        assert cache.event_ids() == []

        outcomes = []
        cyclic = CachedMarket("1", "x", outcomes=outcomes)
        outcomes.append(cyclic)
        for value in (cyclic, CachedSnapshot(1, 2, 3, AT, AT, (cyclic,))):
            try:
                assert "..." in repr(value)
            except RecursionError:
                pass  # As the class of any library that does not look for cycles.
        """
    )


class Spoiler:
    """A number that changes a dict while it is converted."""

    def __init__(self, dict_: dict[str, Any]) -> None:
        self.dict = dict_

    def __float__(self) -> float:
        self.dict[f"more {len(self.dict)}"] = 1
        return 1.5


def test_an_outcome_that_changes_while_it_is_read(filled: OddsCache) -> None:
    """A dict that changed while it was read once ended in a panic."""
    outcome: dict[str, Any] = {"name": "1"}
    outcome["odds"] = Spoiler(outcome)
    outcome["is_active"] = True
    filled.put_betpawa_snapshot(8, 1, snapshot(8, markets=[make_market(outcomes=[outcome])]))
    found = filled.get_betpawa_snapshot(8)
    assert found
    assert found[1].markets[0].outcomes == [{"name": "1", "odds": 1.5, "is_active": True}]


class SevenLike:
    def __index__(self) -> int:
        return 7


def test_keys_are_ints(filled: OddsCache) -> None:
    """The keys of a result are plain ints, whatever stood for them: json.dumps refuses others."""
    found = filled.get_betpawa_snapshots([SevenLike()])  # type: ignore[list-item]
    assert [type(key) for key in found] == [int]
    assert list(found) == [7]
    filled.put_betpawa_snapshot(1, 1, snapshot(1))
    assert [repr(key) for key in filled.get_betpawa_snapshots([True])] == ["1"]


def test_a_chain_of_markets_is_refused() -> None:
    """Freeing a long chain once overflowed the stack."""
    for field in ("betpawa_market_id", "betpawa_market_name", "line", "handicap_type", "unavailable_at"):
        with pytest.raises(TypeError, match="CachedMarket cannot be the value"):
            make_market(**{field: make_market()})
    with pytest.raises(TypeError, match="CachedSnapshot cannot be the value"):
        snapshot(captured_at=snapshot())


def test_a_level_below_all(database: Database) -> None:
    """A logger may have any level: a negative one once made `connect` fail."""
    logger = logging.getLogger("oddscache")
    before = logger.level
    logger.setLevel(-5)
    try:
        with OddsCache.connect(database.url) as cache:
            cache.ready(10)
    finally:
        logger.setLevel(before)
