"""Speech models: the real ones, and a tiny one that knows nothing but runs through the same code in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper

from apps.transcribe.engines import Engine, load_engine

WHISPERS_OWN = (
    "ignore:__array_wrap__ must accept context:DeprecationWarning",  # when none of its beams comes to an end
    "ignore:unclosed file .*tiktoken:ResourceWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors, but not what openai-whisper warns of in its own lines."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for warning in WHISPERS_OWN:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session", params=["openai", "faster"])
def engine(request: pytest.FixtureRequest, whisper_weights: Callable[[str], Path]) -> Engine:
    """Whisper's tiny.en, in each engine."""
    return load_engine(request.param, str(whisper_weights(request.param)), threads=1)


@pytest.fixture(scope="session")
def small_checkpoint() -> dict[str, Any]:
    """A multilingual model of one layer and 64 states, with random weights that do not change from run to run."""
    dims = whisper.ModelDimensions(
        n_mels=80,
        n_audio_ctx=1500,
        n_audio_state=64,
        n_audio_head=2,
        n_audio_layer=1,
        n_vocab=51865,
        n_text_ctx=448,
        n_text_state=64,
        n_text_head=2,
        n_text_layer=1,
    )
    lots = torch.Generator().manual_seed(0)
    names = whisper.Whisper(dims).state_dict()
    weights = {name: 0.05 * torch.randn(old.shape, generator=lots) for name, old in names.items()}
    return {"dims": vars(dims), "model_state_dict": weights}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: dict[str, Any]) -> Path:
    """The file of that model."""
    path: Path = tmp_path_factory.mktemp("model") / "small.pt"
    torch.save(small_checkpoint, path)
    return path
