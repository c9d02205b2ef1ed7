// Quantiles of the last minute, out of a histogram that only grows.

/** How many intervals between two answers of /v1/stats make up a minute. */
const INTERVALS = 30;

export class Quantiles {
  #before = null;
  #intervals = [];

  /** Takes in the buckets of /v1/stats; returns the median and the 99th percentile of what is new in them, ms. */
  take(buckets) {
    const now = new Map(buckets.map(({ le_seconds: bound, count }) => [bound ?? Infinity, count]));
    const grown = new Map();
    for (const [bound, count] of now) {
      const more = count - (this.#before?.get(bound) ?? 0);
      // A smaller count than before is that of a new process, which counts from zero.
      if (more !== 0) grown.set(bound, more > 0 ? more : count);
    }
    const first = this.#before === null;
    this.#before = now;
    // The first answer also counts what came before the page was opened. So it makes no interval.
    this.#intervals.push(first ? new Map() : grown);
    if (this.#intervals.length > INTERVALS) this.#intervals.shift();
    return first ? [NaN, NaN] : both(grown);
  }

  /** The same over the last minute. */
  lately() {
    const sum = new Map();
    for (const interval of this.#intervals) {
      for (const [bound, count] of interval) sum.set(bound, (sum.get(bound) ?? 0) + count);
    }
    return both(sum);
  }
}

/** The median and the 99th percentile, ms: the upper bounds of the buckets in which they lie. */
function both(counts) {
  const sorted = [...counts].sort(([a], [b]) => a - b);
  const all = sorted.reduce((sum, [, count]) => sum + count, 0);
  return [0.5, 0.99].map((share) => {
    let passed = 0;
    const found = sorted.find(([, count]) => (passed += count) >= share * all);
    return found ? 1000 * found[0] : NaN;
  });
}
