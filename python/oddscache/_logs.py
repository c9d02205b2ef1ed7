"""Hands the library's log lines to `logging`, under the name `oddscache`."""

from __future__ import annotations

import logging
import threading
import traceback

from . import _native

logger = logging.getLogger("oddscache")

_reader: _native.LogReader | None = None
_thread: threading.Thread | None = None


def start() -> None:
    """Starts the thread that takes the lines, once a process. The library never waits for it."""
    global _reader, _thread
    _set_level()
    if _thread is None:
        _reader = _native.LogReader()
        _thread = threading.Thread(target=_run, args=(_reader,), name="oddscache-log", daemon=True)
        _thread.start()


def stop() -> None:
    """Hands over what is left, and ends the thread."""
    global _reader, _thread
    if _reader is not None and _thread is not None:
        _reader.end()
        if _thread is not threading.current_thread():
            # A handler may block. The thread is a daemon, so it does not hold up the end of the process.
            _thread.join(1.0)
    _reader = _thread = None


def forked() -> None:
    """In a process that was forked: forgets the parent's thread. The next connection starts a new one."""
    global _reader, _thread
    _native.log_renew()
    _reader = _thread = None


def _set_level() -> None:
    # Levels below INFO are recorded only if somebody wants them when a cache connects or a line comes.
    _native.log_level(max(0, min(logging.INFO, logger.getEffectiveLevel())))


def _run(reader: _native.LogReader) -> None:
    while (taken := reader.take()) is not None:
        lines, dropped = taken
        for level, text in lines:
            try:
                logger.log(level, "%s", text)
            except BaseException:
                # A filter or a handler of the application failed. Later lines may do better.
                traceback.print_exc()
        if dropped:
            logger.warning("%s log lines were dropped because they came too fast", dropped)
        _set_level()
