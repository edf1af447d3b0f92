"""From definitions and what is there to the steps between them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from pulsartasks import AuthorizationError, BrokerError, ConfigurationError, PulsarTasks
from pulsartasks.brokers.base import Broker
from pulsartasks.errors import BrokerUnavailableError
from pulsartasks.provisioning import Found, Step, Wanted, carry_out, steps, wanted
from pulsartasks.roles import Role

PUBLIC = "persistent://public/default"


class Order(msgspec.Struct):
    number: int


class Longer(msgspec.Struct):
    number: str


@pytest.fixture
def app() -> PulsarTasks:
    return PulsarTasks("shop", "memory://")


def _of(app: PulsarTasks, *roles: str) -> dict[str, Wanted]:
    return {each.topic.name: each for each in wanted(app, [Role.parse(role) for role in roles])}


def _lines(app: PulsarTasks, topic: str, found: Found, *roles: str) -> list[str]:
    one = _of(app, *roles)[topic]
    return [str(step) for step in steps([one], {topic: found})]


def test_a_task_has_its_four_topics_and_the_app_its_own(app: PulsarTasks) -> None:
    @app.task(subscription="billing")
    def pay() -> None: ...

    assert {name: dict(each.topic.subscriptions) for name, each in _of(app).items()} == {
        f"{PUBLIC}/shop.pay": {"billing": "earliest"},
        f"{PUBLIC}/shop.pay-billing-RETRY": {"billing": "earliest"},
        f"{PUBLIC}/shop.pay-billing-DELAYED": {"billing": "earliest"},
        f"{PUBLIC}/shop.pay-billing-DLQ": {"dead-letters": "earliest"},
        f"{PUBLIC}/shop.results": {"keeper": "earliest"},
        f"{PUBLIC}/shop.results-states": {"keeper": "earliest"},
        f"{PUBLIC}/shop.results-forgotten": {"keeper": "earliest"},
        f"{PUBLIC}/shop.revocations": {"keeper": "earliest"},
        f"{PUBLIC}/shop.crashes": {"keeper": "earliest"},
        f"{PUBLIC}/shop.chord-parts": {"counter": "earliest"},
        f"{PUBLIC}/shop.chord-bodies": {"keeper": "earliest"},
        f"{PUBLIC}/shop.beat-log": {"beat": "earliest"},
    }


def test_what_succeeded_is_kept_where_a_task_is_to_run_once(app: PulsarTasks) -> None:
    @app.task(once=True)
    def pay() -> None: ...

    assert f"{PUBLIC}/shop.once-done" in _of(app)


def test_results_in_a_database_need_no_topics() -> None:
    app = PulsarTasks("shop", "memory://", results="sqlalchemy+sqlite:///results.db")

    assert not [name for name in _of(app) if "results" in name]


def test_a_subscription_named_with_its_topic_begins_at_the_earliest(app: PulsarTasks) -> None:
    placed = app.topic("placed", schema=Order, subscriptions=("mail",))

    @app.task(topic=placed, subscription="mail", start="latest")
    def mail(order: Order) -> None: ...

    @app.task(topic=placed, subscription="stock", start="latest")
    def stock(order: Order) -> None: ...

    topic = _of(app)[placed.full_name].topic
    assert topic.subscriptions == {"mail": "earliest", "stock": "latest"}
    assert _of(app)[f"{placed.full_name}-stock-CALL"].topic.subscriptions == {"stock": "earliest"}


def test_new_topic_is_made_with_all_that_belongs_to_it_in_order(app: PulsarTasks) -> None:
    placed = app.topic("placed", schema=Order, partitions=4, subscriptions=("mail",), retention=86_400)

    assert _lines(app, placed.full_name, Found(), "w=work", "c=call,tail") == [
        "+ topic shop.placed with 4 partitions",
        "+ subscription mail on shop.placed from the earliest",
        "~ retention of shop.placed: the namespace's -> 1 day",
        "+ schema Order of shop.placed",
        "+ permission consume,produce of w on shop.placed",
        "+ permission consume,produce of c on shop.placed",
    ]


def test_topic_that_is_as_it_should_be_needs_nothing(app: PulsarTasks) -> None:
    placed = app.topic("placed", schema=Order, partitions=2, subscriptions=("mail",), ttl=60, dispatch_rate=5)
    assert placed.registered is not None
    found = Found(
        exists=True,
        partitions=2,
        subscriptions=("mail",),
        policies={"ttl": 60, "dispatch_rate": 5},
        schemas=["{}", f" {placed.registered.definition}"],
        permissions={"c": frozenset({"produce"})},
    )

    assert _lines(app, placed.full_name, found, "c=call") == []


@pytest.mark.parametrize(
    ("asked", "there", "line"),
    [
        (3, 2, "~ partitions of shop.placed: 2 -> 3"),
        (2, 3, "? partitions of shop.placed: 3, not 2: there can only be more, never less"),
        (2, 0, "? partitions of shop.placed: none, not 2: it was made without, and only a new topic can have them"),
    ],
)
def test_partitions_only_grow(app: PulsarTasks, asked: int, there: int, line: str) -> None:
    placed = app.topic("placed", schema=Order, partitions=asked, register=False)

    assert _lines(app, placed.full_name, Found(exists=True, partitions=there)) == [line]


def test_what_the_app_says_nothing_of_is_told_and_left(app: PulsarTasks) -> None:
    placed = app.topic("placed", schema=Order, register=False)
    more = {"c": frozenset({"produce", "consume"})}
    found = Found(exists=True, partitions=1, subscriptions=("audit",), policies={"retention": -1}, permissions=more)

    planned = steps([_of(app, "c=call")[placed.full_name]], {placed.full_name: found})

    assert [str(step) for step in planned] == [
        "? subscription audit on shop.placed: not among the app's definitions",
        "? retention of shop.placed: for ever, of which the app says nothing",
        "? permission consume of c on shop.placed: more than it needs here",
    ]
    assert not any(step.changes or step.act for step in planned)


def test_schema_that_does_not_fit_is_said_before_the_broker_refuses_it(app: PulsarTasks) -> None:
    placed = app.topic("placed", schema=Longer, subscriptions=("mail",))
    before = app.topic("before", schema=Order).registered
    assert before is not None

    [line] = _lines(app, placed.full_name, Found(True, 0, ("mail",), schemas=[before.definition]))

    assert line.startswith("~ schema Longer of shop.placed: Longer.number was long and is string")


def test_topic_that_pulsar_would_forget_is_made_with_a_partition_where_something_is_set_on_it(
    app: PulsarTasks,
) -> None:
    news = app.topic("news", schema=Order, register=False)

    assert _lines(app, news.full_name, Found()) == []
    assert _lines(app, news.full_name, Found(), "c=tail") == [
        "+ topic shop.news with 1 partition",
        "+ permission consume of c on shop.news",
    ]


def test_caller_may_send_and_hear_of_results_and_nothing_else(app: PulsarTasks) -> None:
    @app.task
    def add(x: int) -> int:
        return x

    assert _allowed(app, "web", "web=call", "w=work") == {
        f"{PUBLIC}/shop.add": {"produce"},
        f"{PUBLIC}/shop.add-shop-DELAYED": {"produce"},
        f"{PUBLIC}/shop.revocations": {"produce"},
        f"{PUBLIC}/shop.chord-parts": {"produce"},
        f"{PUBLIC}/shop.results": {"consume"},
        f"{PUBLIC}/shop.results-states": {"consume"},
        f"{PUBLIC}/shop.results-forgotten": {"produce", "consume"},
        "non-persistent://public/default/shop.results-together-web": {"consume"},
    }


def test_beat_may_move_what_is_due_and_keep_its_log(app: PulsarTasks) -> None:
    @app.task
    def add(x: int) -> int:
        return x

    assert _allowed(app, "b", "b=beat") == {
        f"{PUBLIC}/shop.add": {"produce"},
        f"{PUBLIC}/shop.add-shop-DELAYED": {"produce", "consume"},
        f"{PUBLIC}/shop.add-shop-RETRY": {"produce", "consume"},
        f"{PUBLIC}/shop.chord-parts": {"produce"},
        f"{PUBLIC}/shop.beat-log": {"produce", "consume"},
    }


def test_autoscaler_may_see_the_backlogs_of_what_is_due(app: PulsarTasks) -> None:
    app.topic("placed", schema=Order, subscriptions=("mail",))

    @app.task
    def add(x: int) -> int:
        return x

    assert _allowed(app, "k", "k=watch") == {f"{PUBLIC}/shop.add": {"consume"}, f"{PUBLIC}/shop.placed": {"consume"}}


def _allowed(app: PulsarTasks, role: str, *roles: str) -> Mapping[str, set[str]]:
    return {name: set(each.permissions[role]) for name, each in _of(app, *roles).items() if role in each.permissions}


@pytest.mark.parametrize("text", ["web", "web=", "=call", "web=cook"])
def test_role_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write ROLE=DUTY,\.\.\. with duties among call, tail, watch,"):
        Role.parse(text)


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        ({"retention": 0}, "retention must be seconds, more than 0, not 0"),
        ({"ttl": "1d"}, "ttl must be seconds, more than 0, not '1d'"),
        ({"dispatch_rate": 1.5}, "dispatch_rate must be a whole number of messages a second, not 1.5"),
        ({"retentions": 5}, "has no option 'retentions'; did you mean 'retention'"),
    ],
)
def test_policy_that_cannot_be_is_refused_where_it_is_written(
    app: PulsarTasks, policies: dict[str, float], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        app.topic("placed", schema=Order, **policies)  # type: ignore[arg-type]


def test_first_refusal_stops_and_says_who_may(app: PulsarTasks) -> None:
    done: list[str] = []

    def refuse(broker: Broker) -> None:
        raise AuthorizationError("403")

    plan = [
        Step("+", "one", lambda broker: done.append("one")),
        Step("?", "two"),
        Step("+", "three", refuse, allowed_to="the queen"),
        Step("+", "four", lambda broker: done.append("four")),
    ]

    with pytest.raises(AuthorizationError, match=r"not permitted: \+ three; the queen may do it: 403"):
        list(carry_out(plan, app.broker))

    assert done == ["one"]


def test_other_refusals_name_their_step(app: PulsarTasks) -> None:
    def refuse(broker: Broker) -> None:
        raise BrokerUnavailableError("gone")

    with pytest.raises(BrokerError, match=r"refused: \+ one; gone"):
        list(carry_out([Step("+", "one", refuse)], app.broker))
