"""Puts what was measured into docs/performance.md: tables between two marks, and two charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import charts, table

Figures = Mapping[str, float]
START, END = "<!-- measured by `make bench` -->", "<!-- end of what was measured -->"


def write_docs(folder: Path, text: str, runs: Mapping[str, Sequence[Figures]]) -> None:
    """Writes the page's tables and its charts anew."""
    page = folder / "performance.md"
    before, _, rest = page.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", "utf-8")
    figures = table.all_medians(runs)
    for name, (title, unit, keys, labels) in CHARTS.items():
        lines = {who: [line[key] for key in keys] for who, line in figures.items() if all(key in line for key in keys)}
        (folder / f"performance-{name}.svg").write_text(charts.bars(title, unit, lines, labels), "utf-8")


CHARTS = {
    "drain": (
        "Tasks that do nothing, per second",
        "more is better",
        ("drain_1", "drain_2"),
        ("1 process", "2 processes"),
    ),
    "cpu": (
        "Processor time for each of them",
        "us, less is better",
        ("cpu_us_1", "cpu_us_2"),
        ("1 process", "2 processes"),
    ),
}
