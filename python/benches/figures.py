"""The rows that a run prints."""

from collections.abc import Sequence
from statistics import median, quantiles

Row = tuple[str, str, str, str]
UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))


def duration(nanoseconds: float) -> str:
    size, unit = next((size, unit) for size, unit in UNITS if nanoseconds >= size or size == 1)
    return f"{nanoseconds / size:.3g} {unit}"


def p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def ratio(ours: float, floor: float) -> str:
    """As a multiple, or as a fraction where ours is much less."""
    return f"x{ours / floor:.2f}" if ours * 4 > floor else f"1/{floor / ours:.1f}"


def compare(what: str, floor: Sequence[float], ours: Sequence[float]) -> Row:
    """Medians of times in nanoseconds."""
    return (what, duration(median(floor)), duration(median(ours)), ratio(median(ours), median(floor)))


def show(columns: Row, rows: Sequence[Row]) -> None:
    """A Markdown table."""
    for row in (columns, ("---",) * len(columns), *rows):
        print("| " + " | ".join(row) + " |", flush=True)
    print(flush=True)
