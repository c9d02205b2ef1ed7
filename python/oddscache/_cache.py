"""`OddsCache`: the handle."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from . import _events, _logs, _native
from ._errors import Closed, ConfigError, NotReady
from ._events import Callback, Changes

if TYPE_CHECKING:
    from typing_extensions import Self

Seconds = float | timedelta
"""A duration."""

INLINE_MARKETS: tuple[str | tuple[str, float | None], ...] = ("3743", ("5000", 2.5), "3795", "4693")
"""The markets that the event list shows unless told otherwise: those of the service."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why a cache is degraded."""

    what: str
    """What is wrong: a trigger, or a row that cannot be read. Names the object, never data of a row."""
    repair: str
    """The statement, the command or the step that repairs it."""


@dataclasses.dataclass(frozen=True)
class Status:
    """What a cache is doing. The last view stays readable in every state; its age tells how old it is."""

    name: str
    """One word: `warming`, `live`, `polling_only`, `degraded`, `resyncing`, `disconnected`, `ended`, `detached`."""
    text: str
    """A sentence for people."""
    since: datetime | None
    """Since when the cache is degraded or disconnected, by the local clock."""
    faults: tuple[Fault, ...]
    """Why the cache is degraded."""
    bound: float | None
    """While degraded: a change that the feed does not log shows within about this many seconds. `None`: it logs all."""

    def __str__(self) -> str:
        return self.text


