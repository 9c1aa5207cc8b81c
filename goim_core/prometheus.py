"""Prometheus' text format 0.0.4: families of samples, written as they are told. Bytes only, no I/O.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from goim_core.metrics import Histogram

__all__ = ["CONTENT_TYPE", "Page"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Iterable[tuple[str, str]]


class Page:
    """One answer to a scrape."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, meaning: str) -> None:
        """Begin the family ``name``, a counter, gauge, histogram or untyped."""
        meaning = meaning.replace("\\", r"\\").replace("\n", r"\n")
        self._lines += (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")

    def sample(self, name: str, value: float, labels: Labels = ()) -> None:
        """One number of the family that was begun last."""
        self._lines.append(f"{name}{_labels(labels)} {_number(value)}")

    def samples(self, name: str, label: str, values: Mapping[str, float]) -> None:
        """One number for each value of ``label``."""
        for text, value in values.items():
            self.sample(name, value, ((label, text),))

    def histogram(self, name: str, histogram: Histogram, labels: Labels = ()) -> None:
        """The samples of ``histogram``."""
        labels = tuple(labels)
        counts = list(accumulate(histogram.counts))
        for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
            self.sample(f"{name}_bucket", count, (*labels, ("le", _number(bound))))
        self.sample(f"{name}_sum", histogram.sum, labels)
        self.sample(f"{name}_count", counts[-1], labels)

    def encode(self) -> bytes:
        """The answer's body. What is no Unicode, half of a surrogate pair, becomes a question mark."""
        return "".join(f"{line}\n" for line in self._lines).encode("utf-8", "replace")


def _labels(labels: Labels) -> str:
    shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{shown}}}" if shown else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(value) if isinstance(value, int) else repr(float(value))
