"""Trouble with a system that nodes share: a sentence while it lasts, and one line in the log at each end."""

from __future__ import annotations

import logging

from goim_core.masked import masked

__all__ = ["Trouble"]


class Trouble:
    """What is wrong with ``what``; ``text`` is empty while nothing is."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self.text = ""
        self._log = log
        self._what = masked(what)

    def begin(self, reason: object) -> None:
        """Something is wrong; said once, until it is over. Passwords are left out."""
        said = f"{self._what}: {masked(reason)}"
        if not self.text:
            self._log.warning("%s", said)
        self.text = said

    def end(self) -> None:
        """Nothing is wrong any more."""
        if self.text:
            self._log.info("%s: works again", self._what)
        self.text = ""
