"""A cache that follows a relay shows what one that follows the database shows, and says what is wrong otherwise."""

import asyncio
import socket
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import oddscache
import programs
import test_exit as exits
import test_fork as forks
from cluster import free_port
from database import Database, market
from nats_server import Nats, publish
from oddscache import ConfigError, NotReady, NotShown, OddsCache, Relay, TooStale
from plain import all_plain, differences
from test_service import EXAMPLE, Service
from waiting import eventually

SECRET = "do-not-show"
# A pair from the manual of NATS.
SEED, PUBLIC = (
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
    "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
)


@pytest.fixture
def start_nats(tmp_path: Path) -> Iterator[Callable[..., Nats]]:
    """Starts a server with these lines of configuration."""
    started: list[Nats] = []

    def start(settings: str = "") -> Nats:
        started.append(Nats(tmp_path, settings))
        return started[-1]

    yield start
    for nats in started:
        nats.kill()


@pytest.fixture
def nats(start_nats: Callable[..., Nats]) -> Nats:
    return start_nats()


@pytest.fixture
def start_publisher() -> Iterator[Callable[..., programs.Tied]]:
    """Starts publishers, as `publish` does."""
    started: list[programs.Tied] = []

    def start(database: Database, nats: Nats, *options: str, **variables: str) -> programs.Tied:
        started.append(publish(database.url, nats, *options, **variables))
        return started[-1]

    yield start
    for publisher in started:
        publisher.kill()


@pytest.fixture
def publisher(database: Database, nats: Nats, start_publisher: Callable[..., programs.Tied]) -> programs.Tied:
    return start_publisher(database, nats)


@pytest.fixture
def follower(nats: Nats, publisher: programs.Tied) -> Iterator[OddsCache]:
    """Follows the relay, warm."""
    with OddsCache.connect(relay=nats.url) as follower:
        follower.ready(20)
        yield follower


def compare(database: Database, direct: OddsCache, follower: OddsCache) -> None:
    """Both show everything that is committed now, and the same."""
    xid = database.xid()
    ours, theirs = direct.wait_for(xid), follower.wait_for(xid)
    ids = ours.event_ids()
    assert ids
    assert theirs.event_ids() == ids
    assert [theirs.kickoff(event_id) for event_id in ids] == [ours.kickoff(event_id) for event_id in ids]
    for lookup in ("get_betpawa_snapshots", "get_competitor_snapshots"):
        expected = all_plain(getattr(ours, lookup)(ids))
        assert expected
        assert differences(all_plain(getattr(theirs, lookup)(ids)), expected) == []
    assert follower.event_list_json() == direct.event_list_json()
    for name in ("betpawa_events", "competitor_events", "total_snapshots", "total_markets"):
        assert follower.stats()[name] == direct.stats()[name]


def test_it_shows_what_a_direct_handle_shows(database: Database, follower: OddsCache, cache: OddsCache) -> None:
    """Rows of each kind, changed in each way, are the same through the relay."""
    for event_id in range(1, 6):
        database.event(event_id)
        for bookmaker_id in (1, 2):
            database.snapshot(event_id, bookmaker_id, [market(), market("5000", (1.5, None), line=2.5)])
        database.competitor_snapshot(database.competitor(event_id, "bet9ja"), [market("ü" * 50, (1.0000000000000002,))])
    compare(database, cache, follower)
    key = database.snapshot(1, 1, [market(odds=(9.0,), outcomes=[{"name": "x", "odds": 1.1, "player": {"id": [5]}}])])
    database.execute("UPDATE market_odds SET unavailable_at = now() WHERE snapshot_id = %s", key)
    database.execute("UPDATE events SET kickoff = kickoff + interval '1 hour' WHERE id = 2")
    database.execute("UPDATE competitor_events SET deleted_at = now() WHERE betpawa_event_id = 3")
    database.execute("UPDATE events SET kickoff = now() - interval '3 hours' WHERE id = 4")
    compare(database, cache, follower)
    assert follower.event_ids() == [1, 2, 3, 5]

    assert follower.status.name == "live"
    assert follower.is_warm
    assert not follower.is_detached
    assert 0 <= follower.age < 10
    assert follower.epoch >= 1
    assert follower.view(max_age=10).version == follower.version
    counters = follower.stats()["counters"]
    assert counters["relay_deltas"] > 0
    assert counters["relay_answers"] > 0
    assert counters["relay_bytes"] > 0
    assert counters["relay_mismatches"] == 0


