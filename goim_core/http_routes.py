"""Every route of a server's HTTP doors, and which of them the guard watches."""

from __future__ import annotations

from goim_core.guard import Guard
from goim_core.http_api import PushAPI
from goim_core.http_door import HTTPDoor, Routes
from goim_core.http_pages import operator_page
from goim_core.operator_api import OperatorAPI
from goim_core.options import Options

__all__ = ["http_door"]


def http_door(
    push: PushAPI, operator: OperatorAPI, routes: Routes, guard: Guard, options: Options
) -> HTTPDoor:
    """The door to both; ``routes``, the application's, go before those of its own.

    Open to all are what clients ask, what those ask who watch over the process, and the operator's page,
    which is empty without answers.
    """
    return HTTPDoor(
        {**operator_page(), **push.public, **operator.public, **routes},
        guarded={**push.routes, **operator.routes},
        guard=guard,
        max_body=options.http_max_body,
    )
