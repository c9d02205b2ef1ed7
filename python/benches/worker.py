"""A process with one cache, measured on demand: worker.py KIND URL.

It answers each line of its input, a JSON object with the name of a measurement and its arguments, by a line of JSON.
All times are in nanoseconds.
"""

import gc
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from resource import RUSAGE_THREAD, getrusage
from typing import Any

import orjson

from application import Cache, Snapshot, event_list, inline_odds, walk
from caches import KINDS, canonical, list_json, load_code, open_cache, version, wait_for

PAGE = 50  # events
Measurement = Callable[..., Any]


def memory() -> dict[str, int]:
    """What this process holds, in bytes. Nothing is given back to the system first."""
    gc.collect()
    held = {}
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name in ("Rss", "Pss"):
                held[name.lower()] = int(value.split()[0]) * 1024
    return held


def timed(call: Callable[[], object]) -> int:
    started = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - started


def pages(cache: Cache) -> list[list[int]]:
    """All events in pages, at random, so that neighbours in memory are not in one page."""
    ids = sorted(cache.event_ids())
    random.Random(1).shuffle(ids)
    return [ids[at : at + PAGE] for at in range(0, len(ids) - PAGE + 1, PAGE)]


def rotation(cache: Cache) -> list[int]:
    """The inline odds of each page once."""
    return [timed(partial(inline_odds, cache, page)) for page in pages(cache)]


def seen(cache: Cache, repeats: int) -> list[int]:
    """The inline odds of one page again and again."""
    page = pages(cache)[0]
    inline_odds(cache, page)
    return [timed(lambda: inline_odds(cache, page)) for _ in range(repeats)]


def lookups(cache: Cache, repeats: int) -> list[int]:
    """The lookup alone of a page that was seen."""
    page = pages(cache)[0]
    cache.get_betpawa_snapshots(page)
    return [timed(lambda: cache.get_betpawa_snapshots(page)) for _ in range(repeats)]


def outcomes(cache: Cache, repeats: int, keep: bool) -> list[float]:
    """`snapshot.markets[i].outcomes`, for each market of ten snapshots. Each list is dropped at once, or
    all are kept until the last repetition, so that none can be handed out again."""
    found = cache.get_betpawa_snapshots(pages(cache)[0][:10])
    snapshots = [snapshot for of_event in found.values() for snapshot in of_event.values()]
    accesses = sum(len(snapshot.markets) for snapshot in snapshots)
    kept: list[list[dict[str, Any]]] = []
    read = partial(keep_outcomes, snapshots, kept) if keep else partial(read_outcomes, snapshots)
    return [timed(read) / accesses for _ in range(repeats)]


def read_outcomes(snapshots: list[Snapshot]) -> None:
    for snapshot in snapshots:
        for index in range(len(snapshot.markets)):
            snapshot.markets[index].outcomes  # noqa: B018


def keep_outcomes(snapshots: list[Snapshot], kept: list[list[dict[str, Any]]]) -> None:
    for snapshot in snapshots:
        for index in range(len(snapshot.markets)):
            kept.append(snapshot.markets[index].outcomes)


def drop_list(cache: Cache, native: bool) -> None:
    """Makes the whole list as JSON, and keeps nothing of it."""
    list_json(cache) if native else orjson_list(event_list(cache))


def python_list(cache: Cache) -> dict[str, int]:
    """The whole list made in Python, and written by orjson and by json."""
    started = time.perf_counter_ns()
    listed = event_list(cache)
    made = time.perf_counter_ns() - started
    return {
        "orjson": made + timed(lambda: orjson_list(listed)),
        "json": made + timed(lambda: json.dumps(listed, default=utc)),
    }


def orjson_list(listed: list[dict[str, Any]]) -> bytes:
    return orjson.dumps(listed, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def utc(time: datetime) -> str:
    return time.isoformat() + "Z"


def native_list(cache: Cache, xid: int | None = None) -> int:
    """The whole list as our cache writes it, after it shows a transaction."""
    if xid is not None:
        wait_for(cache, xid)
    return timed(lambda: list_json(cache))


def digest(cache: Cache, native: bool) -> dict[str, Any]:
    listed = list_json(cache) if native else orjson_list(event_list(cache))
    return {"sha256": hashlib.sha256(canonical(listed)).hexdigest(), "bytes": len(listed)}


def gil(cache: Cache, seconds: float, control: bool = False) -> dict[str, int]:
    """How long a spinning thread had to wait for the GIL, which no other Python thread wants.

    The kernel tells the two reasons for a gap apart. A thread that gives the GIL away sleeps, which is a voluntary
    switch. A thread whose core is taken switches involuntarily. As a control, another thread wants the GIL now
    and then.
    """
    found: dict[str, int] = {}
    before = version(cache)
    done = threading.Event()
    spinning = threading.Thread(target=_spin, args=(seconds, found))
    wanting = threading.Thread(target=_compute_until, args=(done,))
    spinning.start()
    if control:
        wanting.start()
    spinning.join()
    done.set()
    if control:
        wanting.join()
    return {**found, "publications": version(cache) - before}


def _compute_until(done: threading.Event) -> None:
    while not done.wait(0.3):
        sum(range(100_000))


def _spin(seconds: float, found: dict[str, int]) -> None:
    def switches() -> int:
        return getrusage(RUSAGE_THREAD).ru_nvcsw

    time.sleep(0.01)  # The thread that joins this one must be asleep.
    clock = time.perf_counter_ns
    first = known = switches()
    waited = longest_wait = longest_gap = 0
    last = clock()
    end = last + int(seconds * 1e9)
    while last < end:
        now = clock()
        gap = now - last
        if gap > 5_000:
            longest_gap = max(longest_gap, gap)
            if (after := switches()) != known:
                known = after
                waited += gap
                longest_wait = max(longest_wait, gap)
        last = now
    found.update(given_away=switches() - first, waited=waited, longest_wait=longest_wait, longest_gap=longest_gap)


def pin(_: Cache, cpu: int) -> None:
    """Keeps the thread that measures on one core, but not the follower's thread."""
    os.sched_setaffinity(0, {cpu})


MEASUREMENTS: dict[str, Measurement] = {
    "pin": pin,
    "memory": lambda _: memory(),
    "walk": walk,
    "rotation": rotation,
    "seen": seen,
    "lookups": lookups,
    "outcomes": outcomes,
    "drop_list": drop_list,
    "python_list": python_list,
    "native_list": native_list,
    "digest": digest,
    "gil": gil,
}


def main() -> None:
    kind = next(kind for kind in KINDS if kind == sys.argv[1])
    load_code(kind)
    before = memory()
    started = time.perf_counter_ns()
    cache = open_cache(kind, sys.argv[2])
    print(json.dumps({"before": before, "load": time.perf_counter_ns() - started}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = MEASUREMENTS[request.pop("do")](cache, **request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
