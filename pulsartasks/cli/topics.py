"""``pulsartasks topics``: what topics an app has, and having the broker have them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator

import click
import msgspec

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import TopicState
from pulsartasks.catalog import AppTopic
from pulsartasks.cli.common import app_option, opened_app, table
from pulsartasks.provisioning import Step, carry_out, find, steps, strangers, wanted
from pulsartasks.roles import Role
from pulsartasks.topics import is_persistent, short_name

WOULD_CHANGE = 2

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
role_option = click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="ROLE=DUTY,...",
    help="Permissions for what this role's processes do: call, tail, watch, work, beat. May be repeated.",
)


@click.group()
def topics() -> None:
    """See which topics an app has, and make them with all that belongs to them."""


@topics.command("list")
@app_option
@json_option
def list_(app_path: str, as_json: bool) -> None:
    """List the app's topics and how their subscriptions stand with the broker."""
    with opened_app(app_path) as app:
        states = [(topic, app.broker.inspect(topic.name)) for topic in app.catalog.values()]
        click.echo("\n".join(_as_json(states) if as_json else table(_rows(states))))


@topics.command()
@app_option
@role_option
@json_option
@click.option("--check", is_flag=True, help=f"Exit with {WOULD_CHANGE} if something would be changed.")
def plan(app_path: str, roles: tuple[str, ...], as_json: bool, check: bool) -> None:
    """Show what `apply` would do.

    A line each: + is made, ~ is changed, ? is told and left as it is.
    """
    with opened_app(app_path) as app:
        planned = _plan(app, roles)
    _show_plan(planned, as_json=as_json)
    if check and any(step.changes for step in planned):
        sys.exit(WOULD_CHANGE)


@topics.command()
@app_option
@role_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as `plan` does.")
def apply(app_path: str, roles: tuple[str, ...], as_json: bool, dry_run: bool) -> None:
    """Make the app's topics, subscriptions, policies, schemas and permissions; never remove anything.

    Stops at the first step that is refused, with status 1; run it again when that is settled.
    """
    with opened_app(app_path) as app:
        planned = _plan(app, roles)
        if dry_run:
            _show_plan(planned, as_json=as_json)
            return
        for step in carry_out(planned, app.broker):
            click.echo(_line(step, as_json=as_json))
    _show([step for step in planned if not step.changes], as_json=as_json)


def _plan(app: PulsarTasks, roles: Iterable[str]) -> list[Step]:
    asked = wanted(app, [Role.parse(role) for role in roles])
    administration = app.broker.administration
    if administration is None:
        click.echo(
            f"{app.broker_url} has subscriptions only: no partitions, policies or permissions, and schemas come with "
            "the first message.",
            err=True,
        )
    planned = steps(asked, find(app.broker, asked), administered=administration is not None)
    return planned if administration is None else [*planned, *strangers(app, administration)]


def _show(planned: Iterable[Step], *, as_json: bool) -> None:
    for step in planned:
        click.echo(_line(step, as_json=as_json))


def _show_plan(planned: Collection[Step], *, as_json: bool) -> None:
    _show(planned, as_json=as_json)
    changes = sum(step.changes for step in planned)
    if not as_json:
        click.echo(f"{changes} step{'' if changes == 1 else 's'} to do." if changes else "Nothing to do.", err=True)


def _line(step: Step, *, as_json: bool) -> str:
    return msgspec.json.encode({"sign": step.sign, "what": step.what}).decode() if as_json else str(step)


def _as_json(states: Iterable[tuple[AppTopic, TopicState | None]]) -> Iterator[str]:
    for topic, state in states:
        row = {
            "topic": topic.name,
            "kinds": sorted(topic.kinds),
            "exists": state is not None,
            "partitions": 0 if state is None else state.partitions,
            "subscriptions": {} if state is None else state.subscriptions,
            "missing": _missing(topic, state),
        }
        yield msgspec.json.encode(row).decode()


def _rows(states: Iterable[tuple[AppTopic, TopicState | None]]) -> Iterator[tuple[str, ...]]:
    yield ("topic", "kind", "subscription", "backlog", "delayed", "consumers")
    for topic, state in states:
        cells = [
            (name, str(each.backlog), str(each.delayed), str(each.consumers))
            for name, each in ({} if state is None else state.subscriptions).items()
        ]
        cells += [(name, "missing", "", "") for name in _missing(topic, state)]
        words = (short_name(topic.name), ", ".join(sorted(topic.kinds)))
        for row in cells or [("(none)", "", "", "")]:
            yield (*words, *row)
            words = ("", "")


def _missing(topic: AppTopic, state: TopicState | None) -> list[str]:
    """Subscriptions that should be there; a topic that stores nothing has them while they are used."""
    if not is_persistent(topic.name):
        return []
    return sorted(topic.subscriptions.keys() - (set() if state is None else state.subscriptions.keys()))
