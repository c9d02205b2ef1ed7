// How the prices of a market moved: the series of a chart, from the snapshots of /v1/events/{id}/history.

import { marketKey } from "./link.js";
import { byColumn, isAvailable } from "./store.js";

/** The column of a past snapshot, as the panel names it. */
const columnOf = ({ source, snapshot }) => (source === "betpawa" ? `betpawa ${snapshot.bookmaker_id}` : source);

/** The odds of each outcome that is offered. */
function offered(market) {
  const odds = new Map();
  if (!market || !isAvailable(market)) return odds;
  for (const { name, odds: price, is_active } of market.outcomes) {
    if (is_active && price !== null) odds.set(name, price);
  }
  return odds;
}

/** The prices of one market over time. */
export class Moves {
  #key;
  /** By column: `[{ at, odds }]` in the order of time. `odds` are those of the outcomes, by name. */
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
      const market = past.snapshot.markets.find((market) => marketKey(market) === this.#key);
      this.add(columnOf(past), Date.parse(past.snapshot.captured_at), market);
    }
  }

  /** Adds what a bookmaker offers since a time, ms. An older or the same snapshot changes nothing. */
  add(column, at, market) {
    const points = this.#columns.get(column) ?? [];
    if (points.length && points.at(-1).at >= at) return;
    // A bookmaker that never offers the market gets no line.
    if (!points.length && !market) return;
    for (const { name } of market?.outcomes ?? []) if (!this.#outcomes.includes(name)) this.#outcomes.push(name);
    points.push({ at, odds: offered(market) });
    this.#columns.set(column, points);
  }

  /** The first and the latest odds of an outcome, by column: `[[column, first, latest]]`. */
  ends(outcome) {
    return this.columns.flatMap((column) => {
      const odds = this.#columns.get(column).map((point) => point.odds.get(outcome)).filter((odds) => odds !== undefined);
      return odds.length ? [[column, odds[0], odds.at(-1)]] : [];
    });
  }

  /** The lines of an outcome up to a time: `[seconds, odds of the first column, ...]`. A price holds until the next. */
  lines(outcome, until) {
    const columns = this.columns.map((column) => this.#columns.get(column));
    const times = [...new Set(columns.flat().map(({ at }) => at)), until].sort((a, b) => a - b);
    const line = (points) => {
      let next = 0;
      return times.map((at) => {
        while (next < points.length && points[next].at <= at) next++;
        return next === 0 ? null : (points[next - 1].odds.get(outcome) ?? null);
      });
    };
    return [times.map((at) => at / 1_000), ...columns.map(line)];
  }
}
