"""The application's side: its SQLAlchemy models, and functions that it wrote for their rows."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class OddsSnapshot(Base):
    __tablename__ = "odds_snapshots"

    snapshot_id: Mapped[int] = mapped_column("id", primary_key=True)
    event_id: Mapped[int]
    bookmaker_id: Mapped[int]
    captured_at: Mapped[datetime]
    last_confirmed_at: Mapped[datetime | None]
    markets: Mapped[list["MarketOdds"]] = relationship(order_by="MarketOdds.id", lazy="selectin")


class MarketOdds(Base):
    __tablename__ = "market_odds"

    id: Mapped[int] = mapped_column(primary_key=True)
    snapshot_id: Mapped[int] = mapped_column(ForeignKey("odds_snapshots.id"))
    betpawa_market_id: Mapped[str]
    betpawa_market_name: Mapped[str]
    line: Mapped[float | None]
    handicap_type: Mapped[str | None]
    handicap_home: Mapped[float | None]
    handicap_away: Mapped[float | None]
    outcomes: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    market_groups: Mapped[list[Any] | None] = mapped_column(JSONB)
    unavailable_at: Mapped[datetime | None]


# From here on, functions that take a row of the models, or a snapshot of the cache: they must not tell them apart.

INLINE = [("3743", None), ("5000", 2.5), ("3795", None), ("4693", None)]


def margin(outcomes: list[dict[str, Any]]) -> float | None:
    """The bookmaker's margin in per cent."""
    if not isinstance(outcomes, list) or not outcomes:
        return None
    total = 0.0
    for outcome in outcomes:
        odds = outcome.get("odds")
        if not odds or odds <= 0:
            return None
        total += 1 / odds
    return round((total - 1) * 100, 2)


def build_inline_odds(snapshot: Any) -> list[dict[str, Any]]:
    """The markets that the event list shows."""
    inline = []
    for market in snapshot.markets:
        for market_id, line in INLINE:
            if market.betpawa_market_id == market_id and (line is None or market.line == line):
                inline.append(
                    {
                        "market_id": market.betpawa_market_id,
                        "market_name": market.betpawa_market_name,
                        "line": market.line,
                        "margin": margin(market.outcomes),
                        "outcomes": [
                            {"name": o["name"], "odds": o["odds"], "is_active": o.get("is_active", True)}
                            for o in market.outcomes
                        ],
                        "available": market.unavailable_at is None,
                    }
                )
    return inline


def best_odds(snapshots: Iterable[Any], market_id: str) -> dict[str, tuple[float, int]]:
    """Of each outcome the highest odds, and whose they are."""
    best: dict[str, tuple[float, int]] = {}
    for snapshot in snapshots:
        market = next((m for m in snapshot.markets if m.betpawa_market_id == market_id), None)
        for outcome in market.outcomes if market is not None else []:
            odds = outcome["odds"] or 0.0
            if outcome.get("is_active", True) and odds > best.get(outcome["name"], (0.0, 0))[0]:
                best[outcome["name"]] = (odds, snapshot.bookmaker_id)
    return best


def markets_by_group(snapshot: Any) -> dict[str, list[tuple[str, float | None, float | None]]]:
    """The markets of each group, sorted as the event's page shows them."""
    groups: dict[str, list[tuple[str, float | None, float | None]]] = {}
    for market in sorted(snapshot.markets, key=lambda m: (m.betpawa_market_name, m.line or 0.0)):
        for group in market.market_groups or ["other"]:
            groups.setdefault(group, []).append((market.betpawa_market_name, market.line, market.handicap_home))
    return groups


def handicaps(snapshot: Any) -> list[tuple[str | None, float, float]]:
    return [
        (market.handicap_type, market.handicap_home, market.handicap_away)
        for market in snapshot.markets
        if market.handicap_home is not None and market.handicap_away is not None
    ]


def outcome_changes(old: Any, new: Any) -> list[tuple[str, str, float | None, float | None]]:
    """What the scraper asks before it writes: which odds moved."""
    before = {(m.betpawa_market_id, m.line): {o["name"]: o["odds"] for o in m.outcomes} for m in old.markets}
    moved = []
    for market in new.markets:
        known = before.get((market.betpawa_market_id, market.line), {})
        for outcome in market.outcomes:
            was = known.get(outcome["name"])
            if was != outcome["odds"]:
                moved.append((market.betpawa_market_id, outcome["name"], was, outcome["odds"]))
    return moved
