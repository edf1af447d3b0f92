// The composer: record, listen, attach, send; whatever fails, what was made stays until it is sent or thrown away.
import { post } from "./http.js";
import { openMicrophone, Recorder } from "./recorder.js";
import { clock } from "./times.js";

const LONGEST = 600;
const REFUSED = [413, 422]; // what is sent will not do: to send it again cannot help

export function startComposer(form, thread) {
  const part = (id) => form.querySelector(`#${id}`);
  const status = part("composer-status");
  let recorder = null;
  let draft = newDraft();

  function newDraft() {
    return { id: randomId(), audio: null, picture: null };
  }

  // A changed draft is another message: only the very same one may be taken for one that was sent before.
  function change(parts) {
    draft = { ...draft, ...parts, id: randomId() };
    complain("");
    show();
  }

  function show(state) {
    form.dataset.state = state ?? (recorder ? "recording" : draft.audio ? "review" : "idle");
    part("attached").hidden = !draft.picture;
    part("send-picture").hidden = !draft.picture;
    part("hint").hidden = Boolean(draft.picture);
    for (const control of form.querySelectorAll("button, input[type=file]")) control.disabled = state === "sending";
  }

  function complain(text, again = false) {
    part("composer-error").hidden = !text;
    part("composer-error").firstElementChild.textContent = text;
    part("send-again").hidden = !again;
  }

  async function record() {
    complain("");
    part("record").disabled = true;
    try {
      const stream = await openMicrophone();
      part("timer").textContent = clock(0);
      form.dataset.state = "recording"; // the meter needs its size before the first tick
      recorder = new Recorder(stream, part("meter"), tick);
      stream.getAudioTracks()[0].addEventListener("ended", () => { if (recorder) finish(); });
      show();
      part("stop").focus();
      status.textContent = "Recording";
    } catch (error) {
      show();
      complain(error.message);
      part("audio-file").focus();
    } finally {
      part("record").disabled = false;
    }
  }

  function tick(seconds) {
    part("timer").textContent = clock(seconds);
    if (seconds >= LONGEST && recorder) finish();
  }

  async function finish() {
    const current = recorder;
    recorder = null;
    const audio = await current.stop();
    keepAudio(audio);
    status.textContent = "Recorded. Listen to it, or send it.";
    part("send").focus();
  }

  async function cancel() {
    const current = recorder;
    recorder = null;
    await current.stop();
    show();
    part("record").focus();
    status.textContent = "Recording thrown away";
  }

  function keepAudio(audio) {
    change({ audio });
    const player = document.getElementById("player-template").content.firstElementChild.cloneNode(true);
    part("review").replaceChildren(player);
    player.prepare(audio);
  }

  function keepPicture(picture) {
    change({ picture });
    const image = part("attached").querySelector("img");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(picture);
    part("attached").querySelector(".file-name").textContent = picture.name;
  }

  async function send() {
    const { audio, picture, id } = draft;
    const size = (audio?.size ?? 0) + (picture?.size ?? 0);
    if (size > form.dataset.limit - 10_000) {
      return complain(`This is ${Math.ceil(size / 1e6)} MB; one message may hold ${Math.floor(form.dataset.limit / 2 ** 20)} MB.`);
    }
    const body = new FormData();
    body.set("client_id", id);
    if (audio) body.set("audio", audio, audio.name ?? "recording");
    if (picture) body.set("picture", picture, picture.name);
    complain("");
    show("sending");
    status.textContent = "Sending";
    try {
      thread.put(await post(form.dataset.action, body));
      draft = newDraft();
      part("review").replaceChildren();
      show();
      status.textContent = "Sent";
      part("record").focus();
    } catch (error) {
      show();
      const refused = REFUSED.includes(error.status);
      complain(error.message, !refused);
      part(refused ? (audio ? "discard" : "picture-remove") : "send-again").focus();
    }
  }

  part("record").addEventListener("click", record);
  part("stop").addEventListener("click", finish);
  part("cancel").addEventListener("click", cancel);
  part("send-now").addEventListener("click", async () => {
    await finish();
    await send();
  });
  part("send-again").addEventListener("click", send);
  part("discard").addEventListener("click", () => {
    change({ audio: null });
    part("review").replaceChildren();
    part("record").focus();
  });
  part("picture-remove").addEventListener("click", () => change({ picture: null }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  for (const [id, keep] of [["picture-file", keepPicture], ["picture-file-2", keepPicture], ["audio-file", keepAudio]]) {
    part(id).addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) keep(file);
    });
  }
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && recorder) finish();
  });
  addEventListener("beforeunload", (event) => {
    if (recorder || draft.audio || draft.picture) event.preventDefault();
  });
}

function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
