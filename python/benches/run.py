"""Compares the package with a plain cache of dicts and dataclasses, and prints the figures: python benches/run.py

README.md says what each row means. It needs a PostgreSQL server's programs and requirements.txt.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import Any

import dataset
import figures
from caches import KINDS, Kind
from figures import Row, compare, duration, p99, ratio
from latency import application, latencies, pages
from scrape import Scraper, scraping
from server import Cluster
from workers import Worker, pair, worker

STATED_BYTES = 1644  # a market of the application's first dict cache


class Bench:
    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self.url = url
        self.options = options

    def memory(self) -> list[Row]:
        """Each figure from a process of its own."""
        grown: dict[tuple[str, str, Kind], list[float]] = defaultdict(list)
        loads: dict[Kind, list[float]] = defaultdict(list)
        for _, kind in product(range(self.options.rounds), KINDS):
            with worker(kind, self.url) as process:
                loads[kind].append(process.opened["load"])
                before, loaded = process.opened["before"], process.ask("memory")
                markets = process.ask("walk")
                walked = process.ask("memory")
            for size in ("pss", "rss"):
                grown["loaded", size, kind].append((loaded[size] - before[size]) / markets)
                grown["walked", size, kind].append((walked[size] - before[size]) / markets)
        rows = [compare("until everything is loaded", loads["floor"], loads["ours"])]
        for when, size in product(("loaded", "walked"), ("pss", "rss")):
            floor, ours = (median(grown[when, size, kind]) for kind in KINDS)
            what = f"memory a market, {when}, {size.upper()}"
            rows.append((what, f"{floor:,.0f} B", f"{ours:,.1f} B", ratio(ours, floor)))
            rows.append((what + ", floor as stated", f"{STATED_BYTES:,} B", f"{ours:,.1f} B", ratio(ours, STATED_BYTES)))
        return rows

    def lookups(self) -> list[Row]:
        first: dict[Kind, list[float]] = defaultdict(list)
        again: dict[Kind, list[float]] = defaultdict(list)
        taken: dict[str, dict[Kind, list[float]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(self.options.rounds):
            with pair(self.url) as workers:
                for kind in KINDS:
                    first[kind] += workers[kind].ask("rotation")
                for _, (kind, process) in product(range(3), workers.items()):
                    again[kind] += process.ask("rotation")
                for _, what, (kind, process) in product(range(5), ("seen", "lookups", "outcomes"), workers.items()):
                    taken[what][kind] += process.ask(what, repeats=20)
        return [
            compare("50 events with inline odds, first touch", first["floor"], first["ours"]),
            compare("the same, later rotations through all events", again["floor"], again["ours"]),
            compare("the same, events that were seen", taken["seen"]["floor"], taken["seen"]["ours"]),
            compare("the lookup alone, events that were seen", taken["lookups"]["floor"], taken["lookups"]["ours"]),
            compare("`snapshot.markets[i].outcomes`", taken["outcomes"]["floor"], taken["outcomes"]["ours"]),
        ]

    def lists(self) -> list[Row]:
        floor: dict[str, list[float]] = defaultdict(list)
        ours: dict[str, list[float]] = defaultdict(list)
        scraper = Scraper(self.url)
        for number in range(self.options.rounds):
            with pair(self.url) as workers:
                ours["cold"].append(workers["ours"].ask("native_list"))
                if number == 0:
                    _check_equal(workers)
                for _ in range(5):
                    for dumps, taken in workers["floor"].ask("python_list").items():
                        floor[dumps].append(taken)
                    ours["changed"].append(workers["ours"].ask("native_list", xid=scraper.cycle()))
                    ours["unchanged"].append(workers["ours"].ask("native_list"))
        scraper.close()
        rows = []
        whens = {"cold": "first call", "changed": "after 50 changed snapshots", "unchanged": "nothing changed"}
        for dumps, (when, words) in product(("orjson", "json"), whens.items()):
            rows.append(compare(f"the whole list as JSON, {words}; floor with {dumps}", floor[dumps], ours[when]))
        return rows

    def latency(self) -> list[Row]:
        options = self.options
        paths = {"50 events": (pages(options.events), options.rate), "the list": (["/list"], options.rate / 5)}
        asked = [("floor", "50 events"), ("ours", "50 events"), ("ours", "the list")]
        runs: dict[tuple[str, str, bool], list[list[float]]] = defaultdict(list)
        for number, kind in product(range(options.rounds), KINDS):
            with application(kind, self.url) as port:
                for what in (what for of, what in asked if of == kind):
                    # Requests that warm the application up.
                    latencies(port, *paths[what], 1, None)
                    # Every second round has the cycles first.
                    for busy in (number % 2 == 1, number % 2 == 0):
                        cycles = (self.url, options.cycles) if busy else None
                        runs[kind, what, busy].append(latencies(port, *paths[what], options.seconds, cycles))
        rows = []
        for (kind, what), (name, quantile) in product(asked, {"p50": median, "p99": p99}.items()):
            quiet, busy = ([quantile(run) for run in runs[kind, what, cycles]] for cycles in (False, True))
            ratios = median(with_cycles / without for with_cycles, without in zip(busy, quiet, strict=True))
            row = (f"{kind}, {what}, {name}", duration(median(quiet) * 1e9), duration(median(busy) * 1e9))
            rows.append((*row, f"x{ratios:.2f}"))
        return rows

    def gil(self) -> list[Row]:
        """Quiet in the first column, with cycles in the second."""
        found: dict[bool, list[dict[str, int]]] = {False: [], True: []}
        with worker("ours", self.url) as process:
            for _ in range(self.options.rounds):
                found[False].append(process.ask("gil", seconds=self.options.seconds))
                with scraping(self.url, self.options.cycles):
                    found[True].append(process.ask("gil", seconds=self.options.seconds))
        shares = [sum(run["waited"] for run in runs) / len(runs) / self.options.seconds / 1e7 for runs in found.values()]
        given = [sum(run["given_away"] for run in runs) for runs in found.values()]
        gaps = [[duration(max(run[name] for run in runs)) for runs in found.values()] for name in ("longest_wait", "longest_gap")]
        return [
            ("share of time that others held the GIL", *(f"{share:.4f} %" for share in shares), ""),
            ("how often the thread slept", *map(str, given), ""),
            ("longest wait for the GIL", *gaps[0], ""),
            ("longest gap of any kind", *gaps[1], ""),
        ]


def _check_equal(workers: dict[Kind, Worker]) -> None:
    floor: dict[str, Any] = workers["floor"].ask("digest", native=False)
    walked: dict[str, Any] = workers["ours"].ask("digest", native=False)
    native: dict[str, Any] = workers["ours"].ask("digest", native=True)
    if not floor["sha256"] == walked["sha256"] == native["sha256"]:
        raise RuntimeError(f"the lists differ: floor {floor}, ours in Python {walked}, ours {native}")
    print(f"The lists are equal: {floor['bytes']:,} bytes from the floor, {native['bytes']:,} bytes from ours.\n")


PARTS: dict[str, tuple[str, Callable[[Bench], list[Row]]]] = {
    "memory": ("Memory", Bench.memory),
    "lookups": ("Lookups", Bench.lookups),
    "lists": ("The event list", Bench.lists),
    "latency": ("Latency of a FastAPI process: quiet (floor), with scrape cycles (ours)", Bench.latency),
    "gil": ("A spinning Python thread: quiet (floor), with scrape cycles (ours)", Bench.gil),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of " + ", ".join(PARTS), default=list(PARTS))
    parser.add_argument("--events", type=int, default=1100, help="upcoming events, at least 50")
    parser.add_argument("--markets", type=int, default=50, help="markets of a snapshot")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each kind")
    parser.add_argument("--seconds", type=float, default=8, help="of each run under load")
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--cycles", type=float, default=3, help="scrape cycles a second, of 50 snapshots each")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}")
    with Cluster() as cluster:
        dataset.create(cluster.url, options.events, options.markets, feed=True)
        bench = Bench(cluster.url, options)
        for part in options.parts:
            title, measure = PARTS[part]
            print(f"## {title}\n")
            figures.show(measure(bench))


if __name__ == "__main__":
    main()
