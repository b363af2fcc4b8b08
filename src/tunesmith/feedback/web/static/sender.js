// Sends what was said until the server has it: the same key with every attempt, so it is kept once.

import { ask } from "./api.js";

const LONGEST_WAIT = 30; // seconds

// Resolves with the server's answer, or throws what no further attempt would mend. say(message, tryNow) tells of each
// attempt that failed; stop() ends the attempts.
export function sendUntilKept(address, content, say) {
  let isOver = false;
  let wake = () => {};
  const run = async () => {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await ask("POST", address, content);
      } catch (error) {
        if (!error.isPassing || isOver) throw error;
        const wait = Math.max(error.wait || 0, Math.min(LONGEST_WAIT, 2 ** (attempt - 1)));
        say(`Not saved yet: ${error.message}. It is kept in this browser and will be sent again.`, () => wake());
        await new Promise((resolve) => {
          wake = resolve;
          setTimeout(resolve, wait * 1000);
        });
        if (isOver) throw error;
      }
    }
  };
  return { done: run(), stop: () => { isOver = true; wake(); } };
}
