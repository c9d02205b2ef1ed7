"""Memory of a process, and how long it takes to fill the cache. Each figure is from a process of its own."""

from collections import defaultdict
from itertools import product
from statistics import median

from caches import KINDS, Kind
from figures import Row, compare, ratio
from options import Options
from workers import worker

STATED_BYTES = 1644  # a market of the application's first dict cache
STATES = ("loaded", "then walked once", "then walked twice more", "then the list written once")


def measure(url: str, options: Options) -> list[Row]:
    grown: dict[tuple[str, str, Kind], list[float]] = defaultdict(list)
    loads: dict[Kind, list[float]] = defaultdict(list)
    for _, kind in product(range(options.rounds), KINDS):
        with worker(kind, url) as process:
            loads[kind].append(process.opened["load"])
            before, loaded = process.opened["before"], process.ask("memory")
            markets = process.ask("walk")
            walked = process.ask("memory")
            for _ in range(2):
                process.ask("walk")
            again = process.ask("memory")
            process.ask("drop_list", native=kind == "ours")
            listed = process.ask("memory")
        for (state, held), size in product(zip(STATES, (loaded, walked, again, listed), strict=True), ("pss", "rss")):
            grown[state, size, kind].append((held[size] - before[size]) / markets)
    rows = [compare("until everything is loaded", loads["floor"], loads["ours"])]
    for state, size in product(STATES, ("pss", "rss")):
        floor, ours = (median(grown[state, size, kind]) for kind in KINDS)
        rows.append((f"a market, {state}, {size.upper()}", f"{floor:,.0f} B", f"{ours:,.1f} B", ratio(ours, floor)))
        if size == "pss":
            stated = ratio(ours, STATED_BYTES)
            rows.append(("the same, beside the stated floor", f"{STATED_BYTES:,} B", f"{ours:,.1f} B", stated))
    return rows
