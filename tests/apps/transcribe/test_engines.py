"""The engines behind their port: one behaviour, whichever is chosen."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apps.transcribe.engines import Engine, EngineError, load_engine
from apps.transcribe.engines.base import Segment, keep_speech
from tests.apps.transcribe.sounds import tone


def test_an_english_model_says_so(engine: Engine) -> None:
    assert engine.english_only


def test_a_multilingual_model_says_which_language_it_heard(small_model: Path) -> None:
    engine = load_engine("openai", str(small_model), threads=1)

    assert not engine.english_only
    assert len(engine.transcribe(tone(1.0)).language) == 2


def test_threads_take_turns_and_all_get_the_same_text(small_model: Path) -> None:
    engine = load_engine("openai", str(small_model), threads=1)
    with ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(engine.transcribe, [tone(1.0)] * 3))

    assert heard[0].text
    assert heard == [heard[0]] * 3


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(100)], ids=["empty", "text", "cut"])
@pytest.mark.parametrize("engine_name", ["openai", "faster"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, engine_name: str, content: bytes) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(content)
    (tmp_path / "model.pt").write_bytes(content)
    model = {"openai": tmp_path / "model.pt", "faster": folder}[engine_name]

    with pytest.raises(EngineError, match=f"WHISPER_MODEL '{model}' cannot be loaded by the engine '{engine_name}'"):
        load_engine(engine_name, str(model), threads=1)


def test_a_model_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.pt.*available models"):
        load_engine("openai", str(tmp_path / "nowhere.pt"), threads=1)


def test_an_unknown_engine_is_told_the_known_ones() -> None:
    with pytest.raises(EngineError, match=r"WHISPER_ENGINE is 'siri'; known are: openai, faster"):
        load_engine("siri", "tiny.en", threads=1)


def test_a_missing_package_is_named() -> None:
    told = (
        "import sys; sys.modules['whisper'] = None\n"
        "from apps.transcribe.engines import EngineError, load_engine\n"
        "try: load_engine('openai', 'tiny.en', 1)\n"
        "except EngineError as error: print(error)"
    )

    answer = subprocess.run([sys.executable, "-c", told], capture_output=True, check=True, text=True).stdout

    assert answer == "the engine 'openai' needs the package whisper: pip install '.[transcribe]'\n"


def test_only_the_chosen_engine_is_imported(whisper_weights: object) -> None:
    told = (
        "import sys\n"
        "from apps.transcribe.engines import load_engine\n"
        f"load_engine('faster', {str(whisper_weights('faster'))!r}, 1)\n"  # type: ignore[operator]
        "print('torch' in sys.modules, 'whisper' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", told], capture_output=True, check=True, text=True).stdout == (
        "False False\n"
    )


def test_what_a_model_invents_in_silence_is_dropped() -> None:
    spoken = Segment(0.0, 2.0, " Hello  there.", no_speech=0.05)
    invented = Segment(2.0, 30.0, " you", no_speech=0.95)
    dots = Segment(30.0, 31.0, " . .", no_speech=0.1)

    speech = keep_speech("en", [spoken, invented, dots])

    assert speech.segments == (spoken,)
    assert speech.text == "Hello there."
