"""`CachedSnapshot` and `CachedMarket` behave as frozen dataclasses of the same fields do."""

import copy
import dataclasses
import datetime
import inspect
import pickle
from typing import Any

import pytest

import plain
from detached import AT, market, snapshot
from oddscache import CachedMarket, CachedSnapshot, OddsCache

FIELDS = {CachedMarket: plain.MARKET, CachedSnapshot: plain.SNAPSHOT}


def held_snapshot() -> CachedSnapshot:
    """Equal to `snapshot()`, but of a cache."""
    cache = OddsCache()
    cache.put_betpawa_snapshot(7, 1, snapshot())
    return cache.get_betpawa_snapshots([7])[7][1]


BOTH = pytest.mark.parametrize("make", [snapshot, held_snapshot], ids=["constructed", "of_a_cache"])


def values(of: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}


def test_construction_by_keyword_and_position() -> None:
    """Both classes take their fields by keyword or by position, in the order of the application's dataclasses."""
    by_keyword = market()
    assert CachedMarket(*values(by_keyword, plain.MARKET).values()) == by_keyword
    whole = snapshot()
    assert CachedSnapshot(*values(whole, plain.SNAPSHOT).values()) == whole


def test_defaults() -> None:
    """The fields with defaults have those of the dataclasses, and lists are not shared."""
    least, model = CachedMarket("1", "x"), plain.Market("1", "x")
    assert values(least, plain.MARKET) == values(model, plain.MARKET)
    least.outcomes.append({})
    assert CachedMarket("1", "x").outcomes == []
    assert CachedSnapshot(1, 2, 3, AT, AT).markets == ()


