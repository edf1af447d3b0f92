"""Turns the bytes of an uploaded recording into samples, whatever a browser, a phone or an attacker put into them.

FFmpeg's libraries decode in this process, through PyAV. Left to themselves they guess a format from the content, and
some formats (ffconcat, HLS) are lists of *other* files to open. So the format is recognised here, from the first bytes,
and FFmpeg is told which one to use, may open nothing else, and may use no other decoders than those named below.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt

Samples: TypeAlias = npt.NDArray[np.float32]
"""Mono, `SAMPLE_RATE` a second, from -1 to 1."""

SAMPLE_RATE = 16_000
MAX_BYTES = 64 * 2**20
MAX_SECONDS = 15 * 60

_RATES = range(4_000, 192_001)
_MAX_CHANNELS = 8
_READABLE = "webm, ogg, wav, flac, mp3, m4a"

_DECODERS = (
    "aac,alac,amrnb,amrwb,flac,libopencore_amrnb,libopencore_amrwb,libopus,libvorbis,mp1float,mp2float,mp3,mp3float,opus,"
    "pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s8,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,"
    "pcm_s32be,pcm_s32le,pcm_u8,vorbis"
)


class BadAudioError(Exception):
    """The recording itself is the trouble: trying again cannot help. The message is for the person who sent it."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording is, as far as its own decoded samples tell."""

    duration: float
    """Seconds. MediaRecorder writes no duration into its header, and a header may lie: decoded samples are counted."""
    content_type: str


@dataclass(frozen=True)
class _Format:
    demuxer: str
    content_type: str


_MATROSKA = _Format("matroska", "audio/x-matroska")
_WEBM = _Format("matroska", "audio/webm")
_MP3 = _Format("mp3", "audio/mpeg")
_MP4 = _Format("mov", "audio/mp4")
_AAC = _Format("aac", "audio/aac")
_BY_PREFIX = {
    b"OggS": _Format("ogg", "audio/ogg"),
    b"fLaC": _Format("flac", "audio/flac"),
    b"caff": _Format("caf", "audio/x-caf"),
    b"#!AMR": _Format("amr", "audio/amr"),
}
_BY_CHUNK = {
    (b"RIFF", b"WAVE"): _Format("wav", "audio/wav"),
    (b"RF64", b"WAVE"): _Format("wav", "audio/wav"),
    (b"FORM", b"AIFF"): _Format("aiff", "audio/aiff"),
    (b"FORM", b"AIFC"): _Format("aiff", "audio/aiff"),
}


def probe(data: bytes) -> AudioInfo:
    """Tell the true duration and type of a recording; raises `BadAudioError`."""
    samples = sum(len(chunk) for chunk in _decode(data))
    return AudioInfo(samples / SAMPLE_RATE, _recognise(data).content_type)


def decode(data: bytes) -> Samples:
    """Decode a recording to what a speech model takes; raises `BadAudioError`.

    A recording that was cut off in the middle gives what is there.
    """
    # 16-bit integers on the way, as Whisper's own loader does it: no NaN, no infinity, and no clipping in the downmix.
    pcm = np.concatenate(list(_decode(data)))
    return pcm.astype(np.float32) / 32768.0


def _decode(data: bytes) -> Iterator[npt.NDArray[np.int16]]:
    """Decode to chunks of 16-bit samples, at least one sample and at most `MAX_SECONDS` of them in all."""
    if not data:
        raise BadAudioError("This recording is empty.")
    if len(data) > MAX_BYTES:
        raise BadAudioError(f"This recording is larger than {MAX_BYTES // 2**20} MB.")
    total = 0
    for chunk in _resample(_frames(data, _recognise(data))):
        total += len(chunk)
        if total > MAX_SECONDS * SAMPLE_RATE:
            raise BadAudioError(f"This recording is longer than {MAX_SECONDS // 60} minutes.")
        yield chunk
    if not total:
        raise BadAudioError("This recording is empty.")


def _recognise(data: bytes) -> _Format:
    """Name the format by its first bytes, never by a file name or a declared content type."""
    tag = _id3_size(data)
    head = data[tag : tag + 64]
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _WEBM if b"webm" in head else _MATROSKA
    if head[4:8] == b"ftyp":
        return _MP4
    for prefix, known in _BY_PREFIX.items():
        if head.startswith(prefix):
            return known
    if chunk := _BY_CHUNK.get((head[:4], head[8:12])):
        return chunk
    if head[:1] == b"\xff" and head[1:2] >= b"\xe0":  # the sync word of an MPEG audio frame, then its layer
        return _MP3 if head[1] & 0x06 else _AAC
    if tag:  # some writers leave zeros between the tag and the first frame
        return _MP3
    raise BadAudioError(f"This file is not audio we can read ({_READABLE}).")


def _id3_size(data: bytes) -> int:
    """The length of a leading ID3 tag (titles, a cover), which may stand before MP3, AAC and FLAC alike."""
    if not data.startswith(b"ID3") or len(data) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def _frames(data: bytes, known: _Format) -> Iterator[av.AudioFrame]:
    """Yield the decoded frames of the first sound track; damaged packets are passed over."""
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            format=known.demuxer,
            container_options={
                "codec_whitelist": _DECODERS,
                "format_whitelist": known.demuxer,
                "protocol_whitelist": "none",  # the bytes are here; whatever else it wants to open, it may not
            },
            metadata_errors="replace",
        ) as container:
            if not container.streams.audio:
                raise BadAudioError("There is no sound in this file.")
            stream = container.streams.audio[0]
            _check(stream)
            for packet in _until_broken(container.demux(stream)):
                yield from _decoded(packet)
    except av.FFmpegError as error:
        raise BadAudioError("This recording is damaged and cannot be played.") from error


def _check(stream: av.AudioStream) -> None:
    """Refuse what only an attacker or a broken file would ask for, before anything is allocated for it."""
    codec = stream.codec_context
    if codec is None or codec.name not in _DECODERS.split(","):
        raise BadAudioError(f"The sound in this file is of a kind we cannot read ({_READABLE}).")
    if codec.sample_rate not in _RATES or not 1 <= codec.channels <= _MAX_CHANNELS:
        raise BadAudioError("This recording is damaged and cannot be played.")


def _until_broken(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Yield what can be read before the place where a file was cut off."""
    try:
        yield from packets
    except av.FFmpegError:
        return


def _decoded(packet: av.Packet) -> list[av.AudioFrame]:
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []


def _resample(frames: Iterator[av.AudioFrame]) -> Iterator[npt.NDArray[np.int16]]:
    """Bring all frames to mono and `SAMPLE_RATE`; their own form may change half-way (radio streams, joined files)."""
    for _, alike in itertools.groupby(frames, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        for frame in itertools.chain(alike, [None]):
            if frame is not None:
                frame.pts = None  # gaps and jumps in the time stamps are no business of the samples
            for resampled in resampler.resample(frame):
                yield resampled.to_ndarray().reshape(-1)
