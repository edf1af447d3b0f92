"""The converter: the same numbers under other names, or a reason why not."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from apps.transcribe import weights

Arrays = dict[str, "np.ndarray[Any, Any]"]
TYPE_IDS = {"f4": 0, "i1": 1, "i2": 2, "i4": 3, "f2": 4}


@pytest.fixture
def variables(small_checkpoint: dict[str, Any]) -> Arrays:
    """The small model as CTranslate2 keeps it."""
    state = {name: tensor.numpy().astype(np.float32) for name, tensor in small_checkpoint["model_state_dict"].items()}
    return as_ctranslate2(state, heads=2)


@pytest.fixture
def model_bin(tmp_path: Path, variables: Arrays) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(packed(variables))
    return path


def test_every_tensor_arrives_under_its_name(tmp_path: Path, model_bin: Path, small_checkpoint: dict[str, Any]) -> None:
    weights.convert(model_bin.parent, tmp_path / "model.pt")

    converted = torch.load(tmp_path / "model.pt", weights_only=True)
    assert converted["dims"] == small_checkpoint["dims"]
    assert converted["model_state_dict"].keys() == small_checkpoint["model_state_dict"].keys()
    for name, tensor in small_checkpoint["model_state_dict"].items():
        assert torch.equal(converted["model_state_dict"][name], tensor), name


def test_the_result_is_a_model_that_whisper_loads(tmp_path: Path, model_bin: Path) -> None:
    weights.convert(model_bin, tmp_path / "model.pt")

    assert whisper.load_model(str(tmp_path / "model.pt"), device="cpu").is_multilingual


def test_the_pinned_model_is_converted_whole(whisper_weights: Callable[[str], Path], tmp_path: Path) -> None:
    weights.convert(whisper_weights("faster"), tmp_path / "tiny.en.pt")

    converted = torch.load(tmp_path / "tiny.en.pt", weights_only=True)
    assert len(converted["model_state_dict"]) == 167
    assert converted["dims"]["n_vocab"] == 51864
    assert not whisper.load_model(str(tmp_path / "tiny.en.pt"), device="cpu").is_multilingual


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, model_bin: Path) -> None:
    whole = model_bin.read_bytes()
    lots = random.Random(1)

    for length in [0, 1, 4, 17, 40, len(whole) - 1, *(lots.randrange(len(whole)) for _ in range(20))]:
        model_bin.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut short|not a Whisper model"):
            weights.convert(model_bin, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == [model_bin]


@pytest.mark.parametrize("content", [b"GGUF" + bytes(100), b"\x06\0\0\0\x05\0Bert\0" + bytes(100), bytes(1000)])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)

    with pytest.raises(ValueError, match="not a Whisper model of CTranslate2"):
        weights.convert(tmp_path, tmp_path / "model.pt")


def test_bytes_behind_the_end_are_refused(tmp_path: Path, model_bin: Path) -> None:
    model_bin.write_bytes(model_bin.read_bytes() + b"!")

    with pytest.raises(ValueError, match="1 bytes too many"):
        weights.convert(model_bin, tmp_path / "model.pt")


def test_a_quantised_model_is_refused(variables: Arrays) -> None:
    variables["encoder/layer_0/ffn/linear_0/weight"] = np.ones((256, 64), np.int8)

    with pytest.raises(ValueError, match="linear_0/weight holds int8; only float32 and float16"):
        weights.to_checkpoint(variables)


def test_a_bias_that_whisper_has_no_place_for_is_refused(variables: Arrays) -> None:
    variables["decoder/layer_0/attention/linear_1/bias"][0] = 0.5

    with pytest.raises(ValueError, match="bias for the key"):
        weights.to_checkpoint(variables)


def test_a_missing_tensor_is_named(variables: Arrays) -> None:
    del variables["encoder/conv2/bias"]

    with pytest.raises(ValueError, match="it has no 'encoder/conv2/bias'"):
        weights.to_checkpoint(variables)


def test_an_unknown_tensor_is_named(variables: Arrays) -> None:
    variables["decoder/adapter/weight"] = np.zeros((2, 2), np.float32)

    with pytest.raises(ValueError, match="nobody knows its decoder/adapter/weight"):
        weights.to_checkpoint(variables)


def test_the_target_is_written_whole_or_left_as_it_was(
    tmp_path: Path, model_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.pt"
    target.write_bytes(b"the old one")

    def fail_half_way(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        weights.convert(model_bin, target)

    assert target.read_bytes() == b"the old one"
    assert sorted(tmp_path.iterdir()) == [model_bin, target]


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["weights", str(tmp_path), str(tmp_path / "model.pt")])

    with pytest.raises(SystemExit) as ended:
        weights.main()

    assert ended.value.code == 1
    assert capsys.readouterr().err == f"python -m apps.transcribe.weights: {tmp_path}/model.bin: cut short at byte 0\n"


def as_ctranslate2(state: Arrays, heads: int) -> Arrays:
    """The opposite of the converter, written down on its own for one layer on each side."""
    found: Arrays = {}

    def keep(target: str, *sources: str) -> None:
        found[f"{target}/weight"] = np.concatenate([state[f"{source}.weight"] for source in sources])
        no_bias = np.zeros(len(state[f"{sources[0]}.weight"]), np.float32)  # as of whisper's keys
        found[f"{target}/bias"] = np.concatenate([state.get(f"{source}.bias", no_bias) for source in sources])

    def keep_norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for side in ("encoder", "decoder"):
        here, there = f"{side}/layer_0", f"{side}.blocks.0"
        found[f"{side}/num_heads"] = np.array(heads, np.int16)
        found[f"{side}/position_encodings/encodings"] = state[f"{side}.positional_embedding"]
        keep_norm(f"{side}/layer_norm", {"encoder": "encoder.ln_post", "decoder": "decoder.ln"}[side])
        keep_norm(f"{here}/self_attention/layer_norm", f"{there}.attn_ln")
        keep(f"{here}/self_attention/linear_0", *(f"{there}.attn.{name}" for name in ("query", "key", "value")))
        keep(f"{here}/self_attention/linear_1", f"{there}.attn.out")
        keep_norm(f"{here}/ffn/layer_norm", f"{there}.mlp_ln")
        keep(f"{here}/ffn/linear_0", f"{there}.mlp.0")
        keep(f"{here}/ffn/linear_1", f"{there}.mlp.2")
    keep_norm("decoder/layer_0/attention/layer_norm", "decoder.blocks.0.cross_attn_ln")
    keep("decoder/layer_0/attention/linear_0", "decoder.blocks.0.cross_attn.query")
    keep("decoder/layer_0/attention/linear_1", "decoder.blocks.0.cross_attn.key", "decoder.blocks.0.cross_attn.value")
    keep("decoder/layer_0/attention/linear_2", "decoder.blocks.0.cross_attn.out")
    keep("encoder/conv1", "encoder.conv1")
    keep("encoder/conv2", "encoder.conv2")
    found["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"]
    found["decoder/scale_embeddings"] = np.array(0, np.int8)
    return found


def packed(variables: Arrays) -> bytes:
    """A `model.bin` of binary version 6."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        kind = TYPE_IDS[array.dtype.str[1:]]
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [text(name), shape, struct.pack("<BI", kind, array.nbytes), array.tobytes()]
    parts += [struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    return b"".join(parts)
