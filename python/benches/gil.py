"""Whether the follower's thread holds the GIL: what a spinning Python thread notices of it."""

from collections import defaultdict

from figures import Row, duration
from options import Options
from scrape import scraping
from workers import worker

Found = list[dict[str, int]]


def measure(url: str, options: Options) -> list[Row]:
    runs: dict[str, Found] = defaultdict(list)
    with worker("ours", url) as process:
        for _ in range(options.rounds):
            runs["quiet"].append(process.ask("gil", seconds=options.seconds))
            with scraping(url, options.cycles):
                runs["cycles"].append(process.ask("gil", seconds=options.seconds))
            runs["control"].append(process.ask("gil", seconds=options.seconds, control=True))
    columns = [runs["quiet"], runs["cycles"], runs["control"]]
    whole = options.rounds * options.seconds * 1e9
    rows = [
        ("publications meanwhile", *(f"{_total(found, 'publications')}" for found in columns)),
        ("times that the thread gave the GIL away", *(f"{_total(found, 'given_away')}" for found in columns)),
        ("share of time that it waited for the GIL", *(f"{_total(found, 'waited') / whole:.4%}" for found in columns)),
        ("longest wait for the GIL", *(_longest(found, "longest_wait") for found in columns)),
        ("longest gap for any reason", *(_longest(found, "longest_gap") for found in columns)),
    ]
    return [(what, quiet, cycles, control) for what, quiet, cycles, control in rows]


def _total(found: Found, name: str) -> int:
    return sum(run[name] for run in found)


def _longest(found: Found, name: str) -> str:
    return duration(max(run[name] for run in found))
