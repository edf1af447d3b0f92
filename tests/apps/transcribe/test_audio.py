"""Recordings: whatever is uploaded becomes samples, or a sentence that the sender understands."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from apps import audio
from apps.audio import MAX_BYTES, MAX_SECONDS, SAMPLE_RATE, BadAudioError, decode, probe
from tests.apps.transcribe.sounds import encode, silence, stream, tone
from tests.services import Speech

UNKNOWN = "This file is not audio we can read (webm, ogg, wav, flac, mp3, m4a)."
DAMAGED = "This recording is damaged and cannot be played."
EMPTY = "This recording is empty."
NO_SOUND = "There is no sound in this file."

CONTAINERS = [
    ("wav", "pcm_s16le", 16_000, "audio/wav"),
    ("wav", "pcm_f32le", 16_000, "audio/wav"),
    ("flac", "flac", 44_100, "audio/flac"),
    ("webm", "libopus", 48_000, "audio/webm"),
    ("matroska", "libopus", 48_000, "audio/x-matroska"),
    ("ogg", "libopus", 48_000, "audio/ogg"),
    ("mp3", "libmp3lame", 44_100, "audio/mpeg"),
    ("mp4", "aac", 44_100, "audio/mp4"),
    ("adts", "aac", 44_100, "audio/aac"),
    ("aiff", "pcm_s16be", 44_100, "audio/aiff"),
    ("caf", "pcm_s16le", 44_100, "audio/x-caf"),
]


@pytest.mark.parametrize(("container", "codec", "rate", "content_type"), CONTAINERS)
def test_what_browsers_and_phones_record_is_read(container: str, codec: str, rate: int, content_type: str) -> None:
    source = SAMPLE_RATE if rate == 48_000 else rate
    recording = encode(tone(2.0, rate=source), container, codec, rate=rate)

    info = probe(recording)
    samples = decode(recording)

    assert info.content_type == content_type
    assert info.duration == pytest.approx(2.0, abs=0.15)
    assert info.duration == len(samples) / SAMPLE_RATE
    assert samples.dtype == np.float32
    assert _loudest_frequency(samples) == pytest.approx(220, abs=2)


@pytest.mark.parametrize(
    ("container", "codec", "content_type"),
    [("webm", "libopus", "audio/webm"), ("ogg", "libopus", "audio/ogg"), ("mp4", "aac", "audio/mp4")],
    ids=["Chromium", "Firefox", "Safari"],
)
def test_a_stream_as_browsers_record_it_has_its_true_duration(container: str, codec: str, content_type: str) -> None:
    recording = stream(tone(3.0), container, codec)

    if container == "webm":
        with av.open(io.BytesIO(recording)) as opened:
            assert opened.duration is None
    assert probe(recording).duration == pytest.approx(3.0, abs=0.1)
    assert probe(recording).content_type == content_type


def test_a_recording_that_was_cut_off_gives_what_is_there() -> None:
    recording = stream(tone(8.0))

    assert probe(recording[: len(recording) // 2]).duration == pytest.approx(4.0, abs=0.5)


def test_a_damaged_middle_does_not_cost_the_end() -> None:
    recording = bytearray(encode(tone(4.0), "mp3", "libmp3lame"))
    recording[6000:6100] = bytes(100)

    assert probe(bytes(recording)).duration == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize(
    ("recording", "reason"),
    [
        (b"", EMPTY),
        (encode(silence(0)), EMPTY),
        (b"x", UNKNOWN),
        (b"Dear diary, this is not a recording.", UNKNOWN),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), UNKNOWN),
        (b"ID3", UNKNOWN),
        (b"ID3\x04\0\0\0\0\0\0", DAMAGED),
        (stream(tone(1.0))[:300], DAMAGED),
        (b"RIFF\x24\0\0\0WAVE", DAMAGED),
        (b"\x1a\x45\xdf\xa3" + bytes(2000), DAMAGED),
        (b"\0\0\0\x20ftypmp42" + bytes(2000), DAMAGED),
    ],
    ids=range(11),  # the bytes of an encoded one differ from run to run, and names must not
)
def test_what_is_no_recording_is_refused_in_words(recording: bytes, reason: str) -> None:
    with pytest.raises(BadAudioError) as refused:
        probe(recording)

    assert str(refused.value) == reason


def test_broken_wav_files_are_refused(speech: Speech) -> None:
    for path in speech.broken:
        with pytest.raises(BadAudioError):
            decode(path.read_bytes())


def test_a_list_of_other_files_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.wav").write_bytes(encode(tone(1.0)))
    monkeypatch.chdir(tmp_path)

    for playlist in (
        b"ffconcat version 1.0\nfile 'secret.wav'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXTINF:1,\n{tmp_path.as_uri()}/secret.wav\n".encode(),
        b"v=0\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ):
        with pytest.raises(BadAudioError, match="not audio"):
            decode(playlist)


def test_ffmpeg_may_open_nothing_else_even_if_it_wants_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.wav").write_bytes(encode(tone(1.0)))
    monkeypatch.chdir(tmp_path)
    playlist = b"ffconcat version 1.0\nfile 'secret.wav'\n"
    with av.open(io.BytesIO(playlist), format="concat") as followed:
        assert followed.streams.audio

    monkeypatch.setattr(audio, "_recognise", lambda _: audio._Format("concat", "audio/wav"))
    with pytest.raises(BadAudioError):
        decode(playlist)


def test_video_without_sound_is_refused() -> None:
    with pytest.raises(BadAudioError) as refused:
        probe(_video(sound=False))

    assert str(refused.value) == NO_SOUND


def test_the_sound_of_a_video_is_read() -> None:
    assert probe(_video(sound=True)).duration == pytest.approx(1.0, abs=0.1)


def test_a_kind_of_sound_that_is_not_on_the_list_is_refused() -> None:
    with pytest.raises(BadAudioError, match="of a kind we cannot read"):
        probe(encode(tone(1.0), "wav", "adpcm_ima_wav"))


@pytest.mark.parametrize(("rate", "channels"), [(1, 1), (4_000_000_000, 1), (16_000, 0), (16_000, 60_000)])
def test_absurd_rates_and_channels_are_refused(rate: int, channels: int) -> None:
    recording = bytearray(encode(tone(1.0)))
    recording[22:28] = struct.pack("<HI", channels, rate)

    with pytest.raises(BadAudioError):
        decode(bytes(recording))


def test_a_recording_that_is_too_long_is_refused_however_small_its_file() -> None:
    recording = encode(silence(MAX_SECONDS + 10), "flac", "flac")
    assert len(recording) < 200_000

    with pytest.raises(BadAudioError, match="longer than 15 minutes"):
        decode(recording)


def test_a_file_that_is_too_large_is_not_even_looked_at() -> None:
    with pytest.raises(BadAudioError, match="larger than 64 MB"):
        decode(bytes(MAX_BYTES + 1))


def test_numbers_that_are_no_numbers_come_out_as_samples() -> None:
    samples = tone(1.0)
    samples[::100] = np.nan
    samples[1::100] = np.inf

    decoded = decode(encode(samples, "wav", "pcm_f32le"))

    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 1.0


def test_stereo_is_mixed_without_clipping() -> None:
    loud = tone(1.0) / 0.3

    decoded = decode(encode(loud, "wav", "pcm_s16le", layout="stereo"))

    assert len(decoded) == SAMPLE_RATE
    assert np.count_nonzero(np.abs(decoded) > 0.999) < len(decoded) * 0.05


def test_a_recording_whose_rate_changes_half_way_is_read_to_its_end() -> None:
    first = encode(tone(2.0), "mp3", "libmp3lame", rate=16_000)
    second = encode(tone(2.0, rate=32_000), "mp3", "libmp3lame", rate=32_000)

    assert probe(first + second).duration == pytest.approx(4.0, abs=0.3)


def test_titles_and_covers_before_the_sound_are_passed_over() -> None:
    tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + b"TIT2" + bytes(252)
    flac, mp3 = encode(tone(1.0), "flac", "flac"), encode(tone(1.0), "mp3", "libmp3lame")

    assert probe(tag + flac).content_type == "audio/flac"
    assert probe(tag + mp3).content_type == "audio/mpeg"
    assert probe(tag + bytes(50) + mp3).content_type == "audio/mpeg"


@pytest.mark.parametrize(("container", "codec", "rate"), [(c, k, r) for c, k, r, _ in CONTAINERS])
def test_no_damage_gives_any_other_error(container: str, codec: str, rate: int) -> None:
    source = SAMPLE_RATE if rate == 48_000 else rate
    whole = encode(tone(0.5, rate=source), container, codec, rate=rate)
    lots = random.Random(f"{container} {codec}")

    for _ in range(60):
        damaged = bytearray(whole[: lots.choice([200, 2_000, 10**6])])
        for _ in range(lots.choice([1, 5, 40])):
            damaged[lots.randrange(min(len(damaged), lots.choice([64, 600, 10**6])))] = lots.randrange(256)
        try:
            samples = decode(bytes(damaged))
        except BadAudioError:
            continue
        assert np.isfinite(samples).all()


def test_the_web_server_can_probe_without_a_speech_model() -> None:
    told = "import sys, apps.audio; print(sorted({'torch', 'whisper', 'faster_whisper'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", told], capture_output=True, check=True, text=True).stdout == "[]\n"


def _loudest_frequency(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax()) * SAMPLE_RATE / len(samples)


def _video(*, sound: bool) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as target:
        pictures = target.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        track = target.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for _ in range(10):
            target.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        target.mux(pictures.encode(None))
        if track:
            frame = av.AudioFrame.from_ndarray(tone(1.0).reshape(1, -1), format="fltp", layout="mono")
            frame.sample_rate = 16_000
            target.mux(track.encode(frame))
            target.mux(track.encode(None))
    return file.getvalue()
