"""One target under libFuzzer: ``python -m fuzz.engine TARGET [options and corpora of libFuzzer]``.

``all`` in place of a target is all of them: the first byte of an input says which. Needs atheris.
"""

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
    target = targets.ALL if name == "all" else targets.TARGETS[name]
    # libFuzzer starts itself again, by a shell, to merge.
    again = shlex.join((sys.executable, "-m", "fuzz.engine", name))
    atheris.Setup([again, f"-max_len={target.longest}", *sys.argv[1:]], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
