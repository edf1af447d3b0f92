"""openai-whisper: the reference implementation, on PyTorch."""

import threading

import torch
import whisper

from apps.audio import Samples
from apps.transcribe.engines.base import BEAMS, NO_SPEECH, TEMPERATURES, Segment, Speech, keep_speech


class OpenAIEngine:
    """One model, used by one thread at a time: two at once give wrong text without an error."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = whisper.load_model(model)
        self._lock = threading.Lock()

    @property
    def english_only(self) -> bool:
        return not self._model.is_multilingual

    def transcribe(self, samples: Samples) -> Speech:
        with self._lock:
            torch.manual_seed(0)  # the second temperature draws lots
            heard = self._model.transcribe(
                samples,
                language="en" if self.english_only else None,
                beam_size=BEAMS,
                temperature=TEMPERATURES,
                no_speech_threshold=NO_SPEECH,
                condition_on_previous_text=False,  # else one misheard window spoils all that follow
                fp16=self._model.device.type != "cpu",
            )
        segments = [Segment(s["start"], s["end"], s["text"], s["no_speech_prob"]) for s in heard["segments"]]
        return keep_speech(heard["language"], segments)
