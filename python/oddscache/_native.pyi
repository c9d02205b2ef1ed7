"""The compiled part. Its public names are those that `oddscache` exports."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from os import PathLike
from typing import Any, ClassVar, final

from typing_extensions import Self

from ._errors import Lagged

@final
class CachedMarket:
    """A row of `market_odds` or `competitor_market_odds`. Immutable; equal by value."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    __match_args__ = (
        "betpawa_market_id",
        "betpawa_market_name",
        "line",
        "handicap_type",
        "handicap_home",
        "handicap_away",
        "outcomes",
        "market_groups",
        "unavailable_at",
    )

    def __new__(
        cls,
        betpawa_market_id: str,
        betpawa_market_name: str,
        line: float | None = None,
        handicap_type: str | None = None,
        handicap_home: float | None = None,
        handicap_away: float | None = None,
        outcomes: list[dict[str, Any]] | None = None,
        market_groups: list[Any] | None = None,
        unavailable_at: datetime | None = None,
    ) -> Self: ...
    @property
    def betpawa_market_id(self) -> str: ...
    @property
    def betpawa_market_name(self) -> str: ...
    @property
    def line(self) -> float | None: ...
    @property
    def handicap_type(self) -> str | None: ...
    @property
    def handicap_home(self) -> float | None: ...
    @property
    def handicap_away(self) -> float | None: ...
    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """A new list of new dicts at each access: `name`, `odds`, `is_active`, and the other keys of the column."""
    @property
    def market_groups(self) -> list[Any]: ...
    @property
    def unavailable_at(self) -> datetime | None: ...
    def __replace__(self, /, **changes: Any) -> Self: ...
    def __hash__(self) -> int: ...

@final
class CachedSnapshot:
    """The latest snapshot of an event and bookmaker, with its markets. Immutable; equal by value."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    __match_args__ = ("snapshot_id", "event_id", "bookmaker_id", "captured_at", "last_confirmed_at", "markets")

    def __new__(
        cls,
        snapshot_id: int,
        event_id: int,
        bookmaker_id: int,
        captured_at: datetime,
        last_confirmed_at: datetime,
        markets: Iterable[CachedMarket] | None = None,
    ) -> Self: ...
    @property
    def snapshot_id(self) -> int: ...
    @property
    def event_id(self) -> int: ...
    @property
    def bookmaker_id(self) -> int: ...
    @property
    def captured_at(self) -> datetime: ...
    @property
    def last_confirmed_at(self) -> datetime: ...
    @property
    def markets(self) -> tuple[CachedMarket, ...]: ...
    def __replace__(self, /, **changes: Any) -> Self: ...
    def __hash__(self) -> int: ...

@final
class Cut:
    """Which committed state of the database a view equals."""

    @property
    def as_of(self) -> datetime: ...
    @property
    def snapshot(self) -> str: ...
    @property
    def window_start(self) -> datetime: ...
    @property
    def standby(self) -> bool: ...
    def shows(self, xid: int) -> bool: ...

@final
class Change:
    """What a publication changed: ids of events, by source."""

    @property
    def event_ids(self) -> list[int]: ...
    @property
    def betpawa(self) -> list[int]: ...
    @property
    def competitors(self) -> dict[str, list[int]]: ...
    @property
    def kickoffs(self) -> list[int]: ...
    @property
    def names(self) -> list[int]: ...
    @property
    def cut(self) -> Cut: ...
    @property
    def epoch(self) -> int: ...
    @property
    def version(self) -> int: ...

@final
class View:
    """One committed state of the database, over all events at once. It never changes."""

    def get_betpawa_snapshots(self, event_ids: Iterable[int]) -> dict[int, dict[int, CachedSnapshot]]: ...
    def get_competitor_snapshots(self, event_ids: Iterable[int]) -> dict[int, dict[str, CachedSnapshot]]: ...
    def get_betpawa_snapshot(self, event_id: int) -> dict[int, CachedSnapshot] | None: ...
    def get_competitor_snapshot(self, event_id: int) -> dict[str, CachedSnapshot] | None: ...
    def event_ids(self) -> list[int]: ...
    def kickoff(self, event_id: int) -> datetime | None: ...
    def names(self, event_id: int) -> dict[str, Any] | None: ...
    def __len__(self) -> int: ...
    @property
    def age(self) -> float: ...
    @property
    def epoch(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def cut(self) -> Cut: ...

@final
class Relay:
    """Where a relay is: a NATS server with JetStream, how to log in there, and the relay's name."""

    def __new__(
        cls,
        url: str,
        *,
        name: str = "odds",
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        nkey: str | None = None,
        creds: str | PathLike[str] | None = None,
        ca: str | PathLike[str] | None = None,
        cert: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
    ) -> Self: ...

