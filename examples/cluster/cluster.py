"""The cluster: a queue's server, a registry's server, and nodes, each a process of its own."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from examples.cluster.processes import NotStarted, Process, free_ports
from examples.cluster.servers import QUEUES, redis

__all__ = ["Cluster", "Node"]

MEETS_WITHIN = 30.0


class Node(Process):
    """One node: its page is at ``page``, clients connect at ``tcp`` and at the port ``ws``."""

    def __init__(self, name: str, program: Sequence[str], shared: Sequence[str], folder: Path) -> None:
        tcp, ws, http = free_ports(3)
        doors = [f"--tcp={tcp}", f"--ws={ws}", f"--http={http}"]
        command = [sys.executable, "-m", *program, f"--name={name}", *doors, *shared]
        super().__init__(name, command, port=http, folder=folder, ready="^ready")
        self.page = f"http://127.0.0.1:{http}/"
        self.tcp = f"tcp://127.0.0.1:{tcp}"
        self.ws = ws

    def knows(self) -> list[str]:
        """The nodes that it knows, by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/goim/nodes/instances")
            return [node["hostname"] for node in json.load(connection.getresponse())["data"]]
        finally:
            connection.close()


class Cluster:
    """``with Cluster() as cluster:`` three nodes of the chat at work; after the block nothing is left.

    ``queue`` is one of ``nats``, ``kafka`` and ``redis``; ``program`` the module of a node and its
    arguments, beside those that the chat takes. Raises :class:`~examples.cluster.processes.NotStarted`.
    """

    def __init__(
        self,
        queue: str = "nats",
        program: Sequence[str] = ("examples.chat.app", "--log=info"),
        *,
        size: int = 3,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="goim-cluster-"))
        try:
            self.registry, registry_url = redis(self.folder)
            self.queue, queue_url = self.registry, registry_url
            if queue != "redis":
                self.queue, queue_url = QUEUES[queue](self.folder)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        shared = [f"--queue={queue_url}", f"--registry={registry_url}", f"--discovery={registry_url}"]
        shared.append(f"--storage=sqlite:{self.folder / 'inbox.db'}")
        self.nodes = [Node(f"node-{at}", program, shared, self.folder) for at in range(1, size + 1)]
        self.servers = list(dict.fromkeys((self.registry, self.queue)))

    def __enter__(self) -> Self:
        try:
            _start(self.servers)
            _start(self.nodes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def meet(self) -> None:
        """Return when each node has heard of all the others, so that it names them to its clients."""
        end = time.monotonic() + MEETS_WITHIN
        while any(len(node.knows()) < len(self.nodes) for node in self.nodes):
            if time.monotonic() > end:
                raise NotStarted(f"the nodes do not find each other: see the logs in {self.folder}")
            time.sleep(0.1)

    def close(self) -> None:
        """Stop the nodes, which say goodbye to their clients, then what they need; remove the folder."""
        for node in self.nodes:
            node.stop()
        for server in self.servers:
            server.kill()  # there is nothing left to keep
        shutil.rmtree(self.folder, ignore_errors=True)


def _start(processes: Sequence[Process]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.wait()
