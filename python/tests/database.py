"""A database with the application's tables and the feed, and what a cache of it must hold."""

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from cluster import Cluster
from plain import MARKET, Market, Snapshot

Row = Mapping[str, Any]
UTC = timezone.utc


def market(market_id: str = "3743", odds: Iterable[float | None] = (2.0, 3.5, 4.0), **fields: Any) -> dict[str, Any]:
    """A row of `market_odds` without its key: by default 1X2."""
    names = ("1", "X", "2", "4", "5")
    return {
        "betpawa_market_id": market_id,
        "betpawa_market_name": f"Market {market_id}",
        "line": None,
        "handicap_type": None,
        "handicap_home": None,
        "handicap_away": None,
        "outcomes": [{"name": name, "odds": o, "is_active": True} for name, o in zip(names, odds, strict=False)],
        "market_groups": ["main"],
        "unavailable_at": None,
        **fields,
    }


def utc_now() -> datetime:
    """Naive, as the application's columns are."""
    return datetime.now(UTC).replace(tzinfo=None)


class Database:
    def __init__(self, cluster: Cluster, template: str | None = None) -> None:
        self.cluster = cluster
        self.name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as admin:
            of = f' TEMPLATE "{template}"' if template else ""
            admin.execute(f'CREATE DATABASE "{self.name}"{of}'.encode())
        self.url = cluster.url(self.name)
        self.connection = psycopg.connect(self.url, autocommit=True)

    def close(self) -> None:
        self.connection.close()

    def drop(self) -> None:
        self.close()
        with psycopg.connect(self.cluster.url("postgres"), autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{self.name}" WITH (FORCE)'.encode())

    def reconnect(self) -> None:
        """After the server was stopped and started."""
        self.connection.close()
        self.connection = psycopg.connect(self.url, autocommit=True)

    def transaction(self) -> Any:
        return self.connection.transaction()

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(sql.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def _insert(self, table: str, row: Row) -> int:
        names = ", ".join(row)
        places = ", ".join(["%s"] * len(row))
        returned = self.execute(f"INSERT INTO {table} ({names}) VALUES ({places}) RETURNING id", *row.values())
        key: int = returned[0][0]
        return key

    def event(self, event_id: int, kickoff: timedelta = timedelta(hours=3)) -> int:
        return self._insert(
            "events",
            {
                "id": event_id,
                "sportradar_id": f"sr:match:{event_id}",
                "name": f"Home {event_id} - Away {event_id}",
                "home_team": f"Home {event_id}",
                "away_team": f"Away {event_id}",
                "kickoff": utc_now() + kickoff,
            },
        )

    def snapshot(self, event_id: int, bookmaker_id: int = 1, markets: Iterable[Row] = (), **fields: Any) -> int:
        """Inserts a snapshot of the application's own, with its markets, in one transaction."""
        with self.transaction():
            key = self._insert("odds_snapshots", {"event_id": event_id, "bookmaker_id": bookmaker_id, **fields})
            self._markets("market_odds", key, markets)
        return key

    def competitor(self, event_id: int | None, source: str = "sportybet") -> int:
        """Inserts a competitor's event."""
        external = uuid.uuid4().hex
        return self._insert(
            "competitor_events",
            {
                "source": source,
                "betpawa_event_id": event_id,
                "kickoff": utc_now() + timedelta(hours=3),
                "external_id": external,
                "sportradar_id": f"sr:match:{external}"[:50],
            },
        )

    def competitor_snapshot(self, competitor_event_id: int, markets: Iterable[Row] = (), **fields: Any) -> int:
        with self.transaction():
            key = self._insert("competitor_odds_snapshots", {"competitor_event_id": competitor_event_id, **fields})
            self._markets("competitor_market_odds", key, markets)
        return key

    def _markets(self, table: str, snapshot_id: int, markets: Iterable[Row]) -> None:
        for row in markets:
            columns = {name: Jsonb(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}
            self._insert(table, {"snapshot_id": snapshot_id, **columns})

    def xid(self) -> int:
        """The id of a transaction of its own, after everything that is committed now."""
        return int(self.execute("SELECT pg_current_xact_id()::text")[0][0])

    def others(self) -> int:
        """How many other sessions this database has."""
        count: int = self.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )[0][0]
        return count

    def terminate_others(self) -> None:
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def expected(self, window_start: datetime) -> tuple[dict[int, dict[int, Snapshot]], dict[int, dict[str, Snapshot]]]:
        """What a cache must hold: the application's own snapshots and the competitors', for all events.

        Shares nothing with how the cache reads.
        """
        start = window_start.astimezone(UTC).replace(tzinfo=None)
        own = self.execute(
            """
            SELECT s.event_id, s.bookmaker_id, s.id, s.bookmaker_id, s.captured_at, s.last_confirmed_at
            FROM odds_snapshots s JOIN events e ON e.id = s.event_id
            WHERE e.kickoff > %s AND NOT EXISTS (
                SELECT FROM odds_snapshots newer
                WHERE newer.event_id = s.event_id AND newer.bookmaker_id = s.bookmaker_id AND newer.id > s.id)
            """,
            start,
        )
        competitors = self.execute(
            """
            WITH linked AS (
                SELECT c.betpawa_event_id AS event_id, c.source, s.*
                FROM competitor_odds_snapshots s
                JOIN competitor_events c ON c.id = s.competitor_event_id AND c.deleted_at IS NULL
                JOIN events e ON e.id = c.betpawa_event_id AND e.kickoff > %s)
            SELECT event_id, source, id, 0, captured_at, last_confirmed_at FROM linked
            WHERE id = (SELECT max(id) FROM linked l WHERE (l.event_id, l.source) = (linked.event_id, linked.source))
            """,
            start,
        )
        return self._snapshots("market_odds", own), self._snapshots("competitor_market_odds", competitors)

    def _snapshots(self, table: str, rows: list[tuple[Any, ...]]) -> dict[int, dict[Any, Snapshot]]:
        found: dict[int, dict[Any, Snapshot]] = {}
        for event_id, key, snapshot_id, bookmaker_id, captured_at, confirmed_at in rows:
            markets = self.execute(
                f"""
                SELECT betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, handicap_away,
                       outcomes::text, market_groups::text, unavailable_at
                FROM {table} WHERE snapshot_id = %s ORDER BY id
                """,
                snapshot_id,
            )
            found.setdefault(event_id, {})[key] = Snapshot(
                snapshot_id=snapshot_id,
                event_id=event_id,
                bookmaker_id=bookmaker_id,
                captured_at=captured_at.replace(tzinfo=UTC),
                last_confirmed_at=(confirmed_at or captured_at).replace(tzinfo=UTC),
                markets=tuple(
                    Market(
                        **dict(zip(MARKET, row[:6], strict=False)),
                        outcomes=outcomes(json.loads(row[6])),
                        market_groups=json.loads(row[7] or "[]"),
                        unavailable_at=row[8] and row[8].replace(tzinfo=UTC),
                    )
                    for row in markets
                ),
            )
        return found


def outcomes(column: Any) -> list[dict[str, Any]]:
    """The list that the column means: three keys are always there, and odds are floats."""

    def outcome(row: dict[str, Any]) -> dict[str, Any]:
        odds = row.get("odds")
        return {
            "name": "",
            **row,
            "odds": None if odds is None else float(odds),
            "is_active": row.get("is_active") is not False,
        }

    return [outcome(row) for row in column] if isinstance(column, list) else []
