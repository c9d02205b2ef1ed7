// How the prices of a market moved: the series of a chart, from the snapshots of /v1/events/{id}/history.

import { marketKey } from "./link.js";
import { byColumn } from "./store.js";

/** The column of a past snapshot, as the panel names it. */
const columnOf = ({ source, snapshot }) => (source === "betpawa" ? `betpawa ${snapshot.bookmaker_id}` : source);

/** The odds of each outcome on which one could bet. */
function offered(market) {
  const odds = new Map();
  for (const { name, odds: price, is_active } of market?.outcomes ?? []) {
    if (is_active && price !== null) odds.set(name, price);
  }
  return odds;
}

/** The prices of one market over time. */
export class Moves {
  #key;
  /** By column: `[{ at, end, odds }]` in the order of time, ms. `odds` are those of the outcomes, by name, until `end`. */
  #columns = new Map();
  #outcomes = [];

  /** `key` names the market, as in an address. */
  constructor(key) {
    this.#key = key;
  }

  get columns() {
    return [...this.#columns.keys()].sort(byColumn);
  }

  get outcomes() {
    return this.#outcomes;
  }

  /** Adds the snapshots of an answer, which are in the order of time. */
  take(snapshots) {
    for (const past of snapshots) {
      const market = past.snapshot.markets.findLast((market) => marketKey(market) === this.#key);
      this.add(columnOf(past), Date.parse(past.snapshot.captured_at), market);
    }
  }

  /** Adds what a bookmaker offers since a time, ms. The same snapshot again replaces what it said before. */
  add(column, at, market) {
    const points = this.#columns.get(column) ?? [];
    if (points.length && points.at(-1).at > at) return;
    // A bookmaker that never offers the market gets no line.
    if (!points.length && !market) return;
    for (const { name } of market?.outcomes ?? []) if (!this.#outcomes.includes(name)) this.#outcomes.push(name);
    const until = Date.parse(market?.unavailable_at ?? "");
    const point = { at, end: Number.isNaN(until) ? Infinity : Math.max(at, until), odds: offered(market) };
    if (points.length && points.at(-1).at === at) points.pop();
    points.push(point);
    this.#columns.set(column, points);
  }

  /** The first and the latest odds of an outcome, by column: `[[column, first, latest]]`. */
  ends(outcome) {
    return this.columns.flatMap((column) => {
      const odds = this.#columns.get(column).map((point) => point.odds.get(outcome)).filter((odds) => odds !== undefined);
      return odds.length ? [[column, odds[0], odds.at(-1)]] : [];
    });
  }

  /**
   * The lines of an outcome between two times, ms: `[seconds, odds of the first column, ...]`. A price holds until the
   * next one, or until the market is no longer available.
   */
  lines(outcome, from, until) {
    const columns = this.columns.map((column) => this.#columns.get(column));
    const all = columns.flat().flatMap(({ at, end }) => [at, end]).filter((at) => at > from && at < until);
    const first = Math.min(...columns.flat().map(({ at }) => at));
    const times = [...new Set([Math.max(from, first), ...all, until])].sort((a, b) => a - b);
    const line = (points) => {
      let next = 0;
      return times.map((time) => {
        while (next < points.length && points[next].at <= time) next++;
        const point = points[next - 1];
        return point && time < point.end ? (point.odds.get(outcome) ?? null) : null;
      });
    };
    return [times.map((at) => at / 1_000), ...columns.map(line)];
  }
}
