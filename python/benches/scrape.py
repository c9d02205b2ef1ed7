"""Scrape cycles: transactions that give 50 events a new snapshot with all markets and other odds."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

BATCH = 50  # snapshots


class Scraper:
    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._random = random.Random(1)
        self._ids = [row[0] for row in self._connection.execute("select id from events order by id")]

    def cycle(self) -> int:
        """One transaction. Returns its xid."""
        ids = self._random.sample(self._ids, BATCH)
        row = self._connection.execute(_CYCLE, [ids]).fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        self._connection.close()


@contextmanager
def scraping(url: str, per_second: float) -> Iterator[None]:
    """Scrapes in the background, at this rate of cycles."""
    stop = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        scraper = Scraper(url)
        try:
            while not stop.wait(1 / per_second):
                scraper.cycle()
        except Exception as error:
            errors.append(error)
        finally:
            scraper.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


_CYCLE = """
    with made as materialized (
        select nextval(pg_get_serial_sequence('odds_snapshots', 'id')) as id, event_id, max(id) as before
        from odds_snapshots
        where event_id = any(%s)
        group by event_id
    ), snapshots as (
        insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
        select id, event_id, 1, now() at time zone 'UTC' from made
    ), markets as (
        insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, handicap_type,
                                 handicap_home, handicap_away, outcomes, market_groups, unavailable_at)
        select made.id, m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, m.handicap_home,
               m.handicap_away, moved.outcomes, m.market_groups, m.unavailable_at
        from made
        join market_odds m on m.snapshot_id = made.before
        cross join lateral (
            select jsonb_agg(outcome || jsonb_build_object('odds', greatest(1.01,
                       round((outcome ->> 'odds')::numeric * (0.97 + 0.06 * random())::numeric, 2)))
                       order by n) as outcomes
            from jsonb_array_elements(m.outcomes) with ordinality o (outcome, n)
        ) moved
        order by made.id, m.id
    )
    select pg_current_xact_id()::text"""
