"""faster-whisper: the same models on CTranslate2, four times as fast and without PyTorch."""

import threading

import ctranslate2
from faster_whisper import WhisperModel

from apps.audio import Samples
from apps.transcribe.engines.base import BEAMS, NO_SPEECH, TEMPERATURES, Segment, Speech, keep_speech


class FasterEngine:
    """One model, used by one thread at a time, since all threads draw from one source of lots."""

    def __init__(self, model: str, threads: int) -> None:
        self._model = WhisperModel(model, compute_type="int8", cpu_threads=threads)
        self._lock = threading.Lock()

    @property
    def english_only(self) -> bool:
        return not self._model.model.is_multilingual

    def transcribe(self, samples: Samples) -> Speech:
        with self._lock:
            ctranslate2.set_random_seed(0)
            heard, info = self._model.transcribe(
                samples,
                language="en" if self.english_only else None,
                beam_size=BEAMS,
                temperature=TEMPERATURES,
                no_speech_threshold=NO_SPEECH,
                condition_on_previous_text=False,
            )
            segments = [Segment(s.start, s.end, s.text, s.no_speech_prob) for s in heard]  # decoded while iterating
        return keep_speech(info.language, segments)
