"""What the process uses, as far as the system tells it at once: memory, CPU, descriptors, collections.

The names are those that Prometheus' own clients give: https://prometheus.io/docs/instrumenting/writing_clientlibs/
"""

from __future__ import annotations

import gc
import os
import sys
from functools import cache
from pathlib import Path

from goim_core.prometheus import Page

__all__ = ["PROCESS", "write_process"]

PROCESS = {
    "process_cpu_seconds_total": ("counter", "User and system CPU time of the process."),
    "process_resident_memory_bytes": ("gauge", "Memory of the process that is in RAM (Linux)."),
    "process_virtual_memory_bytes": ("gauge", "Address space of the process (Linux)."),
    "process_open_fds": ("gauge", "Open file descriptors (Linux)."),
    "process_max_fds": ("gauge", "How many it may open (not on Windows)."),
    "process_start_time_seconds": ("gauge", "When the process began, in seconds since 1970 (Linux)."),
    "python_gc_collections_total": ("counter", "Runs of the garbage collector, by generation."),
}
"""Kind and meaning of each."""

PROC = Path("/proc/self")
FEW = 1 << 14
"""The table of descriptors up to which they are counted one by one where the kernel does not tell."""


def write_process(page: Page) -> None:
    """Write the figures that this system has to ``page``."""
    times = os.times()
    found = {"process_cpu_seconds_total": times.user + times.system}
    try:
        size, resident = (PROC / "statm").read_text("ascii").split()[:2]
        page_size = os.sysconf("SC_PAGE_SIZE")
        found["process_resident_memory_bytes"] = int(resident) * page_size
        found["process_virtual_memory_bytes"] = int(size) * page_size
        found["process_start_time_seconds"] = _started()
        descriptors = _descriptors()
        if descriptors is not None:
            found["process_open_fds"] = descriptors
    except OSError:  # no Linux, or a sandbox that hides it
        pass
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        found["process_max_fds"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for name, value in found.items():
        page.family(name, *PROCESS[name])
        page.sample(name, value)
    name = "python_gc_collections_total"
    page.family(name, *PROCESS[name])
    page.samples(name, "generation", {str(n): of["collections"] for n, of in enumerate(gc.get_stats())})


def _descriptors() -> int | None:
    """How many are open; None where only a walk over very many would tell."""
    # Linux says it in a stat since 6.2. Before that the size is 0, and the names have to be listed.
    if size := (PROC / "fd").stat().st_size:
        return size
    status = (PROC / "status").read_text("ascii", "replace")
    table = int(status.partition("FDSize:")[2].split(maxsplit=1)[0])
    # One is the listing's own.
    return len(os.listdir(PROC / "fd")) - 1 if table <= FEW else None  # noqa: PTH208


@cache
def _started() -> float:
    # The name, in brackets, may hold anything. Then the fields from the third on: proc(5).
    ticks = int((PROC / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[19])
    boot = Path("/proc/stat").read_text("ascii").partition("\nbtime ")[2].split(maxsplit=1)[0]
    return int(boot) + ticks / os.sysconf("SC_CLK_TCK")
