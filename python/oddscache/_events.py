"""Changes and waits: one thread for each cache hands them to tasks of any event loop, and to callbacks.

The thread waits in compiled code without the GIL. It never runs code of the application: it appends to queues and wakes
event loops. Callbacks have a thread of their own.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import _native
from ._errors import Closed, Error, Lagged

logger = logging.getLogger("oddscache")

Callback = Callable[[list[int], str], Any]

BETPAWA = "betpawa"
"""The source of the platform's own snapshots, as callbacks get it."""

_KEPT = 256
"""How many changes are kept for a subscriber that does not take them."""

_KNOWN = 100_000
"""How many ids of a source are remembered before those of events that are gone are forgotten."""


def by_source(change: _native.Change) -> dict[str, list[int]]:
    """The ids of a change as callbacks get them. A moved kickoff and new names count for the platform's side."""
    sources = {BETPAWA: sorted({*change.betpawa, *change.kickoffs, *change.names})}
    for source, ids in change.competitors.items():
        sources[source] = sorted({*sources.get(source, ()), *ids})
    return {source: ids for source, ids in sources.items() if ids}


def call(callbacks: Sequence[Callback], ids: list[int], source: str, logged: type[BaseException] = Exception) -> None:
    """Calls all, each with a list of its own. The error of one is logged, and the others are called all the same."""
    for callback in list(callbacks):
        try:
            callback(list(ids), source)
        except logged:
            logger.exception("a callback of on_update failed")


def as_sets(sources: dict[str, list[int]]) -> dict[str, set[int]]:
    return {source: set(ids) for source, ids in sources.items()}


class _Waiter:
    """A task that waits in its event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def wake(self, error: BaseException | None = None) -> None:
        """Called in any thread."""
        try:
            self._loop.call_soon_threadsafe(self._finish, error)
        except RuntimeError:
            pass  # The loop is closed, so nobody waits any more.

    def _finish(self, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


class Changes:
    """The changes published since `OddsCache.changes()` was called, in order: `async for change in changes`.

    Take a view *after* that call. A change published in between is then in the view and also comes here. At most 256
    changes are kept. If more wait, the iteration raises `Lagged`; a new `async for` goes on with the oldest change that
    was kept. The iteration ends when the cache is closed. One task at a time may iterate, in any event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._queue: collections.deque[_native.Change] = collections.deque()
        self._missed = 0
        self._ended: BaseException | None = None
        self._waiter: _Waiter | None = None

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> _native.Change:
        while True:
            with self._lock:
                if self._missed:
                    missed, self._missed = self._missed, 0
                    text = f"{missed} changes were dropped because they were not taken in time"
                    raise Lagged(f"{text}; start again from a new view", missed)
                if self._queue:
                    return self._queue.popleft()
                if isinstance(self._ended, Closed):
                    raise StopAsyncIteration
                if self._ended is not None:
                    raise self._ended.with_traceback(None)
                if self._waiter is not None:
                    raise RuntimeError("another task iterates over these changes; call changes() for each task")
                waiter = self._waiter = _Waiter()
            try:
                await waiter.future
            finally:
                with self._lock:
                    self._waiter = None

    def _push(self, change: _native.Change) -> None:
        with self._lock:
            if len(self._queue) >= _KEPT:
                self._queue.popleft()
                self._missed += 1
            self._queue.append(change)
            if self._waiter is not None:
                self._waiter.wake()

    def _lose(self, missed: int) -> None:
        with self._lock:
            self._missed += missed
            if self._waiter is not None:
                self._waiter.wake()

    def _end(self, reason: BaseException) -> None:
        with self._lock:
            self._ended = reason
            if self._waiter is not None:
                self._waiter.wake()

    def _forked(self) -> None:
        """In a process that was forked: the thread that brought changes is not here, and may have held the lock."""
        self._lock = threading.RLock()
        self._waiter = None
        self._ended = Error("this process was forked after the call of changes(); call it again")


