"""Transcribes the recording of every message that has one.

A recording that cannot be read, or in which nobody speaks, is an outcome: it is published as such and not retried.
Retried is what may pass (storage or broker away); the rest is a dead letter, which the chat shows too.
"""

import os
from collections.abc import Iterator

import structlog

from apps.events import (
    MessageCreated,
    Transcribed,
    TranscriptionStarted,
    app,
    message_created,
    transcribed,
    transcription_started,
)
from apps.storage import BlobStore
from apps.transcribe.engines import Engine, load_engine
from apps.transcribe.transcription import transcribe_recording

__all__ = ["app"]

log = structlog.get_logger(__name__)


@app.resource
def engine() -> Iterator[Engine]:
    """The speech model, loaded once, in the process that uses it."""
    name = os.environ.get("WHISPER_ENGINE", "openai")
    model = os.environ.get("WHISPER_MODEL", "tiny.en")
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or _cores()
    loaded = load_engine(name, model, threads)
    log.info("engine.loaded", engine=name, model=model, threads=threads, english_only=loaded.english_only)
    yield loaded


def _cores() -> int:
    """How many this process may use; more threads than that are slower than one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.task(
    topic=message_created,
    subscription="transcribe",
    mode="key_shared",
    concurrency=1,
    prefetch=1,
    max_retries=5,
    autoretry_for=(OSError,),
    retry_backoff=True,
    ignore_result=True,
)
def transcribe(message: MessageCreated, engine: Engine, blobs: BlobStore) -> None:
    """Publish the transcript of a message's recording; a repeated delivery publishes the same one again."""
    if message.audio is None:
        return
    recording = blobs.get(message.audio).data
    transcription_started.publish(TranscriptionStarted(message.message_id, message.chat_id))
    found = transcribe_recording(recording, engine)
    log.info("recording.transcribed", message_id=message.message_id, status=found.status, duration=found.duration)
    transcribed.publish(
        Transcribed(
            message_id=message.message_id,
            chat_id=message.chat_id,
            status=found.status,
            text=found.text,
            language=found.language,
            duration=found.duration,
            reason=found.reason,
        )
    )
