"""``make faults``: play the scenarios on the embedded broker and on a Pulsar of its own, and print what they cost."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.faults.checker import Verdict
from tests.faults.plan import CHORD
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.stage import Setting, Stage
from tests.services import PulsarServer
from tools import downloads

PATIENCE = 1140.0
"""Seconds that all scenarios may take together."""
EACH = 300.0
_COLUMNS = ("scenario", "broker", "seconds", "tasks", "runs", "faults", "lost", "early", "disorder", "dead", "again",
            "in flight", "acks", "held", "unexplained")  # fmt: skip
_WIDTHS = (10, 7, 7, 7, 7, 6, 5, 5, 8, 4, 6, 9, 6, 5, 11)


def main(arguments: Sequence[str]) -> int:
    """Plays what was asked for; 1 if anything went as it must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--broker", choices=("both", "local", "pulsar"), default="both")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append", help="may be given again")
    parser.add_argument("--tasks", type=int, default=20_000, help="of the largest scenario (20000)")
    parser.add_argument("--seed", type=int, default=1, help="of what is chosen by chance (1)")
    options = parser.parse_args(arguments)
    began, good = time.monotonic(), True
    print(_line(_COLUMNS), flush=True)
    for broker in ("local", "pulsar") if options.broker == "both" else (options.broker,):
        names = [n for n in options.scenario or SCENARIOS if broker in SCENARIOS[n].brokers]
        with opened(broker) if names else nothing() as (url, server):
            for name in names:
                patience = min(EACH, PATIENCE - (time.monotonic() - began))
                tasks = max(100, round(options.tasks * SCENARIOS[name].share))
                if SCENARIOS[name].plan == "chords":
                    tasks -= tasks % CHORD
                setting = setting_of(
                    SCENARIOS[name], place(url, name), tasks, seed=options.seed, patience=patience, server=server
                )
                good = show(name, broker, setting) and good
    return 0 if good else 1


def show(name: str, broker: str, setting: Setting) -> bool:
    """Play a scenario and print its line, and below it what must not have been."""
    began = time.monotonic()
    try:
        verdict = play(SCENARIOS[name], setting)
    except Exception as error:  # noqa: BLE001 - the other scenarios are played all the same
        print(f"{name:10} {broker:>7}  {type(error).__name__}: {error}", flush=True)
        return False
    print(_line((name, broker, round(time.monotonic() - began), *figures(verdict))), flush=True)
    for complaint in verdict.complaints:
        print(f"    {complaint}", flush=True)
    return not verdict.complaints


def setting_of(
    scenario: Scenario, url: str, tasks: int, *, seed: int, patience: float, server: PulsarServer | None
) -> Setting:
    return Setting(url, tasks, seed, scenario.plan, scenario.rate, max(patience, 1.0), server)


def play(scenario: Scenario, setting: Setting) -> Verdict:
    """One run of a scenario, and the verdict on it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        stage = Stage(setting, Path(folder))
        try:
            verdict = scenario.play(stage) or stage.finish()
            suspect = (
                verdict.lost,
                verdict.early,
                verdict.unsent,
                verdict.disordered,
                verdict.held,
                verdict.unexplained,
            )
            for number in {number for numbers in suspect for number in numbers[:1]}:
                print("\n".join([f"    {number}:", *(f"      {line}" for line in stage.story(number))]), flush=True)
            return verdict
        finally:
            stage.close()


def figures(verdict: Verdict) -> tuple[int, ...]:
    return (
        verdict.tasks,
        verdict.runs,
        verdict.faults,
        len(verdict.lost),
        len(verdict.early),
        len(verdict.disordered),
        verdict.dead,
        verdict.duplicates,
        verdict.in_flight,
        verdict.unsure_acks,
        len(verdict.held),
        len(verdict.unexplained),
    )


def place(url: str, scenario: str) -> str:
    """A local broker of the scenario's own, in a folder of its own; on a Pulsar its topics are."""
    return url.replace("broker.db", f"{scenario}/broker.db", 1) if url.startswith("local:") else url


@contextmanager
def opened(broker: str) -> Iterator[tuple[str, PulsarServer | None]]:
    """A broker for some scenarios: its URL, and the server where there is one."""
    with tempfile.TemporaryDirectory(prefix="pt-") as folder:  # short, for the sake of the Unix sockets in it
        if broker == "local":
            yield f"local://{folder}/broker.db", None
            return
        server = PulsarServer(downloads.pulsar(), Path(folder, "pulsar"))
        server.start()
        try:
            yield f"{server.service_url}?admin_url={server.admin_url}", server
        finally:
            server.stop()


@contextmanager
def nothing() -> Iterator[tuple[str, None]]:
    yield "", None


def _line(cells: Sequence[object]) -> str:
    first, *others = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return f"{first:<{_WIDTHS[0]}}" + "".join(f" {c:>{w}}" for c, w in zip(others, _WIDTHS[1:], strict=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
