"""Pictures as SVG text, for light and dark pages alike: bars in groups, and curves side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Curve", "Group", "Panel", "bars", "curves"]

STYLE = """
.page{fill:#ffffff}.ink{fill:#1b1f24}.dim{fill:#57606a}.rule{stroke:#d0d7de}.mark{stroke:#1b1f24}
.f0{fill:#2563c9}.f1{fill:#c2571a}.f2{fill:#8c959f}.s0{stroke:#2563c9}.s1{stroke:#c2571a}.s2{stroke:#8c959f}
@media (prefers-color-scheme:dark){
.page{fill:#0d1117}.ink{fill:#e6edf3}.dim{fill:#9198a1}.rule{stroke:#30363d}
.mark{stroke:#e6edf3}.f0{fill:#5b9bf5}.f1{fill:#e8894a}.f2{fill:#6e7681}.s0{stroke:#5b9bf5}.s1{stroke:#e8894a}
.s2{stroke:#6e7681}}
text{font:12px system-ui,sans-serif}.title{font-size:16px;font-weight:600}.name{font-weight:600}
""".strip()
WIDTH = 900
MARGIN = 24


@dataclass(frozen=True)
class Bar:
    """One value and whose it is."""

    name: str
    value: float


@dataclass(frozen=True)
class Group:
    """Values of one unit, to be compared; ``target`` is marked, ``more`` says that more is better."""

    name: str
    unit: str
    bars: Sequence[Bar]
    target: float | None = None
    more: bool = False


@dataclass(frozen=True)
class Curve:
    """Points of one panel. Of two curves the second is dashed, so that they differ without colour too."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A plot with logarithmic axes; ``limit`` is a line across with a name."""

    name: str
    x: str
    y: str
    curves: Sequence[Curve]
    limit: tuple[float, str] | None = None


def bars(title: str, below: str, groups: Sequence[Group]) -> str:
    """The groups in two columns, each scaled to its own largest value."""
    column, row, top = (WIDTH - 3 * MARGIN) / 2, 0.0, 84.0
    heights = [
        30 + 18 * max(len(group.bars) for group in groups[i : i + 2]) for i in range(0, len(groups), 2)
    ]
    order = list(dict.fromkeys(bar.name for group in groups for bar in group.bars))
    parts = _legend(order, 64)
    parts.append(f'<path class="mark" d="M{WIDTH - 206} 54v14" stroke-width="2"/>')
    parts.append(_text(WIDTH - 198, 64, "target: to this side or beyond", "dim"))
    for i, group in enumerate(groups):
        left = MARGIN + (i % 2) * (column + MARGIN)
        parts += _group(group, order, left, top + row, column)
        if i % 2:
            row += heights[i // 2]
    return _page(title, below, top + sum(heights) + 8, parts)


def _group(group: Group, order: Sequence[str], left: float, top: float, width: float) -> list[str]:
    goal = "more is better" if group.more else "less is better"
    parts = [_text(left, top + 14, group.name, "ink name")]
    parts.append(_text(left + width, top + 14, f"{group.unit}, {goal}", "dim", "end"))
    room = width - 60
    most = max([bar.value for bar in group.bars] + [group.target or 0.0]) or 1.0
    mark = left + (group.target or 0.0) / most * room
    for i, bar in enumerate(group.bars):
        y, size = top + 22 + 18 * i, max(1.0, bar.value / most * room)
        colour = order.index(bar.name)
        parts.append(
            f'<rect class="f{colour}" x="{left:.0f}" y="{y:.0f}" width="{size:.1f}" height="14" rx="2"/>'
        )
        after = left + size + 6
        if not i and after - 6 <= mark < after + 30:
            after = mark + 6
        parts.append(_text(after, y + 11, _number(bar.value), "ink"))
    if group.target is not None:
        parts.append(f'<path class="mark" d="M{mark:.1f} {top + 20:.0f}v18" stroke-width="2"/>')
    return parts


def curves(title: str, below: str, panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    parts = _legend(names, 64)
    width = (WIDTH - (len(panels) + 1) * MARGIN) / len(panels)
    for i, panel in enumerate(panels):
        parts += _panel(panel, names, MARGIN + i * (width + MARGIN), 84.0, width, 280.0)
    return _page(title, below, 424.0, parts)


def _panel(
    panel: Panel, names: Sequence[str], left: float, top: float, width: float, height: float
) -> list[str]:
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in curve.points] + ([panel.limit[0]] if panel.limit else [])
    across = _Axis(min(xs), max(xs), left + 44, left + width)
    up = _Axis(*_decades(ys), top + height, top + 26)
    parts = [_text(left, top + 12, panel.name, "ink name")]
    for tick in up.decades():
        y = up.place(tick)
        parts.append(f'<path class="rule" d="M{left + 44:.1f} {y:.1f}H{left + width:.1f}"/>')
        parts.append(_text(left + 38, y + 4, _number(tick), "dim", "end"))
    parts += [
        _text(across.place(tick), top + height + 16, f"{tick:g}", "dim", "middle")
        for tick in sorted(set(xs))
        if math.log2(tick) % 1 == 0
    ]
    parts.append(_text(left + 44 + (width - 44) / 2, top + height + 34, panel.x, "dim", "middle"))
    parts.append(_text(left + width, top + 12, panel.y, "dim", "end"))
    if panel.limit is not None:
        y = up.place(panel.limit[0])
        parts.append(
            f'<path class="mark" stroke-dasharray="2 3" d="M{left + 44:.1f} {y:.1f}H{left + width:.1f}"/>'
        )
        parts.append(_text(left + width, y + 14, panel.limit[1], "dim", "end"))
    for curve in panel.curves:
        parts += _curve(curve, names.index(curve.name), across, up)
    return parts


def _curve(curve: Curve, colour: int, across: _Axis, up: _Axis) -> list[str]:
    places = [(across.place(x), up.place(y)) for x, y in curve.points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashes = ' stroke-dasharray="6 4"' if colour else ""
    parts = [f'<path class="s{colour}" d="M{line}" fill="none" stroke-width="2"{dashes}/>']
    parts += [f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    return parts


class _Axis:
    """A logarithmic scale from ``low`` to ``high``, on the page from ``start`` to ``end``."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def place(self, value: float) -> float:
        """Where ``value`` is."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def decades(self) -> list[float]:
        """The powers of ten on it."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def _decades(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], float(MARGIN)
    for i, name in enumerate(names):
        parts.append(f'<rect class="f{i}" x="{x:.0f}" y="{y - 11:.0f}" width="14" height="14" rx="2"/>')
        parts.append(_text(x + 20, y, name, "ink"))
        x += 44 + 7 * len(name)
    return parts


def _page(title: str, below: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{height:.0f}" rx="8"/>'
    )
    texts = [_text(MARGIN, 28, title, "ink title"), _text(MARGIN, 46, below, "dim")]
    return "\n".join([head, *texts, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
