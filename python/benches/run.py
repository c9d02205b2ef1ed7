"""Compares the package with a plain cache of dicts and dataclasses, and prints the figures: python benches/run.py

README.md says what each row means. It needs the programs of a PostgreSQL server, and what tests/requirements.txt names.
"""

import argparse
import signal
import sys
from collections.abc import Callable

import dataset
import figures
import gil
import latency
import lists
import lookups
import memory
import server
from figures import Row
from options import Options

_CACHES: Row = ("what", "floor", "ours", "ratio")
PARTS: dict[str, tuple[str, Row, Callable[[str, Options], list[Row]]]] = {
    "memory": ("Memory of a process", _CACHES, memory.measure),
    "lookups": ("Lookups", _CACHES, lookups.measure),
    "lists": ("The event list", _CACHES, lists.measure),
    "latency": ("Requests to a FastAPI process", ("what", "quiet", "with scrape cycles", "ratio"), latency.measure),
    "gil": ("A spinning Python thread", ("what", "quiet", "with scrape cycles", "control"), gil.measure),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of " + ", ".join(PARTS), default=list(PARTS))
    parser.add_argument("--events", type=int, default=1100, help="upcoming events, at least 50")
    parser.add_argument("--markets", type=int, default=50, help="markets of a snapshot")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each kind")
    parser.add_argument("--seconds", type=float, default=6, help="of each run under load")
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--cycles", type=float, default=3, help="scrape cycles a second, of 50 snapshots each")
    arguments = vars(parser.parse_args())
    parts = arguments.pop("parts")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}")
    options = Options(**arguments)
    if options.events < 50:
        parser.error("a page has 50 events")
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with server.start() as cluster:
        url = cluster.url("postgres")
        dataset.create(url, options.events, options.markets, feed=True)
        for part in parts:
            title, columns, measure = PARTS[part]
            print(f"## {title}\n", flush=True)
            figures.show(columns, measure(url, options))


if __name__ == "__main__":
    main()
