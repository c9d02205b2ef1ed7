"""What scrape cycles do to the latency of a FastAPI application with a cache inside."""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPConnection
from pathlib import Path

from caches import Kind
from scrape import scraping

_HERE = Path(__file__).parent
START_SECONDS = 60
PAGE = 50  # events


def pages(events: int) -> list[str]:
    ids = list(range(1, events + 1))
    random.Random(2).shuffle(ids)
    chunks = [ids[at : at + PAGE] for at in range(0, events - PAGE + 1, PAGE)]
    return ["/odds?ids=" + ",".join(map(str, chunk)) for chunk in chunks]


@contextmanager
def application(kind: Kind, url: str) -> Iterator[int]:
    """Serves app.py by uvicorn. Gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, _HERE / "app.py", kind, url, str(port)])
    try:
        _wait_until_it_answers(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/odds?ids=1")
            if connection.getresponse().status == 200:
                return
        except ConnectionRefusedError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise RuntimeError("the application did not start")


def latencies(
    port: int, paths: list[str], rate: float, seconds: float, cycles: tuple[str, float] | None
) -> list[float]:
    """Seconds of each request, with or without scrape cycles: the database's URL and how many a second."""
    command = [sys.executable, str(_HERE / "client.py"), str(port), str(rate), str(seconds), *paths]
    with scraping(*cycles) if cycles else nullcontext():
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [float(latency) for latency in json.loads(done.stdout)]
