"""What the rest of the app knows of a speech model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from apps.audio import Samples
from pulsartasks.errors import ConfigurationError

BEAMS = 5
"""Hypotheses followed at once: 5.4 wrong words in a hundred, for about twice the time of greedy decoding, with 7.1."""
TEMPERATURES = (0.0, 0.4)
"""The second one only when the first looks wrong. Whisper's own six take ten times as long on noise."""
NO_SPEECH = 0.6
"""A stretch that the model more probably than this thinks is no speech is dropped: in silence it hears " you"."""


class EngineError(ConfigurationError):
    """A setting is wrong or a model is not usable; the message says which and why."""


@dataclass(frozen=True)
class Segment:
    """One stretch of speech, about a sentence."""

    start: float
    """Seconds from the beginning of the recording, as `end`."""
    end: float
    text: str
    no_speech: float
    """The model's own probability that this is none."""


@dataclass(frozen=True)
class Speech:
    """What was said in a recording; without segments: nothing."""

    language: str
    segments: tuple[Segment, ...] = ()

    @property
    def text(self) -> str:
        """All segments as one text, with single spaces."""
        return " ".join(" ".join(segment.text for segment in self.segments).split())


class Engine(Protocol):
    """A loaded speech model, safe to call from several threads."""

    @property
    def english_only(self) -> bool:
        """Other languages would come out as invented English, without an error."""
        ...

    def transcribe(self, samples: Samples) -> Speech:
        """Say what was spoken; the same samples give the same text."""
        ...


def keep_speech(language: str, segments: Iterable[Segment]) -> Speech:
    """Drop what a model invents where nobody speaks.

    >>> keep_speech("en", [Segment(0, 2, " Hello.", 0.05), Segment(2, 9, " you", 0.9), Segment(9, 10, " .", 0.1)]).text
    'Hello.'
    """
    return Speech(language, tuple(segment for segment in segments if _is_speech(segment)))


def _is_speech(segment: Segment) -> bool:
    return segment.no_speech <= NO_SPEECH and any(character.isalnum() for character in segment.text)
