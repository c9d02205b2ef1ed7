"""A cache that follows a database holds exactly what an independent query finds there."""

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

import programs
from database import Database, market, utc_now
from oddscache import OddsCache, View
from plain import all_plain, differences
from waiting import eventually


def compare(database: Database, view: View) -> int:
    """Compares a view that shows everything with the oracle. Returns the number of snapshots."""
    own, competitors = database.expected(view.cut.window_start)
    ids = {*own, *competitors}
    assert set(view.event_ids()) == ids
    assert len(view) == len(ids)
    everything = [*ids, -1, 10**9]
    assert differences(all_plain(view.get_betpawa_snapshots(everything)), own) == []
    assert differences(all_plain(view.get_competitor_snapshots(everything)), competitors) == []
    for event_id in ids:
        kickoff = view.kickoff(event_id)
        assert kickoff
        stored = database.execute("SELECT kickoff FROM events WHERE id = %s", event_id)[0][0]
        assert kickoff.replace(tzinfo=None) == stored
    return sum(map(len, own.values())) + sum(map(len, competitors.values()))


def test_warm(database: Database) -> None:
    """After `ready` the cache holds what the tables held before it connected."""
    for event_id in range(1, 6):
        database.event(event_id)
        for bookmaker_id in (1, 2):
            database.snapshot(event_id, bookmaker_id, [market(), market("5000", (1.5, 2.5), line=2.5)])
        for source in ("sportybet", "bet9ja"):
            database.competitor_snapshot(database.competitor(event_id, source), [market()])
    database.event(6, kickoff=-timedelta(hours=3))
    database.snapshot(6, 1, [market()])
    database.event(7)
    cache = OddsCache.connect(database.url)
    cache.ready(10)
    assert cache.is_warm
    assert compare(database, cache.view()) == 20
    stats = cache.stats()
    assert stats["betpawa_events"] == stats["competitor_events"] == 5
    assert (stats["total_snapshots"], stats["total_markets"]) == (20, 30)
    assert cache.status.name in ("live", "polling_only")
    assert 0 <= cache.age < 10
    cache.close()


def test_names(database: Database) -> None:
    """The names of an event, its tournament and its bookmakers are those of the tables. A change of an event shows."""
    database.event(1)
    database.snapshot(1, 1)
    database.snapshot(1, 2)
    database.execute("DELETE FROM bookmakers")
    database.execute("INSERT INTO bookmakers (id, name, slug) VALUES (1, 'betPawa', 'betpawa')")
    database.execute("INSERT INTO sports (id, name) VALUES (1, 'Football')")
    database.execute("INSERT INTO tournaments (id, sport_id, name) VALUES (3, 1, 'Premier League')")
    named = "tournament_id = 3, name = 'a - b', home_team = 'a', away_team = 'b'"
    database.execute(f"UPDATE events SET {named} WHERE id = 1")
    with OddsCache.connect(database.url) as cache:
        cache.ready(10)
        names = cache.names(1)
        assert names
        assert (names["name"], names["home_team"], names["away_team"]) == ("a - b", "a", "b")
        assert names["tournament"] == {"id": 3, "name": "Premier League", "country": None, "sport": "Football"}
        assert names["bookmakers"] == {1: {"slug": "betpawa", "name": "betPawa"}}
        database.execute("UPDATE events SET tournament_id = NULL, home_team = '\"ä' WHERE id = 1")
        view = cache.wait_for(database.xid())
        changed = view.names(1)
        assert changed
        assert changed == {**names, "home_team": '"ä', "tournament": None}
        assert view.names(9) is None
        assert cache.names(10**30) is None