@pytest.mark.parametrize(
    ("cls", "model", "arguments", "keywords"),
    [
        (CachedMarket, plain.Market, (), {}),
        (CachedMarket, plain.Market, ("1",), {}),
        (CachedMarket, plain.Market, ("1", "x"), {"unknown": 1}),
        (CachedMarket, plain.Market, ("1", "x"), {"betpawa_market_id": "2"}),
        (CachedMarket, plain.Market, tuple(range(10)), {}),
        (CachedSnapshot, plain.Snapshot, (1, 2, 3, AT), {}),
        (CachedSnapshot, plain.Snapshot, (1, 2, 3, AT, AT, (), 7), {}),
    ],
)
def test_wrong_arguments(cls: Any, model: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Missing, unknown and surplus arguments are a TypeError, as with the dataclasses."""
    for make in (cls, model):
        with pytest.raises(TypeError):
            make(*arguments, **keywords)


def test_markets_become_a_tuple() -> None:
    """`markets` may be given as any iterable, and is a tuple."""
    both = (market(), market(line=3.5))
    assert snapshot(markets=list(both)).markets == both
    assert snapshot(markets=iter(both)).markets == both
    assert type(snapshot(markets=list(both)).markets) is tuple


@BOTH
def test_frozen(make: Any) -> None:
    """No attribute can be set, deleted or added; the error is an AttributeError, as that of a frozen dataclass."""
    whole = make()
    for value, names in ((whole, plain.SNAPSHOT), (whole.markets[0], plain.MARKET)):
        for name in (*names, "other"):
            with pytest.raises(AttributeError):
                setattr(value, name, 1)
            with pytest.raises(AttributeError):
                delattr(value, name)
    assert whole == snapshot()


@BOTH
def test_equal_by_value(make: Any) -> None:
    """Two values are equal if all fields are, wherever they come from."""
    whole = make()
    assert whole == snapshot()
    assert snapshot() == whole
    assert (whole != snapshot()) is False
    assert whole.markets[0] == market()
    assert whole.markets == snapshot().markets
    assert whole == make()


def test_every_field_counts() -> None:
    """Two values that differ in one field are not equal, whichever field it is."""
    other_market: dict[str, Any] = {
        "betpawa_market_id": "5001",
        "betpawa_market_name": "x",
        "line": 2.75,
        "handicap_type": None,
        "handicap_home": 0.0,
        "handicap_away": None,
        "outcomes": [{"name": "Over", "odds": 1.9, "is_active": True}],
        "market_groups": ["goals", "main"],
        "unavailable_at": None,
    }
    assert tuple(other_market) == plain.MARKET
    for name, value in other_market.items():
        assert market(**{name: value}) != market(), name
        assert held_snapshot() != snapshot(markets=(market(**{name: value}), snapshot().markets[1])), name
    other_snapshot: dict[str, Any] = {
        "snapshot_id": 71,
        "event_id": 8,
        "bookmaker_id": 2,
        "captured_at": AT + datetime.timedelta(microseconds=1),
        "last_confirmed_at": AT,
        "markets": (market(),),
    }
    assert tuple(other_snapshot) == plain.SNAPSHOT
    for name, value in other_snapshot.items():
        assert snapshot(**{name: value}) != snapshot(), name
        assert held_snapshot() != snapshot(**{name: value}), name


@BOTH
def test_other_types_are_not_equal(make: Any) -> None:
    """Comparison with another type is False, and leaves the other type its say; there is no order."""

    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    whole = make()
    for value in (whole, whole.markets[0]):
        assert value != 1
        assert value != plain.plain(snapshot())
        assert value is not None
        assert (value == None) is False  # noqa: E711
        assert value == Anything()
        with pytest.raises(TypeError):
            _ = value < value
    assert whole.markets[0] != whole


@BOTH
def test_hash_as_a_frozen_dataclass_with_lists(make: Any) -> None:
    """`hash` raises the TypeError that a frozen dataclass with a list in it raises, naming list."""
    whole = make()
    model = plain.plain(whole)
    for value in (whole, whole.markets[0], model, model.markets[0]):
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            hash(value)


@BOTH
def test_repr_as_a_dataclass(make: Any) -> None:
    """`repr` is that of the dataclass but for the class's name, and evaluates to an equal value."""
    whole = make()
    text = repr(plain.plain(whole))
    assert repr(whole) == text.replace("Snapshot(", "CachedSnapshot(").replace("Market(", "CachedMarket(")
    names = {"CachedSnapshot": CachedSnapshot, "CachedMarket": CachedMarket, "datetime": datetime}
    assert eval(repr(whole), names) == whole


@BOTH
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(make: Any, protocol: int) -> None:
    """A value survives pickling, in each protocol, and needs no cache afterwards."""
    whole = make()
    again = pickle.loads(pickle.dumps(whole, protocol))
    assert type(again) is CachedSnapshot
    assert again == whole
    assert plain.plain(again) == plain.plain(whole)
    assert pickle.loads(pickle.dumps(whole.markets[0], protocol)) == whole.markets[0]


@BOTH
def test_copy(make: Any) -> None:
    """Copies are equal; changing the lists of a deep copy leaves the original as it was."""
    whole = make()
    assert copy.copy(whole) == whole
    deep = copy.deepcopy(whole)
    assert deep == whole
    deep.markets[0].outcomes[0]["odds"] = 99.0
    assert whole == snapshot()
    assert copy.deepcopy(whole.markets[0]) == whole.markets[0]


@BOTH
def test_dataclasses_functions(make: Any) -> None:
    """`is_dataclass`, `fields`, `asdict`, `astuple` and `replace` give what they give for the dataclasses."""
    whole = make()
    model = plain.plain(whole)
    pairs: list[tuple[Any, Any]] = [(whole, model), (whole.markets[0], model.markets[0])]
    for value, like in pairs:
        assert dataclasses.is_dataclass(type(value))
        assert [f.name for f in dataclasses.fields(value)] == [f.name for f in dataclasses.fields(like)]
        assert dataclasses.asdict(value) == dataclasses.asdict(like)
        assert dataclasses.astuple(value) == dataclasses.astuple(like)
    changed = dataclasses.replace(whole, snapshot_id=5)
    assert changed == snapshot(snapshot_id=5)
    assert dataclasses.replace(whole.markets[0], line=9.5) == market(line=9.5)
    with pytest.raises(TypeError):
        dataclasses.replace(whole, unknown=1)


def test_the_fields_of_the_classes() -> None:
    """`dataclasses.fields` works on the classes, too, and says what is optional."""
    for cls, model in ((CachedMarket, plain.Market), (CachedSnapshot, plain.Snapshot)):
        ours, like = dataclasses.fields(cls), dataclasses.fields(model)
        assert [f.name for f in ours] == [f.name for f in like]

        def has_default(f: Any) -> bool:
            return f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING

        assert [has_default(f) for f in ours] == [has_default(f) for f in like]
        names = list(inspect.signature(cls).parameters)
        assert names == list(FIELDS[cls])


@BOTH
def test_match_statement(make: Any) -> None:
    """Patterns match by keyword, and by position as for a dataclass."""
    match make():
        case CachedSnapshot(7, event_id=7):
            pytest.fail("snapshot_id is the first field, and is 70")
        case CachedSnapshot(70, 7, markets=(CachedMarket("5000", line=line), *_)):
            assert line == 2.5
        case _:
            pytest.fail("no pattern matched")


def test_the_classes_are_final() -> None:
    """The classes cannot be subclassed, which would break `==` and the cache's promise of immutability."""
    for cls in (CachedMarket, CachedSnapshot):
        with pytest.raises(TypeError):
            type("Sub", (cls,), {})


def test_the_names_of_the_classes() -> None:
    """The classes are known under the name that users import, as pickle needs it."""
    for cls in (CachedMarket, CachedSnapshot):
        assert cls.__module__ == "oddscache"
        assert cls.__qualname__ == cls.__name__
