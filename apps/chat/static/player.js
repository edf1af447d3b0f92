// <voice-player>: plays a recording, shows its waveform and its true length.
import { clock } from "./times.js";

const BARS = 46;
const STEPS = 1000;
const icons = new URL("icons.svg", import.meta.url).pathname;
let playing = null;

class VoicePlayer extends HTMLElement {
  connectedCallback() {
    if (this.audio) return;
    this.audio = new Audio();
    this.ready = false;
    this.wanted = 0;
    this.audio.preload = "none";
    this.button = this.querySelector(".play");
    this.seek = this.querySelector("input");
    this.canvas = this.querySelector("canvas");
    this.length = this.querySelector(".length");
    this.label = this.button.getAttribute("aria-label").replace(/^Play /, "");
    this.setDuration(this.dataset.duration);
    this.button.addEventListener("click", () => this.toggle());
    this.seek.addEventListener("input", () => this.jump(this.seek.value / STEPS));
    this.audio.addEventListener("timeupdate", () => this.show());
    this.audio.addEventListener("ended", () => { this.audio.currentTime = 0; this.show(); });
    for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.showButton());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      this.prepare();
    }).observe(this);
  }

  setDuration(value) {
    this.duration = Number(value) || this.duration || 0;
    this.dataset.duration = this.duration || "";
    this.length.dataset.duration = this.dataset.duration;
    this.show();
  }

  // The whole recording is fetched once, to draw it and to play it; one that was just made is here already.
  prepare(recording) {
    this.prepared ??= recording ? this.open(recording) : this.load();
    return this.prepared;
  }

  async load() {
    try {
      const response = await fetch(this.dataset.src);
      if (!response.ok) throw new Error(response.statusText);
      await this.open(await response.blob());
    } catch {
      this.prepared = null; // the next press tries again
      this.cannotPlay();
    }
  }

  open(blob) {
    this.drawPeaks(blob);
    return this.openSound(blob).catch(() => this.cannotPlay());
  }

  cannotPlay() {
    this.length.textContent = "cannot play";
  }

  // A browser's own recording says nothing about its length, and cannot be wound before the player has seen its end.
  async openSound(blob) {
    this.audio.src = URL.createObjectURL(blob);
    this.audio.preload = "auto";
    await happened(this.audio, "loadedmetadata");
    if (this.audio.duration === Infinity) {
      this.audio.currentTime = Number.MAX_SAFE_INTEGER;
      await happened(this.audio, "seeked");
    }
    this.audio.currentTime = this.wanted;
    this.ready = true;
    this.show();
  }

  async drawPeaks(blob) {
    try {
      const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await blob.arrayBuffer());
      this.peaks = peaksOf(sound.getChannelData(0));
      if (!this.duration) this.setDuration(sound.duration);
    } catch {
      this.peaks = null; // it may still play
    }
    this.draw();
  }

  async toggle() {
    if (!this.audio.paused) return this.audio.pause();
    if (playing && playing !== this) playing.audio.pause();
    playing = this;
    await this.prepare();
    return this.audio.play().catch(() => this.showButton());
  }

  jump(part) {
    this.wanted = part * (this.duration || 0);
    if (this.ready) this.audio.currentTime = this.wanted;
    this.show();
  }

  show() {
    const now = this.ready ? this.audio.currentTime : this.wanted;
    const part = this.duration ? Math.min(1, now / this.duration) : 0;
    this.seek.value = part * STEPS;
    const shown = part > 0 && part < 1 ? now : Math.max(1, Math.round(this.duration));
    this.length.textContent = this.duration ? clock(shown) : "–:––";
    this.seek.setAttribute("aria-valuetext", `${clock(now)} of ${clock(this.duration)}`);
    this.draw(part);
  }

  showButton() {
    const active = !this.audio.paused && !this.audio.ended;
    this.button.querySelector("use").setAttribute("href", `${icons}#${active ? "pause" : "play"}`);
    this.button.setAttribute("aria-label", `${active ? "Pause" : "Play"} ${this.label}`);
  }

  draw(part = this.seek.value / STEPS) {
    const context = fit(this.canvas);
    const { width, height } = this.canvas;
    const step = width / BARS;
    context.fillStyle = getComputedStyle(this.canvas).color;
    for (let bar = 0; bar < BARS; bar += 1) {
      const size = Math.max(step * 0.55, (this.peaks?.[bar] ?? 0) * height * 0.9);
      context.globalAlpha = (bar + 0.5) / BARS <= part ? 1 : 0.45;
      context.beginPath();
      context.roundRect(bar * step + step * 0.22, (height - size) / 2, step * 0.55, size, step);
      context.fill();
    }
  }
}

function happened(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", () => reject(new Error(`${name} never came`)), { once: true });
  });
}

function peaksOf(samples) {
  const size = Math.max(1, Math.floor(samples.length / BARS));
  const loudness = Array.from({ length: BARS }, (_, bar) => {
    let sum = 0;
    for (let at = bar * size; at < Math.min(samples.length, (bar + 1) * size); at += 1) sum += samples[at] ** 2;
    return Math.sqrt(sum / size);
  });
  const loudest = Math.max(...loudness, 0.02);
  return loudness.map((value) => Math.sqrt(value / loudest));
}

export function fit(canvas) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  return canvas.getContext("2d");
}

customElements.define("voice-player", VoicePlayer);