def test_every_kind_of_column_value(database: Database, cache: OddsCache) -> None:
    """Columns that hold nulls, wrong JSON or unusual text read as documented, and the cache goes on."""
    database.event(1)
    database.snapshot(
        1,
        1,
        [
            market(outcomes={"not": "a list"}),
            market(outcomes=[]),
            market(market_groups=None),
            market(outcomes=[{"name": "x", "odds": 1.1, "player": {"id": 5, "tags": ["ä", None, 1.5]}}]),
            market(outcomes=[{"name": "off", "odds": None, "is_active": False}]),
            market("ü" * 50, (1.0000000000000002, 1e300, 5e-324), line=-0.25, handicap_home=1e-9),
        ],
    )
    assert compare(database, cache.wait_for(database.xid())) == 1


def test_follows_each_kind_of_change(database: Database, cache: OddsCache) -> None:
    """Insert, update, delete, confirmation, unavailability, a moved kickoff, a re-link and a soft delete show."""
    database.event(1)
    database.event(2)
    first = database.snapshot(1, 1, [market()])
    second = database.snapshot(1, 1, [market(odds=(9.0, 9.0))])
    rival = database.competitor(1)
    database.competitor_snapshot(rival, [market()])
    assert compare(database, cache.wait_for(database.xid())) == 2
    for sql, snapshots in (
        (f"UPDATE odds_snapshots SET last_confirmed_at = now() WHERE id = {second}", 2),
        (f"UPDATE market_odds SET unavailable_at = now() WHERE snapshot_id = {second}", 2),
        ("UPDATE market_odds SET outcomes = '[]'", 2),
        (f"INSERT INTO market_odds VALUES (99, {second}, '5000', 'late', 2.5, null, null, null, '[]', '[]')", 2),
        (f"DELETE FROM odds_snapshots WHERE id = {second}", 2),
        ("UPDATE competitor_events SET betpawa_event_id = 2", 2),
        ("UPDATE competitor_events SET deleted_at = now()", 1),
        ("UPDATE competitor_events SET deleted_at = null", 2),
        ("UPDATE events SET kickoff = kickoff - interval '1 day' WHERE id = 1", 1),
        ("UPDATE events SET kickoff = kickoff + interval '2 days' WHERE id = 1", 2),
        ("TRUNCATE competitor_market_odds", 2),
        ("DELETE FROM odds_snapshots", 1),
        ("TRUNCATE odds_snapshots", 1),
    ):
        database.execute(sql)
        assert compare(database, cache.wait_for(database.xid())) == snapshots, sql
    assert first < second


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_transactions(database: Database, cache: OddsCache, seed: int) -> None:
    """After each of many random transactions, also ones that roll back, the cache equals the oracle."""
    chance = random.Random(seed)
    sources = ("sportybet", "bet9ja")

    def markets() -> list[dict[str, object]]:
        ids = chance.sample(("3743", "5000", "3795", "4693", "7"), chance.randrange(4))
        return [
            market(
                name,
                [round(chance.uniform(1, 9), 2) for _ in range(chance.randrange(4))],
                line=chance.choice((None, 2.5)),
            )
            for name in ids
        ]

    def event() -> int:
        return chance.randint(1, 8)

    def rival() -> int:
        key: int = chance.choice(database.execute("SELECT id FROM competitor_events"))[0]
        return key

    def newest(table: str) -> list[int]:
        found = database.execute(f"SELECT id FROM {table} ORDER BY id DESC LIMIT 8")
        return [row[0] for row in chance.sample(found, min(len(found), chance.randrange(4)))]

    changes: list[Callable[[], object]] = [
        lambda: database.snapshot(event(), chance.randint(1, 2), markets()),
        lambda: database.snapshot(event(), chance.randint(1, 2), markets(), last_confirmed_at=utc_now()),
        lambda: database.competitor_snapshot(rival(), markets()),
        lambda: database.execute(
            "UPDATE odds_snapshots SET last_confirmed_at = now() WHERE id = ANY(%s)", newest("odds_snapshots")
        ),
        lambda: database.execute(
            "UPDATE competitor_odds_snapshots SET last_confirmed_at = now() WHERE id = ANY(%s)",
            newest("competitor_odds_snapshots"),
        ),
        lambda: database.execute(
            "UPDATE market_odds SET unavailable_at = now() WHERE id = ANY(%s)", newest("market_odds")
        ),
        lambda: database.execute(
            "DELETE FROM competitor_market_odds WHERE id = ANY(%s)", newest("competitor_market_odds")
        ),
        lambda: database.execute("DELETE FROM odds_snapshots WHERE id = ANY(%s)", newest("odds_snapshots")),
        lambda: database.execute(
            "DELETE FROM competitor_odds_snapshots WHERE id = ANY(%s)", newest("competitor_odds_snapshots")
        ),
        lambda: database.execute(
            "UPDATE events SET kickoff = %s WHERE id = %s",
            utc_now() + timedelta(hours=chance.choice((-9, 1, 9))),
            event(),
        ),
        lambda: database.execute("UPDATE competitor_events SET betpawa_event_id = %s WHERE id = %s", event(), rival()),
        lambda: database.execute(
            "UPDATE competitor_events SET deleted_at = %s WHERE id = %s", chance.choice((None, utc_now())), rival()
        ),
    ]
    with database.transaction():
        for event_id in range(1, 9):
            database.event(event_id)
            for source in sources:
                database.competitor(event_id, source)

    shown = 0
    for _ in range(150):
        with database.transaction() as transaction:
            for change in chance.choices(changes, k=chance.randint(1, 5)):
                change()
            if chance.random() < 0.1:
                transaction.connection.execute("SET LOCAL oddscache.unused = ''")
                database.execute("SAVEPOINT s")
                database.execute("DELETE FROM odds_snapshots")
                database.execute("ROLLBACK TO s")
            xid = database.xid()
        shown += compare(database, cache.wait_for(xid))
    assert shown > 500


