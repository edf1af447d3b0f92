"""Makes the voice message of the demo, `recording.webm`: synthetic speech, so that it is nobody's voice.

apt-get install espeak-ng && python -m apps.demo.make_recording
"""

import io
import subprocess
from pathlib import Path

import av

TEXT = (
    "Good evening! I just wanted to tell you how beautiful the mountains are today. "
    "You can listen to my message, or simply read it. Here is a picture for you."
)
TARGET = Path(__file__).with_name("recording.webm")
RATE = 48_000
"""What a browser records Opus at."""


def speak(text: str) -> bytes:
    """Have espeak-ng read `text` as a WAV file; Whisper's tiny.en understands this voice and speed."""
    command = ["espeak-ng", "-v", "en-us+f3", "-s", "145", "--stdout", text]
    return subprocess.run(command, check=True, capture_output=True).stdout


def to_webm(wav: bytes) -> bytes:
    """Encode it as a browser does: Opus in WebM, mono."""
    target = io.BytesIO()
    with av.open(io.BytesIO(wav), format="wav") as source, av.open(target, "w", format="webm") as webm:
        stream = webm.add_stream("libopus", rate=RATE, layout="mono", bit_rate=24_000)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE, frame_size=RATE // 50)
        frames = [frame for heard in [*source.decode(audio=0), None] for frame in resampler.resample(heard)]
        for frame in [*frames, None]:
            webm.mux(stream.encode(frame))
    return target.getvalue()


if __name__ == "__main__":
    TARGET.write_bytes(to_webm(speak(TEXT)))
