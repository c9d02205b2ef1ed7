"""Waiting for a database and for a transaction, and how old an answer may be."""

import asyncio
import math
import pickle
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest

import oddscache
from cluster import Cluster, free_port
from database import Database, market
from oddscache import NotReady, NotShown, OddsCache, TooStale
from waiting import eventually


def refusal(url: str, **options: object) -> str:
    """Why a cache is not ready soon."""
    with OddsCache.connect(url, **options) as cache:  # type: ignore[arg-type]
        begun = time.monotonic()
        with pytest.raises(NotReady) as refused:
            cache.ready(0.5)
        assert time.monotonic() - begun < 5
        assert isinstance(refused.value, TimeoutError)
        assert not cache.is_warm
        assert math.isinf(cache.age)
        assert cache.get_betpawa_snapshots([1]) == {}
        return str(refused.value)


def test_connect_returns_at_once(database: Database) -> None:
    """`connect` does not wait for the database; until it is warm, the cache is empty, and says so."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        cache = OddsCache.connect(f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x")
        assert time.monotonic() - begun < 1
        assert cache.status.name in ("warming", "disconnected")
        assert cache.event_ids() == []
        with pytest.raises(TooStale) as stale:
            cache.view(max_age=1e6)
        assert math.isinf(stale.value.age)
        begun = time.monotonic()
        cache.close()
        assert time.monotonic() - begun < 3


def test_not_ready_says_why_dead_port(database: Database) -> None:
    """`ready` times out with the reason: nobody listens on the port."""
    port = free_port()
    assert "refused" in refusal(f"postgresql://postgres@127.0.0.1:{port}/x").lower()


def test_not_ready_says_why_wrong_password(database: Database, cluster: Cluster) -> None:
    """`ready` fails with the reason: the password is wrong. No message contains the password."""
    database.execute("DROP ROLE IF EXISTS app")
    database.execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'right-secret'")
    try:
        with OddsCache.connect(cluster.tcp_url(database.name, "app", "right-secret")) as cache:
            cache.ready(10)
        with OddsCache.connect(cluster.tcp_url(database.name, "app", "wrong-secret")) as cache:
            with pytest.raises(oddscache.Error) as failed:
                cache.ready(5)
            assert "password" in str(failed.value)
            assert "wrong-secret" not in f"{failed.value!r} {cache.status} {cache!r}"
    finally:
        database.execute("DROP ROLE app")


def test_not_ready_says_why_no_feed(database: Database) -> None:
    """`ready` fails with the reason: the feed is not installed. The message names the script."""
    database.execute("DROP SCHEMA oddscache CASCADE")
    with OddsCache.connect(database.url) as cache:
        with pytest.raises(oddscache.Error) as failed:
            cache.ready(3)
        assert "install" in str(failed.value)


def test_not_ready_says_why_no_database(cluster: Cluster) -> None:
    """`ready` fails with the reason: the database does not exist."""
    with OddsCache.connect(cluster.url("nowhere")) as cache:
        with pytest.raises(oddscache.Error) as failed:
            cache.ready(3)
        assert "nowhere" in str(failed.value)


def test_an_unreachable_database_may_be_an_error() -> None:
    """With retry_unreachable=False `ready` raises the error at once instead of waiting."""
    url = f"postgresql://postgres@127.0.0.1:{free_port()}/x"
    with OddsCache.connect(url, retry_unreachable=False) as cache:
        begun = time.monotonic()
        with pytest.raises(oddscache.Error) as failed:
            cache.ready(20)
        assert time.monotonic() - begun < 10
        assert not isinstance(failed.value, NotReady)
        eventually(lambda: cache.status.name == "ended")


def test_wait_ready(database: Database) -> None:
    """`await wait_ready()` returns once the cache is warm, leaves the loop free, and times out with the reason."""

    async def main() -> None:
        cache = OddsCache.connect(database.url)
        await cache.wait_ready()
        await cache.wait_ready(timeout=timedelta(seconds=1))
        assert cache.is_warm
        cache.close()

        dead = OddsCache.connect(f"postgresql://postgres@127.0.0.1:{free_port()}/x")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        with pytest.raises(NotReady, match=r"(?i)refused"):
            await dead.wait_ready(0.5)
        ticking.cancel()
        assert ticks > 10
        dead.close()

    asyncio.run(main())


def test_detached_caches_are_ready() -> None:
    """A cache without a database is ready at once, and has no transaction to wait for."""
    cache = OddsCache()
    cache.ready()
    cache.ready(0)
    asyncio.run(cache.wait_ready())
    with pytest.raises(oddscache.Error):
        cache.wait_for(1)


def test_ready_without_a_timeout_waits(new_database: Callable[[], Database]) -> None:
    """`ready()` without a time-out waits as long as a table is locked."""
    database = new_database()
    connection = psycopg.connect(database.url)
    connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
    cache = OddsCache.connect(database.url)
    waiting = threading.Thread(target=cache.ready)
    waiting.start()
    eventually(lambda: database.others() > 1)
    assert waiting.is_alive()
    assert not cache.is_warm
    connection.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert cache.is_warm
    cache.close()


def test_read_your_writes(database: Database, cache: OddsCache) -> None:
    """A writer finds in the view of `wait_for` what it has just committed, each time."""
    database.event(1)
    for n in range(50):
        with database.transaction():
            database.snapshot(1, 1, [market(odds=(n + 1.5,))])
            xid = database.xid()
        view = cache.wait_for(xid)
        assert view.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"] == n + 1.5
        assert cache.version >= view.version
        assert cache.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"] == n + 1.5


def test_read_your_writes_in_tasks(database: Database, cache: OddsCache) -> None:
    """Many tasks wait for their own transactions at once."""
    database.event(1)

    async def write(n: int) -> None:
        with database.transaction():
            database.snapshot(1, n, [market(odds=(n + 1.5,))])
            xid = database.xid()
        view = await cache.wait_for_async(xid)
        assert view.cut.shows(xid)
        assert view.get_betpawa_snapshots([1])[1][n].markets[0].outcomes[0]["odds"] == n + 1.5

    async def main() -> None:
        await asyncio.gather(*(write(n) for n in range(20)))

    asyncio.run(main())


def test_wait_for_times_out(database: Database, cache: OddsCache) -> None:
    """A transaction that is open is not shown: `NotShown` names it after the time-out, and is a TimeoutError."""
    with database.transaction():
        xid = database.xid()
        begun = time.monotonic()
        with pytest.raises(NotShown) as late:
            cache.wait_for(xid, timeout=0.2)
        assert 0.15 < time.monotonic() - begun < 3
        assert isinstance(late.value, TimeoutError)
        assert str(xid) in str(late.value)

        async def main() -> None:
            with pytest.raises(NotShown):
                await cache.wait_for_async(xid, timeout=timedelta(seconds=0.2))
            # A task that is cancelled leaves nothing behind, and the next wait works.
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(cache.wait_for_async(xid, timeout=60), 0.1)

        asyncio.run(main())
    assert cache.wait_for(xid).cut.shows(xid)


@pytest.mark.timeout(60)
def test_too_stale_while_the_server_is_stopped(
    database: Database, cache: OddsCache, cluster: Cluster, stop_server: Callable[[], None]
) -> None:
    """Without its server the cache goes on answering, its age grows, and a reader that asks for less gets TooStale."""
    database.event(1)
    database.snapshot(1, 1, [market()])
    held = cache.wait_for(database.xid()).get_betpawa_snapshots([1])
    cache.view(max_age=30)
    epoch = cache.epoch
    stop_server()
    eventually(lambda: cache.status.name == "disconnected")
    eventually(lambda: cache.age > 0.3)
    with pytest.raises(TooStale) as stale:
        cache.view(max_age=0.2)
    assert stale.value.age > 0.2
    assert stale.value.max_age == 0.2
    assert stale.value.status
    assert isinstance(pickle.loads(pickle.dumps(stale.value)), TooStale)
    with pytest.raises(TooStale):
        cache.view(max_age=timedelta(milliseconds=200))
    assert cache.get_betpawa_snapshots([1]) == held
    assert cache.view().get_betpawa_snapshots([1]) == held
    first = cache.age
    eventually(lambda: cache.age > first)
    assert str(cache.status)

    cluster.start()
    database.reconnect()
    database.snapshot(1, 1, [market(odds=(7.0,))])
    view = cache.wait_for(database.xid(), timeout=30)
    assert view.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"] == 7.0
    assert cache.view(max_age=10).age < 10
    # A crashed server may have lost commits, so the state was replaced.
    assert cache.epoch > epoch


def test_close_ends_waits(database: Database, cache: OddsCache) -> None:
    """`close` in one thread ends what other threads and tasks wait for, with `Closed`."""
    connection = psycopg.connect(database.url)
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row
    xid = int(row[0])
    ended: list[BaseException] = []
    started = threading.Barrier(3)

    def in_thread() -> None:
        started.wait()
        try:
            cache.wait_for(xid, timeout=60)
        except BaseException as error:
            ended.append(error)

    async def in_task() -> None:
        started.wait()
        try:
            await cache.wait_for_async(xid, timeout=60)
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=in_thread), threading.Thread(target=lambda: asyncio.run(in_task()))]
    for thread in threads:
        thread.start()
    started.wait()
    cache.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    connection.close()
    assert [type(error) for error in ended] == [oddscache.Closed] * 2


def test_views_outlive_close(database: Database) -> None:
    """After `close` lookups raise `Closed`; a view and the snapshots taken before stay readable."""
    database.event(1)
    database.snapshot(1, 1, [market()])
    with OddsCache.connect(database.url) as cache:
        cache.ready(10)
        view = cache.view()
    with pytest.raises(oddscache.Closed):
        cache.view()
    held = view.get_betpawa_snapshots([1])[1][1]
    assert held.markets[0].outcomes[0] == {"name": "1", "odds": 2.0, "is_active": True}
    first = view.age
    eventually(lambda: view.age > first)


def test_wait_ready_says_what_ended_the_follower() -> None:
    """A follower that ended with an error once looked like a cache that somebody had closed."""
    url = f"postgresql://postgres@127.0.0.1:{free_port()}/x"

    async def main() -> None:
        with OddsCache.connect(url, retry_unreachable=False) as cache:
            changes = cache.changes()
            for _ in range(3):
                with pytest.raises(oddscache.Error, match="cannot reach") as failed:
                    await cache.wait_ready(20)
                assert not isinstance(failed.value, (oddscache.Closed, NotReady))
            eventually(lambda: cache.status.name == "ended")
            with pytest.raises(oddscache.Error, match="cannot reach"):
                await cache.wait_ready(20)
            with pytest.raises(oddscache.Error, match="cannot reach"):
                await changes.__anext__()

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_wrong_timeouts(timeout: float) -> None:
    """A time-out that is no duration is a mistake of the caller, in each call that takes one."""
    with OddsCache.connect(f"postgresql://postgres@127.0.0.1:{free_port()}/x") as cache:
        for call in (cache.ready, cache.view, lambda timeout: cache.wait_for(1, timeout)):
            with pytest.raises(oddscache.ConfigError, match="seconds from 0 on"):
                call(timeout)
        with pytest.raises(oddscache.ConfigError, match="seconds from 0 on"):
            asyncio.run(cache.wait_ready(timeout))
