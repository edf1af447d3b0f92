from __future__ import annotations

import re
from collections.abc import Callable

from tests.apps.chat.conftest import Person, tone

MakePerson = Callable[[str], Person]


def test_empty_list_says_how_to_begin(person: MakePerson) -> None:
    assert "No chats yet" in person("Ada").get("/chats").text


def test_chat_with_a_friend_is_in_both_lists_under_the_others_name(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")

    chat = ada.new_chat(friend="grace")

    assert chat in grace.get("/chats").text
    assert "<strong>Grace</strong>" in ada.get(f"/chats/{chat}").text
    assert "<strong>Ada</strong>" in grace.get(f"/chats/{chat}").text


def test_unknown_friend_is_told_and_nothing_is_made(person: MakePerson) -> None:
    ada = person("Ada")

    answer = ada.post("/chats", friend="Grase")

    assert answer.status_code == 422
    assert "Nobody here is called Grase" in answer.text
    assert "No chats yet" in ada.get("/chats").text


def test_member_is_added_by_name(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(name="Engines")

    ada.post(f"/chats/{chat}/members", name=" GRACE ")

    assert "Grace is in." in ada.get(f"/chats/{chat}").text
    assert "Engines" in grace.get("/chats").text


def test_adding_somebody_twice_or_nobody_is_told(person: MakePerson) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    ada.post(f"/chats/{chat}/members", name="ada")
    assert "Ada was in already." in ada.get(f"/chats/{chat}").text

    ada.post(f"/chats/{chat}/members", name="Charles")
    assert "Nobody here is called Charles" in ada.get(f"/chats/{chat}").text


def invite_link(host: Person, chat: str) -> str:
    found = re.search(r'value="http://localhost(/join/[^"]+)"', host.get(f"/chats/{chat}").text)
    assert found is not None
    return found[1]


def test_invite_link_signs_a_stranger_up_and_in(person: MakePerson, stranger: MakePerson) -> None:
    ada, grace = person("Ada"), stranger("Grace")
    chat = ada.new_chat(name="Engines")

    door = grace.get(invite_link(ada, chat))
    assert door.location == "/sign-up"
    assert "Ada invites you" in grace.get("/sign-up").text
    answer = grace.sign_up()

    assert answer.location == f"/chats/{chat}"
    assert grace.get(f"/chats/{chat}").status_code == 200


def test_invite_link_asks_somebody_who_is_signed_in(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(name="Engines")
    link = invite_link(ada, chat)

    assert "Join the chat" in grace.get(link).text
    assert grace.get(f"/chats/{chat}").status_code == 404  # a look at the link alone changes nothing
    assert grace.post(link).location == f"/chats/{chat}"
    assert grace.get(link).location == f"/chats/{chat}"


def test_wrong_invite_link_leads_nowhere(stranger: MakePerson) -> None:
    assert stranger("Ada").get("/join/guess").status_code == 404


def test_list_shows_the_last_message_and_what_is_unread(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(friend="Grace")
    ada.send(chat, "message-1", audio=tone())
    ada.send(chat, "message-2", audio=tone())

    grace_sees = grace.get("/chats").text
    assert "Ada: Voice message" in grace_sees
    assert 'class="badge">2<' in grace_sees
    ada_sees = ada.get("/chats").text
    assert "You: Voice message" in ada_sees
    assert "badge" not in ada_sees


def test_what_was_read_is_unread_no_more_and_reading_never_goes_back(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(friend="Grace")
    ada.send(chat, "message-1", audio=tone())

    assert grace.post(f"/chats/{chat}/read", number="3").status_code == 204
    grace.post(f"/chats/{chat}/read", number="1")
    assert "badge" not in grace.get("/chats").text

    ada.send(chat, "message-2", audio=tone())
    assert 'class="badge">1<' in grace.get("/chats").text


def test_whoever_is_shown_the_thread_has_read_it(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(friend="Grace")
    ada.send(chat, audio=tone())

    grace.get(f"/chats/{chat}")

    assert "badge" not in grace.get("/chats").text


def test_nobody_has_read_what_does_not_exist_yet(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(friend="Grace")

    grace.post(f"/chats/{chat}/read", number="99")
    ada.send(chat, audio=tone())

    assert 'class="badge">1<' in grace.get("/chats").text


def test_long_thread_comes_in_pages_without_gap_or_overlap(person: MakePerson) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    for index in range(45):
        ada.send(chat, f"message-{index}", audio=tone(0.1))

    first = ada.get(f"/chats/{chat}").text
    link = re.search(r'data-older href="([^"]+)"', first)
    assert link is not None
    second = ada.get(link[1]).text

    numbers = [[int(number) for number in re.findall(r'data-number="(\d+)"', page)] for page in (second, first)]
    assert numbers[0] + numbers[1] == list(range(2, 47))
    assert "data-older" not in second
