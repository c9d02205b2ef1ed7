"""What scrape cycles do to the latency of a FastAPI process. The floor does not follow them: it shows what the shared
machine adds."""

from collections import defaultdict
from collections.abc import Callable
from itertools import product
from statistics import median

from caches import KINDS, Kind
from fastapi_process import application, latencies, pages
from figures import Row, duration, p99, ratio
from options import Options

ALTERNATIONS = 2
WARM_UP_SECONDS = 3
Measured = tuple[Kind, str]
MEASURED: tuple[Measured, ...] = (("floor", "50 events"), ("ours", "50 events"), ("ours", "the list"))


def measure(url: str, options: Options) -> list[Row]:
    requests = {"50 events": (pages(options.events), options.rate), "the list": (["/list"], options.rate / 5)}
    # Of each round, the latencies without and with cycles.
    rounds: dict[Measured, list[tuple[list[float], list[float]]]] = defaultdict(list)
    for number, kind in product(range(options.rounds), KINDS):
        with application(kind, url) as port:
            for measured in (measured for measured in MEASURED if measured[0] == kind):
                paths, rate = requests[measured[1]]
                latencies(port, paths, rate, WARM_UP_SECONDS, None)
                quiet: list[float] = []
                busy: list[float] = []
                # Every second round has the cycles first.
                for turn in range(number % 2, 2 * ALTERNATIONS + number % 2):
                    cycles = (url, options.cycles) if turn % 2 else None
                    (busy if cycles else quiet).extend(latencies(port, paths, rate, options.seconds, cycles))
                rounds[measured].append((quiet, busy))
    rows = [row for measured in MEASURED for row in _rows(measured, rounds[measured])]
    # The effect of the cycles alone would praise a cache that is slow without them, too.
    floor, ours = (
        [median(map(p99, column)) for column in zip(*rounds[kind, "50 events"], strict=True)] for kind in KINDS
    )
    return [*rows, ("ours beside the floor, 50 events, p99", ratio(ours[0], floor[0]), ratio(ours[1], floor[1]), "")]


def _rows(measured: Measured, rounds: list[tuple[list[float], list[float]]]) -> list[Row]:
    kind, what = measured
    quantiles: dict[str, Callable[[list[float]], float]] = {"p50": median, "p99": p99}
    rows = []
    for name, quantile in quantiles.items():
        quiet, busy = ([quantile(run[column]) for run in rounds] for column in (0, 1))
        # Of each round by itself: rounds differ more than the two columns.
        effect = median(with_cycles / without for without, with_cycles in zip(quiet, busy, strict=True))
        times = [duration(median(of_rounds) * 1e9) for of_rounds in (quiet, busy)]
        rows.append((f"{kind}, {what}, {name}", times[0], times[1], f"x{effect:.2f}"))
    return rows
