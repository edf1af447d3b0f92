"""Recognition, where it is the promise: real speech is understood, and silence stays silent."""

from __future__ import annotations

import re
from pathlib import Path

import jiwer
import numpy as np
import pytest

from apps.audio import Samples, decode
from apps.demo.make_recording import TARGET as DEMO_RECORDING
from apps.demo.make_recording import TEXT as DEMO_TEXT
from apps.transcribe.engines import Engine
from apps.transcribe.transcription import transcribe_recording
from tests.apps.transcribe.sounds import encode, pink_noise, silence, stream
from tests.services import Speech


@pytest.mark.slow
@pytest.mark.parametrize("recorded_by", ["file", "browser"])
def test_read_books_are_understood(engine: Engine, speech: Speech, recorded_by: str) -> None:
    said, heard = [], []
    for clip in speech.clips:
        recording = clip.path.read_bytes()
        if recorded_by == "browser":
            recording = stream(decode(recording))
        found = transcribe_recording(recording, engine)
        assert found.status == "ok"
        assert found.language == "en"
        said.append(normalise(clip.transcript))
        heard.append(normalise(found.text))

    assert jiwer.wer(said, heard) <= 0.07


@pytest.mark.slow
def test_a_recording_of_several_windows_is_understood_to_its_end(engine: Engine, speech: Speech) -> None:
    clips = [*speech.clips, speech.clips[0]]
    whole = np.concatenate([decode(clip.path.read_bytes()) for clip in clips])

    found = transcribe_recording(encode(whole), engine)

    assert found.duration == pytest.approx(31.8, abs=0.1)
    assert jiwer.wer(normalise(" ".join(clip.transcript for clip in clips)), normalise(found.text)) <= 0.07


@pytest.mark.slow
def test_the_same_recording_gives_the_same_text_again(engine: Engine, speech: Speech) -> None:
    noisy = decode(speech.clips[1].path.read_bytes())
    recording = encode(noisy + 0.1 * pink_noise(len(noisy) / 16_000)[: len(noisy)])

    assert transcribe_recording(recording, engine) == transcribe_recording(recording, engine)


@pytest.mark.parametrize(
    "samples",
    [silence(0.01), silence(10), silence(60), pink_noise(10), silence(10) + 1e-3],
    ids=["10 ms", "10 s", "60 s", "noise", "offset"],
)
def test_nothing_is_heard_where_nobody_speaks(engine: Engine, samples: Samples) -> None:
    found = transcribe_recording(encode(samples), engine)

    assert found.status == "no_speech"
    assert found.text == ""
    assert found.duration == len(samples) / 16_000


def test_the_demo_is_understood(engine: Engine) -> None:
    found = transcribe_recording(Path(DEMO_RECORDING).read_bytes(), engine)

    assert jiwer.wer(normalise(DEMO_TEXT), normalise(found.text)) <= 0.1


def test_a_bad_recording_is_a_result_with_its_reason(engine: Engine) -> None:
    found = transcribe_recording(b"ffconcat version 1.0\nfile '/etc/passwd'\n", engine)

    assert found.status == "failed"
    assert found.reason == "This file is not audio we can read (webm, ogg, wav, flac, mp3, m4a)."
    assert found.duration is None


def normalise(text: str) -> str:
    """Words only, as the transcripts of the readings have them."""
    words = text.lower().replace("mr.", "mister").replace("-", " ")
    return " ".join(re.sub(r"[^a-z' ]", " ", words).split())
