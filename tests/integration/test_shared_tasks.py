"""Library tasks: defined without an app, run by those that include their module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from pulsartasks import INJECTED, ConfigurationError, PulsarTasks, Task, TaskContext, shared_task


class Press:
    """A resource."""

    def print(self, text: str) -> str:
        return f"printed {text}"


@pytest.fixture
def library() -> Any:
    """A module as a library has it."""
    library: Any = ModuleType("invoices")

    @shared_task
    def add(x: int, y: int = 1) -> int:
        return x + y

    @shared_task(bind=True, name="invoices-send", autoretry_for=(OSError,), default_retry_delay=0.01)
    def send(self: TaskContext, number: int, press: Press = INJECTED) -> str:
        if self.retries == 0:
            raise OSError
        return f"{press.print(str(number))} in attempt {self.retries + 1}, {library.add.delay(number).get(timeout=120)}"

    library.add, library.send = add, send
    return library


def make_app(name: str) -> PulsarTasks:
    app = PulsarTasks(name, "memory://")

    @app.resource
    def press() -> Iterator[Press]:
        yield Press()

    return app


def test_tasks_of_a_library_run_in_the_app_that_includes_it_and_call_each_other(library: Any) -> None:
    app = make_app("shop")
    app.include(library)

    with app.testing(eager=True) as running:
        assert library.send.delay(7).get(timeout=120) == "printed 7 in attempt 2, 8"
        assert library.send.using(countdown=60, key="k").delay(7).get(timeout=120) == "printed 7 in attempt 2, 8"
        running.assert_published(library.add, 7, 1)
    assert sorted(app.tasks) == ["add", "invoices-send"]
    assert library.add.topics.work == "persistent://public/default/shop.add"
    assert isinstance(library.add, Task)


def test_function_can_be_called_without_any_app_but_not_sent(library: Any) -> None:
    assert library.add(2, 3) == 5
    for use in (library.add.delay, library.add.using(key="k").delay, library.add.result):
        with pytest.raises(ConfigurationError, match=r"'add' belongs to no app yet; write app.include\('"):
            use("1")


def test_in_two_apps_the_app_has_to_be_said(library: Any) -> None:
    one, two = make_app("one"), make_app("two")
    one.include(library)
    two.include(library)

    with pytest.raises(ConfigurationError, match=r"belongs to the apps one, two; say which: app.tasks\['add'\]"):
        library.add.delay(1)
    with two.testing(eager=True):
        assert two.tasks["add"].delay(1, 1).get(timeout=120) == 2


def test_including_again_does_nothing_and_an_app_made_anew_takes_its_place(library: Any) -> None:
    app = make_app("shop")
    app.include(library)
    before = dict(app.tasks)
    app.include(library)
    assert dict(app.tasks) == before

    anew = make_app("shop")
    anew.include(library)

    with anew.testing(eager=True):
        assert library.add.delay(1, 1).get(timeout=120) == 2


def test_module_is_imported_by_its_name(monkeypatch: pytest.MonkeyPatch, library: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "invoices", library)
    app = make_app("shop")

    app.include("invoices")

    assert "add" in app.tasks


def test_module_without_tasks_is_refused_unless_the_app_has_its_tasks_there() -> None:
    app = PulsarTasks("shop", "memory://")
    with pytest.raises(ConfigurationError, match="module 'json' defines no task"):
        app.include("json")

    @app.task
    def note() -> None:
        """Is defined here, where the app is known."""

    app.include(__name__)


def test_name_that_is_taken_is_refused(library: Any) -> None:
    app = make_app("shop")

    @app.task(name="add")
    def other() -> None:
        """Was here before."""

    with pytest.raises(ConfigurationError, match="'add' is defined twice"):
        app.include(library)


def test_wrong_options_are_refused_where_they_are_written() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'max_retries'"):

        @shared_task(max_retry=1)  # type: ignore[call-overload, untyped-decorator]
        def typo() -> None: ...

    topic = PulsarTasks("shop", "memory://").topic("happened", schema=int)
    with pytest.raises(ConfigurationError, match="give a library's task a name"):

        @shared_task(topic=topic)
        def handle(number: int) -> None: ...


def test_attribute_that_no_task_has_is_none_of_the_apps(library: Any) -> None:
    assert not hasattr(library.add, "pytestmark")
    assert repr(library.add) == "<SharedTask add>"