@final
class OddsCache(_native.Cache):
    """The latest odds of every upcoming event, held in memory.

    `OddsCache.connect(url)` follows a database: what a lookup returns is always one committed state, and `age` tells
    how long ago that state was proven current. `OddsCache.connect(relay=...)` follows a relay, and shows what the
    relay's publisher shows. `OddsCache()` follows nothing and is filled by `put_betpawa_snapshot`
    and `put_competitor_snapshot`: for tests, and for odds that come from elsewhere.

    All methods may be called from any thread and any event loop. No lookup does I/O or waits. Only the first call in a
    process that was forked connects, which takes a moment.
    """

    _callbacks: list[Callback]
    _hub: _events.Hub | None
    _told: bool

    def __new__(cls, *, naive_times: bool = False) -> Self:
        """An empty cache that the program fills. With `naive_times`, times are naive, in UTC."""
        return cls._make(None, naive_times)

    @classmethod
    def _make(cls, config: _native.Config | None, naive_times: bool) -> Self:
        cache = super().__new__(cls, config, naive_times)
        cache._callbacks = []
        cache._hub = None
        cache._told = False
        _live.add(cache)
        return cache

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        relay: str | _native.Relay | None = None,
        naive_times: bool = False,
        app_schema: str = "public",
        cache_schema: str = "oddscache",
        lookback: Seconds = 7200.0,
        poll_interval: Seconds = 1.0,
        read_timeout: Seconds = 10.0,
        warmup_timeout: Seconds = 300.0,
        warmup_connections: int = 2,
        retry_unreachable: bool = True,
        allow_row_security: bool = False,
        audit_cycle: Seconds = 120.0,
        audit_budget: float = 0.01,
        listen_url: str | None = None,
    ) -> Self:
        """A cache that follows a database or a relay. Returns at once; a thread reads from there without the GIL.

        Await `wait_ready()`, or call `ready()`, before the first lookup: until then the cache is empty.

        url: a connection string of libpq (`postgresql://user@host/database?sslmode=verify-full`). One of SQLAlchemy
            (`postgresql+asyncpg://`) is understood, too.
        relay: in place of `url`: the URL of a NATS server (`nats://host:4222`), or a `Relay`. Such a cache needs no
            database. Of the other arguments `naive_times` and `retry_unreachable` hold for it; its publisher has the
            rest.
        naive_times: times are naive, in UTC, instead of aware.
        app_schema: the schema of the application's tables.
        cache_schema: the schema of the change feed.
        lookback: how long after its kickoff an event is held.
        poll_interval: how long to wait for a notification before reading without one; at least 10 ms.
        read_timeout, warmup_timeout: how long reading changes, and reading everything, may take.
        warmup_connections: how many connections read everything in parallel; fewer than 1 count as 1, more than 8 as 8.
        retry_unreachable: whether to wait for what cannot be reached before the first warmup. If not,
            `ready` raises the error.
        allow_row_security: whether the role may be subject to row level security.
        audit_cycle, audit_budget: the time in which everything is compared with the database if the budget suffices,
            and the share of a core that this may take, 0.0001 to 1; what lies outside counts as the nearer end.
        listen_url: where to LISTEN, if not at `url`: for a standby, and behind a pooler.

        Durations are seconds, or a `timedelta`. Raises `ConfigError` for what cannot be understood.
        """
        source: str | _native.Relay
        if relay is not None:
            if url is not None or listen_url is not None:
                raise ConfigError("give the url of a database, or a relay: a cache does not follow both")
            source = relay if isinstance(relay, _native.Relay) else _native.Relay(relay)
        elif isinstance(url, str):
            source = url
        else:
            raise TypeError(
                f"url must be a str, not {type(url).__name__}; of a URL of SQLAlchemy take render_as_string(False)"
            )
        config = _native.Config(
            source,
            app_schema=app_schema,
            cache_schema=cache_schema,
            lookback=_seconds(lookback),
            poll_interval=_seconds(poll_interval),
            read_timeout=_seconds(read_timeout),
            warmup_timeout=_seconds(warmup_timeout),
            warmup_connections=max(1, min(8, operator.index(warmup_connections))),
            retry_unreachable=retry_unreachable,
            allow_row_security=allow_row_security,
            audit_cycle=_seconds(audit_cycle),
            audit_budget=audit_budget,
            listen_url=listen_url,
        )
        _logs.start()
        return cls._make(config, naive_times)

    def view(self, max_age: Seconds | None = None) -> _native.View:
        """The latest committed state, to hold: lookups in one view agree with each other.

        max_age: raises `TooStale` if the state was not proven current within this time. Does not wait for a proof.
        """
        return super().view(None if max_age is None else _seconds(max_age))

    def event_list_json(
        self,
        event_ids: Iterable[int] | None = None,
        markets: Iterable[str | tuple[str, float | None]] = INLINE_MARKETS,
    ) -> bytes:
        """The event list as JSON in UTF-8, ready for a response: some markets of all snapshots of all events.

        The whole list is ordered by kickoff and writes only what changed since the last call. With `event_ids` it holds
        these events, in this order; absent ones are left out.

        markets: ids, or pairs of id and line.
        """
        return super().event_list_json(event_ids, markets)

    @property
    def status(self) -> Status:
        """What the cache is doing."""
        name, text, since, faults, bound = self._status()
        return Status(name, text, since, tuple(Fault(*fault) for fault in faults), bound)

    def stats(self) -> dict[str, Any]:
        """What the cache holds and has done.

        `betpawa_events`, `competitor_events`, `total_snapshots`, `total_markets`, `memory_bytes` and others describe
        the latest state; `status`, `age` (seconds), `epoch`, `version` say which that is; `counters` only grow.
        `reading` says how far a read of everything is, and is None if there is none: `snapshots_read`, `snapshots`,
        `seconds`, `seconds_left`.
        """
        stats, counters, reading, age, epoch, version = self._stats()
        return {
            **stats,
            "status": self.status.name,
            "age": age,
            "epoch": epoch,
            "version": version,
            "counters": counters,
            "reading": reading,
        }

    def ready(self, timeout: Seconds | None = None) -> None:
        """Waits until the cache is warm. Other threads run meanwhile, and Ctrl-C ends the wait.

        Raises `NotReady` after `timeout`, with the reason; or the error that ended the follower.
        """
        super().ready(None if timeout is None else _seconds(timeout))

    async def wait_ready(self, timeout: Seconds | None = None) -> None:
        """`ready` for a coroutine."""
        if self.is_warm or self.is_detached:
            return
        limit = None if timeout is None else _seconds(timeout)
        try:
            await asyncio.wait_for(self._started().wait(self._start_ready), limit)
        except asyncio.TimeoutError as error:
            if isinstance(error, NotReady):
                raise
            raise NotReady(f"the cache is not ready after {limit} s: {self.status}") from None

    def wait_for(self, xid: int, timeout: Seconds = 5.0) -> _native.View:
        """Waits for a view that contains what transaction `xid` wrote: read-your-writes.

        The writer runs `SELECT pg_current_xact_id()` before it commits. Raises `NotShown` after `timeout`.
        """
        return super().wait_for(xid, _seconds(timeout))

    async def wait_for_async(self, xid: int, timeout: Seconds = 5.0) -> _native.View:
        """`wait_for` for a coroutine."""
        limit = _seconds(timeout)
        await self._started().wait(lambda events, number: self._start_wait_for(events, number, xid, limit))
        return super().wait_for(xid, 0.0)

    def changes(self) -> Changes:
        """The changes from now on: `async for change in cache.changes()`. Take a view after this call."""
        return self._started().subscribe()

    def on_update(self, callback: Callback) -> Callable[[], None]:
        """Calls `callback(event_ids, source)` for what changes. Returns a function that ends this.

        source: `betpawa` for snapshots of `odds_snapshots`, kickoffs and names, else `competitor_events.source`.

        A connected cache calls in a thread of its own. While a callback runs, further ids are gathered
        for the next call. `OddsCache()` calls in the thread that writes. The error of a callback is logged, and the
        others are called all the same.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        self._check_open()
        self._callbacks.append(callback)
        if not self.is_detached:
            self._start_updates()

        registered = True

        def remove() -> None:
            nonlocal registered
            if registered:
                registered = False
                self._callbacks.remove(callback)

        return remove

    def put_betpawa_snapshot(
        self,
        event_id: int,
        bookmaker_id: int,
        snapshot: Any,
        kickoff: datetime | None = None,
    ) -> None:
        """Sets the snapshot of an event and bookmaker, in a cache that follows nothing.

        snapshot: a `CachedSnapshot`, or any object with its attributes. A naive time is UTC.

        A connected cache ignores this: it shows what was committed, and nothing else.
        """
        self._changed(super().put_betpawa_snapshot(event_id, bookmaker_id, snapshot, kickoff))

    def put_competitor_snapshot(
        self,
        event_id: int,
        source: str,
        snapshot: Any,
        kickoff: datetime | None = None,
    ) -> None:
        """Sets the snapshot of an event and source. See `put_betpawa_snapshot`."""
        self._changed(super().put_competitor_snapshot(event_id, source, snapshot, kickoff))

    def evict_expired(self, cutoff: datetime) -> int:  # type: ignore[override]
        """Removes all events with a kickoff at or before `cutoff`, and returns how many. A naive cutoff is UTC.

        A connected cache ignores this and returns 0: it drops events by itself, `lookback` after kickoff.
        """
        evicted = super().evict_expired(cutoff)
        count, change = evicted or (0, None)
        self._changed(change)
        return count

    def clear(self) -> None:
        """Removes all events. A connected cache ignores this."""
        self._changed(super().clear())

    def close(self) -> None:
        """Ends the follower and its threads. Later lookups raise `Closed`, and so do all waits.

        Views and snapshots that were taken before stay readable. A second call does nothing.
        """
        super().close()
        if self._hub is not None:
            self._hub.join(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.is_closed:
            return "<oddscache.OddsCache, closed>"
        return f"<oddscache.OddsCache of {len(self.view())} events, {self.age:.3f} s old, {self.status.name}>"

    def __reduce__(self) -> Any:
        raise TypeError("an OddsCache cannot be pickled; connect in each process")

    def _changed(self, change: _native.Change | None) -> None:
        """Calls the callbacks for what a write changed. `None`: the cache is connected."""
        if change is not None:
            for source, ids in _events.by_source(change).items():
                _events.call(self._callbacks, ids, source)
        elif not self._told:
            self._told = True
            _logs.logger.info("the cache is connected, so put_*, evict_expired and clear change nothing")

    def _check_open(self) -> None:
        if self.is_closed:
            raise Closed("the cache is closed")

    def _started(self) -> _events.Hub:
        self._check_open()
        with _starting:
            if self._hub is None:
                self._hub = _events.Hub(self._events())
            return self._hub

    def _start_updates(self) -> None:
        hub = self._started()
        with _starting:
            if not hub.updates:
                hub.update(_events.Updates(self._callbacks, _everything(weakref.ref(self))))


def _everything(reference: weakref.ref[OddsCache]) -> Callable[[], dict[str, list[int]]]:
    """Returns the ids of all events by source, without keeping the cache alive."""

    def everything() -> dict[str, list[int]]:
        cache = reference()
        if cache is None or cache.is_closed:
            return {}
        view = cache.view()
        ids = view.event_ids()
        sources: dict[str, list[int]] = {_events.BETPAWA: ids}
        for event_id, snapshots in view.get_competitor_snapshots(ids).items():
            for source in snapshots:
                sources.setdefault(source, []).append(event_id)
        return sources

    return everything


def _seconds(duration: Seconds) -> float:
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise TypeError(f"a duration must be a number of seconds or a timedelta, not {type(duration).__name__}")
    try:
        seconds = float(duration)
    except OverflowError:
        raise ConfigError("a duration is too long") from None
    if not seconds >= 0:
        raise ConfigError(f"a duration must be a number of seconds from 0 on, not {seconds}")
    return seconds


_live: weakref.WeakSet[OddsCache] = weakref.WeakSet()
_starting = threading.RLock()


def _at_exit() -> None:
    """Ends all threads while the interpreter is whole."""
    for cache in list(_live):
        cache.close()
    _logs.stop()


def _after_fork() -> None:
    """The child has none of the parent's threads, and their locks may be held for ever."""
    global _starting
    _starting = threading.RLock()
    _logs.forked()
    for cache in list(_live):
        if cache._hub is not None:
            cache._hub.forked()
            cache._hub = None
        cache._forked()


def _reconnected() -> None:
    """Called when a cache has connected anew in a process that was forked."""
    _logs.start()
    for cache in list(_live):
        if cache._callbacks and cache._hub is None and not cache.is_detached and not cache.is_closed:
            cache._start_updates()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
