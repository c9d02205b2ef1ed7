"""A private NATS server with JetStream, and the service that publishes a database there."""

import os
import socket
from pathlib import Path

import programs
from cluster import free_port
from waiting import eventually

ROOT = Path(__file__).parents[2]


class Nats:
    def __init__(self, folder: Path, settings: str = "") -> None:
        """Starts it, with more lines of its configuration."""
        program = programs.optional("nats-server", "nats-server")
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"nats://{self.address}"
        self._command = (program, "-c", str(folder / "nats.conf"))
        (folder / "nats.conf").write_text(
            f'listen: "{self.address}"\njetstream {{ store_dir: "{folder / "store"}" }}\n{settings}\n'
        )
        self.start()

    def start(self) -> None:
        """Starts it again after `kill`, with the same port and files."""
        self._server = programs.Tied(self.folder, *self._command)
        eventually(self._listens)

    def kill(self) -> None:
        self._server.kill()

    def _listens(self) -> bool:
        host, port = self.address.split(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return False
        return True


def service() -> str:
    """The path of the service: the one named, else the one that cargo builds."""
    path = Path(os.environ.get("ODDSCACHE_BIN") or ROOT / "target" / "debug" / "oddscache")
    return str(path.absolute()) if path.is_file() else programs.missing(str(path), "cargo build --bin oddscache")


def publish(database_url: str, nats: Nats, *options: str, **variables: str) -> programs.Tied:
    """Starts a publisher."""
    command = [service(), "serve", "--listen", "127.0.0.1:0", "--relay-to", nats.url, *options]
    return programs.Tied(nats.folder, *command, DATABASE_URL=database_url, **variables)
