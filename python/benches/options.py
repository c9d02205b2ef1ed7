"""What the command line says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    events: int
    markets: int
    rounds: int
    seconds: float
    rate: float
    cycles: float
