"""From the bytes of a recording to what its thread shows: no broker, no storage, no settings."""

from dataclasses import dataclass
from typing import Literal

from apps.audio import SAMPLE_RATE, BadAudioError, decode
from apps.transcribe.engines import Engine


@dataclass(frozen=True)
class Transcript:
    """What became of one recording."""

    status: Literal["ok", "no_speech", "failed"]
    text: str = ""
    language: str | None = None
    duration: float | None = None
    """Seconds, counted from the decoded samples."""
    reason: str | None = None
    """Why it failed, for the person who sent it."""


def transcribe_recording(recording: bytes, engine: Engine) -> Transcript:
    """Transcribe a recording; that it is unreadable or silent is a result too, not an error."""
    try:
        samples = decode(recording)
    except BadAudioError as error:
        return Transcript("failed", reason=str(error))
    duration = len(samples) / SAMPLE_RATE
    speech = engine.transcribe(samples)
    if not speech.text:
        return Transcript("no_speech", duration=duration)
    return Transcript("ok", speech.text, speech.language, duration)
