// Requests that change something: with the page's CSRF token, and errors as sentences for a person.
export class RequestError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const token = () => document.querySelector('meta[name="csrf-token"]');

export async function post(url, body, { retry = true, keepalive = false } = {}) {
  let response;
  try {
    response = await fetch(url, { method: "POST", body, headers: { Accept: "application/json", "X-CSRFToken": token().content }, keepalive });
  } catch {
    throw new RequestError("BabbleBox cannot be reached. Nothing is lost: it is still here.");
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  if (problem.code === "stale-page" && retry) {
    await renewToken();
    return post(url, body, { retry: false, keepalive });
  }
  throw new RequestError(problem.error ?? `It did not work (error ${response.status}).`, response.status);
}

// After logging in again in another tab this page's token belongs to the session before.
async function renewToken() {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
  if (response?.redirected) throw new RequestError("You are not logged in any more. Log in in another tab, then send it again.", 401);
  const page = new DOMParser().parseFromString((await response?.text()) ?? "", "text/html");
  token().content = page.querySelector('meta[name="csrf-token"]')?.content ?? token().content;
}
