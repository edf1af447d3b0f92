"""Figures as tables that read well in a terminal and as Markdown, and the ratios that count."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

Figures = Mapping[str, float]
OURS = "pulsartasks, Pulsar"
COLUMNS: Mapping[str, tuple[str, str]] = {
    "publish /s": ("publish", "{:,.0f}"),
    "drain 1 /s": ("drain_1", "{:,.0f}"),
    "CPU us": ("cpu_us_1", "{:,.0f}"),
    "drain 2 /s": ("drain_2", "{:,.0f}"),
    "CPU 2 us": ("cpu_us_2", "{:,.0f}"),
    "alone p50 ms": ("alone_p50", "{:.2f}"),
    "p99": ("alone_p99", "{:.1f}"),
    "half load /s": ("half_rate", "{:,.0f}"),
    "half p50 ms": ("half_p50", "{:.2f}"),
    "half p99": ("half_p99", "{:.1f}"),
    "PSS MB": ("pss_mb", "{:.0f}"),
    "largest MB": ("largest_mb", "{:.0f}"),
    "idle CPU %": ("idle_cpu", "{:.1f}"),
}


def medians(runs: Sequence[Figures]) -> dict[str, float]:
    """Of each figure that every run has."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0] if all(name in run for run in runs)}


def all_medians(lines: Mapping[str, Sequence[Figures]]) -> dict[str, dict[str, float]]:
    """Of the turns that every line had: nobody gains by a turn more, when the machine was quieter."""
    turns = min((len(runs) for runs in lines.values()), default=0)
    return {name: medians(runs[:turns]) for name, runs in lines.items()}


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand under one another; the first is text, the others numbers.

    >>> print(grid(["a", "b"], [["x", "10"]]))
    | a |  b |
    |---|---:|
    | x | 10 |
    """
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(cells))
        return f"| {' | '.join([first, *others])} |"

    rule = "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def ratio(ours: Figures, other: Figures, figure: str) -> str:
    """How many times the other's figure ours is, or a dash where one of them has none.

    >>> ratio({"drain_1": 30.0}, {"drain_1": 12.0}, "drain_1")
    '2.50'
    >>> ratio({}, {"drain_1": 12.0}, "drain_1")
    '-'
    """
    if figure not in ours or not other.get(figure):
        return "-"
    return f"{ours[figure] / other[figure]:.2f}"


def contenders(figures: Mapping[str, Figures]) -> str:
    """All figures of all contenders."""
    rows = [[name, *(_cell(line, *column) for column in COLUMNS.values())] for name, line in figures.items()]
    return grid(["", *COLUMNS], rows)


def ratios(figures: Mapping[str, Figures], ours: str = OURS) -> str:
    """Ours divided by each other's: more is better for rates, less for the rest."""
    names = ("publish", "drain_1", "drain_2", "cpu_us_1", "cpu_us_2", "alone_p50", "alone_p99", "half_p99", "pss_mb")
    others = {name: line for name, line in figures.items() if name != ours}
    rows = [[name, *(ratio(figures[ours], line, figure) for figure in names)] for name, line in others.items()]
    return grid([f"{ours} / ...", *names], rows)


def beside_bare(lines: Mapping[str, tuple[Figures, Figures | None]]) -> str:
    """Workloads of ours, each with what it is held against."""
    rows = []
    for name, (ours, bare) in lines.items():
        first = next(iter(ours))
        rows.append([name, _text(ours), _text(bare) if bare else "", ratio(ours, bare or {}, first)])
    return grid(["", "ours", "bare client", "ratio"], rows)


def plain(figures: Mapping[str, Figures]) -> str:
    """Each line a workload, with all that it measured."""
    rows = [[name, ", ".join(f"{key} {value:,.1f}" for key, value in line.items())] for name, line in figures.items()]
    return grid(["", "measured"], rows)


def machine() -> str:
    """The processor and how many of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {max(1, len(models))} cores"


def versions(packages: Sequence[str], find: Callable[[str], str] = version) -> str:
    """The packages with their versions, in a line."""
    return ", ".join(f"{name} {find(name)}" for name in packages)


def _cell(figures: Figures, name: str, form: str) -> str:
    return form.format(figures[name]) if name in figures else "-"


def _text(figures: Figures) -> str:
    if "per_second" in figures:
        return f"{figures['per_second']:,.0f}/s, {figures['cpu_us']:.0f} us"
    return f"p50 {figures['p50_ms']:.2f}, p99 {figures['p99_ms']:.2f} ms"
