"""Sounds to test with, and the containers that browsers, phones and attackers put them into."""

from __future__ import annotations

import io

import av
import numpy as np

from apps.audio import SAMPLE_RATE, Samples


class Pipe(io.RawIOBase):
    """Takes bytes but cannot go back in them: what MediaRecorder writes into."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.written += bytes(data)  # type: ignore[call-overload]
        return len(data)  # type: ignore[arg-type]


def tone(seconds: float, *, rate: int = SAMPLE_RATE, hertz: float = 220.0) -> Samples:
    """A hum."""
    wave: Samples = (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    return wave


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def pink_noise(seconds: float) -> Samples:
    """Noise as of rain, the same every time."""
    white = np.fft.rfft(np.random.default_rng(7).standard_normal(round(seconds * SAMPLE_RATE)))
    pink = np.fft.irfft(white / np.sqrt(np.maximum(1, np.arange(len(white)))))
    noise: Samples = (0.3 * pink / np.abs(pink).max()).astype(np.float32)
    return noise


def encode(
    samples: Samples, container: str = "wav", codec: str = "pcm_s16le", *, rate: int = SAMPLE_RATE, layout: str = "mono"
) -> bytes:
    """Put samples of `rate` into a file, as a program does that may go back and write the duration into its header."""
    file = io.BytesIO()
    _write(file, samples, container, codec, rate, layout)
    return file.getvalue()


def stream(samples: Samples, container: str = "webm", codec: str = "libopus") -> bytes:
    """Put samples into a stream, as a browser does while recording: no duration, no index."""
    pipe = Pipe()
    _write(pipe, samples, container, codec, 48_000, "mono")
    return bytes(pipe.written)


def _write(file: object, samples: Samples, container: str, codec: str, rate: int, layout: str) -> None:
    source = SAMPLE_RATE if rate == 48_000 else rate  # Opus has rates of its own
    pieces = {"movflags": "frag_keyframe+empty_moov"} if isinstance(file, Pipe) and container == "mp4" else {}
    with av.open(file, "w", format=container, options=pieces) as target:
        track = target.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(track.format, layout, rate, frame_size=track.frame_size or 1024)
        if samples.size:
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
            frame.sample_rate = source
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                target.mux(track.encode(piece))
        target.mux(track.encode(None))
