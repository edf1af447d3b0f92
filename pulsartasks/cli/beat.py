"""``pulsartasks beat``: send what the schedule says, and move what is due, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import islice

import click
import msgspec

from pulsartasks.app import PulsarTasks
from pulsartasks.beat.leadership import Seen, read_newest
from pulsartasks.beat.process import run
from pulsartasks.cli.common import app_option, opened_app, table
from pulsartasks.schedule import Entry, from_milliseconds, ticks
from pulsartasks.worker.child import CANNOT_START
from pulsartasks.worker.logs import LEVELS, configure_logging

SHOWN = 3
"""Next ticks of an entry that are listed."""


@click.command()
@app_option
@click.option("--list", "only_list", is_flag=True, help="Show the schedule and when each entry last ran, and exit.")
@click.option("--json", "as_json", is_flag=True, help="With --list: one JSON object a line, for programs.")
@click.option("-l", "--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@click.option("--health-port", type=click.IntRange(0, 65_535), help="Answer /healthz, /readyz and /metrics here.")
@click.option(
    "--health-host", default="127.0.0.1", show_default=True, help="Address for --health-port; 0.0.0.0 in a container."
)
def beat(
    app_path: str, only_list: bool, as_json: bool, log_level: str, health_port: int | None, health_host: str
) -> None:
    """Send what the schedule says, and move retries and delayed calls to their tasks once they are due.

    Run as many copies as you like: the broker elects one that sends the ticks, and another one takes over when it is
    gone. All of them move what is due. Exits with 0 after SIGTERM or Ctrl-C, with 78 when it cannot be started.
    """
    if as_json and not only_list:
        raise click.UsageError("--json goes with --list")
    if only_list:
        with opened_app(app_path, in_memory=True) as app:
            click.echo("\n".join(_as_json(app) if as_json else _as_table(app)))
        return
    configure_logging(log_level, again=True)
    try:
        with opened_app(app_path, in_memory=True) as app:
            configure_logging(log_level, app.signals)
            run(app, health=None if health_port is None else (health_host, health_port))
    except click.ClickException as error:
        error.show()
        sys.exit(CANNOT_START)


def _entries(app: PulsarTasks) -> Iterator[tuple[Entry, list[datetime], datetime | None]]:
    """Each entry with its next ticks, in its zone, and the last one that was sent."""
    known, now = read_newest(app).seen, datetime.now(timezone.utc)
    for name, entry in app.scheduled.items():
        seen = known.get(name, Seen(0, ""))
        last = None if seen.last is None else from_milliseconds(seen.last)
        zone = entry.schedule.zone
        yield entry, [tick.astimezone(zone) for tick in islice(ticks(entry.schedule, now), SHOWN)], last


def _as_json(app: PulsarTasks) -> Iterator[str]:
    for entry, following, last in _entries(app):
        row = {
            "entry": entry.name,
            "schedule": str(entry.schedule),
            "missed": entry.missed,
            "next": following,
            "next_utc": [tick.astimezone(timezone.utc) for tick in following],
            "last": last,
        }
        yield msgspec.json.encode(row).decode()


def _as_table(app: PulsarTasks) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("entry", "schedule", "next", "next (UTC)", "last (UTC)")]
    for entry, following, last in _entries(app):
        words: tuple[str, ...] = (entry.name, str(entry.schedule))
        for tick in following:
            rows.append((*words, f"{tick:%F %T %z}", _utc(tick), _utc(last) if words[0] else ""))
            words = ("", "")
    yield from table(rows)


def _utc(instant: datetime | None) -> str:
    return "never" if instant is None else f"{instant.astimezone(timezone.utc):%F %T}"
