"""What a soak says: a line a minute, slopes, bounds, and a picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import Any

__all__ = ["Held", "Level", "Minute", "percentile", "picture", "slope"]


@dataclass
class Held:
    """What the process of one node holds."""

    pid: int
    rss_mb: float
    descriptors: int
    tasks: int
    threads: int
    objects: int
    """Those that the collector knows."""
    blocks: int
    """Python's pieces of memory in use (sys.getallocatedblocks)."""
    malloc_mb: float
    """Of the C library, in use."""
    connections: int
    users: int
    deliveries: int
    drops: dict[str, int] = field(default_factory=dict)
    closes: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    outbox_bytes: int = 0


@dataclass
class Level:
    """What the first node holds right before a fault."""

    at: float
    """Seconds since the begin."""
    fault: str
    held: Held | None


@dataclass
class Minute:
    """One minute."""

    at: float
    """Seconds since the begin."""
    live: int
    accepted: int
    refused: dict[str, int]
    deliveries: int
    stored_deliveries: int
    lost: int
    """Since the begin, as all that follow here: pushes to rooms that did not come."""
    lost_stored: int
    reordered: int
    repeated: int
    stored_odd: int
    """Stored messages that came in another order, twice on a connection, or twice in an inbox."""
    stored_again: int
    p50_ms: float
    p99_ms: float
    stored_p99_ms: float
    others_cpu: float
    events: list[str]
    nodes: list[Held | None]
    seen: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """For people."""
        nodes = "  ".join(
            f"{held.rss_mb:.1f} MB {held.descriptors} fd {held.tasks} tasks {held.blocks / 1000:.0f}k blocks"
            if held
            else "away"
            for held in self.nodes
        )
        clock = f"{int(self.at) // 60:3}:{int(self.at) % 60:02}"
        refused = sum(self.refused.values())
        return (
            f"{clock} {self.live:5} conns | {self.accepted:5} pushed {refused:4} refused "
            f"{self.deliveries + self.stored_deliveries:7} delivered | lost {self.lost}+{self.lost_stored} "
            f"reordered {self.reordered}+{self.stored_odd} repeated {self.repeated}+{self.stored_again} | "
            f"p50 {self.p50_ms:.1f} p99 {self.p99_ms:.1f} stored p99 {self.stored_p99_ms:.1f} ms | "
            f"{nodes} | others {self.others_cpu:.1f} | {', '.join(self.events)}"
        )


def percentile(latencies: Counter[int], part: float, unit_ms: float) -> float:
    """In milliseconds, of counts by unit; 0 where there is none."""
    left = sum(latencies.values()) * part
    for value in sorted(latencies):
        left -= latencies[value]
        if left <= 0:
            return round((value + 1) * unit_ms, 1)
    return 0.0


def slope(*kinds: list[tuple[float, float]]) -> float:
    """By how much y grows for each unit of x, by least squares; each kind has a level of its own.

    0 where there are fewer than three points.
    """
    if sum(map(len, kinds)) < 3:
        return 0.0
    both = spread = 0.0
    for points in kinds:
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        both += sum((x - mean_x) * (y - mean_y) for x, y in points)
        spread += sum((x - mean_x) ** 2 for x, _ in points)
    return both / spread if spread else 0.0


# The picture.

WIDTH, HEIGHT, LEFT, TOP = 760, 180, 56, 30
COLORS = ("#1f6feb", "#d9730d", "#2da44e")
EVENTS = {"storm": "#8250df", "queue": "#cf222e", "registry": "#bf8700", "node": "#57606a"}


def picture(minutes: list[Minute], names: list[str]) -> str:
    """Memory of each node and latency over time, as an SVG; vertical lines are faults."""
    memory = [
        (name, [(m.at / 60, held.rss_mb) for m in minutes if (held := m.nodes[at])])
        for at, name in enumerate(names)
    ]
    latency = [
        ("p99", [(m.at / 60, m.p99_ms) for m in minutes]),
        ("p50", [(m.at / 60, m.p50_ms) for m in minutes]),
    ]
    live = [("connections", [(m.at / 60, float(m.live)) for m in minutes])]
    panels = [("memory, MB", memory), ("connections", live), ("room push to client, ms", latency)]
    end = max(m.at for m in minutes) / 60
    marks = [(m.at / 60, event.split()[0]) for m in minutes for event in m.events]
    body = [_panel(title, lines, marks, end, at * (HEIGHT + 60)) for at, (title, lines) in enumerate(panels)]
    height = len(panels) * (HEIGHT + 60) + 20
    legend = "".join(
        f'<text x="{LEFT + 150 * at}" y="{height - 8}" fill="{color}">| {event}</text>'
        for at, (event, color) in enumerate(EVENTS.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(body)}{legend}</svg>\n"
    )


def _panel(
    title: str, lines: list[tuple[str, Any]], marks: list[tuple[float, str]], end: float, y: int
) -> str:
    top = 1.1 * max((value for _, points in lines for _, value in points), default=1) or 1

    def place(x: float, value: float) -> tuple[float, float]:
        return LEFT + WIDTH * x / end, y + TOP + HEIGHT * (1 - value / top)

    parts = [f'<text x="{LEFT}" y="{y + 18}" font-weight="bold">{escape(title)}</text>']
    for share in (0, 0.5, 1):
        _, line = place(0, top * share)
        parts.append(f'<path d="M{LEFT} {line:.1f}H{LEFT + WIDTH}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{line + 4:.1f}" text-anchor="end">{top * share:.4g}</text>')
    for x, event in marks:
        at, _ = place(x, 0)
        color = EVENTS.get(event, "#57606a")
        parts.append(f'<path d="M{at:.1f} {y + TOP}v{HEIGHT}" stroke="{color}" stroke-opacity=".35"/>')
    for at, (name, points) in enumerate(lines):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[at]}" stroke-width="2"/>')
        label = LEFT + WIDTH - 130 * (len(lines) - at)
        parts.append(f'<text x="{label}" y="{y + 18}" fill="{COLORS[at]}">{escape(name)}</text>')
    foot = y + TOP + HEIGHT + 16
    parts.append(f'<text x="{LEFT + WIDTH}" y="{foot}" text-anchor="end">{end:.0f} min</text>')
    return "".join(parts)
