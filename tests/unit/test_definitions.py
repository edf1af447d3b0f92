"""What cannot work is refused where it is written, in words that say what to write."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from typing_extensions import assert_type

from pulsartasks import (
    INJECTED,
    AsyncResult,
    Batch,
    ConfigurationError,
    GroupResult,
    InvalidArgumentsError,
    Middleware,
    PulsarTasks,
    Task,
    TaskContext,
    chord,
)
from pulsartasks.app import open_broker
from pulsartasks.cli import main
from pulsartasks.topic import Topic
from pulsartasks.worker.child import find_app


@dataclass
class Payment:
    order: int


@pytest.fixture
def app() -> PulsarTasks:
    return PulsarTasks("shop", "memory://")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_retry": 3}, "no option 'max_retry'; did you mean 'max_retries'?"),
        ({"acks_late": True}, "no option 'acks_late'; did you mean 'ack'?"),
        ({"queue": "mail"}, "no option 'queue'; did you mean 'topic'?"),
        ({"countdown": 3}, "no option 'countdown'; known are: ack, "),
        ({"time_limit": 0}, "time_limit must be seconds, more than 0, or None, not 0"),
        ({"max_crashes": 0}, "max_crashes must be a whole number of at least 1, not 0"),
        ({"mode": "keyshared"}, "mode must be one of shared, exclusive, failover, key_shared, not 'keyshared'"),
        ({"mode": []}, "mode must be one of"),
        ({"ack": "never"}, "ack must be 'late', 'early' or 'manual', not 'never'"),
        ({"ack": "manual"}, "ack='manual' is done by self.ack(); write bind=True"),
        ({"once": True, "ack": "early"}, "once=True records a success before the acknowledgement"),
        ({"track_started": "yes"}, "track_started must be True or False, not 'yes'"),
        ({"track_started": True, "ignore_result": True}, "of which ignore_result=True leaves nothing"),
        ({"unique_key": "month"}, "unique_key must be a function of the task's arguments, not 'month'"),
        ({"unique_for": 0}, "unique_for must be seconds, more than 0, not 0"),
        ({"unique_key": str, "durable": False}, "so unique_key must be left out"),
        ({"once_for": 0}, "once_for must be seconds, more than 0, not 0"),
        ({"once_for": float("inf")}, "once_for must be seconds, more than 0, not inf"),
        ({"start": "now"}, "start must be 'earliest' or 'latest', not 'now'"),
        ({"autoretry_for": OSError}, "autoretry_for must be a tuple of exception classes, e.g. (OSError,)"),
        ({"dont_autoretry_for": ("OSError",)}, "dont_autoretry_for must be a tuple of exception classes"),
        ({"max_retries": -1}, "max_retries must be 0 or more, or None for no end, not -1"),
        ({"max_retries": "3"}, "max_retries must be 0 or more, or None for no end, not '3'"),
        ({"retry_backoff": "yes"}, "retry_backoff must be True, False, or the seconds to begin with, not 'yes'"),
        ({"default_retry_delay": "1"}, "default_retry_delay must be seconds, 0 or more, not '1'"),
        ({"expires": 0}, "expires must be seconds, more than 0, not 0"),
        ({"soft_time_limit": "1"}, "soft_time_limit must be seconds, more than 0, not '1'"),
        ({"soft_time_limit": 10, "time_limit": 5}, "soft_time_limit must be less than time_limit=5, not 10"),
        ({"soft_time_limit": 5, "time_limit": 5}, "soft_time_limit must be less than time_limit=5, not 5"),
        ({"soft_time_limit": True}, "soft_time_limit must be seconds, more than 0, not True"),
        ({"retry_backoff_max": -1}, "retry_backoff_max must be seconds, 0 or more, not -1"),
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1, not 0"),
        ({"rate_limit": "10/d"}, "rate_limit must be a number for each second, more than 0, or like '10/s'"),
        ({"rate_limit": "fast"}, "rate_limit must be a number for each second"),
        ({"rate_limit": 0}, "rate_limit must be a number for each second, more than 0"),
        ({"rate_limit": "1/s", "durable": False}, "could come again or wait, so rate_limit must be left out"),
        ({"throws": KeyError}, "throws must be a tuple of exception classes, e.g. (KeyError,)"),
        ({"prefetch": 1.5}, "prefetch must be a whole number of at least 1, not 1.5"),
        ({"mode": "failover", "concurrency": 2}, "failover runs one message at a time; leave concurrency out"),
        ({"key": "chat"}, "key must be a function of the task's arguments, not 'chat'"),
        ({"topic": "a b"}, "topic must be the name of a topic, not 'a b'"),
        ({"topic": 5}, "topic must be a name or what app.topic() gave, not 5"),
        ({"subscription": ""}, "subscription must be a name of letters, digits and . _ - only, not ''"),
        ({"dead_letter": None}, "dead_letter must be True, False or the name of a topic, not None"),
        ({"dead_letter": "a b"}, "dead_letter must be True, False or the name of a topic, not 'a b'"),
        ({"name": "a b"}, "'a b' is not a topic name"),
        ({"name": 5}, "name must be text, not 5"),
        ({"batch": 64}, "batch must be Batch(max_messages=..., max_wait=...), not 64"),
        ({"batch": Batch(), "mode": "failover"}, "they never meet in a batch; use key_shared"),
        ({"batch": Batch(), "bind": True}, "a batch has no message of its own, so bind must be left out"),
        (
            {"batch": Batch(), "rate_limit": "1/s"},
            "rate_limit lets messages in one by one, so few would meet in a batch",
        ),
        ({"batch": Batch()}, "besides resources it takes one argument: a list"),
    ],
)
def test_wrong_option_is_refused(app: PulsarTasks, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        _define(app, options)

    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"dead_letter": "persistent://acme/live/failures"},
        {"dead_letter": False},
        {"topic": "persistent://acme/live/mail"},
        {"max_retries": None},
        {"retry_backoff": 0.5},
        {"rate_limit": 0.5},
        {"rate_limit": "100/m"},
        {"mode": "failover", "concurrency": 1},
    ],
)
def test_right_option_is_taken(app: PulsarTasks, options: dict[str, Any]) -> None:
    task = _define(app, options)

    assert all(getattr(task.options, name) == value for name, value in options.items())


def _no_list(numbers: int) -> None: ...
def _two(numbers: list[int], letters: list[str]) -> None: ...
def _no_need(numbers: list[int] = []) -> None: ...  # noqa: B006
def _one_result(numbers: list[int]) -> int: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (_no_list, r"annotate its argument 'numbers' as list\[...\], not <class 'int'>"),
        (_two, "besides resources it takes one argument: a list"),
        (_no_need, "its argument needs no default"),
        (_one_result, r"have it return None or list\[...\], not <class 'int'>"),
    ],
)
def test_function_that_cannot_take_batches_is_refused(
    app: PulsarTasks, function: Callable[..., Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        app.task(batch=Batch())(function)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_messages": 0}, "max_messages must be 1 to 1000, not 0"),
        ({"max_messages": "9"}, "max_messages must be 1 to 1000, not '9'"),
        ({"max_wait": -1}, "max_wait must be seconds, from 0 to 3600, not -1"),
    ],
)
def test_batch_that_makes_no_sense_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Batch(**options)


def test_call_of_a_batch_gives_one_value_and_the_plain_function_takes_a_list(app: PulsarTasks) -> None:
    @app.task(batch=Batch())
    def double(numbers: list[int]) -> list[int | Exception]:
        return [2 * number for number in numbers]

    assert double([1, 2]) == [2, 4]
    assert double.codec.decode(double.s(1).publication().value) == ([1], {})
    assert_type(double.result("1"), AsyncResult[int])
    assert double.result_codec.decode(b"2") == 2
    with pytest.raises(InvalidArgumentsError, match="Expected `int`, got `array`"):
        double.delay([1, 2])  # type: ignore[arg-type]


def test_second_subscription_of_a_call_topic_is_refused_however_it_is_named(app: PulsarTasks) -> None:
    @app.task
    def mail() -> None: ...

    with pytest.raises(ConfigurationError, match=r"the call topic 'shop.mail' already has the subscription 'shop'"):

        @app.task(topic="shop.mail", subscription="audit")
        def audit() -> None: ...


@pytest.mark.parametrize(
    "option", [{"mode": "key_shared"}, {"concurrency": 1}, {"prefetch": 1}, {"start": "latest"}], ids=str
)
def test_tasks_of_one_call_topic_are_consumed_alike(app: PulsarTasks, option: dict[str, Any]) -> None:
    _define(app, {"name": "mail", "topic": "post"})

    [name] = option
    with pytest.raises(ConfigurationError, match=rf"'mail' uses topic 'shop.post' with {name}=.*, so must this one"):
        _define(app, {"name": "parcel", "topic": "post", **option})


def test_retry_without_end_is_refused(app: PulsarTasks) -> None:
    @app.task(bind=True)
    def wait(self: TaskContext) -> None:
        raise self.retry(countdown=float("inf"))

    with pytest.raises(ValueError, match="has no end"):
        wait()


def test_second_task_of_the_same_name_is_refused(app: PulsarTasks) -> None:
    _define(app, {"name": "mail"})

    with pytest.raises(ConfigurationError, match="task 'mail' is defined twice"):
        _define(app, {"name": "mail"})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"countdown": "5"}, "countdown is seconds or a timedelta, not '5'"),
        ({"countdown": 1, "eta": datetime.now(timezone.utc)}, "give countdown or eta, not both"),
        ({"eta": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - that is the point
        ({"key": 5}, "key must be text, not 5"),
        ({"task_id": 5}, "task_id must be text, not 5"),
        ({"headers": {"a": 1}}, "header 'a': names and values must be text"),
        ({"headers": {"pt-id": "x"}}, "header 'pt-id': names with pt- are pulsartasks' own"),
        ({"countdwn": 5}, "a call has no option 'countdwn'; did you mean 'countdown'?"),
    ],
)
def test_wrong_option_of_a_call_is_refused(app: PulsarTasks, options: dict[str, Any], complaint: str) -> None:
    task = _define(app, {})

    with pytest.raises(InvalidArgumentsError) as refused:
        task.using(**options).delay()

    assert complaint in str(refused.value)


@pytest.mark.parametrize("args", [{"x": 1}, {1}, "one", b"one", 5], ids=repr)
def test_arguments_that_are_no_list_are_refused(app: PulsarTasks, args: Any) -> None:
    task = _define(app, {})

    for call in (
        task.apply_async,
        task.signature,
        task.s().apply_async,
        task.s().clone,
        (task.s() | task.s()).apply_async,
    ):
        with pytest.raises(InvalidArgumentsError, match=r"args must be a list or tuple, e.g. \(2, 3\), not "):
            call(args)
    with pytest.raises(InvalidArgumentsError, match="args must be a list or tuple"):
        app.send_task("elsewhere", args)
    with pytest.raises(InvalidArgumentsError, match=r"item 0, .*: args must be a list or tuple"):
        task.map([args])


def test_item_that_is_none_is_refused_though_a_call_may_have_no_arguments(app: PulsarTasks) -> None:
    task = _define(app, {})

    with pytest.raises(InvalidArgumentsError, match=r"item 0, None: args must be a list or tuple"):
        task.map([None])  # type: ignore[list-item]


def test_keyword_arguments_that_are_no_mapping_are_refused(app: PulsarTasks) -> None:
    task, wrong = _define(app, {}), cast("Any", ["x"])

    for call in (task.apply_async, task.signature, task.s().apply_async, task.s().clone):
        with pytest.raises(InvalidArgumentsError, match=r"kwargs must be a mapping, e.g. .*, not \['x'\]"):
            call((), wrong)


def test_handle_of_what_is_no_id_is_refused(app: PulsarTasks) -> None:
    with pytest.raises(InvalidArgumentsError, match="task_id must be text, not None"):
        _define(app, {}).result(cast("Any", None))


def test_timeout_that_is_no_number_is_refused(app: PulsarTasks) -> None:
    call = _define(app, {}).result("1")

    for wait in (call.get, GroupResult([call]).get):
        with pytest.raises(InvalidArgumentsError, match="timeout is a number of seconds or None, not '1'"):
            wait(timeout=cast("Any", "1"))
    app.close()


@pytest.mark.parametrize("option", ["link", "link_error"])
def test_task_in_place_of_a_call_is_not_linked(app: PulsarTasks, option: str) -> None:
    task = _define(app, {})

    with pytest.raises(InvalidArgumentsError, match=r"link and link_error take calls like task.s\(\), not <Task work>"):
        task.using(**cast("Any", {option: task}))
    with pytest.raises(InvalidArgumentsError, match=r"a chord's body is a call like task.s\(\), not <Task work>"):
        chord([task.s()], cast("Any", task))


def test_key_that_is_no_text_is_refused(app: PulsarTasks) -> None:
    @app.task(key=lambda order: order)
    def pay(order: int) -> None: ...

    with pytest.raises(InvalidArgumentsError, match=r"pay: key= gave 7; it must give text, e.g. str\(...\), or None"):
        pay.delay(7)


def test_key_function_that_takes_other_arguments_is_told_with_its_task(app: PulsarTasks) -> None:
    @app.task(key=lambda order: f"order-{order}")
    def pay(number: int) -> None: ...

    with pytest.raises(
        InvalidArgumentsError, match=r"pay: key= is called .*<lambda>\(order\) raised .*argument 'number'"
    ):
        pay.delay(number=7)


def test_key_function_that_fails_is_told_with_its_task(app: PulsarTasks) -> None:
    @app.task(unique_key=lambda order: str(1 // order))
    def pay(order: int) -> None: ...

    with pytest.raises(InvalidArgumentsError, match=r"pay: unique_key= is .* raised ZeroDivisionError"):
        pay.delay(0)
    with pytest.raises(InvalidArgumentsError, match=r"pay\(\) misses the argument order"):
        pay.delay()  # type: ignore[call-arg]


def test_chunks_of_nothing_are_refused(app: PulsarTasks) -> None:
    task = _define(app, {})

    with pytest.raises(InvalidArgumentsError, match="chunks of work have a size of at least 1, not 0"):
        task.chunks([(1,), (2,)], 0)


def test_bound_task_takes_what_follows_its_context(app: PulsarTasks) -> None:
    @app.task(bind=True)
    def pay(self: TaskContext, order: int) -> None: ...

    with pytest.raises(InvalidArgumentsError, match="argument 'order': Expected `int`, got `str`"):
        pay.delay("seven")  # type: ignore[arg-type]


def test_bind_without_a_parameter_for_the_context_is_refused(app: PulsarTasks) -> None:
    def nothing() -> None: ...
    def by_name(*, order: int) -> None: ...

    for function in (nothing, by_name):
        with pytest.raises(ConfigurationError, match=r"and it takes none; write self as the first parameter"):
            app.task(bind=True)(cast("Any", function))


def test_function_that_yields_is_refused(app: PulsarTasks) -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, later):
        with pytest.raises(ConfigurationError, match=r"a call of what yields runs nothing; have it return a list"):
            app.task(cast("Callable[[], Any]", function))


def _int(value: int) -> None: ...
def _float(value: float) -> None: ...
def _text(value: str) -> None: ...
def _int_or_text(value: int | str) -> None: ...
def _payment(value: Payment) -> None: ...
def _dict(value: dict[str, int]) -> None: ...
def _anything(value) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("schema", "takes"),
    [(str, _int), (int, _text), (bool, _int), (Payment, _int), (str, _payment)],
)
def test_handler_that_can_take_no_event_of_its_topic_is_refused(
    app: PulsarTasks, schema: type, takes: Callable[..., None]
) -> None:
    paid: Topic[Any] = app.topic("paid", schema=schema)

    with pytest.raises(ConfigurationError, match=r"parameter 'value' has the type .*, but the events of paid are "):
        app.task(topic=paid)(takes)


@pytest.mark.parametrize(
    ("schema", "takes"),
    [(int, _float), (float, _int), (int, _int_or_text), (Payment, _dict), (Payment, _anything), (list[int], _int)],
)
def test_handler_that_may_take_an_event_of_its_topic_is_taken(
    app: PulsarTasks, schema: type, takes: Callable[..., None]
) -> None:
    paid: Topic[Any] = app.topic("paid", schema=schema)

    assert app.task(topic=paid)(takes).event_topic is paid


def test_self_without_bind_is_refused(app: PulsarTasks) -> None:
    with pytest.raises(ConfigurationError, match=r"first parameter is self; write @app.task\(bind=True\)"):

        @app.task
        def pay(self: TaskContext, order: int) -> None: ...


def test_name_in_place_of_the_function_is_refused(app: PulsarTasks) -> None:
    with pytest.raises(ConfigurationError, match="write name='pay'"):
        app.task("pay")  # type: ignore[call-overload]


def test_injected_parameter_without_a_resource_is_refused(app: PulsarTasks) -> None:
    def run(number: int = INJECTED) -> None:
        """Its parameter is data, but nobody gives it."""

    with pytest.raises(ConfigurationError, match=r"'number' is INJECTED.*define an @app.resource"):
        app.task(run)


def test_injected_parameter_tells_whoever_calls_the_function_without_it() -> None:
    def run(engine: CliRunner = INJECTED) -> object:
        return engine.env

    with pytest.raises(AttributeError, match=r"'env'.*which only a worker fills in"):
        run()


def test_resource_that_returns_is_refused(app: PulsarTasks) -> None:
    with pytest.raises(ConfigurationError, match="resource 'numbers': have it yield its value"):

        @app.resource
        def numbers() -> Iterator[int]:
            return iter([1])


def test_one_text_where_several_names_are_wanted_is_refused(app: PulsarTasks) -> None:
    paid = app.topic("paid", schema=int)

    with pytest.raises(ConfigurationError, match=r"write subscriptions=\('mail',\)"):
        app.topic("sent", schema=int, subscriptions="mail")
    with pytest.raises(ConfigurationError, match=r"write subscriptions=\('support',\)"):
        paid.dead_letters("mail", subscriptions="support")
    with pytest.raises(ConfigurationError, match=r"write topics=\('welcome',\)"), app.testing(topics="welcome"):
        pytest.fail("it began")


@pytest.mark.parametrize("name", [None, 5, b"shop"])
def test_name_of_an_app_or_topic_that_is_no_text_is_refused(app: PulsarTasks, name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is not an app's name; write e.g. PulsarTasks\('shop'\)"):
        PulsarTasks(name)
    with pytest.raises(ConfigurationError, match="is not a topic name; use letters, digits"):
        app.topic(name, schema=int)


def test_event_that_does_not_fit_names_its_topic(app: PulsarTasks) -> None:
    paid = app.topic("paid", schema=int)

    with pytest.raises(InvalidArgumentsError, match="an event of paid: Expected `int`, got `str`"):
        paid.publish("seven")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (7, "an event of paid: Expected `object`, got `int`; its schema is Payment"),
        ({"order": 7}, "an event of paid, whose schema is Payment: key= .*'dict' object has no attribute 'order'"),
        ({}, "an event of paid: Object missing required field `order`; its schema is Payment"),
    ],
)
def test_event_that_is_not_of_its_class_names_it(app: PulsarTasks, payload: Any, complaint: str) -> None:
    paid = app.topic("paid", schema=Payment, key=lambda payment: str(payment.order))

    with pytest.raises(InvalidArgumentsError, match=complaint):
        paid.publish(payload)


def test_app_before_the_command_is_told_where_it_goes() -> None:
    refused = CliRunner().invoke(main, ["-A", "shop", "worker"])

    assert refused.exit_code == 2
    assert "-A comes after the command: pulsartasks worker -A MODULE:APP" in refused.output


@pytest.mark.parametrize("topics", ["", ",", " , "])
def test_list_of_no_topics_is_refused(topics: str) -> None:
    refused = CliRunner().invoke(main, ["worker", "-A", "shop:app", "-Q", topics])

    assert refused.exit_code == 2
    assert f"Invalid value for -Q: {topics!r} names no topic; leave it out" in refused.output


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An app on a broker in memory, as ``-A`` takes it."""
    (tmp_path / "in_memory.py").write_text(
        "from pulsartasks import PulsarTasks\napp = PulsarTasks('shop', 'memory://')\napp.task(print, name='work')\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "in_memory:app"


def test_nothing_is_looked_for_in_another_processs_memory(in_memory: str) -> None:
    for command in ("dlq list", "dlq show 7", "dlq replay --all", "topics list", "topics plan", "topics apply"):
        refused = CliRunner().invoke(main, [*command.split(), "-A", in_memory])

        assert refused.exit_code == 1
        assert "memory:// is within one process, so what it has is seen there alone; use local://" in refused.output


def test_schedule_of_an_app_in_memory_is_listed_since_it_needs_no_broker(in_memory: str) -> None:
    listed = CliRunner().invoke(main, ["beat", "--list", "-A", in_memory])

    assert (listed.exit_code, listed.output.split()[0]) == (0, "entry")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("shop:ap", "'ap' is not a PulsarTasks app; did you mean -A shop:app?"),
        ("shop.app", "no module 'shop.app' here; run it from the folder that holds it, or did you mean -A shop:app?"),
        ("shpo:app", "no module 'shpo' here; run it from the folder that holds it"),
        ("shop.py", "write the module as in an import, e.g. -A shop:app"),
        ("./pkg/shop.py:app", "write the module as in an import, e.g. -A pkg.shop:app"),
        (".shop:app", "write the module as in an import, e.g. -A shop:app"),
        ("", "-A '' names no module; write e.g. -A shop:app"),
        (":shop", "-A ':shop' names no module; write e.g. -A shop:shop"),
        ("empty", "'app' is not a PulsarTasks app; the module defines no PulsarTasks app"),
        ("leaving", "importing 'leaving' failed: SystemExit: please set FOO"),
    ],
)
def test_wrong_app_is_refused(path: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text("from pulsartasks import PulsarTasks\napp = PulsarTasks('shop')\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('please\\nset FOO')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "modules", {name: m for name, m in sys.modules.items() if name not in ("shop", "empty")})

    with pytest.raises(ConfigurationError) as refused:
        find_app(path)

    assert complaint in str(refused.value)


@pytest.mark.parametrize("command", [["topics", "list"], ["topics", "plan"], ["dlq", "list"], ["beat", "--list"]])
@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise LookupError('no FOO')", "LookupError: no FOO"),
        ("import a_module_that_is_not_installed", "No module named 'a_module_that_is_not_installed'"),
        ("x = = 1", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
)
def test_app_that_cannot_be_imported_is_said_in_a_line_below_its_traceback(
    command: list[str], code: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(f"{code}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    refused = CliRunner().invoke(main, [*command, "-A", "broken:app"])

    assert refused.exit_code == 1
    assert 'broken.py", line 1' in refused.output
    last = refused.output.splitlines()[-1]
    assert last.startswith("Error: -A broken:app: importing 'broken' failed: ")
    assert complaint in last


@pytest.mark.parametrize(
    ("middleware", "complaint"),
    [
        ([lambda call_next: call_next], "give instances of classes derived from pulsartasks.Middleware"),
        ([Middleware(), Middleware], "middleware has <class 'pulsartasks.middleware.base.Middleware'>; give instances"),
        (Middleware(), "middleware is a list, not <"),
    ],
)
def test_wrong_middleware_is_refused(middleware: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        PulsarTasks("shop", middleware=middleware)

    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("broker.db", "'broker.db' is not a broker URL; write local://, memory:// or pulsar://HOST:6650"),
        ("pulsr://host", "there is no 'pulsr' among the brokers; did you mean 'pulsar'?"),
        ("redis://host", "there is no 'redis' among the brokers; known are: local, pulsar"),
        ("local://broker.db", "write an absolute path with three slashes, local:///path/broker.db"),
        ("local:///broker.db?sycn=full", "has no option 'sycn'; did you mean 'sync'?"),
        ("local:///broker.db?sync=often", "sync is 'normal' or 'full'"),
    ],
)
def test_wrong_broker_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_broker(url)

    assert complaint in str(refused.value)


def _define(app: PulsarTasks, options: dict[str, Any]) -> Task[..., Any]:
    def work() -> None: ...

    task: Callable[[Callable[..., Any]], Task[..., Any]] = app.task(**options)
    return task(work)


def test_an_entry_of_the_schedule_is_refused_twice_or_without_a_call(app: PulsarTasks) -> None:
    @app.task
    def purge() -> None: ...

    app.schedule("nightly", 60, purge.s())

    assert set(app.scheduled) == {"nightly"}
    with pytest.raises(ConfigurationError, match="schedule 'nightly' is defined twice"):
        app.schedule("nightly", 30, purge.s())
    with pytest.raises(ConfigurationError, match=r"write what it calls as task.s\(...\), not <Task purge>"):
        app.schedule("hourly", 3600, purge)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["orders", "acme.orders", "persistent://acme/live/orders"])
@pytest.mark.parametrize("subscription", ["mail", "acme.shop"])
def test_dead_letters_of_a_topic_are_where_its_handler_puts_them(name: str, subscription: str) -> None:
    app = PulsarTasks("acme.shop")
    orders = app.topic(name, schema=int)

    @app.task(topic=orders, subscription=subscription)
    def mail(order: int) -> None: ...

    assert orders.dead_letters(subscription).full_name == mail.topics.dead_letter


def test_names_follow_the_environment_from_one_connection_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    app = PulsarTasks("shop")
    orders, seen = app.topic("orders", schema=int), []

    @app.task(topic=orders)
    def mail(order: int) -> None:
        seen.append(order)

    assert orders.full_name == "persistent://public/default/shop.orders"  # and is remembered
    monkeypatch.setenv("PULSARTASKS_NAMESPACE", "acme/live")
    with app.testing(eager=True):
        mail.delay(1)
        orders.publish(2)
        assert (orders.full_name, mail.topics.work) == ("persistent://acme/live/shop.orders",) * 2
    monkeypatch.delenv("PULSARTASKS_NAMESPACE")
    with app.testing(eager=True):
        mail.delay(3)
        orders.publish(4)

    assert seen == [1, 2, 3, 4]
    assert orders.full_name == "persistent://public/default/shop.orders"
