"""Test business logic without infrastructure: the real pipeline, no socket, and a clock of the test's own.

:func:`running` runs it, and docs/testing.md shows how. The suites that every queue, registry and storage
passes are in ``queue_contract``, ``registry_contract`` and ``storage_contract``.
"""

from goim_core.testing.app import App, running
from goim_core.testing.client import Client
from goim_core.testing.clock import ManualClock
from goim_core.testing.queue import FaultyQueue

__all__ = ["App", "Client", "FaultyQueue", "ManualClock", "running"]
