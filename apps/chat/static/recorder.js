// A recording in the making: the microphone, its level, and at the end the file.
import { fit } from "./player.js";

const FORMATS = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
const BITS_PER_SECOND = 48_000;
const BARS = 40;

export class MicrophoneError extends Error {}

export async function openMicrophone() {
  const instead = "You can upload a recording instead.";
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    throw new MicrophoneError(`This browser cannot record here (it needs https). ${instead}`);
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true } });
  } catch (error) {
    const words = {
      NotAllowedError: "The microphone is blocked. Allow it beside the address of this page, then press Record again.",
      NotFoundError: "No microphone was found.",
      NotReadableError: "Another program is using the microphone.",
    };
    throw new MicrophoneError(`${words[error.name] ?? "The microphone cannot be used."} ${instead}`);
  }
}

export class Recorder {
  constructor(stream, canvas, onTick) {
    this.stream = stream;
    this.canvas = canvas;
    this.onTick = onTick;
    this.levels = [];
    const mimeType = FORMATS.find((format) => MediaRecorder.isTypeSupported(format));
    this.media = new MediaRecorder(stream, { mimeType, audioBitsPerSecond: BITS_PER_SECOND });
    this.chunks = [];
    this.media.addEventListener("dataavailable", (event) => { if (event.data.size) this.chunks.push(event.data); });
    this.finished = new Promise((resolve) => this.media.addEventListener("stop", resolve, { once: true }));
    this.sound = new AudioContext();
    this.analyser = this.sound.createAnalyser();
    this.analyser.fftSize = 1024;
    this.sound.createMediaStreamSource(stream).connect(this.analyser);
    this.media.start(500);
    this.began = performance.now();
    this.timer = setInterval(() => this.tick(), 80);
  }

  get seconds() {
    return (performance.now() - this.began) / 1000;
  }

  async stop() {
    clearInterval(this.timer);
    if (this.media.state !== "inactive") this.media.stop();
    await this.finished;
    for (const track of this.stream.getTracks()) track.stop();
    await this.sound.close();
    return new Blob(this.chunks, { type: this.media.mimeType });
  }

  tick() {
    const samples = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(samples);
    const loudness = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
    this.levels = [...this.levels, Math.min(1, Math.sqrt(loudness * 3))].slice(-BARS);
    this.draw();
    this.onTick(this.seconds);
  }

  draw() {
    const context = fit(this.canvas);
    const { width, height } = this.canvas;
    const step = width / BARS;
    context.fillStyle = getComputedStyle(this.canvas).color;
    this.levels.forEach((level, index) => {
      const size = Math.max(step * 0.5, level * height);
      context.beginPath();
      context.roundRect((BARS - this.levels.length + index) * step + step * 0.25, (height - size) / 2, step * 0.5, size, step);
      context.fill();
    });
  }
}
