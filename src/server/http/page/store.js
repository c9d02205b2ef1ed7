// What the page holds: every event's inline odds, in kickoff order, and which prices moved lately.

import { marketKey } from "./link.js";

/** How long a move is shown, ms. */
export const MOVE_SHOWN = 12_000;

/** One bookmaker's column: the platform's own by bookmaker id, a competitor by its source. */
export function columnKey(odds) {
  return odds.bookmaker_id ? `${odds.bookmaker} ${odds.bookmaker_id}` : odds.bookmaker;
}

/** Shortens "1X2 - Full Time" to "1X2", because the usual markets of the list all end so. */
export function marketLabel(market) {
  const name = market.betpawa_market_name.replace(/ - Full Time$/, "");
  return market.line === null || market.line === undefined ? name : `${name} ${market.line}`;
}

export function isAvailable(market) {
  return market.available ?? !market.unavailable_at;
}

/** Own columns first, then the competitors'; by name, numbers as numbers. */
const own = (key) => (/ \d+$/.test(key) ? 0 : 1);
export function byColumn(a, b) {
  return own(a) - own(b) || a.localeCompare(b, "en", { numeric: true });
}

/** What people call an event: its teams, else its name, else its id. */
export function eventName({ event_id, name, home_team, away_team }) {
  return home_team && away_team ? `${home_team} v ${away_team}` : name || `#${event_id}`;
}

/** A tournament with its country; `""` if neither is known. */
export function tournamentName(tournament) {
  return [tournament?.country, tournament?.name].filter(Boolean).join(" · ");
}

/** An element of the list in the form that the board reads: kickoff in ms, bookmakers and markets by key. */
function event(element) {
  const sides = new Map();
  for (const odds of element.odds) {
    const markets = new Map(odds.markets.map((market) => [marketKey(market), market]));
    sides.set(columnKey(odds), { confirmed: Date.parse(odds.last_confirmed_at), markets });
  }
  const kickoff = element.kickoff === null ? Infinity : Date.parse(element.kickoff);
  const tournament = tournamentName(element.tournament);
  const { name, home_team, away_team } = element;
  const words = [name, home_team, away_team, tournament, element.tournament?.sport].filter(Boolean);
  return {
    id: element.event_id,
    kickoff,
    sides,
    name: eventName(element),
    tournament,
    /** What a search finds. */
    words: words.join(" ").toLowerCase(),
  };
}

/** Notes in the outcomes of `now` how they moved since `before`. */
export function noteMoves(before, now, at) {
  const old = new Map(before.outcomes.map((outcome) => [outcome.name, outcome]));
  for (const outcome of now.outcomes) {
    const was = old.get(outcome.name);
    if (!was) continue;
    if (was.odds !== null && outcome.odds !== null && was.odds !== outcome.odds) {
      outcome.moved = { up: outcome.odds > was.odds, from: was.odds, at };
    } else {
      outcome.moved = was.moved;
    }
  }
}

export class Store extends EventTarget {
  events = new Map();
  /** Keys of all bookmakers seen; markets by key, with their outcomes' names. Neither shrinks while a page is open. */
  columns = [];
  markets = new Map();
  /** What people call the bookmaker of each column. */
  labels = new Map();
  #sorted = null;

  /** All events by kickoff, then id. */
  get sorted() {
    const order = (a, b) => (a.kickoff === b.kickoff ? a.id - b.id : a.kickoff - b.kickoff);
    this.#sorted ??= [...this.events.values()].sort(order);
    return this.#sorted;
  }

  /** Replaces all events by those of a whole list. */
  replace(elements, at) {
    const gone = new Set(this.events.keys());
    for (const element of elements) gone.delete(element.event_id);
    this.apply([...gone, ...elements.map((element) => element.event_id)], elements, at);
  }

  /** Replaces the events with these ids by those in `elements`. Removes those that `elements` does not name. */
  apply(ids, elements, at) {
    const given = new Map(elements.map((element) => [element.event_id, element]));
    for (const id of ids) {
      const element = given.get(id);
      const before = this.events.get(id);
      if (!element) {
        this.#sorted = this.events.delete(id) ? null : this.#sorted;
        continue;
      }
      const now = event(element);
      this.#learn(now);
      for (const odds of element.odds) this.#label(columnKey(odds), odds.bookmaker_name);
      for (const [key, side] of now.sides) {
        for (const [name, market] of side.markets) {
          const was = before?.sides.get(key)?.markets.get(name);
          if (was) noteMoves(was, market, at);
        }
      }
      if (before?.kickoff !== now.kickoff) this.#sorted = null;
      this.events.set(id, now);
      // The sorted list holds the events themselves, so the new one must replace the old one.
      if (this.#sorted) this.#sorted[this.#place(before)] = now;
    }
    this.dispatchEvent(new CustomEvent("change", { detail: new Set(ids) }));
  }

  #label(key, name) {
    const label = name || key;
    if (this.labels.get(key) === label) return;
    this.labels.set(key, label);
    this.dispatchEvent(new Event("columns"));
  }

  /** Where an event stands in the order. */
  #place(event) {
    let [low, high] = [0, this.#sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = this.#sorted[middle];
      const before = other.kickoff === event.kickoff ? other.id < event.id : other.kickoff < event.kickoff;
      if (before) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Notes bookmakers, markets and outcomes that were not seen before. */
  #learn(event) {
    let news = false;
    for (const [key, side] of event.sides) {
      if (!this.columns.includes(key)) {
        this.columns = [...this.columns, key].sort(byColumn);
        news = true;
      }
      for (const [name, market] of side.markets) {
        let known = this.markets.get(name);
        if (!known) {
          known = { label: marketLabel(market), outcomes: [] };
          this.markets.set(name, known);
          news = true;
        }
        for (const outcome of market.outcomes) {
          if (known.outcomes.includes(outcome.name) || known.outcomes.length >= MOST_OUTCOMES) continue;
          known.outcomes.push(outcome.name);
          news = true;
        }
      }
    }
    if (news) this.dispatchEvent(new Event("columns"));
  }
}

/** How many outcomes of a market the board has room for. An event's full markets show all of them. */
const MOST_OUTCOMES = 6;
