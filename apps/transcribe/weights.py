"""Turns a Whisper model in CTranslate2's form, as faster-whisper uses it, into a checkpoint for openai-whisper.

    python -m apps.transcribe.weights MODEL_FOLDER TARGET.pt

Both keep a linear weight as [out, in] and a convolution as [out, in, kernel], so nothing is transposed; what differs is
the names, and that CTranslate2 fuses query, key and value of an attention into one tensor. Nothing is downloaded, and
nothing is read by pickle.
"""

import argparse
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Variables: TypeAlias = dict[str, npt.NDArray[Any]]
Layout: TypeAlias = Iterator[tuple[str, tuple[str, ...]]]
"""A variable of CTranslate2, and the tensors of whisper that it is cut into along its first axis."""

_BINARY_VERSION = 6
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_UNSUPPORTED = "only float32 and float16 models can be converted"


def convert(source: Path, target: Path) -> None:
    """Write the checkpoint of the model in `source` to `target`, whole or not at all.

    Raises `ValueError` with the reason when `source` is cut short, quantised, or no Whisper model.
    """
    checkpoint = to_checkpoint(read_variables(source / "model.bin" if source.is_dir() else source))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        torch.save(checkpoint, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read_variables(path: Path) -> Variables:
    """Read the tensors of a CTranslate2 `model.bin` by name; raises `ValueError` if it is not one."""
    reader = _Reader(path, path.read_bytes())
    version = reader.number("I")
    if version != _BINARY_VERSION or reader.text() != "WhisperSpec":
        raise ValueError(f"{path}: not a Whisper model of CTranslate2 (binary version {version})")
    reader.number("I")  # the revision of the specification
    variables = dict(reader.variable() for _ in range(reader.number("I")))
    for _ in range(reader.number("I")):
        reader.text(), reader.text()  # an alias and what it stands for: the output projection is the embedding
    reader.expect_end()
    return variables


class _Reader:
    """Takes little-endian values from the front of a file's bytes."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._at = path, memoryview(data), 0

    def take(self, size: int) -> memoryview:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise ValueError(f"{self._path}: cut short at byte {len(self._data)}")
        return self._data[start : self._at]

    def number(self, code: str) -> int:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return int(value)

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode(errors="replace")

    def variable(self) -> tuple[str, npt.NDArray[Any]]:
        name = self.text()
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind = self.number("B")
        raw = self.take(self.number("I"))
        if kind not in _TYPES:
            raise ValueError(f"{self._path}: {name} has the unknown type {kind}; {_UNSUPPORTED}")
        return name, np.frombuffer(raw, _TYPES[kind]).reshape(shape)

    def expect_end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{self._path}: {len(self._data) - self._at} bytes too many")


def to_checkpoint(variables: Variables) -> dict[str, Any]:
    """Rename and cut CTranslate2's variables to what `whisper.load_model` reads; raises `ValueError`."""
    left = dict(variables)
    state: dict[str, torch.Tensor] = {}
    try:
        heads = [int(left.pop(f"{side}/num_heads")) for side in ("encoder", "decoder")]
        layers = [_count_layers(variables, side) for side in ("encoder", "decoder")]
        for name, targets in _layout(*layers):
            state.update(_cut(name, left.pop(name), targets))
    except KeyError as missing:
        raise ValueError(f"not a Whisper model: it has no {missing}") from None
    unknown = [name for name, array in left.items() if array.ndim]  # scalars are settings of CTranslate2's own
    if unknown:
        raise ValueError(f"not a Whisper model: nobody knows its {', '.join(unknown)}")
    return {"dims": _dimensions(state, layers, heads), "model_state_dict": state}


def _count_layers(variables: Variables, side: str) -> int:
    return len({found[1] for name in variables if (found := re.match(rf"{side}/layer_(\d+)/", name))})


def _layout(encoder_layers: int, decoder_layers: int) -> Layout:
    yield from _linear("encoder/conv1", "encoder.conv1")
    yield from _linear("encoder/conv2", "encoder.conv2")
    yield "encoder/position_encodings/encodings", ("encoder.positional_embedding",)
    yield from _norm("encoder/layer_norm", "encoder.ln_post")
    yield "decoder/embeddings/weight", ("decoder.token_embedding.weight",)
    yield "decoder/position_encodings/encodings", ("decoder.positional_embedding",)
    yield from _norm("decoder/layer_norm", "decoder.ln")
    for index in range(encoder_layers):
        yield from _layer(f"encoder/layer_{index}", f"encoder.blocks.{index}")
    for index in range(decoder_layers):
        source, target = f"decoder/layer_{index}", f"decoder.blocks.{index}"
        yield from _layer(source, target)
        yield from _norm(f"{source}/attention/layer_norm", f"{target}.cross_attn_ln")
        yield from _linear(f"{source}/attention/linear_0", f"{target}.cross_attn.query")
        yield from _linear(f"{source}/attention/linear_1", f"{target}.cross_attn.key", f"{target}.cross_attn.value")
        yield from _linear(f"{source}/attention/linear_2", f"{target}.cross_attn.out")


def _layer(source: str, target: str) -> Layout:
    yield from _norm(f"{source}/self_attention/layer_norm", f"{target}.attn_ln")
    fused = (f"{target}.attn.query", f"{target}.attn.key", f"{target}.attn.value")
    yield from _linear(f"{source}/self_attention/linear_0", *fused)
    yield from _linear(f"{source}/self_attention/linear_1", f"{target}.attn.out")
    yield from _norm(f"{source}/ffn/layer_norm", f"{target}.mlp_ln")
    yield from _linear(f"{source}/ffn/linear_0", f"{target}.mlp.0")
    yield from _linear(f"{source}/ffn/linear_1", f"{target}.mlp.2")


def _linear(source: str, *targets: str) -> Layout:
    yield f"{source}/weight", tuple(f"{target}.weight" for target in targets)
    yield f"{source}/bias", tuple(f"{target}.bias" for target in targets)


def _norm(source: str, target: str) -> Layout:
    yield f"{source}/gamma", (f"{target}.weight",)
    yield f"{source}/beta", (f"{target}.bias",)


def _cut(name: str, array: npt.NDArray[Any], targets: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    if array.dtype.kind != "f":
        raise ValueError(f"{name} holds {array.dtype}; {_UNSUPPORTED}")
    for target, part in zip(targets, np.split(array, len(targets)), strict=True):
        if not target.endswith(".key.bias"):
            yield target, torch.from_numpy(np.array(part))
        elif part.any():  # CTranslate2 stores zeros for the bias that whisper's key does not have
            raise ValueError(f"{name} has a bias for the key, which whisper has no place for")


def _dimensions(state: dict[str, torch.Tensor], layers: list[int], heads: list[int]) -> dict[str, int]:
    audio_context, audio_state = state["encoder.positional_embedding"].shape
    text_context, text_state = state["decoder.positional_embedding"].shape
    return {
        "n_mels": state["encoder.conv1.weight"].shape[1],
        "n_audio_ctx": audio_context,
        "n_audio_state": audio_state,
        "n_audio_head": heads[0],
        "n_audio_layer": layers[0],
        "n_vocab": state["decoder.token_embedding.weight"].shape[0],
        "n_text_ctx": text_context,
        "n_text_state": text_state,
        "n_text_head": heads[1],
        "n_text_layer": layers[1],
    }


def main() -> None:
    """Convert one model; the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m apps.transcribe.weights", description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="the model's folder, or its model.bin")
    parser.add_argument("target", type=Path, help="the .pt file to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.target)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
