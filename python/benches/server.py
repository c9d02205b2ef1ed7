"""A private PostgreSQL server for one run of the benchmarks."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

# Without fsync: the data is thrown away.
SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "512MB",
    "fsync": "off",
    "synchronous_commit": "off",
    "max_wal_size": "4GB",
    "jit": "off",
}


class Cluster:
    """Starts on entry; stops and deletes its files on exit. Its superuser `postgres` is trusted on the socket."""

    def __init__(self) -> None:
        self._bin = _server_programs()
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        # Not $TMPDIR: a socket's path may have 107 bytes at most.
        self._dir = Path(tempfile.mkdtemp(prefix="oddscache-bench-", dir="/tmp"))
        self._port = _free_port()

    def __enter__(self) -> "Cluster":
        try:
            if self._user:
                os.chown(self._dir, self._user.pw_uid, self._user.pw_gid)
            self._run("initdb", "-U", "postgres", "-E", "UTF8", "--locale=C", "-N", "-A", "trust")
            options = [f"-c {name}={value}" for name, value in SETTINGS.items()]
            options += [f"-p {self._port}", f"-k {self._dir}"]
            self._run("pg_ctl", "start", "-w", "-l", str(self._dir / "log"), "-o", " ".join(options))
        except BaseException:
            shutil.rmtree(self._dir, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._run("pg_ctl", "stop", "-w", "-m", "immediate")
        finally:
            shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"host={self._dir} port={self._port} user=postgres dbname=postgres"

    def _run(self, program: str, *arguments: str) -> None:
        # Output goes to a file: a server that pg_ctl starts would hold a pipe open.
        with open(self._dir / "out", "w+b") as out:
            done = subprocess.run(
                [self._bin / program, "-D", self._dir / "data", *arguments],
                cwd=self._dir,
                env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                # So that Ctrl-C reaches only the benchmark, which then stops the server.
                start_new_session=True,
            )
            if done.returncode:
                out.seek(0)
                raise RuntimeError(f"{program} failed: {out.read().decode(errors='replace')}")


def _server_programs() -> Path:
    named = os.environ.get("ODDSCACHE_PG_BIN")
    folders = [Path(named)] if named else [Path(folder) for folder in os.get_exec_path()]
    if not named:
        versions = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if folder.parent.name.isdigit()]
        folders += sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in folders:
        if all((folder / program).is_file() for program in ("initdb", "postgres", "pg_ctl")):
            return folder
    raise RuntimeError("no PostgreSQL server found; install one, or name its bin folder in ODDSCACHE_PG_BIN")


def _unprivileged_user() -> pwd.struct_passwd:
    """PostgreSQL refuses to run as root."""
    users = {user.pw_name: user for user in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in users:
            return users[name]
    raise RuntimeError("neither the user postgres nor nobody exists to run the PostgreSQL server as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
