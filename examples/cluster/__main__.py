"""Three nodes of the chat, each with its page: ``python -m examples.cluster``, which is ``make cluster``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from types import FrameType

from examples.cluster.cluster import Cluster
from examples.cluster.processes import NotStarted, Process

LOOK_EVERY = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description="Three nodes of the example chat on this machine.")
    parser.add_argument("--kafka", action="store_true", help="with Kafka's protocol instead of NATS")
    call = parser.parse_args()
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        with Cluster("kafka" if call.kafka else "nats") as cluster:
            cluster.meet()
            show(cluster)
            watch([*cluster.nodes, *cluster.servers])
    except NotStarted as error:
        sys.exit(f"cluster: {error}")
    except KeyboardInterrupt:
        pass


def show(cluster: Cluster) -> None:
    """Say what there is, and last where to look."""
    for process in (*cluster.servers, *cluster.nodes):
        print(f"{process.name}: process {process.pid}, port {process.port}, log {process.log}")
    pages = " ".join(node.page for node in cluster.nodes)
    print(f"ready: open {pages} and kill a node; Ctrl+C stops", flush=True)


def watch(processes: list[Process]) -> None:
    """Say who ends, until all have."""
    while processes:
        time.sleep(LOOK_EVERY)
        for process in [each for each in processes if not each.alive]:
            processes.remove(process)
            how = f"signal {-process.ended}" if process.ended and process.ended < 0 else process.ended
            print(f"{process.name} is gone ({how}): see {process.log}", flush=True)


def _as_ctrl_c(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
