"""The transcribe app as it runs: events in, events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import jiwer
import numpy as np
import pytest

from apps.audio import decode
from apps.events import (
    MessageCreated,
    Transcribed,
    TranscriptionStarted,
    message_created,
    transcribe_dead_letters,
    transcribed,
    transcription_started,
)
from pulsartasks import Tail
from tests.apps.transcribe.sounds import encode, silence
from tests.apps.transcribe.test_transcription import normalise
from tests.apps.workers import PATIENCE, RunningWorker, running_worker
from tests.services import Speech


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, whisper_weights: Callable[[str], Path]) -> Iterator[RunningWorker]:
    env = {"WHISPER_ENGINE": "faster", "WHISPER_MODEL": str(whisper_weights("faster")), "OMP_NUM_THREADS": "1"}
    with running_worker("transcribe", tmp_path_factory.mktemp("transcribe"), env) as running:
        yield running


@pytest.fixture
def results(worker: RunningWorker) -> Iterator[Tail[Transcribed]]:
    with transcribed.tail() as tail:
        yield tail


def sent(worker: RunningWorker, recording: bytes | None) -> MessageCreated:
    """A message as the chat sends it, its blob stored before."""
    message_id = uuid4().hex
    key = f"chat-1/{message_id}/audio"
    if recording is not None:
        worker.blobs.put(key, recording, "audio/webm")
    return MessageCreated(message_id, "chat-1", key if recording is not None else None, "audio/webm")


def test_a_recording_becomes_a_transcript(worker: RunningWorker, results: Tail[Transcribed], speech: Speech) -> None:
    clip = speech.clips[4]
    message = sent(worker, clip.path.read_bytes())

    with transcription_started.tail() as started:
        message_created.publish(message)

        assert started.receive(PATIENCE) == TranscriptionStarted(message.message_id, "chat-1")
    event = results.receive(PATIENCE)

    assert event is not None
    assert (event.message_id, event.chat_id, event.status) == (message.message_id, "chat-1", "ok")
    assert (event.language, event.reason) == ("en", None)
    assert event.duration == pytest.approx(3.29, abs=0.01)
    assert jiwer.wer(clip.transcript, normalise(event.text)) <= 0.07


def test_a_silent_recording_is_an_outcome(worker: RunningWorker, results: Tail[Transcribed]) -> None:
    message = sent(worker, encode(silence(2.0)))

    message_created.publish(message)

    assert results.receive(PATIENCE) == Transcribed(message.message_id, "chat-1", "no_speech", duration=2.0)


def test_a_bad_recording_is_an_outcome_with_its_reason(worker: RunningWorker, results: Tail[Transcribed]) -> None:
    message = sent(worker, b"ffconcat version 1.0\nfile 'other.wav'\n")

    message_created.publish(message)

    reason = "This file is not audio we can read (webm, ogg, wav, flac, mp3, m4a)."
    assert results.receive(PATIENCE) == Transcribed(message.message_id, "chat-1", "failed", reason=reason)


def test_a_message_without_a_recording_is_left_alone(worker: RunningWorker, results: Tail[Transcribed]) -> None:
    without, silent = sent(worker, None), sent(worker, encode(silence(1.0)))

    message_created.publish(without)
    message_created.publish(silent)

    event = results.receive(PATIENCE)
    assert event is not None
    assert event.message_id == silent.message_id


def test_a_repeated_delivery_says_the_same_again(
    worker: RunningWorker, results: Tail[Transcribed], speech: Speech
) -> None:
    message = sent(worker, speech.clips[4].path.read_bytes())

    message_created.publish(message)
    message_created.publish(message)

    assert results.receive(PATIENCE) == results.receive(PATIENCE)


def test_a_missing_recording_is_a_dead_letter(worker: RunningWorker) -> None:
    message = sent(worker, b"soon gone")
    assert message.audio is not None
    worker.blobs.delete(message.audio)

    with transcribe_dead_letters.tail() as dead_letters:
        message_created.publish(message)

        assert dead_letters.receive(PATIENCE) == message


def test_storage_that_is_away_is_waited_for(worker: RunningWorker, results: Tail[Transcribed]) -> None:
    before = set(worker.blob_folder.rglob("*"))
    message = sent(worker, encode(silence(1.0)))
    (blob,) = (path for path in set(worker.blob_folder.rglob("*")) - before if path.is_file())
    aside = blob.rename(blob.with_suffix(".aside"))
    blob.symlink_to(blob)  # reading it is an OSError that may pass

    message_created.publish(message)
    assert results.receive(1.0) is None
    aside.replace(blob)

    event = results.receive(PATIENCE)
    assert event is not None
    assert event.message_id == message.message_id


def test_a_killed_transcription_is_done_by_the_next_process(
    worker: RunningWorker, results: Tail[Transcribed], speech: Speech
) -> None:
    long = np.concatenate([decode(clip.path.read_bytes()) for clip in speech.clips])
    message = sent(worker, encode(long))

    with transcription_started.tail() as started:
        message_created.publish(message)
        assert started.receive(PATIENCE)
        worker.kill()
        assert started.receive(PATIENCE) == TranscriptionStarted(message.message_id, "chat-1")
    event = results.receive(PATIENCE)

    assert event is not None
    assert (event.message_id, event.status) == (message.message_id, "ok")
    assert results.receive(0.5) is None