def test_changes(database: Database, follower: OddsCache) -> None:
    """Each publication comes as a change with its ids by source, to `changes()` and to callbacks."""
    database.event(1)
    database.event(2)
    rival = database.competitor(2, "bet9ja")
    follower.wait_for(database.xid())
    told: list[tuple[list[int], str]] = []
    follower.on_update(lambda event_ids, source: told.append((event_ids, source)))

    async def main() -> None:
        changes = follower.changes()
        database.snapshot(1, 1, [market()])
        first = await asyncio.wait_for(changes.__anext__(), 10)
        assert (first.event_ids, first.betpawa, first.competitors) == ([1], [1], {})
        assert follower.get_betpawa_snapshots([1]).keys() == {1}
        database.competitor_snapshot(rival, [market()])
        second = await asyncio.wait_for(changes.__anext__(), 10)
        assert (second.event_ids, second.betpawa, second.competitors) == ([2], [], {"bet9ja": [2]})
        assert first.version < second.version
        assert first.epoch == second.epoch == follower.epoch
        assert first.cut.as_of < second.cut.as_of

    asyncio.run(main())
    eventually(lambda: ([1], "betpawa") in told and ([2], "bet9ja") in told)


def test_wait_for(database: Database, follower: OddsCache) -> None:
    """A view of a transaction's writes, for threads and for coroutines, before its time-out."""
    database.event(1)

    def write(odds: float) -> int:
        with database.transaction():
            database.snapshot(1, 1, [market(odds=(odds,))])
            return database.xid()

    def shown(view: oddscache.View) -> Any:
        return view.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"]

    for number in range(2, 7):
        assert shown(follower.wait_for(write(number + 0.5))) == number + 0.5

    async def main() -> None:
        await follower.wait_ready()
        assert shown(await follower.wait_for_async(write(7.5))) == 7.5
        with pytest.raises(NotShown):
            await follower.wait_for_async(2**60, 0.1)

    asyncio.run(main())
    with pytest.raises(NotShown):
        follower.wait_for(2**60, 0.1)


@pytest.mark.timeout(60)
def test_the_publisher_is_killed(
    database: Database,
    nats: Nats,
    publisher: programs.Tied,
    follower: OddsCache,
    start_publisher: Callable[..., programs.Tied],
) -> None:
    """The age grows and the status says why; the state stays readable, and goes on when another publisher leads."""
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    epoch = follower.wait_for(database.xid()).epoch
    publisher.kill()
    eventually(lambda: follower.age > 3)
    with pytest.raises(TooStale) as stale:
        follower.view(max_age=2)
    assert stale.value.age > 2
    eventually(lambda: follower.status.name == "disconnected")
    assert nats.address in str(follower.status)
    assert follower.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"] == 2.0

    database.snapshot(1, 1, [market(odds=(3.0,))])
    start_publisher(database, nats)
    view = follower.wait_for(database.xid(), 30)
    assert view.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"] == 3.0
    assert view.epoch == epoch
    eventually(lambda: follower.status.name == "live" and follower.age < 3)


def test_the_server_is_restarted(database: Database, nats: Nats, follower: OddsCache) -> None:
    """While NATS is away the state stays readable; afterwards it follows again."""
    database.event(1)
    database.snapshot(1)
    follower.wait_for(database.xid())
    nats.kill()
    eventually(lambda: follower.age > 1.5)
    assert follower.event_ids() == [1]
    database.event(2)
    database.snapshot(2)
    nats.start()
    assert follower.wait_for(database.xid(), 20).event_ids() == [1, 2]


