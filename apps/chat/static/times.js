// Instants come in UTC and are shown in the reader's own time and words.
const time = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "short" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
const DAY = 86_400_000;

export function localizeTimes(root) {
  for (const element of root.querySelectorAll("time[data-style]")) {
    const at = new Date(element.dateTime);
    element.textContent = inWords(at, element.dataset.style);
    element.title = full.format(at);
  }
}

function inWords(at, style) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (at >= midnight) return time.format(at);
  const date = at >= midnight - 6 * DAY ? weekday.format(at) : day.format(at);
  return style === "short" ? date : `${date} ${time.format(at)}`;
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
