// How long a person looks at an item: seconds in which the page was in front of them.

const MOST = 20; // of the latest items, for the median

export class Pace {
  constructor() {
    this.before = 0;
    this.since = null;
    this.latest = [];
    document.addEventListener("visibilitychange", () => {
      this.before = this.seconds;
      this.since = document.hidden ? null : performance.now();
    });
  }

  begin(seconds) {
    this.before = seconds;
    this.since = document.hidden ? null : performance.now();
  }

  end() {
    this.latest = [...this.latest, this.seconds].slice(-MOST);
  }

  get seconds() {
    return this.before + (this.since === null ? 0 : (performance.now() - this.since) / 1000);
  }

  get median() {
    const ordered = [...this.latest].sort((one, other) => one - other);
    return ordered.length ? ordered[Math.floor(ordered.length / 2)] : 0;
  }
}
