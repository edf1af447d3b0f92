"""Names of topics and of their companions."""

from __future__ import annotations

import pytest

from pulsartasks.errors import ConfigurationError
from pulsartasks.topics import (
    call_topic,
    dead_letter_topic,
    delayed_topic,
    is_persistent,
    qualify,
    retry_topic,
    short_name,
)

FULL = "persistent://public/default/shop.pay"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("pay", "persistent://public/default/shop.pay"),
        ("billing.pay", "persistent://public/default/billing.pay"),
        ("persistent://acme/live/pay", "persistent://acme/live/pay"),
        ("non-persistent://acme/live/ticks", "non-persistent://acme/live/ticks"),
    ],
)
def test_short_name_gets_what_it_lacks(name: str, full: str) -> None:
    assert qualify(name, app="shop") == full


def test_namespace_is_the_apps_own() -> None:
    assert qualify("pay", app="shop", namespace="acme/live") == "persistent://acme/live/shop.pay"


@pytest.mark.parametrize(
    "name", ["", " ", "two words", "a/b", "a\n", "kafka://a/b/c", "persistent://a/b", "persistent://a/b/c/d", "ä?"]
)
def test_name_that_no_topic_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="topic"):
        qualify(name, app="shop")


@pytest.mark.parametrize("namespace", ["", "public", "public/", "a/b/c", "/default"])
def test_wrong_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="TENANT/NAMESPACE"):
        qualify("pay", app="shop", namespace=namespace)


def test_companions_are_named_as_the_java_client_names_them() -> None:
    assert retry_topic(FULL, "billing") == f"{FULL}-billing-RETRY"
    assert dead_letter_topic(FULL, "billing") == f"{FULL}-billing-DLQ"
    assert delayed_topic(FULL, "billing") == f"{FULL}-billing-DELAYED"
    assert call_topic(FULL, "billing") == f"{FULL}-billing-CALL"


def test_short_name_and_kind_are_read_from_the_full_one() -> None:
    assert short_name(FULL) == "shop.pay"
    assert is_persistent(FULL)
    assert not is_persistent("non-persistent://a/b/c")