def test_writes_of_the_program_change_nothing(
    database: Database, cache: OddsCache, caplog: pytest.LogCaptureFixture
) -> None:
    """On a connected cache the database decides: put, evict and clear do nothing, and say so once in the log."""
    database.event(1)
    database.snapshot(1, 1, [market()])
    view = cache.wait_for(database.xid())
    held = view.get_betpawa_snapshots([1])[1][1]
    caplog.set_level("INFO", "oddscache")
    before = cache.version
    for _ in range(2):
        cache.put_betpawa_snapshot(1, 2, held)
        cache.put_competitor_snapshot(1, "bet9ja", held)
        assert cache.evict_expired(utc_now() + timedelta(days=9)) == 0
        cache.clear()
    assert cache.get_betpawa_snapshots([1]) == {1: {1: held}}
    assert cache.get_competitor_snapshots([1]) == {}
    assert cache.version == before
    said = [record for record in caplog.records if record.name == "oddscache" and "is connected" in record.message]
    assert len(said) == 1


def test_two_databases(new_database: Callable[[], Database]) -> None:
    """Two caches of two databases in one process do not mix."""
    databases = [new_database(), new_database()]
    caches = [OddsCache.connect(database.url) for database in databases]
    for number, (database, cache) in enumerate(zip(databases, caches, strict=True), 1):
        cache.ready(10)
        database.event(1)
        database.snapshot(1, number, [market(odds=(number + 0.5, 9.0))])
    for number, (database, cache) in enumerate(zip(databases, caches, strict=True), 1):
        assert compare(database, cache.wait_for(database.xid())) == 1
        assert list(cache.get_betpawa_snapshots([1])[1]) == [number]
    caches[0].close()
    databases[1].snapshot(1, 7)
    assert compare(databases[1], caches[1].wait_for(databases[1].xid())) == 2
    caches[1].close()


def test_naive_times(database: Database) -> None:
    """With naive_times=True a connected cache gives naive UTC everywhere, as the columns hold it."""
    database.event(1)
    captured = utc_now()
    database.snapshot(1, 1, [market(unavailable_at=captured)], captured_at=captured)
    with OddsCache.connect(database.url, naive_times=True) as cache:
        cache.ready(10)
        held = cache.get_betpawa_snapshots([1])[1][1]
        assert held.captured_at == held.last_confirmed_at == held.markets[0].unavailable_at == captured
        stored = database.execute("SELECT kickoff FROM events")[0][0]
        assert cache.kickoff(1) == stored
        assert cache.view().cut.window_start.tzinfo is None
        assert cache.view().cut.as_of.tzinfo is None


