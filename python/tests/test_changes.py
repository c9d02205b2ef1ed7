"""`changes()` and `on_update` on a cache that follows a database, in several threads and event loops."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from database import Database, market, utc_now
from detached import snapshot
from oddscache import Change, Changes, Closed, Lagged, OddsCache, _events
from waiting import eventually

Main = Coroutine[Any, Any, None]


def run_asyncio(main: Main) -> None:
    asyncio.run(main)


def run_uvloop(main: Main) -> None:
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


LOOPS = pytest.mark.parametrize("run", [run_asyncio, run_uvloop], ids=["asyncio", "uvloop"])


async def take(changes: Changes) -> Change:
    return await asyncio.wait_for(changes.__anext__(), 10)


@LOOPS
def test_changes(database: Database, cache: OddsCache, run: Callable[[Main], None]) -> None:
    """Each publication comes as a change, in order: which events, by source, which cut; a view shows it already."""
    database.event(1)
    database.event(2)
    rival = database.competitor(2, "bet9ja")
    cache.wait_for(database.xid())

    async def main() -> None:
        changes = cache.changes()
        database.snapshot(1, 1, [market()])
        first = await take(changes)
        assert (first.event_ids, first.betpawa, first.competitors) == ([1], [1], {})
        assert cache.get_betpawa_snapshots(first.event_ids).keys() == {1}

        database.competitor_snapshot(rival, [market()])
        second = await take(changes)
        assert (second.event_ids, second.betpawa, second.competitors) == ([2], [], {"bet9ja": [2]})

        database.execute("UPDATE events SET kickoff = kickoff + interval '1 hour' WHERE id = 1")
        third = await take(changes)
        assert (third.event_ids, third.betpawa, third.competitors, third.kickoffs) == ([1], [], {}, [1])

        database.execute("UPDATE events SET name = 'Arsenal - Chelsea' WHERE id = 1")
        fourth = await take(changes)
        assert (fourth.event_ids, fourth.betpawa, fourth.kickoffs, fourth.names) == ([1], [], [], [1])

        assert first.version < second.version < third.version
        assert first.epoch == second.epoch == third.epoch == cache.epoch
        assert first.cut.as_of < second.cut.as_of < third.cut.as_of
        assert repr(third)

    run(main())


def test_changes_count_from_the_call(database: Database, cache: OddsCache) -> None:
    """A subscription counts from the call of `changes()`, not from the first iteration, in whichever loop."""
    database.event(1)
    changes = cache.changes()
    database.snapshot(1, 1)
    cache.wait_for(database.xid())

    async def main() -> None:
        seen: set[int] = set()
        while 1 not in seen:
            seen.update((await take(changes)).event_ids)

    asyncio.run(main())


@LOOPS
def test_changes_end_on_close(database: Database, cache: OddsCache, run: Callable[[Main], None]) -> None:
    """`close` ends an `async for` that waits, and one that begins later."""

    async def main() -> None:
        changes, later = cache.changes(), cache.changes()
        ended = asyncio.Event()

        async def follow() -> None:
            async for _ in changes:
                pass
            ended.set()

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        cache.close()
        await asyncio.wait_for(ended.wait(), 10)
        await following
        assert [change async for change in later] == []
        with pytest.raises(Closed):
            cache.changes()

    run(main())


def test_an_abandoned_iteration_may_go_on(database: Database, cache: OddsCache) -> None:
    """A task that is cancelled while it waits loses no change: the next iteration gets it."""
    database.event(1)
    cache.wait_for(database.xid())

    async def main() -> None:
        changes = cache.changes()
        waiting = asyncio.ensure_future(changes.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        database.snapshot(1, 1)
        assert (await take(changes)).event_ids == [1]

    asyncio.run(main())


@pytest.mark.timeout(60)
def test_lagged(database: Database, cache: OddsCache) -> None:
    """A subscriber that takes nothing for long is told how many changes it missed, and goes on from there."""
    database.event(1)
    cache.wait_for(database.xid())
    changes = cache.changes()
    for n in range(400):
        database.snapshot(1, n % 3)
        cache.wait_for(database.xid())
    version = cache.version

    async def main() -> None:
        with pytest.raises(Lagged) as lagged:
            async for _ in changes:
                pass
        assert lagged.value.missed > 0
        seen = [await take(changes)]
        while seen[-1].version < version:
            seen.append(await take(changes))
        assert [change.version for change in seen] == list(range(seen[0].version, version + 1))

    asyncio.run(main())


def test_two_loops_in_two_threads(database: Database, cache: OddsCache) -> None:
    """Two event loops, of asyncio and of uvloop, in two threads follow one cache; each sees every change."""
    database.event(1)
    cache.wait_for(database.xid())
    subscribed = threading.Barrier(3)
    last: list[int] = []
    failures: list[BaseException] = []

    async def follow() -> None:
        changes = cache.changes()
        subscribed.wait()
        keys: set[int] = set()
        while 20 not in keys:
            change = await take(changes)
            keys.update((cache.get_betpawa_snapshot(1) or {}).keys())
            assert change.event_ids == [1]
        last.append(max(keys))

    def thread(run: Callable[[Main], None]) -> None:
        try:
            run(follow())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread, args=(run,)) for run in (run_asyncio, run_uvloop)]
    for each in threads:
        each.start()
    subscribed.wait()
    for n in range(1, 21):
        database.snapshot(1, n)
    for each in threads:
        each.join(15)
    assert failures == []
    assert last == [20, 20]


def test_a_closed_loop_disturbs_nobody(database: Database, cache: OddsCache) -> None:
    """A loop that is closed while it waits for changes leaves the cache and other subscribers working."""
    database.event(1)
    cache.wait_for(database.xid())
    loop = asyncio.new_event_loop()
    abandoned = cache.changes()

    async def begin() -> "asyncio.Future[Change]":
        waiting = asyncio.ensure_future(abandoned.__anext__())
        await asyncio.sleep(0)
        return waiting

    waiting = loop.run_until_complete(begin())
    waiting.cancel()
    loop.close()

    async def main() -> None:
        changes = cache.changes()
        database.snapshot(1, 1)
        assert (await take(changes)).event_ids == [1]

    asyncio.run(main())


def test_on_update(database: Database, cache: OddsCache) -> None:
    """A connected cache calls in one thread of its own, with ids and source: also "betpawa" for a moved kickoff."""
    database.event(1)
    database.event(2)
    rival = database.competitor(2, "bet9ja")
    cache.wait_for(database.xid())
    calls: list[tuple[list[int], str]] = []
    threads: set[int] = set()

    def callback(event_ids: list[int], source: str) -> None:
        threads.add(threading.get_ident())
        calls.append((event_ids, source))

    remove = cache.on_update(callback)
    database.snapshot(1, 1, [market()])
    eventually(lambda: calls == [([1], "betpawa")])
    database.competitor_snapshot(rival, [market()])
    eventually(lambda: calls[1:] == [([2], "bet9ja")])
    database.execute("UPDATE events SET kickoff = kickoff + interval '1 hour' WHERE id = 2")
    eventually(lambda: calls[2:] == [([2], "betpawa")])
    with database.transaction():
        database.snapshot(1, 1)
        database.snapshot(2, 1)
        database.competitor_snapshot(rival)
    eventually(lambda: sorted(calls[3:]) == [([1, 2], "betpawa"), ([2], "bet9ja")])
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident()})

    remove()
    other: list[str] = []
    cache.on_update(lambda event_ids, source: other.append(source))
    database.snapshot(1, 1)
    eventually(lambda: other)
    assert len(calls) == 5


def test_a_blocked_callback_delays_only_callbacks(database: Database, cache: OddsCache) -> None:
    """While a callback blocks, lookups, waits and changes go on; what happened meanwhile is told in one call."""
    database.event(1)
    database.event(2)
    cache.wait_for(database.xid())
    entered, release = threading.Event(), threading.Event()
    calls: list[list[int]] = []

    def callback(event_ids: list[int], source: str) -> None:
        calls.append(event_ids)
        entered.set()
        release.wait(20)

    cache.on_update(callback)
    database.snapshot(1, 1)
    assert entered.wait(10)

    async def main() -> None:
        changes = cache.changes()
        for n in range(20):
            database.snapshot(1 + n % 2, 1, [market(odds=(n + 1.5,))])
            view = await cache.wait_for_async(database.xid())
            held = view.get_betpawa_snapshots([1 + n % 2])[1 + n % 2][1]
            assert held.markets[0].outcomes[0]["odds"] == n + 1.5
            assert (await take(changes)).event_ids == [1 + n % 2]

    asyncio.run(main())
    assert calls == [[1]]
    release.set()
    eventually(lambda: len(calls) > 1)
    assert calls[1:] == [[1, 2]]


def test_a_failing_callback_is_logged(database: Database, cache: OddsCache, caplog: pytest.LogCaptureFixture) -> None:
    """The error of one callback is logged with its traceback, and neither the others nor the next call suffer."""
    database.event(1)
    calls: list[int] = []

    def failing(event_ids: list[int], source: str) -> None:
        raise RuntimeError("a bug of the application")

    cache.on_update(failing)
    cache.on_update(lambda event_ids, source: calls.extend(event_ids))
    for n in range(1, 3):
        database.snapshot(1, 1, captured_at=utc_now())
        eventually(lambda n=n: calls == [1] * n)  # type: ignore[misc]
    errors = [record for record in caplog.records if record.name.startswith("oddscache") and record.exc_info]
    assert len(errors) == 2


def test_a_callback_may_close_the_cache(database: Database, cache: OddsCache) -> None:
    """A callback that closes its own cache does not wait for itself."""
    database.event(1)
    cache.wait_for(database.xid())
    closed = threading.Event()

    def callback(event_ids: list[int], source: str) -> None:
        cache.close()
        closed.set()

    cache.on_update(callback)
    database.snapshot(1, 1)
    assert closed.wait(5)


def test_a_cache_that_nobody_holds_ends(database: Database) -> None:
    """A cache that is dropped without close ends its follower and its threads, also with a callback."""
    cache = OddsCache.connect(database.url)
    cache.ready(10)
    cache.on_update(lambda event_ids, source: None)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    eventually(lambda: database.others() == 0)


def test_close_ends_threads_and_connections(database: Database) -> None:
    """`close` ends the threads of the cache and its connections; further calls do nothing."""
    before = set(threading.enumerate())
    cache = OddsCache.connect(database.url)
    cache.ready(10)
    cache.on_update(lambda event_ids, source: None)
    changes = cache.changes()
    cache.close()
    cache.close()
    eventually(lambda: {t for t in threading.enumerate() if "log" not in t.name} <= before)
    eventually(lambda: database.others() == 0)
    del changes


def test_lost_changes_reach_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After lost changes callbacks get all events, also those that are gone meanwhile, which were once left out."""
    now: dict[str, list[int]] = {"betpawa": [1, 2, 3], "bet9ja": [2]}
    calls: list[tuple[list[int], str]] = []
    updates = _events.Updates([lambda ids, source: calls.append((ids, source))], lambda: now)
    now = {"betpawa": [2]}
    updates.lose()
    eventually(lambda: len(calls) == 2)
    assert sorted(calls) == [([1, 2, 3], "betpawa"), ([2], "bet9ja")]
    updates.lose()
    eventually(lambda: len(calls) == 3)
    assert calls[-1] == ([2], "betpawa")
    updates.end()


def test_a_source_may_be_called_betpawa() -> None:
    """Both sides' ids reach callbacks, should a competitor have the name of the platform."""
    cache = OddsCache()
    both = snapshot(7)
    cache.put_betpawa_snapshot(1, 1, both)
    calls: list[tuple[list[int], str]] = []
    cache.on_update(lambda ids, source: calls.append((ids, source)))
    cache.put_competitor_snapshot(2, "betpawa", both)
    assert calls == [([2], "betpawa")]


def test_removing_twice_removes_once() -> None:
    """A function may be registered twice; removing one registration again leaves the other."""
    cache = OddsCache()
    calls: list[list[int]] = []

    def callback(ids: list[int], source: str) -> None:
        calls.append(ids)

    remove = cache.on_update(callback)
    cache.on_update(callback)
    remove()
    remove()
    cache.put_betpawa_snapshot(1, 1, snapshot(1))
    assert calls == [[1]]