class Cache:
    """What `OddsCache` is made of: the same methods, with durations in seconds and without defaults."""

    def __new__(cls, config: Config | None, naive_times: bool) -> Self: ...
    def get_betpawa_snapshots(self, event_ids: Iterable[int]) -> dict[int, dict[int, CachedSnapshot]]:
        """Event id -> bookmaker id -> the latest snapshot of `odds_snapshots`. Events without one are absent."""
    def get_competitor_snapshots(self, event_ids: Iterable[int]) -> dict[int, dict[str, CachedSnapshot]]:
        """Event id -> source -> the latest snapshot of `competitor_odds_snapshots`. Events without one are absent."""
    def get_betpawa_snapshot(self, event_id: int) -> dict[int, CachedSnapshot] | None:
        """Bookmaker id -> the latest snapshot of `odds_snapshots`. `None` if there is none."""
    def get_competitor_snapshot(self, event_id: int) -> dict[str, CachedSnapshot] | None:
        """Source -> the latest snapshot of `competitor_odds_snapshots`. `None` if there is none."""
    def event_ids(self) -> list[int]:
        """The ids of all events, ascending."""
    def kickoff(self, event_id: int) -> datetime | None:
        """When an event begins. `None` if the cache does not hold it."""
    def names(self, event_id: int) -> dict[str, Any] | None:
        """`name`, `home_team`, `away_team` and `sportradar_id` of an event, its `tournament`, `bookmakers` by id."""
    def view(self, max_age: float | None = None) -> View: ...
    def event_list_json(
        self, event_ids: Iterable[int] | None, markets: Iterable[str | tuple[str, float | None]]
    ) -> bytes: ...
    @property
    def age(self) -> float:
        """Seconds since the latest state was last proven current; infinite before the first warmup."""
    @property
    def epoch(self) -> int:
        """Counts how often the state was replaced instead of changes moving it forward; 0 before the first warmup."""
    @property
    def version(self) -> int:
        """Counts the states that were published. Two views with the same version hold the same."""
    @property
    def is_warm(self) -> bool:
        """Whether there is something to look up, however old. Once true, it stays true."""
    @property
    def is_detached(self) -> bool:
        """Whether the program fills this cache, which follows nothing."""
    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
    def ready(self, timeout: float | None = None) -> None: ...
    def wait_for(self, xid: int, timeout: float) -> View: ...
    def put_betpawa_snapshot(
        self, event_id: int, bookmaker_id: int, snapshot: Any, kickoff: datetime | None
    ) -> Change | None: ...
    def put_competitor_snapshot(
        self, event_id: int, source: str, snapshot: Any, kickoff: datetime | None
    ) -> Change | None: ...
    def evict_expired(self, cutoff: datetime) -> tuple[int, Change] | None: ...
    def clear(self) -> Change | None: ...
    def close(self) -> None: ...
    def _status(self) -> tuple[str, str, datetime | None, list[tuple[str, str]], float | None]: ...
    def _stats(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None, float, int, int]: ...
    def _events(self) -> Events: ...
    def _start_ready(self, events: Events, number: int) -> Waiting: ...
    def _start_wait_for(self, events: Events, number: int, xid: int, timeout: float) -> Waiting: ...
    def _forked(self) -> None: ...

@final
class Config:
    def __new__(
        cls,
        source: str | Relay,
        *,
        app_schema: str,
        cache_schema: str,
        lookback: float,
        poll_interval: float,
        read_timeout: float,
        warmup_timeout: float,
        warmup_connections: int,
        retry_unreachable: bool,
        allow_row_security: bool,
        audit_cycle: float,
        audit_budget: float,
        listen_url: str | None,
    ) -> Self: ...

@final
class Events:
    """What happens to a cache. One thread takes it."""

    def next(self) -> Change | Lagged | tuple[int, BaseException | None] | None: ...
    def ended(self) -> BaseException: ...

@final
class Waiting:
    """A wait. It ends when this is dropped."""

@final
class LogReader:
    def __new__(cls) -> Self: ...
    def take(self) -> tuple[list[tuple[int, str]], int] | None: ...
    def end(self) -> None: ...

SCRIPTS: list[str]

def script(name: str, settings: Sequence[tuple[str, str]] = ...) -> str: ...
def log_level(level: int) -> None: ...
def log_renew() -> None: ...
