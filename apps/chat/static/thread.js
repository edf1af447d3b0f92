// The messages of the open thread: put in or brought up to date, kept in view, marked as read.
import { post } from "./http.js";
import { localizeTimes } from "./times.js";

const NEAR = 140;

export function startThread(element) {
  const list = element.querySelector("#messages");
  const scroller = element.querySelector("#bubbles");
  let version = Number(element.dataset.version);
  let read = Number(element.dataset.read);
  let pinned = true;

  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  const toEnd = () => { scroller.scrollTop = scroller.scrollHeight; };

  function put(bubble) {
    const item = parse(bubble.html).querySelector("li");
    const present = document.getElementById(item.id);
    if (present && Number(present.dataset.version) >= bubble.version) return;
    localizeTimes(item);
    if (present) {
      keepPlayer(present, item);
      present.replaceWith(item);
    } else {
      if (list.firstElementChild && item.dataset.number < Number(list.firstElementChild.dataset.number)) return;
      item.classList.add("new");
      list.insertBefore(item, [...list.children].find((other) => Number(other.dataset.number) > Number(item.dataset.number)) ?? null);
    }
    if (!present && item.classList.contains("mine")) pinned = true;
    if (pinned) toEnd();
    markRead();
  }

  // A message that is being listened to goes on playing while its transcript arrives.
  function keepPlayer(before, after) {
    const [player, fresh] = [before, after].map((item) => item.querySelector("voice-player"));
    if (!player || !fresh) return;
    player.setDuration(fresh.dataset.duration);
    const focused = player.contains(document.activeElement) ? document.activeElement : null;
    fresh.replaceWith(player);
    if (focused) queueMicrotask(() => focused.focus());
  }

  function markRead() {
    const last = Number(list.lastElementChild?.dataset.number ?? 0);
    if (document.visibilityState !== "visible" || last <= read) return;
    read = last;
    const form = new FormData();
    form.set("number", last);
    post(element.dataset.readUrl, form, { keepalive: true }).catch(() => { read = 0; });
  }

  async function tryAgain(button) {
    button.disabled = true;
    try {
      put(await post(button.dataset.tryAgain, new FormData()));
    } catch (error) {
      button.disabled = false;
      button.lastChild.textContent = `Try again (${error.message})`;
    }
  }

  async function showOlder(link) {
    const response = await fetch(link.href);
    if (!response.ok || response.redirected) return location.reload();
    const page = parse(await response.text());
    localizeTimes(page);
    const fromEnd = scroller.scrollHeight - scroller.scrollTop;
    element.querySelector("#older").replaceWith(page.querySelector("#older"));
    list.prepend(...page.querySelectorAll("li.message"));
    scroller.scrollTop = scroller.scrollHeight - fromEnd;
  }

  element.addEventListener("click", (event) => {
    const again = event.target.closest("[data-try-again]");
    if (again) tryAgain(again);
    const older = event.target.closest("[data-older]");
    if (older) {
      event.preventDefault();
      showOlder(older);
    }
  });
  document.addEventListener("visibilitychange", markRead);
  // Whoever reads the end stays there while pictures load and the composer grows.
  scroller.addEventListener("scroll", () => { pinned = atEnd(); });
  const size = new ResizeObserver(() => { if (pinned) toEnd(); });
  size.observe(list);
  size.observe(scroller);
  toEnd();
  markRead();

  return {
    chat: element.dataset.chat,
    put,
    get version() { return version; },
    saw(seen) { version = Math.max(version, seen); },
    showPeople(html) { element.querySelector("#people").innerHTML = html; },
  };
}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return document.importNode(template.content, true);
}
