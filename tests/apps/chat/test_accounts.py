from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from flask import Flask

from apps.chat.settings import MissingSettingError, Settings
from apps.chat.web import create_app
from apps.chat.web.auth import local_address
from tests.apps.chat.conftest import Person

MakePerson = Callable[[str], Person]


def test_front_door_of_a_stranger_leads_to_the_log_in_page(stranger: MakePerson) -> None:
    answer = stranger("Ada").get("/")

    assert (answer.status_code, answer.location) == (302, "/log-in")


def test_whoever_signs_up_is_in(stranger: MakePerson) -> None:
    ada = stranger("Ada")

    assert ada.sign_up().location == "/chats"
    assert "Ada" in ada.get("/chats").text


def test_password_is_stored_as_an_argon2_hash(person: MakePerson, web: Flask) -> None:
    person("Ada")

    with web.extensions["babblebox"].database.reading() as db:
        [password] = db.connection().exec_driver_sql("SELECT password FROM users").one()
    assert password.startswith("$argon2id$")


def test_log_out_and_in_again_whatever_the_case_of_the_name(person: MakePerson) -> None:
    ada = person("Ada")
    ada.post("/log-out")
    assert ada.get("/chats").status_code == 302

    answer = ada.post("/log-in", name="aDA", password="correct horse")

    assert answer.location == "/chats"


def test_answer_that_comes_after_the_log_out_does_not_log_in_again(person: MakePerson) -> None:
    ada = person("Ada")
    ada.get("/chats")

    assert "Set-Cookie" not in ada.get("/chats").headers


def test_session_lasts_from_the_last_day_on_which_it_was_used(person: MakePerson) -> None:
    ada = person("Ada")
    with ada.client.session_transaction() as session:
        session["renewed"] = "2026-01-31"

    renewed = ada.get("/chats").headers

    assert "Expires=" in renewed["Set-Cookie"]
    assert "Set-Cookie" not in ada.get("/chats").headers


@pytest.mark.parametrize(("name", "password"), [("Ada", "wrong horse"), ("Nobody", "correct horse"), ("", "")])
def test_wrong_name_or_password_is_told_without_saying_which(person: MakePerson, name: str, password: str) -> None:
    ada = person("Ada")
    ada.post("/log-out")

    answer = ada.post("/log-in", name=name, password=password)

    assert answer.status_code == 422
    assert "do not belong together" in answer.text


@pytest.mark.parametrize("name", ["A", "Ada Lovelace", "<b>", "", "x" * 33])
def test_names_that_cannot_be_typed_by_a_friend_are_refused(stranger: MakePerson, name: str) -> None:
    answer = stranger(name).sign_up()

    assert answer.status_code == 422
    assert "letters, digits" in answer.text


def test_short_password_is_refused(stranger: MakePerson) -> None:
    assert stranger("Ada").sign_up(password="short").status_code == 422


def test_name_is_taken_whatever_its_case(person: MakePerson, stranger: MakePerson) -> None:
    person("Ada")

    answer = stranger("ADA").sign_up()

    assert answer.status_code == 422
    assert "called ADA already" in answer.text


def test_strangers_come_back_to_where_they_wanted_to_go(person: MakePerson) -> None:
    ada = person("Ada")
    ada.post("/log-out")
    door = ada.get("/chats/new")
    assert door.location == "/log-in?next=/chats/new"

    answer = ada.post("/log-in", name="Ada", password="correct horse", next="/chats/new")

    assert answer.location == "/chats/new"


@pytest.mark.parametrize(
    "address",
    ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "javascript:x", "", None],
)
def test_nobody_is_led_to_another_site(address: str | None) -> None:
    assert local_address(address) is None


def test_wrong_passwords_for_a_name_are_limited_and_other_people_are_not(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    for someone in (ada, grace):
        someone.post("/log-out")

    codes = [ada.post("/log-in", name="Ada", password="guess").status_code for _ in range(11)]

    assert codes == [422] * 10 + [429]
    assert grace.post("/log-in", name="Grace", password="correct horse").status_code == 302


def test_behind_a_proxy_attempts_are_limited_by_the_address_that_it_saw(web: Flask, settings: Settings) -> None:
    ada = Person(create_app(replace(settings, proxies=1)).test_client(), "Ada")
    ada.client.environ_base.update({"HTTP_X_FORWARDED_PROTO": "https", "HTTP_REFERER": "https://localhost/"})
    cookie = ada.sign_up().headers["Set-Cookie"]
    ada.post("/log-out")

    def guess(address: str) -> int:
        ada.client.environ_base.update(HTTP_X_FORWARDED_FOR=f"192.0.2.1, {address}")  # the first is made up
        return ada.post("/log-in", name="Ada", password="guess").status_code

    codes = [guess("198.51.100.7") for _ in range(11)]

    assert codes == [422] * 10 + [429]
    assert guess("198.51.100.8") == 422
    assert "Secure" in cookie


def test_form_without_its_token_is_refused(stranger: MakePerson) -> None:
    answer = stranger("Ada").client.post("/sign-up", data={"name": "Ada", "password": "correct horse"})

    assert answer.status_code == 400
    assert "out of date" in answer.text


def test_demo_people_are_not_offered_outside_demo_mode(stranger: MakePerson) -> None:
    ada = stranger("Ada")

    assert "/demo/" not in ada.get("/log-in").text
    assert ada.post("/demo/Ada").status_code == 404


def test_settings_say_what_is_missing() -> None:
    with pytest.raises(MissingSettingError, match="DATABASE_URL is not set"):
        Settings.from_environ({})


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environ(
        {"DATABASE_URL": "sqlite://", "BLOB_STORE": "/b", "SECRET_KEY": "hush-hush", "BABBLEBOX_DEMO": "1"}
    )

    assert settings.demo
    assert "hush-hush" not in repr(settings)
