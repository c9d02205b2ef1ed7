"""Sends requests at a fixed rate, and prints their latencies: client.py PORT RATE SECONDS PATH...

A latency counts from the moment when the request was due. So a request that waits for a slow one before it counts that
wait, too, as it would if another client had sent it.
"""

import http.client
import itertools
import json
import sys
import time


def main() -> None:
    port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    paths = itertools.cycle(sys.argv[4:])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    latencies = []
    due = time.perf_counter()
    for number in range(int(rate * seconds)):
        due += 1 / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("GET", next(paths))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"request {number} got {response.status}: {body[:200]!r}")
        latencies.append(time.perf_counter() - due)
    print(json.dumps(latencies))


if __name__ == "__main__":
    main()
