// Requests to the server this page came from. Addresses are relative, so the page works behind a prefix too.

export class Problem extends Error {
  // status 0: the server was not reached. wait: seconds after which to try again, where the server said so.
  constructor(status, message, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait;
  }

  get isPassing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

export async function ask(method, address, content, options = {}) {
  const request = { method, headers: {}, credentials: "same-origin", cache: "no-store", ...options };
  if (content !== undefined) request.body = JSON.stringify(content);
  if (method !== "GET") {
    request.headers["content-type"] = "application/json";
    request.headers["x-csrf-token"] = document.body.dataset.csrf;
  }
  let reply;
  try {
    reply = await fetch(address, request);
  } catch {
    throw new Problem(0, "the server cannot be reached");
  }
  const said = await reply.json().catch(() => ({}));
  if (!reply.ok) {
    throw new Problem(reply.status, said.detail ?? `the server answered ${reply.status}`, Number(reply.headers.get("retry-after")));
  }
  return said;
}

export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function offerSignOut() {
  document.getElementById("sign-out")?.addEventListener("click", async () => {
    const { go_to } = await ask("POST", "api/sign-out", {});
    location.assign(go_to);
  });
}