def refusal(**options: Any) -> str:
    """Why a cache is not ready soon."""
    with OddsCache.connect(**options) as cache:
        # The client's first words come from its thread.
        eventually(lambda: cache.status.name == "disconnected")
        with pytest.raises(NotReady) as refused:
            cache.ready(0.1)
        with pytest.raises(NotReady):
            asyncio.run(cache.wait_ready(0.1))
        assert not cache.is_warm
        assert cache.event_ids() == []
        return f"{refused.value} {cache.status}"


def test_nobody_listens() -> None:
    """`ready` says which relay cannot be reached; without retries it raises the error itself."""
    address = f"127.0.0.1:{free_port()}"
    text = refusal(relay=f"nats://{address}")
    assert f"{address}/odds" in text
    assert "refused" in text
    with OddsCache.connect(relay=f"nats://{address}", retry_unreachable=False) as cache:
        with pytest.raises(oddscache.Error, match=f"the relay at {address}/odds") as error:
            cache.ready(10)
        assert type(error.value) is oddscache.Error


def test_nobody_publishes(nats: Nats) -> None:
    """A server without the relay's streams is not ready, and the reason names the stream."""
    assert "stream" in refusal(relay=Relay(nats.url, name="other"))


WRONG: tuple[dict[str, str], ...] = (
    {},
    {"user": "follower", "password": SECRET},
    {"user": "nobody", "password": SECRET},
    {"token": SECRET},
    {"nkey": f"SU{SECRET}"},
    {"nkey": "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM"},
    {"creds": "/nowhere/absent.creds"},
)


def test_logins(
    database: Database, start_nats: Callable[..., Nats], start_publisher: Callable[..., programs.Tied]
) -> None:
    """A user, also in the URL, and an nkey log in. What the server refuses is said, without the secret."""
    user = 'user: follower, password: "it is p@ss"'
    nats = start_nats(f"authorization {{ users: [ {{ {user} }}, {{ nkey: {PUBLIC} }} ] }}")
    start_publisher(database, nats, "--relay-user", "follower", ODDSCACHE_RELAY_PASSWORD="it is p@ss")
    database.event(1)
    database.snapshot(1)
    for right in (
        Relay(nats.url, user="follower", password="it is p@ss"),
        Relay(nats.url.replace("://", "://follower:it%20is%20p%40ss@")),
        Relay(nats.url, nkey=SEED),
    ):
        assert repr(right) == f"<oddscache.Relay {nats.address}/odds>"
        with OddsCache.connect(relay=right) as cache:
            cache.ready(20)
            assert cache.wait_for(database.xid()).event_ids() == [1]
    for login in WRONG:
        wrong = Relay(nats.url, **login)
        text = f"{refusal(relay=wrong)} {wrong!r} {wrong}"
        assert f"the relay at {nats.address}/odds: " in text, text
        assert not [secret for option, secret in login.items() if option not in ("user", "creds") and secret in text]


def test_a_token_logs_in(
    database: Database, start_nats: Callable[..., Nats], start_publisher: Callable[..., programs.Tied]
) -> None:
    """A token, as an argument and in the URL; and a relay of another name."""
    nats = start_nats(f'authorization {{ token: "{SECRET}" }}')
    start_publisher(database, nats, "--relay-name", "tonight_2", ODDSCACHE_RELAY_TOKEN=SECRET)
    for right in (
        Relay(nats.url, name="tonight_2", token=SECRET),
        Relay(nats.url.replace("://", f"://{SECRET}@"), name="tonight_2"),
    ):
        assert repr(right) == f"<oddscache.Relay {nats.address}/tonight_2>"
        with OddsCache.connect(relay=right) as cache:
            cache.ready(20)


