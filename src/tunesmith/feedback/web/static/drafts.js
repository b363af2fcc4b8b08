// What is not said yet, kept in this browser at once and on the server soon after: the newer one is taken.

import { ask } from "./api.js";

const SOON = 1500; // milliseconds after the last change

export class Drafts {
  // say: tells the person where the draft is. onConflict: the item was answered elsewhere.
  constructor(name, say, onConflict) {
    this.prefix = `tunesmith-feedback ${location.pathname.replace(/[^/]*$/, "")} ${name} `;
    this.say = say;
    this.onConflict = onConflict;
    this.waiting = null;
    document.addEventListener("visibilitychange", () => document.hidden && this.flush(true));
  }

  #name(item) {
    return `${this.prefix}${item.id} ${item.version}`;
  }

  read(item) {
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(this.#name(item)));
    } catch {
      // Storage may be shut or hold something foreign: the server's draft is there still.
    }
    const found = [kept, item.draft].filter((draft) => draft && typeof draft.at === "number");
    return found.sort((one, other) => other.at - one.at)[0] ?? null;
  }

  keep(item, draft) {
    try {
      localStorage.setItem(this.#name(item), JSON.stringify(draft));
    } catch {
      // As above; the server keeps it alone then.
    }
    clearTimeout(this.waiting?.timer);
    this.waiting = { item, draft, timer: setTimeout(() => this.flush(), SOON) };
  }

  async flush(isLast = false) {
    if (!this.waiting) return;
    const { item, draft, timer } = this.waiting;
    clearTimeout(timer);
    this.waiting = null;
    try {
      await ask("PUT", "api/draft", { item: item.id, version: item.version, draft }, { keepalive: isLast });
      this.say("Draft kept");
    } catch (error) {
      if (error.status === 409) this.onConflict();
      else this.say("Draft kept in this browser only");
    }
  }

  forget(item) {
    clearTimeout(this.waiting?.timer);
    this.waiting = null;
    try {
      localStorage.removeItem(this.#name(item));
    } catch {
      // Then there is nothing to remove either.
    }
  }
}
