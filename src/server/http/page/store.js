// What the page holds: every event's inline odds, in kickoff order, and which prices moved lately.

import { kickoff } from "./format.js";
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

/** An element of the list as the board reads it. Most events are never looked at, so the rest of it waits for that. */
class ListedEvent {
  #element;
  #sides;
  #words;
  #when;

  constructor(element) {
    this.#element = element;
    this.id = element.event_id;
    /** In ms since 1970. Events without one come last. */
    this.kickoff = element.kickoff === null ? Infinity : Date.parse(element.kickoff);
    this.name = eventName(element);
    this.tournament = tournamentName(element.tournament);
    /** How many bookmakers have odds of it. */
    this.size = element.odds.length;
  }

  /** The bookmakers by column: when they last confirmed their odds, and their markets by key. */
  get sides() {
    this.#sides ??= new Map(this.#element.odds.map((odds) => [columnKey(odds), sideOf(odds)]));
    return this.#sides;
  }

  /** What a search finds: names, and when it begins. */
  get words() {
    const { name, home_team, away_team, tournament } = this.#element;
    const all = [name, home_team, away_team, this.tournament, tournament?.sport];
    this.#words ??= all.filter(Boolean).join(" ").toLowerCase();
    return this.#words;
  }

  get when() {
    this.#when ??= kickoff(this.kickoff).toLowerCase();
    return this.#when;
  }

  /** Whether the same searches find both, at the same place in the list, and their cards are as high. */
  standsLike(other) {
    const columns = (event) => event.#element.odds.map(columnKey).join();
    return this.kickoff === other.kickoff && this.words === other.words && columns(this) === columns(other);
  }
}

function sideOf(odds) {
  const markets = new Map(odds.markets.map((market) => [marketKey(market), market]));
  return { confirmed: Date.parse(odds.last_confirmed_at), markets };
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

/** Notes the moves of all prices of an event. */
function moves(before, now, at) {
  for (const [column, side] of now.sides) {
    for (const [key, market] of side.markets) {
      const was = before.sides.get(column)?.markets.get(key);
      if (was) noteMoves(was, market, at);
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
  /** Grows when an event comes, goes, moves to another place, or gets other names or bookmakers. */
  shape = 0;
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
    let news = false;
    for (const id of ids) {
      const element = given.get(id);
      const before = this.events.get(id);
      if (!element) {
        if (this.events.delete(id)) [this.#sorted, this.shape] = [null, this.shape + 1];
        continue;
      }
      news = this.#learn(element) || news;
      const now = new ListedEvent(element);
      if (before) moves(before, now, at);
      if (!before?.standsLike(now)) this.shape += 1;
      if (before?.kickoff !== now.kickoff) this.#sorted = null;
      this.events.set(id, now);
      // The sorted list holds the events themselves, so the new one must replace the old one.
      if (this.#sorted) this.#sorted[this.#place(before)] = now;
    }
    if (news) this.dispatchEvent(new Event("columns"));
    this.dispatchEvent(new CustomEvent("change", { detail: new Set(ids) }));
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

  /** Notes bookmakers, markets and outcomes that were not seen before. Returns whether there are any. */
  #learn(element) {
    let news = false;
    for (const odds of element.odds) {
      const key = columnKey(odds);
      const label = odds.bookmaker_name || key;
      if (!this.labels.has(key)) this.columns = [...this.columns, key].sort(byColumn);
      if (this.labels.get(key) !== label) {
        this.labels.set(key, label);
        news = true;
      }
      for (const market of odds.markets) news = this.#learnMarket(market) || news;
    }
    return news;
  }

  #learnMarket(market) {
    const key = marketKey(market);
    const known = this.markets.get(key) ?? { label: marketLabel(market), outcomes: [] };
    let news = !this.markets.has(key);
    if (news) this.markets.set(key, known);
    for (const { name } of market.outcomes) {
      if (known.outcomes.includes(name) || known.outcomes.length >= MOST_OUTCOMES) continue;
      known.outcomes.push(name);
      news = true;
    }
    return news;
  }
}

/** How many outcomes of a market the board has room for. An event's full markets show all of them. */
const MOST_OUTCOMES = 6;
