"""One private cluster for all tests, and a new database for each test that asks for one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import programs
from cluster import Cluster
from database import Database
from oddscache import OddsCache

SCHEMA = Path(__file__).parents[2] / "src" / "demo" / "schema.sql"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.delete()


@pytest.fixture(scope="session")
def feed() -> str:
    """install.sql, as the package prints it."""
    code, script, errors = programs.run("-m", "oddscache", "sql", "install")
    assert (code, errors) == (0, "")
    return script


@pytest.fixture(scope="session")
def template(cluster: Cluster, feed: str) -> str:
    """The database that the tests' databases are copied from."""
    template = Database(cluster)
    template.execute(SCHEMA.read_text())
    template.execute("INSERT INTO bookmakers (name, slug) VALUES ('betPawa', 'betpawa'), ('Other', 'other')")
    template.execute(feed)
    template.close()
    return template.name


@pytest.fixture
def new_database(cluster: Cluster, template: str) -> Iterator[Callable[[], Database]]:
    """Makes databases with the application's tables and the feed."""
    made: list[Database] = []

    def new() -> Database:
        made.append(Database(cluster, template))
        return made[-1]

    yield new
    for database in made:
        database.drop()


@pytest.fixture
def database(new_database: Callable[[], Database]) -> Database:
    return new_database()


@pytest.fixture
def cache(database: Database) -> Iterator[OddsCache]:
    """Follows `database`, warm."""
    with OddsCache.connect(database.url) as cache:
        cache.ready(10)
        yield cache


@pytest.fixture
def stop_server(cluster: Cluster, database: Database) -> Iterator[Callable[[], None]]:
    """Stops the server as a crash would. It runs again after the test, before the databases are dropped."""
    yield cluster.stop
    cluster.start()
