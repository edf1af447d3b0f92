"""``make bench``: measure the embedded broker and a real Pulsar, ours and the bare client in turn, and print ratios."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from tests.services import PulsarServer
from tools import downloads

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """A line of the table: a workload, how often, and what it is held against."""

    workload: str
    share: float
    """Of the tasks asked for: what takes a round trip each is done less often."""
    bare: str | None = None


PULSAR_LINES = (
    Line("publish", 0.05, bare="publish_bare"),
    Line("port_only", 1, bare="drain_bare"),
    Line("drain", 1, bare="drain_bare"),
    Line("drain_with_results", 0.1, bare="drain_bare"),
    Line("latency", 0.05, bare="latency_bare"),
    Line("round_trip", 0.05, bare="latency_bare"),
)
LOCAL_LINES = tuple(Line(line.workload, line.share) for line in PULSAR_LINES)


@click.command()
@click.option("--tasks", type=click.IntRange(100), default=20_000, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of each; the median is shown.")
@click.option("--broker", type=click.Choice(["both", "local", "pulsar"]), default="both", show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures here.")
def main(tasks: int, runs: int, broker: str, report: Path | None) -> None:
    """Measure what pulsartasks costs on this machine."""
    click.echo(f"{platform.machine()}, Python {platform.python_version()}, {tasks} tasks, median of {runs}\n")
    figures: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if broker in ("both", "local"):
            figures["local"] = measure(f"local://{folder}/broker.db", LOCAL_LINES, tasks, runs)
        if broker in ("both", "pulsar"):
            server = PulsarServer(downloads.pulsar(), Path(folder, "pulsar"))
            server.start()
            try:
                url = f"{server.service_url}?admin_url={server.admin_url}"
                figures["pulsar"] = measure(url, PULSAR_LINES, tasks, runs)
            finally:
                server.stop()
    if report is not None:
        report.write_text(json.dumps(figures, indent=2))


def measure(url: str, lines: tuple[Line, ...], tasks: int, runs: int) -> dict[str, Figures]:
    """Run all `lines` on the broker at `url`, each in turn with its bare one, and print them."""
    click.echo(f"{url.partition(':')[0]:24}{'ours':>28}{'bare client':>28}{'ratio':>10}")
    figures: dict[str, Figures] = {}
    for line in lines:
        names = [line.workload] + ([line.bare] if line.bare else [])
        taken: dict[str, list[Figures]] = {name: [] for name in names}
        for _ in range(runs):
            for name in names:
                taken[name].append(_run(name, url, max(50, int(tasks * line.share))))
        medians = {name: _median(results) for name, results in taken.items()}
        figures.update(medians)
        click.echo(_row(line, medians))
    click.echo()
    return figures


def _run(workload: str, url: str, count: int) -> Figures:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.workloads", workload, url, str(count)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=300,
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def _median(results: list[Figures]) -> Figures:
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def _row(line: Line, medians: Mapping[str, Figures]) -> str:
    ours = medians[line.workload]
    first = next(iter(ours))
    if line.bare is None:
        return f"{line.workload:24}{_cell(ours):>28}"
    bare = medians[line.bare]
    return f"{line.workload:24}{_cell(ours):>28}{_cell(bare):>28}{ours[first] / bare[first]:>10.2f}"


def _cell(figures: Figures) -> str:
    if "per_second" in figures:
        return f"{figures['per_second']:,.0f}/s  {figures['cpu_us']:.0f} us"
    return f"p50 {figures['p50_ms']:.2f}  p99 {figures['p99_ms']:.2f} ms"


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
