"""One target under libFuzzer, with atheris: ``python -m fuzz.engine TARGET [options and corpora of libFuzzer]``."""

from __future__ import annotations

import importlib
import shlex
import sys

import atheris

__all__: list[str] = []

INSTRUMENTED = ["goim_core", "wsproto", "h11"]
"""Whose branches count as coverage."""


def main() -> None:
    """Try inputs until libFuzzer has had enough; it ends the process."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=INSTRUMENTED):
        targets = importlib.import_module("fuzz.targets")
    target = targets.TARGETS[name]
    # libFuzzer starts itself again, by a shell, to merge.
    again = shlex.join((sys.executable, "-m", "fuzz.engine", name))
    atheris.Setup([again, f"-max_len={target.longest}", *sys.argv[1:]], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
