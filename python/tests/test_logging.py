"""The library's log lines arrive at Python's logging, under the logger "oddscache"."""

import logging
import threading

import pytest

import programs
from cluster import free_port
from database import Database
from oddscache import OddsCache
from waiting import eventually


def records(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "oddscache" and record.levelno >= level]


def test_warnings_arrive(caplog: pytest.LogCaptureFixture) -> None:
    """A handler sees why the database cannot be reached, as a WARNING with a sentence, without the password."""
    port = free_port()
    with OddsCache.connect(f"postgresql://postgres:se-cret@127.0.0.1:{port}/x"):
        eventually(lambda: records(caplog, logging.WARNING))
    found = records(caplog, logging.WARNING)
    assert any(str(port) in record.getMessage() for record in found)
    assert not any("se-cret" in record.getMessage() for record in caplog.records)


def test_levels(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """INFO lines arrive when they are wanted; a normal life, of whatever length, logs no warning and no error."""
    caplog.set_level(logging.INFO, "oddscache")
    with OddsCache.connect(database.url) as cache:
        cache.ready(10)
        eventually(lambda: records(caplog, logging.INFO))
    for _ in range(5):
        OddsCache.connect(database.url).close()
    end_of_log(caplog)
    assert records(caplog, logging.WARNING) == []


def end_of_log(caplog: pytest.LogCaptureFixture) -> None:
    """Waits until all that was logged before has arrived: a later line comes after it."""
    port = free_port()
    with OddsCache.connect(f"postgresql://postgres@127.0.0.1:{port}/x"):
        eventually(lambda: any(f":{port}" in record.getMessage() for record in caplog.records))
    caplog.handler.records = [record for record in caplog.records if f":{port}" not in record.getMessage()]


def test_a_close_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A cache that is closed while it connects logs no error."""
    for _ in range(10):
        OddsCache.connect(f"postgresql://x@127.0.0.1:{free_port()}/x").close()
    end_of_log(caplog)
    assert records(caplog, logging.ERROR) == []


def test_other_levels_are_not_recorded(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """With the logger's level at ERROR a normal life logs nothing at all."""
    caplog.set_level(logging.ERROR, "oddscache")
    with OddsCache.connect(database.url) as cache:
        cache.ready(10)
    caplog.set_level(logging.WARNING, "oddscache")
    end_of_log(caplog)
    assert caplog.records == []


def test_debug_lines(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """DEBUG lines arrive if the logger's level asks for them when a cache connects."""
    caplog.set_level(logging.DEBUG, "oddscache")
    with OddsCache.connect(database.url) as cache:
        cache.ready(10)
        database.terminate_others()
        eventually(lambda: any(record.levelno == logging.DEBUG for record in records(caplog, logging.DEBUG)))


def test_a_handler_that_blocks_or_fails_stops_nothing(database: Database) -> None:
    """A handler that blocks delays only log lines: lookups and waits go on."""
    entered, release = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            release.wait(20)

    handler = Blocking()
    logger = logging.getLogger("oddscache")
    logger.addHandler(handler)
    try:
        with (
            OddsCache.connect(f"postgresql://postgres@127.0.0.1:{free_port()}/x"),
            OddsCache.connect(database.url) as cache,
        ):
            assert entered.wait(10)
            cache.ready(10)
            database.event(1)
            for n in range(20):
                database.snapshot(1, n)
                assert len(cache.wait_for(database.xid()).get_betpawa_snapshots([1])[1]) == n + 1
    finally:
        release.set()
        logger.removeHandler(handler)


def test_no_output_without_logging() -> None:
    """A program that silences the logger gets nothing on standard error."""
    out = programs.run_code(
        """
        import logging
        from oddscache import OddsCache

        logging.getLogger("oddscache").addHandler(logging.NullHandler())
        with OddsCache.connect("postgresql://x@127.0.0.1:1/x") as cache:
            try:
                cache.ready(0.5)
            except TimeoutError as error:
                print("refused" in str(error))
        """
    )
    assert out == "True\n"
