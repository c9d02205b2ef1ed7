"""A private, throw-away PostgreSQL cluster, as `src/demo/cluster.rs` has it."""

import os
import pwd
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

Output = IO[str] | None
SERVER = ("initdb", "postgres", "pg_ctl")
# The cluster ends with the tests, so it need not survive a crash of the machine.
SETTINGS = "fsync = off\nmax_connections = 60\nlisten_addresses = '127.0.0.1'\n"


def binaries() -> Path:
    """The folder of the server's programs: the one named, else the one in PATH, else the newest installed."""

    def complete(folder: Path) -> bool:
        return all(os.access(folder / program, os.X_OK) for program in SERVER)

    named = os.environ.get("ODDSCACHE_PG_BIN")
    if named is not None:
        if not named or not complete(Path(named)):
            raise RuntimeError(f"ODDSCACHE_PG_BIN is {named!r}, which lacks one of {', '.join(SERVER)}")
        return Path(named).absolute()
    in_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    installed = sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    for folder in (*in_path, *installed):
        if complete(folder):
            return folder.absolute()
    raise RuntimeError("no PostgreSQL server was found; install one (Debian: postgresql), or set ODDSCACHE_PG_BIN")


def server_user() -> pwd.struct_passwd | None:
    """The user to run the server as. `None`: ourselves. The server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("the server refuses to run as root, and there is neither a user postgres nor nobody")


class Cluster:
    """A running server. The superuser is `postgres`: trusted on the socket, by password on 127.0.0.1.

    A shell that reads a pipe from this process stops the server and deletes the files when this process ends, however
    it ends.
    """

    def __init__(self, settings: str = "") -> None:
        """Starts the server, with more lines of postgresql.conf."""
        self._bin = binaries()
        self._user = server_user()
        # Not $TMPDIR: a socket's path may have 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="oddscache-", dir="/tmp"))
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.port = 0
        self.running = False
        script = 'cat >/dev/null; "$1" stop -m immediate -D "$2/data" >/dev/null 2>&1; rm -rf "$2"'
        self._watchdog = self._popen(
            ["sh", "-c", script, "watchdog", str(self._bin / "pg_ctl"), str(self.folder)], stdin=subprocess.PIPE
        )
        self._run(
            "initdb",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        )
        with open(self.folder / "data" / "postgresql.auto.conf", "a") as file:
            file.write(f"{SETTINGS}unix_socket_directories = '{self.folder}'\n{settings}")
        for tries in range(4):
            self.port = free_port()
            try:
                self.start()
                return
            except RuntimeError:  # Another process may take the port before the server does.
                if tries == 3:
                    raise

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def start(self) -> None:
        if self.running:
            return
        self._run("pg_ctl", "start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", f"-p {self.port}")
        self.running = True

    def stop(self) -> None:
        """Stops the server as a crash would."""
        self._run("pg_ctl", "stop", "-w", "-t", "60", "-m", "immediate")
        self.running = False

    def delete(self) -> None:
        assert self._watchdog.stdin
        self._watchdog.stdin.close()
        self._watchdog.wait(20)

    def url(self, database: str) -> str:
        """Over the socket, as libpq understands it."""
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, user: str, password: str) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        # Output goes into a file, because a server started by pg_ctl would inherit a pipe and hold it open.
        with open(self.folder / "out", "w+") as out:
            command = [str(self._bin / program), "-D", str(self.folder / "data"), *arguments]
            code = self._popen(command, stdout=out, stderr=out).wait()
            if code != 0:
                out.seek(0)
                raise RuntimeError(f"{program} failed: {out.read().strip()}")

    def _popen(
        self, command: list[str], stdin: int = subprocess.DEVNULL, stdout: Output = None, stderr: Output = None
    ) -> "subprocess.Popen[bytes]":
        user = self._user
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout or subprocess.DEVNULL,
            stderr=stderr or subprocess.DEVNULL,
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            # Ctrl-C in the terminal must not reach the server before the tests have ended.
            start_new_session=True,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
