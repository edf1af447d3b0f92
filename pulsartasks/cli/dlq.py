"""``pulsartasks dlq``: list, show and replay dead letters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
import msgspec

from pulsartasks.app import PulsarTasks
from pulsartasks.cli.common import app_option, opened_app
from pulsartasks.dead_letters import DeadLetters, Kept
from pulsartasks.errors import ConfigurationError
from pulsartasks.message import CLAIM

task_option = click.option("-t", "--task", "task_name", help="Of this task only.  [default: of all tasks]")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")


@click.group()
def dlq() -> None:
    """Look at dead letters, and send them again."""


@dlq.command("list")
@app_option
@task_option
@json_option
def list_(app_path: str, task_name: str | None, as_json: bool) -> None:
    """List dead letters, oldest first; they stay where they are."""
    with opened_app(app_path) as app:
        count = 0
        for kept in _all(app, task_name):
            count += 1
            click.echo(_as_json(kept) if as_json else _as_line(kept))
    if not as_json:
        click.echo(f"{count} dead letter{'' if count == 1 else 's'}.", err=True)


@dlq.command()
@app_option
@task_option
@json_option
@click.argument("id_")
def show(app_path: str, task_name: str | None, as_json: bool, id_: str) -> None:
    """Show one dead letter with its value, headers and traceback. Exits with 1 if there is none with this id."""
    with opened_app(app_path) as app:
        kept = next((k for k in _all(app, task_name) if k.id == id_), None)
        if kept is None:
            raise click.ClickException(
                f"no dead letter {id_}; `pulsartasks dlq list -A {app_path}` shows what there is"
            )
        click.echo(_as_json(kept) if as_json else _in_full(kept))


@dlq.command()
@app_option
@task_option
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.argument("ids", nargs=-1)
def replay(app_path: str, task_name: str | None, everything: bool, ids: tuple[str, ...]) -> None:
    """Send dead letters to their task again, with all their retries. Exits with 1 if one of IDS is not there."""
    if everything == bool(ids):
        raise click.UsageError("give the ids of dead letters, or --all")
    is_of = _is_of(task_name)
    with opened_app(app_path) as app:
        done = []
        for kept in _letters(app, task_name).replay(lambda kept: (everything or kept.id in ids) and is_of(kept)):
            done.append(kept.id)
            click.echo(f"replayed {kept.task} {kept.id}")
    if missing := set(ids) - set(done):
        raise click.ClickException(f"not among the dead letters: {', '.join(sorted(missing))}")
    click.echo(f"{len(done)} replayed.", err=True)


def _letters(app: PulsarTasks, task_name: str | None) -> DeadLetters:
    if task_name is not None and task_name not in app.tasks:
        raise ConfigurationError(f"no task {task_name!r}; known are: {', '.join(sorted(app.tasks))}")
    if task_name is not None:
        return DeadLetters(app, app.tasks[task_name])
    return DeadLetters(app, *[task for task in app.tasks.values() if task.topics.dead_letter is not None])


def _is_of(task_name: str | None) -> Callable[[Kept], bool]:
    """Tells a task's own dead letters from those of others that share its topic."""
    return lambda kept: task_name in (None, kept.task)


def _all(app: PulsarTasks, task_name: str | None) -> Iterable[Kept]:
    return filter(_is_of(task_name), _letters(app, task_name).list())


def _as_line(kept: Kept) -> str:
    story = kept.story
    if story is None:
        return f"{kept.id}  {kept.task}  (no reason given)"
    error = f"{story.exception_type}: {story.exception_message}".partition("\n")[0]
    return f"{kept.id}  {kept.task}  {story.failed_at}  {story.reason} after {story.attempts}: {error}"


def _as_json(kept: Kept) -> str:
    return msgspec.json.encode(
        {
            "id": kept.id,
            "task": kept.task,
            "key": kept.delivery.key,
            "value": kept.delivery.value.decode(errors="replace"),
            "headers": kept.delivery.properties,
            "dead_letter": kept.story,
        }
    ).decode()


def _in_full(kept: Kept) -> str:
    story = kept.story
    lines = [f"id         {kept.id}", f"task       {kept.task}"]
    if story is not None:
        lines += [
            f"reason     {story.reason}",
            f"error      {story.exception_type}: {story.exception_message}",
            f"attempts   {story.attempts}",
            f"published  {story.published_at}",
            f"failed     {story.failed_at}",
            f"worker     {story.worker}",
            f"topic      {story.topic}",
        ]
    else:  # given up by another client, which tells what it knows in headers
        lines += [f"header     {name}: {value}" for name, value in sorted(kept.delivery.properties.items())]
    lines += [f"key        {kept.delivery.key}", f"value      {_value(kept)}"]
    return "\n".join([*lines, *(["", story.traceback.rstrip()] if story is not None and story.traceback else [])])


def _value(kept: Kept) -> str:
    headers = kept.delivery.properties
    if CLAIM in headers:
        return f"in the blob store: {headers[CLAIM]}"
    return kept.delivery.value.decode(errors="replace")
