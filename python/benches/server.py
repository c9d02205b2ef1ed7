"""A private PostgreSQL server for one run: that of the tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from cluster import Cluster

SETTINGS = """
shared_buffers = 512MB
synchronous_commit = off
max_wal_size = 4GB
jit = off
"""


def start() -> Cluster:
    return Cluster(SETTINGS)
