// The live stream: bubbles of the open thread and the chat list, pushed by the server.
import { localizeTimes } from "./times.js";

const PATIENCE = 4000;

export function startLive(list, thread) {
  const banner = document.getElementById("connection");
  const title = document.title;
  let source;
  let complaint;

  function connect() {
    const query = thread ? `?chat=${thread.chat}&since=${thread.version}` : "";
    source = new EventSource(`/events${query}`);
    source.onopen = () => {
      clearTimeout(complaint);
      complaint = undefined;
      banner.hidden = true;
    };
    source.onerror = () => {
      complaint ??= setTimeout(() => { banner.hidden = false; }, PATIENCE);
      // The browser comes back by itself after a broken connection, but not after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) setTimeout(comeBack, PATIENCE);
    };
    on("chats", ({ html }) => {
      list.innerHTML = html;
      localizeTimes(list);
      const unread = Number(list.firstElementChild.dataset.unread);
      document.title = unread ? `(${unread}) ${title}` : title;
    });
    on("bubble", (bubble) => thread?.put(bubble));
    on("people", ({ html }) => thread?.showPeople(html));
  }

  async function comeBack() {
    const answer = await fetch("/chats", { redirect: "manual" }).catch(() => null);
    if (answer?.type !== "opaqueredirect") return connect();
    banner.replaceChildren("You are logged out here. ", Object.assign(document.createElement("a"), {
      href: `/log-in?next=${encodeURIComponent(location.pathname)}`, textContent: "Log in",
    }));
    return undefined;
  }

  function on(name, handle) {
    source.addEventListener(name, (event) => {
      handle(JSON.parse(event.data));
      thread?.saw(Number(event.lastEventId));
    });
  }

  connect();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
}
