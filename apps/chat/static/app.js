// The one script of every page: each part starts if the page has what it works on.
import { startComposer } from "./composer.js";
import { startInvite } from "./invite.js";
import { startLive } from "./live.js";
import "./player.js";
import { startThread } from "./thread.js";
import { localizeTimes } from "./times.js";

localizeTimes(document);
const threadElement = document.getElementById("thread");
const thread = threadElement && startThread(threadElement);
if (thread) {
  startComposer(document.getElementById("composer"), thread);
  startInvite(document.getElementById("invite"));
}
const list = document.getElementById("chats");
if (list) startLive(list, thread);