def certificate(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """The paths of a new certificate and its key, as `cert` and `key`."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        *(programs.optional("openssl", "openssl"), "req", "-x509", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-config", str(folder / "openssl.conf"), "-keyout", str(key), "-out", str(cert), *options),
    ]
    (folder / "openssl.conf").write_text("[req]\ndistinguished_name = name\n[name]\n")
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return {"cert": cert, "key": key}


def test_tls(
    database: Database,
    tmp_path: Path,
    start_nats: Callable[..., Nats],
    start_publisher: Callable[..., programs.Tied],
) -> None:
    """A server whose certificate a file vouches for, which demands one of the client, too."""
    ca = certificate(tmp_path, "authority", "-addext", "basicConstraints=critical,CA:TRUE")
    signed = ("-CA", str(ca["cert"]), "-CAkey", str(ca["key"]), "-addext", "basicConstraints=critical,CA:FALSE")
    server = certificate(tmp_path, "server", *signed, "-addext", "subjectAltName=IP:127.0.0.1")
    client = certificate(tmp_path, "client", *signed)
    stranger = certificate(tmp_path, "stranger", "-addext", "basicConstraints=critical,CA:TRUE")
    files = f'cert_file: "{server["cert"]}", key_file: "{server["key"]}", ca_file: "{ca["cert"]}"'
    nats = start_nats(f"tls {{ {files}, verify: true }}")
    flags = ("--relay-ca", ca["cert"], "--relay-cert", client["cert"], "--relay-key", client["key"])
    start_publisher(database, nats, *map(str, flags))
    url = nats.url.replace("nats://", "tls://")
    with OddsCache.connect(relay=Relay(url, ca=ca["cert"], **client)) as cache:
        cache.ready(20)
    with OddsCache.connect(relay=Relay(url, ca=str(ca["cert"]), **{k: str(v) for k, v in client.items()})) as cache:
        cache.ready(20)
    assert nats.address in refusal(relay=Relay(url, **client))
    assert nats.address in refusal(relay=Relay(url, ca=stranger["cert"], **client))
    assert nats.address in refusal(relay=Relay(url, ca=ca["cert"]))
    assert nats.address in refusal(relay=Relay(url, ca=tmp_path / "absent.pem", **client))


URL = f"nats://user:{SECRET}@localhost"


@pytest.mark.parametrize(
    "options",
    [
        {"url": ""},
        {"url": "nonsense://"},
        {"url": f"nats://{SECRET}%zz@localhost"},
        {"url": f"nats://user:{SECRET}@local host"},
        {"url": f"nats://localhost:4222,nats://user:{SECRET}@host:99999"},
        {"url": None},
        {"url": SECRET.encode()},
        {"url": URL, "name": ""},
        {"url": URL, "name": "a.b"},
        {"url": URL, "name": None},
        {"url": URL, "password": SECRET},
        {"url": URL, "user": "me", "password": SECRET.encode()},
        {"url": URL, "user": "me", "token": SECRET},
        {"url": URL, "token": SECRET, "nkey": SECRET},
        {"url": URL, "nkey": SECRET, "creds": SECRET},
        {"url": URL, "cert": "cert.pem"},
        {"url": URL, "key": "key.pem"},
        {"url": URL, "ca": 5},
        {"url": URL, "unknown": SECRET},
    ],
    ids=repr,
)
def test_wrong_settings(options: dict[str, Any]) -> None:
    """What cannot be understood is a ConfigError or a TypeError, at once, without the secret."""
    with pytest.raises((ConfigError, TypeError)) as error:
        Relay(**options)
    assert str(error.value)
    assert SECRET not in str(error.value)


def test_a_database_or_a_relay() -> None:
    """One of both, and nothing else."""
    both: list[dict[str, Any]] = [
        {"url": "postgresql://x@y/z", "relay": "nats://localhost"},
        {"url": "postgresql://x@y/z", "relay": Relay("nats://localhost")},
        {"relay": "nats://localhost", "listen_url": "postgresql://x@y/z"},
    ]
    for options in both:
        with pytest.raises(ValueError, match="database, or a relay"):
            OddsCache.connect(**options)
    with pytest.raises(TypeError, match="url must be"):
        OddsCache.connect()
    for nonsense in (5, b"nats://localhost", ["nats://localhost"]):
        with pytest.raises(TypeError):
            OddsCache.connect(relay=nonsense)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nats://host"):
        OddsCache.connect(relay="postgresql://")


def test_a_relay_shows_no_secret() -> None:
    """Neither its text nor anything that can be read of it."""
    made = Relay("nats://one,tls://two:99", name="x", user="me", password=SECRET, creds=None)
    assert repr(made) == str(made) == "<oddscache.Relay one:4222,two:99/x>"
    assert [name for name in dir(made) if not name.startswith("__")] == []
    assert SECRET not in repr(Relay(URL)) + repr(Relay("nats://x", token=SECRET)) + repr(Relay("nats://x", nkey=SECRET))


def over_relay(code: str) -> str:
    """A program that follows a relay in place of a database."""
    return textwrap.dedent(code).replace("connect(sys.argv[1])", "connect(relay=sys.argv[1])")


ENDS = (
    "without_close",
    "before_it_is_warm",
    "with_close",
    "with_a_cycle",
    "with_a_pending_async_for",
    "with_daemon_threads_in_wait_for",
    "with_daemon_threads_in_lookups",
    "with_many_caches",
)


@pytest.mark.parametrize("end", ENDS)
def test_exit(database: Database, nats: Nats, publisher: programs.Tied, end: str) -> None:
    """A program ends as one that follows a database does: soon, with code 0, and prints nothing."""
    database.event(1)
    database.snapshot(1, 1, [{**exits.MARKET}])
    code = over_relay(exits.BEGIN) + over_relay(exits.ENDS[end])
    process = programs.start("-c", f"{code}\nprint('end', flush=True)\n", nats.url)
    assert programs.printed(process) == "end"
    begun = time.monotonic()
    assert programs.finish(process, 10) == (0, "", "")
    assert time.monotonic() - begun < 4


def test_exit_while_the_server_is_silent() -> None:
    """A server that accepts and never answers does not hold up the end of the program."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        assert programs.run("-c", over_relay(exits.BEGIN), url) == (0, "", "")
        assert time.monotonic() - begun < 4


FORKS = (
    "os.fork",
    "grandchild",
    "multiprocessing",
    "with_a_callback",
    "while_threads_use_the_cache",
    "the_child_connects_another",
    "the_child_only_closes",
    "the_child_waits_in_tasks",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fork", FORKS)
def test_fork(database: Database, nats: Nats, publisher: programs.Tied, fork: str) -> None:
    """The child of a process that follows a relay answers at once, and follows it by a connection of its own."""
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    begin = (
        f"{forks.BEGIN}\ncache = OddsCache.connect(sys.argv[1])\ncache.ready(20)\nuntil(lambda: cache.event_ids())\n"
    )
    code = over_relay(begin) + over_relay(forks.FORKS[fork]) + forks.END
    forks.follows_a_change(programs.start_code(code, nats.url), database)


NEVER_BACK = """
cache = OddsCache.connect(sys.argv[1])
cache.ready(20)
until(lambda: cache.event_ids())
pid = os.fork()
if pid == 0:
    while cache.stats()["counters"]["relay_deltas"] == 0:
        assert odds(cache) == 2.0
    until(lambda: cache.age < 3)
    assert odds(cache) == 2.0
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_a_fork_never_goes_back(database: Database, nats: Nats, publisher: programs.Tied, follower: OddsCache) -> None:
    """A child once showed the relay's last whole state, which was older than that of its parent."""
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    follower.wait_for(database.xid())
    assert programs.run_code(forks.BEGIN + over_relay(NEVER_BACK), nats.url, timeout=25) == ""


@pytest.mark.timeout(60)
def test_the_application(database: Database, nats: Nats, publisher: programs.Tied, tmp_path: Path) -> None:
    """The README's FastAPI application follows a relay, once it names one in its call of `connect`."""
    database.event(1)
    database.snapshot(1, 1, [market()])
    text = EXAMPLE.read_text()
    assert text.count("connect(") == 1
    application = tmp_path / "application.py"
    application.write_text(text.replace("connect(", "connect(relay="))
    service = Service(nats.url, tmp_path, application)
    try:
        eventually(service.answers, 20)
        eventually(lambda: service.client.get("/events/1").status_code == 200)
        database.competitor_snapshot(database.competitor(1, "bet9ja"), [market(odds=(7.5,))])
        eventually(lambda: service.client.get("/events/1").json()["competitors"])
    finally:
        service.stop()
