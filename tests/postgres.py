"""A PostgreSQL server of our own, for as long as a test or a benchmark wants one; made of the programs that Debian's package brings."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACES = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/bin"), Path("/usr/local/bin"))


def found() -> Path | None:
    """The folder of the server's programs; None where there are none."""
    return next((place for place in PLACES if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


class Server:
    """A server on this machine.

    Args:
        folder: where it keeps its data.
        address: on which it listens.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        programs = found()
        assert programs, "there is no PostgreSQL here; Debian's package is `postgresql`"
        self._programs, self._folder, self._address = programs, folder, address
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._do("initdb", "-D", folder / "data", "-A", "trust", "-U", "budgetlm", "--no-sync")
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all trust\n")

    @property
    def storage(self) -> str:
        """The address that budgetlm takes."""
        return f"postgresql+psycopg://budgetlm@{self._address}:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses='*' -c fsync=off"
        self._do("pg_ctl", "-D", self._folder / "data", "-o", options, "-l", self._folder / "log", "-w", "start")

    def stop(self) -> None:
        """End it at once, as a crash would."""
        self._do("pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "stop")

    def _do(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        if os.getuid() == 0:  # it refuses to work for root
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def server(address: str = "127.0.0.1") -> Iterator[Server]:
    """A server that is gone afterwards, data and all."""
    folder = Path(tempfile.mkdtemp(prefix="budgetlm-postgres-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    it = Server(folder, address)
    it.start()
    try:
        yield it
    finally:
        it.stop()
        shutil.rmtree(folder, ignore_errors=True)
