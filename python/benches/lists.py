"""The whole event list as JSON."""

from collections import defaultdict
from itertools import product
from typing import Any

from caches import Kind
from figures import Row, compare
from options import Options
from scrape import Scraper
from workers import Worker, pair


def measure(url: str, options: Options) -> list[Row]:
    floor: dict[str, list[float]] = defaultdict(list)
    ours: dict[str, list[float]] = defaultdict(list)
    scraper = Scraper(url)
    for number in range(options.rounds):
        with pair(url, number) as workers:
            ours["first call"].append(workers["ours"].ask("native_list"))
            if number == 0:
                _check_equal(workers)
            for _ in range(5):
                for dumps, taken in workers["floor"].ask("python_list").items():
                    floor[dumps].append(taken)
                ours["after 50 changed snapshots"].append(workers["ours"].ask("native_list", xid=scraper.cycle()))
                ours["nothing changed"].append(workers["ours"].ask("native_list"))
    scraper.close()
    return [
        compare(f"the whole list, {when}; floor with {dumps}", floor[dumps], ours[when])
        for dumps, when in product(floor, ours)
    ]


def _check_equal(workers: dict[Kind, Worker]) -> None:
    """The same list must come from the floor, from our snapshots by the same Python code, and from our own writer."""
    floor: dict[str, Any] = workers["floor"].ask("digest", native=False)
    walked: dict[str, Any] = workers["ours"].ask("digest", native=False)
    native: dict[str, Any] = workers["ours"].ask("digest", native=True)
    if not floor["sha256"] == walked["sha256"] == native["sha256"]:
        raise RuntimeError(f"the lists differ: floor {floor}, ours in Python {walked}, ours {native}")
    print(f"The lists are equal: {floor['bytes']:,} bytes from the floor, {native['bytes']:,} bytes from ours.\n")
