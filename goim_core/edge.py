"""What all connections of a server share."""

from __future__ import annotations

import anyio
from attrs import define, field

from goim_core.admission import Admission, Entrant
from goim_core.budget import Budget
from goim_core.channel import Counters
from goim_core.clock import Deadlines
from goim_core.comet import Comet
from goim_core.errors import Disconnect
from goim_core.exchanges import Exchanges
from goim_core.logic import Logic
from goim_core.operations import Operations
from goim_core.options import Options
from goim_core.reactor import Reactor
from goim_core.trace import Tracer
from goim_core.unfinished import Unfinished

__all__ = ["Edge"]


@define(eq=False)
class Edge:
    """What all connections of a server share. ``empty`` is set when the last of them has ended."""

    comet: Comet
    logic: Logic
    operations: Operations
    exchanges: Exchanges
    reactor: Reactor
    deadlines: Deadlines
    options: Options
    counters: Counters
    tracer: Tracer
    admission: Admission
    budget: Budget
    unfinished: Unfinished
    empty: anyio.Event = field(factory=anyio.Event)
    leaving: dict[Entrant, Disconnect] = field(factory=dict)  # as soon as no hook is at work for them
    silence: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.silence = self.options.silence

    def reload(self, options: Options) -> None:
        """From now on, these are the options."""
        self.options = options
        self.silence = options.silence  # each heartbeat needs it
        self.operations.options = options
        self.exchanges.bound(options.max_hooks, options.hook_timeout)
        self.admission.reload(options)
        self.budget.reload(options)
        self.unfinished.reload(options)
