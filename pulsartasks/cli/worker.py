"""``pulsartasks worker``: run an app's tasks until SIGTERM or Ctrl-C."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import click

from pulsartasks.cli.common import app_option
from pulsartasks.errors import PulsarTasksError
from pulsartasks.worker.health import metrics_folder, serve_health
from pulsartasks.worker.logs import LEVELS, configure_logging
from pulsartasks.worker.supervisor import Supervisor, WorkerOptions


@click.command()
@app_option
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Messages of each subscription that a process runs at once.",
)
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the work."
)
@click.option("-Q", "--topics", metavar="TOPIC,...", help="Consume these topics only.  [default: those of all tasks]")
@click.option("-l", "--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running tasks have to finish.",
)
@click.option(
    "--max-memory-per-child",
    type=click.IntRange(1),
    metavar="MB",
    help="Kill a process above so much memory; what it runs is a suspect.  [default: no limit]",
)
@click.option("--health-port", type=click.IntRange(0, 65_535), help="Answer /healthz, /readyz and /metrics here.")
@click.option(
    "--health-host", default="127.0.0.1", show_default=True, help="Address for --health-port; 0.0.0.0 in a container."
)
def worker(
    app_path: str,
    concurrency: int,
    processes: int,
    topics: str | None,
    log_level: str,
    grace: float,
    max_memory_per_child: int | None,
    health_port: int | None,
    health_host: str,
) -> None:
    """Run an app's tasks.

    SIGTERM or Ctrl-C stops receiving and finishes what runs; a second one stops at once, and what ran is delivered
    again. Exits with 0 after such a stop, with 78 when the app cannot be started.
    """
    only = None if topics is None else _names(topics)
    configure_logging(log_level)
    options = WorkerOptions(
        app=app_path,
        concurrency=concurrency,
        processes=processes,
        topics=only,
        log_level=log_level,
        grace=grace,
        max_memory=None if max_memory_per_child is None else max_memory_per_child * 1_000_000,
    )
    with ExitStack() as stack:
        stack.enter_context(metrics_folder())
        supervisor = Supervisor(options)
        if health_port is not None:
            try:
                port = stack.enter_context(
                    serve_health(
                        health_host, health_port, alive=lambda: supervisor.alive, ready=lambda: supervisor.ready
                    )
                )
            except PulsarTasksError as error:
                raise click.ClickException(str(error)) from error
            click.echo(f"Health: http://{health_host}:{port}/readyz", err=True)
        status = supervisor.run()
    sys.exit(status)


def _names(topics: str) -> list[str]:
    names = [name.strip() for name in topics.split(",") if name.strip()]
    if not names:
        raise click.BadParameter(
            f"{topics!r} names no topic; leave it out to consume those of all tasks", param_hint="-Q"
        )
    return names
