"""The README's FastAPI application, served by real uvicorn."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import programs
from cluster import Cluster, free_port
from database import Database, market
from waiting import eventually

EXAMPLE = Path(__file__).parents[1] / "examples" / "application.py"


class Service:
    """A uvicorn with the application, and what it prints."""

    def __init__(self, url: str, folder: Path, application: Path = EXAMPLE, *options: str) -> None:
        port = free_port()
        self.log = folder / "log"
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", f"{application.stem}:app", "--port", str(port), *options],
                cwd=application.parent,
                env={**programs.environment(), "DATABASE_URL": url},
                stdout=out,
                stderr=out,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)

    def answers(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.ConnectError:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def stop(self) -> str:
        """Ends it as a supervisor does. Returns what it printed."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"uvicorn did not end:\n{self.log.read_text()}") from None
        text = self.log.read_text()
        assert code in (0, -signal.SIGTERM), text
        assert "Traceback" not in text, text
        assert "panick" not in text, text
        return text


@pytest.fixture(params=["asyncio", "uvloop"])
def service(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Service]:
    database.event(1)
    database.snapshot(1, 1, [market("3743"), market("5000", line=2.5), market("5000", line=3.5), market("x")])
    service = Service(database.url, tmp_path, EXAMPLE, "--loop", request.param)
    eventually(service.answers, 20)
    yield service
    service.stop()


def test_the_application(service: Service, database: Database) -> None:
    """The first request finds a warm cache; later ones find what was written meanwhile."""
    health = service.client.get("/health").json()
    assert health["events"] == 1
    assert health["age"] < 10
    event = service.client.get("/events/1").json()
    assert [(m["market"], m["line"]) for m in event["betpawa"]["1"]] == [("Market 3743", None), ("Market 5000", 2.5)]
    assert event["betpawa"]["1"][0]["outcomes"][0] == {"name": "1", "odds": 2.0, "is_active": True}
    assert event["competitors"] == {}
    assert service.client.get("/events/2").status_code == 404

    database.competitor_snapshot(database.competitor(1, "bet9ja"), [market(odds=(7.5,))])
    eventually(lambda: service.client.get("/events/1").json()["competitors"])
    rival = service.client.get("/events/1").json()["competitors"]["bet9ja"]
    assert rival[0]["outcomes"] == [{"name": "1", "odds": 7.5, "is_active": True}]

    answer = service.client.get("/events")
    assert answer.headers["content-type"] == "application/json"
    listed = answer.json()
    assert [event["event_id"] for event in listed] == [1]
    assert [odds["bookmaker"] for odds in listed[0]["odds"]] == ["betpawa", "bet9ja"]


@pytest.mark.timeout(60)
def test_the_database_stops(
    database: Database, cluster: Cluster, stop_server: Callable[[], None], tmp_path: Path
) -> None:
    """Without its server the application answers until the odds are too old, then with 503; then it recovers."""
    database.event(1)
    database.snapshot(1, 1, [market()])
    # The example accepts ten seconds. The test waits less.
    text = EXAMPLE.read_text()
    assert text.count("max_age=10") == 1
    impatient = tmp_path / "impatient.py"
    impatient.write_text(text.replace("max_age=10", "max_age=1.5"))
    service = Service(database.url, tmp_path, impatient)
    eventually(service.answers, 20)
    assert service.client.get("/events/1").status_code == 200
    stop_server()
    eventually(lambda: service.client.get("/events/1").status_code == 503)
    assert "s old" in service.client.get("/events/1").json()["detail"]
    assert len(json.loads(service.client.get("/events").content)) == 1
    cluster.start()
    eventually(lambda: service.client.get("/events/1").status_code == 200, 20)
    service.stop()
