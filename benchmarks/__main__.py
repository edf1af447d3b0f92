"""``make bench``: all contenders in one run on one machine, ours beside the bare client, and what scale costs."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks import scale, table
from benchmarks.contenders import CONTENDERS, measure, warm_up
from benchmarks.processes import answer
from benchmarks.report import write_docs
from benchmarks.servers import Servers, servers
from tools import environment, packages
from tools.terminal import SetupError

Figures = Mapping[str, float]
OUR_PACKAGES = ("pulsar-client", "msgspec")
PEER_PACKAGES = ("celery", "dramatiq", "taskiq", "taskiq-redis", "huey", "redis", "pika")


@dataclass(frozen=True)
class Line:
    """A workload of ours, how often of the tasks asked for, and what it is held against."""

    workload: str
    share: float
    bare: str | None = None


LINES = (
    Line("publish", 0.02, "publish_bare"),
    Line("publish_threads", 0.05, "publish_bare"),
    Line("publish_async", 0.05, "publish_bare"),
    Line("publish_block", 0.05, "publish_bare"),
    Line("bulk", 1, "bulk_bare"),
    Line("port_only", 1, "drain_bare"),
    Line("drain", 1, "drain_bare"),
    Line("drain_with_results", 0.25, "drain_bare"),
    Line("latency", 0.02, "latency_bare"),
    Line("round_trip", 0.02, "latency_bare"),
    Line("start_up", 0, "start_up_bare"),
    Line("command_line", 0),
)
SCALE: Mapping[str, tuple[Callable[[Servers, int], Figures], float]] = {
    "delayed": (scale.delayed, 10),
    "backlog": (scale.backlog, 1),
    "look_up": (scale.look_up, 2),
    "processes": (scale.processes, 2),
    "processes, 4 partitions": (partial(scale.processes, partitions="4"), 2),
    "fan_out": (scale.fan_out, 0.05),
    "fairness": (scale.fairness, 0.03),
    "burst": (scale.burst, 0.002),
}


@dataclass
class Report:
    """Everything that was measured: each run, and what could not be had."""

    contenders: dict[str, list[Figures]] = field(default_factory=dict)
    workloads: dict[str, list[Figures]] = field(default_factory=dict)
    scale: dict[str, list[Figures]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    about: str = ""
    deadline: float = math.inf
    """Nothing begins after it; what has been measured by then is shown."""

    def note(self, into: dict[str, list[Figures]], name: str, step: Callable[[], Figures]) -> None:
        """Keeps what `step` measures; what cannot be had is said, and the others go on."""
        began = time.monotonic()
        if name in self.missing or began > self.deadline:
            return
        try:
            into.setdefault(name, []).append(step())
        except (RuntimeError, TimeoutError, OSError) as error:
            self.missing[name] = str(error).strip().splitlines()[-1].partition("; known are")[0]
            del into[name]
        click.echo(f"  {name.strip()} {time.monotonic() - began:.0f} s", err=True)

    def text(self) -> str:
        """The tables."""
        parts = [self.about]
        if self.contenders:
            figures = table.all_medians(self.contenders)
            parts += [table.contenders(figures)]
            parts += [table.ratios(figures, ours) for ours in RATIOS_OF if ours in figures]
        if found := table.all_medians(self.workloads):
            pairs = {
                line.workload: (found[line.workload], found.get(line.bare or ""))
                for line in LINES
                if line.workload in found
            }
            parts += [table.beside_bare(pairs)]
        if self.scale:
            parts += [table.plain({name: table.medians(runs) for name, runs in self.scale.items()})]
        parts += [f"Not measured: {name}: {why}" for name, why in self.missing.items()]
        return "\n\n".join(parts)


RATIOS_OF = (table.OURS, "pulsartasks, prefetch=1000", "pulsartasks, local")


@click.command()
@click.option(
    "--tasks", type=click.IntRange(200), default=10_000, show_default=True, help="Of the fastest; others fewer."
)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of each; the median is shown.")
@click.option("--minutes", type=float, default=14, show_default=True, help="Begin nothing after so many.")
@click.option("--only", default="", help="Measure only what has this in its name, e.g. celery, drain, delayed.")
@click.option("--large", is_flag=True, help="Only a million tasks or results, beside ten thousand.")
@click.option("--json", "report_file", type=click.Path(path_type=Path), help="Write all figures of all runs here.")
@click.option("--docs", is_flag=True, help="Write the tables and charts of docs/performance.md anew.")
def main(tasks: int, runs: int, minutes: float, only: str, large: bool, report_file: Path | None, docs: bool) -> None:
    """Measure what pulsartasks costs on this machine, beside others."""
    try:
        packages.install_for_benchmarks()
    except SetupError as error:  # the others can be measured all the same
        click.echo(str(error), err=True)
    report = Report(about=_about(tasks, runs), deadline=math.inf if large else time.monotonic() + minutes * 60)
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as started:
        if large:
            for count in (10_000, 1_000_000):
                report.note(report.scale, f"backlog of {count:,}", partial(scale.backlog, started, count))
                report.note(report.scale, f"look-up among {count:,}", partial(scale.look_up, started, count))
        else:
            if not only:
                warm_up(started)
            for number in range(runs):
                click.echo(f"Run {number + 1} of {runs}", err=True)
                _run(report, started, tasks, only.lower())
                if number == 0:
                    _scale(report, started, tasks, only.lower())
    click.echo(report.text())
    if report_file is not None:
        report_file.write_text(json.dumps({**vars(report), "deadline": None}, indent=2))
    if docs:
        write_docs(environment.CHECKOUT / "docs", report.text(), report.contenders)


def _run(report: Report, started: Servers, tasks: int, only: str) -> None:
    """Everything once, so that a disturbance of some seconds does not meet all runs of one contender."""
    for one in CONTENDERS:
        if only in f"{one.name} {one.peer} {one.server}".lower():
            report.note(report.contenders, one.name, partial(measure, one, started, tasks))
    chosen = [line for line in LINES if only in line.workload]
    wanted = dict.fromkeys(name for line in chosen for name in (line.workload, line.bare) if name)
    shares = {line.workload: line.share for line in LINES} | {
        line.bare: line.share for line in reversed(LINES) if line.bare
    }
    for name in wanted:
        count = max(10, int(tasks * shares[name]))
        report.note(report.workloads, name, partial(_workload, name, started, count))


def _scale(report: Report, started: Servers, tasks: int, only: str) -> None:
    for name, (step, share) in SCALE.items():
        if only in name:
            report.note(report.scale, name, partial(step, started, int(tasks * share)))


def _workload(name: str, started: Servers, count: int) -> Figures:
    words = [sys.executable, "-m", "benchmarks.workloads", name, started.url("pulsar", ""), str(count)]
    figures: Figures = answer(words)
    return figures


def _about(tasks: int, runs: int) -> str:
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    theirs: Mapping[str, Any] = answer([str(environment.peers() / "python"), "-c", ask, *PEER_PACKAGES])
    python = f"Python {sys.version.split()[0]}"
    ours = table.versions(OUR_PACKAGES, version)
    peers = table.versions(PEER_PACKAGES, lambda name: str(theirs[name]))
    turns = f"median of {runs} turns, or of as many as there was time for"
    return f"{table.machine()}; {python}, {ours}; {peers}; up to {tasks:,} tasks, {turns}"


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
