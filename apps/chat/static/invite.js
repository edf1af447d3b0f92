// The dialog that brings people into a chat.
export function startInvite(dialog) {
  for (const id of ["invite-open", "invite-first"]) {
    document.getElementById(id)?.addEventListener("click", () => dialog.showModal());
  }
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  const link = dialog.querySelector("#invite-link");
  const copy = dialog.querySelector("#copy-link");
  copy.addEventListener("click", async () => {
    link.select();
    try {
      await navigator.clipboard.writeText(link.value);
    } catch {
      document.execCommand("copy"); // without https there is no clipboard
    }
    copy.lastElementChild.textContent = "Copied";
  });
}
