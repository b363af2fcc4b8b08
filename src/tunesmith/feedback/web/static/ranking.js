// A ranking in the making: levels of ids, best first, and the ids that are not ranked. Knows nothing of the page.

export class Ranking {
  constructor(ids) {
    this.ids = [...ids];
    this.levels = [];
    this.unranked = [...ids];
  }

  get content() {
    return { levels: this.levels.map((level) => [...level]), unranked: [...this.unranked] };
  }

  // Takes what was kept earlier, when it is of these very answers.
  restore({ levels, unranked }) {
    const named = [...levels.flat(), ...unranked].sort();
    if (JSON.stringify(named) !== JSON.stringify([...this.ids].sort())) return false;
    this.levels = levels.map((level) => [...level]);
    this.unranked = [...unranked];
    return true;
  }

  levelOf(id) {
    return this.levels.findIndex((level) => level.includes(id));
  }

  get order() {
    return [...this.levels.flat(), ...this.unranked];
  }

  // Ranks an id at a place, from 0, counted without it.
  placeAt(id, place) {
    this.#take(id);
    this.levels.splice(Math.max(0, Math.min(place, this.levels.length)), 0, [id]);
  }

  rankNext(id) {
    this.placeAt(id, this.levels.length);
  }

  tieWith(id, other) {
    if (id === other || this.levelOf(other) < 0) return;
    this.#take(id);
    this.levels[this.levelOf(other)].push(id);
  }

  tieWithLast(id) {
    const others = this.levels.flat().filter((other) => other !== id);
    if (others.length) this.tieWith(id, others.at(-1));
    else this.rankNext(id);
  }

  remove(id) {
    this.#take(id);
    this.unranked = this.ids.filter((other) => other === id || this.unranked.includes(other));
  }

  move(id, direction) {
    const at = this.levelOf(id);
    if (at < 0) {
      this.rankNext(id);
    } else if (this.levels[at].length > 1) {
      this.placeAt(id, direction < 0 ? at : at + 1); // out of the tie, to its own place beside it
    } else {
      this.placeAt(id, at + direction);
    }
  }

  // Joins the level above; out of a tie again, to the place below it.
  toggleTie(id) {
    const at = this.levelOf(id);
    if (at < 0) this.tieWithLast(id);
    else if (this.levels[at].length > 1) this.placeAt(id, at + 1);
    else if (at > 0) this.tieWith(id, this.levels[at - 1][0]);
  }

  #take(id) {
    this.levels = this.levels.map((level) => level.filter((other) => other !== id)).filter((level) => level.length);
    this.unranked = this.unranked.filter((other) => other !== id);
  }
}
