"""The result: rows of two figures and their ratio, as text for the terminal and as
Markdown for the docs.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A row.

    more: whether a higher figure is better. The ratio is above 1 if obox is the better
    of the two.
    """

    name: str
    unit: str
    obox: float
    other: float | None = None
    more: bool = False

    @property
    def ratio(self) -> float | None:
        if self.other is None or not self.other or not self.obox:
            return None
        return self.obox / self.other if self.more else self.other / self.obox

    def cells(self) -> tuple[str, str, str, str]:
        ratio = self.ratio
        other = "" if self.other is None else _figure(self.other)
        return f"{self.name}, {self.unit}", _figure(self.obox), other, "" if ratio is None else f"{ratio:.2f}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass
class Report:
    """Rows and remarks in the order in which they came."""

    other: str
    """The other server and its version; "" if there is no other server."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        head = ("", "obox", self.other or "(no Dovecot here)", "ratio")
        lines = [head, ("---", "---:", "---:", "---:"), *(row.cells() for row in self.rows)]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return table + "\n\n" + "\n".join(f"- {note}" for note in self.notes) + "\n"

    def text(self) -> str:
        cells = [("", "obox", self.other, "ratio"), *(row.cells() for row in self.rows)]
        widths = [max(len(line[at]) for line in cells) for at in range(4)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(line[at].rjust(widths[at]) for at in range(1, 4))]) for line in cells
        ]
        return "\n".join([*lines, "", *self.notes]) + "\n"


def machine() -> str:
    """Return a line about the machine: what has an influence on the figures."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            model = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{cores} cores ({model}), Python {platform.python_version()}, load {load:.1f} at the start"