class Updates:
    """Calls the callbacks of a cache in a thread of their own. While they are busy, further ids are gathered."""

    def __init__(self, callbacks: Sequence[Callback], everything: Callable[[], dict[str, list[int]]]) -> None:
        self._callbacks = callbacks
        self._everything = everything
        self._more = threading.Condition()
        self._waiting: dict[str, set[int]] = {}
        # What the callbacks know of. After lost changes they must hear also of events that are gone.
        self._known = as_sets(everything())
        self._lost = False
        self._ended = False
        threading.Thread(target=self._run, name="oddscache-callbacks", daemon=True).start()

    def push(self, change: _native.Change) -> None:
        with self._more:
            for source, ids in by_source(change).items():
                self._waiting.setdefault(source, set()).update(ids)
            self._more.notify()

    def lose(self) -> None:
        with self._more:
            self._lost = True
            self._more.notify()

    def end(self) -> None:
        with self._more:
            self._ended = True
            self._more.notify()

    def _run(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._waiting or self._lost or self._ended)
                waiting, self._waiting = self._waiting, {}
                lost, self._lost = self._lost, False
                if not waiting and not lost:
                    return
            if lost:
                logger.warning("changes came too fast; the callbacks of on_update get all events")
                now = as_sets(self._everything())
                for held in (self._known, now):
                    for source, all_ids in held.items():
                        waiting.setdefault(source, set()).update(all_ids)
                self._known = now
            else:
                for source, ids in waiting.items():
                    self._known.setdefault(source, set()).update(ids)
                if any(len(ids) > _KNOWN for ids in self._known.values()):
                    self._known = as_sets(self._everything())
            for source, ids in waiting.items():
                # This thread is the cache's own: not even SystemExit may end it.
                call(self._callbacks, sorted(ids), source, logged=BaseException)


class Hub:
    """Takes the events of one cache and hands them on. Knows nothing of the cache, so that a cache can be collected."""

    def __init__(self, events: _native.Events) -> None:
        self._events = events
        self._lock = threading.RLock()
        self._changes: weakref.WeakSet[Changes] = weakref.WeakSet()
        self._waits: dict[int, _Waiter] = {}
        self._numbers = itertools.count(1)
        self._updates: Updates | None = None
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="oddscache-events", daemon=True)
        self._thread.start()

    def subscribe(self) -> Changes:
        changes = Changes()
        with self._lock:
            if self._ended is not None:
                changes._end(self._ended)
            self._changes.add(changes)
        return changes

    def update(self, updates: Updates) -> None:
        with self._lock:
            self._updates = updates
            if self._ended is not None:
                updates.end()

    @property
    def updates(self) -> bool:
        return self._updates is not None

    async def wait(self, start: Callable[[_native.Events, int], _native.Waiting]) -> None:
        """Starts a wait of the compiled part and waits for its end in the running event loop."""
        number = next(self._numbers)
        waiter = _Waiter()
        with self._lock:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            self._waits[number] = waiter
        started = []
        try:
            started.append(start(self._events, number))
            await waiter.future
        finally:
            # Dropping it ends the wait.
            started.clear()
            with self._lock:
                self._waits.pop(number, None)

    def forked(self) -> None:
        """In a process that was forked. The lock may be held by a thread that is not here."""
        for changes in list(self._changes):
            changes._forked()

    def join(self, timeout: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (event := self._events.next()) is not None:
            with self._lock:
                if isinstance(event, _native.Change):
                    for changes in self._changes:
                        changes._push(event)
                    if self._updates is not None:
                        self._updates.push(event)
                elif isinstance(event, Lagged):
                    for changes in self._changes:
                        changes._lose(event.missed)
                    if self._updates is not None:
                        self._updates.lose()
                else:
                    number, error = event
                    waiter = self._waits.pop(number, None)
                    if waiter is not None:
                        waiter.wake(error)
            del event
        reason = self._events.ended()
        with self._lock:
            self._ended = reason
            for changes in self._changes:
                changes._end(reason)
            if self._updates is not None:
                self._updates.end()
            for waiter in self._waits.values():
                waiter.wake(self._events.ended())
