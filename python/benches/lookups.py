"""Lookups of 50 events, and one attribute. The processes take turns."""

from collections import defaultdict
from itertools import product

from caches import KINDS, Kind
from figures import Row, compare
from options import Options
from workers import pair


def measure(url: str, options: Options) -> list[Row]:
    taken: dict[str, dict[Kind, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(options.rounds):
        with pair(url, number) as workers:
            for kind in KINDS:
                taken["first"][kind] += workers[kind].ask("rotation")
            for _, (kind, process) in product(range(3), workers.items()):
                taken["again"][kind] += process.ask("rotation")
            for _, (kind, process) in product(range(5), workers.items()):
                taken["seen"][kind] += process.ask("seen", repeats=20)
                taken["lookups"][kind] += process.ask("lookups", repeats=20)
                taken["outcomes"][kind] += process.ask("outcomes", repeats=20, keep=False)
                taken["kept"][kind] += process.ask("outcomes", repeats=20, keep=True)
    words = {
        "first": "50 events with inline odds, first touch",
        "again": "the same, later rotations through all events",
        "seen": "the same, events that were seen",
        "lookups": "the lookup alone, events that were seen",
        "outcomes": "`snapshot.markets[i].outcomes`, dropped at once",
        "kept": "the same, all lists kept",
    }
    return [compare(words[what], times["floor"], times["ours"]) for what, times in taken.items()]
