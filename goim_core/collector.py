"""The garbage collector of a process that holds very many objects for long."""

from __future__ import annotations

import gc

__all__ = ["spare"]

FULL = 1_000_000
"""After how many collections of the middle generation there is a full one: never, in a process' life."""


def spare() -> None:
    """From now on let the collector look only at what is new, which takes it a millisecond.

    To be called once the program has imported and made what it needs. A full collection walks every object
    there is, and with a million connections that takes many seconds in which nobody is answered. An ended
    connection leaves nothing for it. What else becomes garbage in a cycle after it has lived through two
    collections stays in memory until the program calls :func:`gc.collect`.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL)