def test_urls_of_sqlalchemy(database: Database) -> None:
    """The application's own URL, which names SQLAlchemy's driver, is understood."""
    for driver in ("asyncpg", "psycopg", "psycopg2"):
        with OddsCache.connect(database.url.replace("postgresql://", f"postgresql+{driver}://")) as cache:
            cache.ready(10)


def test_durations_are_seconds_or_timedelta(database: Database) -> None:
    """All durations may be int, float or timedelta; lookback moves the window."""
    database.event(1, kickoff=-timedelta(hours=1))
    database.snapshot(1, 1)
    for lookback, held in ((timedelta(minutes=30), []), (7200, [1]), (1800.0, [])):
        with OddsCache.connect(database.url, lookback=lookback, poll_interval=timedelta(seconds=1)) as cache:
            cache.ready(timedelta(seconds=10))
            assert cache.event_ids() == held
            cache.view(max_age=timedelta(seconds=10))


def test_other_schemas(database: Database, feed: str) -> None:
    """`app_schema` and `cache_schema` name where the tables and the feed lie, in the scripts and in `connect`."""
    database.execute("ALTER SCHEMA public RENAME TO odds")
    database.execute("DROP SCHEMA oddscache CASCADE")
    database.execute("CREATE SCHEMA public")
    settings = ("--set", "app_schema=odds", "--set", "cache_schema=feed")
    code, script, errors = programs.run("-m", "oddscache", "sql", "install", *settings)
    assert (code, errors) == (0, "")
    assert script != feed
    database.execute(script)
    database.execute("SET search_path = odds")
    database.event(1)
    with OddsCache.connect(database.url, app_schema="odds", cache_schema="feed") as cache:
        cache.ready(10)
        database.snapshot(1, 1, [market()])
        assert compare(database, cache.wait_for(database.xid())) == 1


def test_a_cut_says_which_transactions_it_shows(database: Database, cache: OddsCache) -> None:
    """`cut.shows(xid)` is false for a transaction that is not yet committed, and true once a view contains it."""
    database.event(1)
    with database.transaction():
        xid = database.xid()
        database.snapshot(1, 1)
        assert not cache.view().cut.shows(xid)
    view = cache.wait_for(xid)
    assert view.cut.shows(xid)
    assert view.cut.standby is False
    assert view.cut.window_start < view.cut.as_of
    assert view.cut.snapshot.count(":") == 2


def test_the_connection_is_repaired(database: Database, cache: OddsCache) -> None:
    """A cache whose connections were terminated connects again, and misses nothing that was committed meanwhile."""
    database.event(1)
    cache.wait_for(database.xid())
    database.terminate_others()
    database.snapshot(1, 1, [market()])
    view = cache.wait_for(database.xid(), timeout=20)
    assert compare(database, view) == 1
    eventually(lambda: cache.status.name in ("live", "polling_only"))


def test_degraded_names_the_repair(database: Database, cache: OddsCache) -> None:
    """With a trigger missing the cache goes on, and its status names the trouble and the repair."""
    triggers = database.execute(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'market_odds'::regclass AND NOT tgisinternal"
    )
    assert triggers
    for (name,) in triggers:
        database.execute(f'DROP TRIGGER "{name}" ON market_odds')
    eventually(lambda: cache.status.name == "degraded", timeout=20)
    status = cache.status
    assert status.faults
    assert any("market_odds" in fault.what and fault.repair for fault in status.faults)
    assert str(status)
    database.event(1)
    database.snapshot(1, 1, [market()])
    assert compare(database, cache.wait_for(database.xid(), timeout=20)) == 1
