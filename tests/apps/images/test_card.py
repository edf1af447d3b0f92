"""Voice cards: the words that were said, as large as they fit, and never an empty box for a letter."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from apps.images.card import HEIGHT, MARGIN, WIDTH, draw_card
from apps.images.pictures import Encoded
from apps.images.typeface import ELLIPSIS, Typeface, balance, break_lines

SENTENCE = "Had he married a more amiable woman, he might have been made still more respectable than he was."


def draw(text: str, chat_id: str = "chat-1", message_id: str = "m-1", duration: float | None = 6.05) -> Encoded:
    return draw_card(text, chat_id=chat_id, message_id=message_id, duration=duration)


def pixels(card: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(card.data)).convert("RGB")).astype(np.int16)


def words_seen(card: Encoded) -> int:
    """How many pixels of the text's own colour are where the text is."""
    return int((pixels(card)[160:470, :, :].min(axis=2) > 235).sum())


@pytest.mark.parametrize(
    "text", [SENTENCE, "Yes!", "Привет! Я уже иду домой.", "Καλησπέρα, τι κάνεις;", "Bánh mì này ngon!"]
)
def test_a_card_is_a_small_picture_with_its_words_on_it(text: str) -> None:
    card = draw(text)

    assert (card.width, card.height, card.content_type) == (WIDTH, HEIGHT, "image/webp")
    assert Image.open(io.BytesIO(card.data)).size == (WIDTH, HEIGHT)
    assert len(card.data) < 100_000
    assert words_seen(card) > 5_000


def test_the_same_message_gives_the_same_card() -> None:
    assert draw(SENTENCE) == draw(SENTENCE)


def test_a_chat_has_its_colours_and_a_message_its_arrangement() -> None:
    first, second, elsewhere = draw("Hi.", "a", "m-1"), draw("Hi.", "a", "m-2"), draw("Hi.", "b", "m-1")

    def dusk(card: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return pixels(card)[300, :40].mean(axis=0)  # type: ignore[no-any-return]

    assert first.data != second.data
    assert dusk(first) == pytest.approx(dusk(second), abs=12)
    assert np.abs(dusk(first) - dusk(elsewhere)).max() > 12


@pytest.mark.parametrize("text", [SENTENCE * 40, "Donaudampfschifffahrtsgesellschaft" * 20, "a" * 5_000, "W " * 900])
def test_whatever_is_said_stays_within_the_margins(text: str) -> None:
    light = pixels(draw(text))[160:470, :, :].min(axis=2) > 235

    assert not light[:, : MARGIN - 10].any()
    assert not light[:, WIDTH - MARGIN + 40 :].any()


def test_a_long_text_is_set_smaller_than_a_short_one() -> None:
    assert words_seen(draw("I will.")) > 0
    assert _height_of_first_line(draw("I will.")) > 1.5 * _height_of_first_line(draw(SENTENCE))


@pytest.mark.parametrize("text", ["", "   ", "🎉🎉🎉", "今日はとてもいい天気ですね。", "שלום לכולם", "नमस्ते दुनिया"])
def test_what_no_font_has_leaves_a_card_without_words(text: str) -> None:
    card = draw(text)

    assert words_seen(card) < 500
    assert pixels(card).std() > 10


def test_the_duration_is_shown_when_it_is_known() -> None:
    def corner(card: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        return pixels(card)[500:590, WIDTH - MARGIN - 90 :]

    assert np.abs(corner(draw("Hi.")) - corner(draw("Hi.", duration=None))).max() > 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I love 🍕 pizza ❤️!", ["I", "love", "pizza", "!"]),
        ("from 東京 with love", ["from", ELLIPSIS, "with", "love"]),
        ("we saw 東京 大阪 and so on", ["we", "saw", ELLIPSIS, "and", "so", "on"]),
        ("no no no, go go", ["no", "no", "no,", "go", "go"]),
        ("東京 is 大阪", []),
        ("e\u0301te\u0301 \u200bÄpfel", ["été", "Äpfel"]),
    ],
)
def test_what_cannot_be_set_is_left_out_without_misquoting(text: str, words: list[str]) -> None:
    assert Typeface(100, 700).settable_words(text) == words


def test_every_letter_of_the_promised_scripts_is_there() -> None:
    face = Typeface(60, 700)
    out_of_use = set("ĔĕĬĭĸĿŀŉŎŏſ")
    latin = "".join(map(chr, [*range(0x21, 0x7F), *range(0xC0, 0x180)])) + "“”„‘’…–—€ẞẠạẢảấầẩẫậệỏồộớợụứừữựỳỹ"
    cyrillic = "".join(map(chr, range(0x410, 0x450))) + "ЁёЄєІіЇїҐґЎўЋћЂђЏџЉљЊњЌќЃѓЅѕЈј"
    greek = "".join(chr(code) for code in range(0x386, 0x3CF) if chr(code).isalpha())

    assert {letter for letter in latin + cyrillic + greek if not face.find(letter)} == out_of_use


def test_a_run_of_several_fonts_is_as_wide_as_its_parts() -> None:
    face = Typeface(60, 700)

    assert face.length("да") + face.length("yes") == pytest.approx(face.length("даyes"))


def test_words_are_broken_into_lines() -> None:
    assert break_lines([], space=1, room=10) == [range(0)]
    assert break_lines([20], space=1, room=10) == [range(1)]
    assert break_lines([3, 3, 3], space=1, room=7) == [range(2), range(2, 3)]


def test_balanced_lines_are_no_more_and_never_wider() -> None:
    widths = [len(word) for word in SENTENCE.split()]
    for room in range(12, 80):
        broken, balanced = break_lines(widths, 1, room), balance(widths, 1, room)

        assert len(balanced) == len(broken)
        assert all(sum(widths[line.start : line.stop]) + len(line) - 1 <= room for line in balanced)


def _height_of_first_line(card: Encoded) -> int:
    rows = (pixels(card)[160:470, MARGIN : WIDTH - MARGIN].min(axis=2) > 235).any(axis=1)
    first = int(rows.argmax())
    return int((~rows[first:]).argmax())
