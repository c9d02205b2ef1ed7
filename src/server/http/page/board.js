// The board: a table that has elements only for the rows in sight. Rows are drawn again when they change, and every
// second for their ages.

import { best, make, setText, setTime, showPrice } from "./cells.js";
import { age, kickoff } from "./format.js";
import { address } from "./link.js";
import { now } from "./service.js";
import { isAvailable } from "./store.js";

/** Heights in px, as in board.css: a table row; the event in a card; each bookmaker's line in a card; a tournament. */
const [ROW, CARD, CARD_LINE, GROUP] = [34, 46, 34, 30];
/** Widths of the columns, px. The price columns share what room is left. */
const [EVENT_WIDTH, PRICE_WIDTH, META_WIDTH] = [350, 60, 46];
/** Rows drawn beyond the visible ones, above and below. */
const SPARE = 8;
/** A price is shown as old if it was not confirmed for this long, ms. */
const OLD_PRICE = 15 * 60_000;
const narrow = matchMedia("(max-width: 720px)");

/**
 * Returns a function that says whether an event matches every word of the search. A word matches any part of the names
 * of the event, its teams and its tournament, or of its kickoff, or the beginning of its id or of a bookmaker's name.
 */
export function matcher(search, labels = new Map()) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const begins = (name, word) => name?.toLowerCase().startsWith(word);
  return (event) =>
    words.every(
      (word) =>
        event.words.includes(word) ||
        (/^#?\d+$/.test(word)
          ? String(event.id).startsWith(word.replace("#", ""))
          : [...event.sides.keys()].some((key) => begins(key, word) || begins(labels.get(key), word)) ||
            event.when.includes(word)),
    );
}

/** The events by tournament, each group after a row of its own. Groups stand by name, those without one at the end. */
function grouped(events) {
  const groups = new Map();
  for (const event of events) {
    const group = groups.get(event.tournament);
    if (group) group.push(event);
    else groups.set(event.tournament, [event]);
  }
  const order = (a, b) => (a === "" ? 1 : b === "" ? -1 : a.localeCompare(b, "en"));
  const names = [...groups.keys()].sort(order);
  return names.flatMap((name) => [{ id: `group ${name}`, group: name || "No tournament" }, ...groups.get(name)]);
}

export class Board {
  #store;
  #onOpen;
  #scroller = document.getElementById("board");
  #table = this.#scroller.querySelector("table");
  #head = this.#table.querySelector("thead");
  #body = this.#table.querySelector("tbody");
  #above = make("tr", { className: "spacer", "aria-hidden": "true" });
  #below = make("tr", { className: "spacer", "aria-hidden": "true" });
  #rows = new Map();
  /** Rows of events that went out of sight, for those that come into it. */
  #free = [];
  #market = null;
  #matches = matcher("");
  #isGrouped = false;
  /** Events, and between them the rows of tournaments. */
  #listed = [];
  /** How many events match the search. */
  #found = 0;
  /** The top of each listed row, and the end of the last one: px below the top of the first. */
  #tops = [0];
  /** What the list was made of: it is made again when this changes. */
  #listedOf = "";
  #search = "";
  #willDraw = false;
  /** Whether ages have passed a second, so that each row is filled again. */
  #isDue = false;
  #form = "";

  /** `onOpen(id)`: the user wants to see all markets of an event. */
  constructor(store, onOpen) {
    this.#store = store;
    this.#onOpen = onOpen;
    this.#body.append(this.#above, this.#below);
    store.addEventListener("change", () => this.draw());
    store.addEventListener("columns", () => this.draw());
    this.#scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    this.#body.addEventListener("keydown", (event) => this.#key(event));
    this.#body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-event]");
      // The browser follows the link by itself.
      if (row && !event.target.closest("a")) this.#onOpen(Number(row.dataset.event));
    });
    new ResizeObserver(() => this.draw()).observe(this.#scroller);
    narrow.addEventListener("change", () => this.draw());
    setInterval(() => {
      this.#isDue = true;
      this.draw();
    }, 1_000);
  }

  show(market) {
    this.#market = market;
    this.draw();
  }

  search(text) {
    [this.#search, this.#matches] = [text, matcher(text, this.#store.labels)];
    this.#scroller.scrollTop = 0;
    this.draw();
  }

  group(isGrouped) {
    this.#isGrouped = isGrouped;
    this.#scroller.scrollTop = 0;
    this.draw();
  }

  /** Draws at the next frame, once for all calls until then. */
  draw() {
    if (this.#willDraw) return;
    this.#willDraw = true;
    // A hidden page gets no frames, so a timer draws it.
    if (document.hidden) setTimeout(() => this.drawDue(), 1_000);
    else requestAnimationFrame(() => this.drawDue());
  }

  /** Draws what would otherwise wait for the next frame. */
  drawDue() {
    if (!this.#willDraw) return;
    this.#willDraw = false;
    this.#drawNow();
  }

  get #outcomes() {
    return this.#store.markets.get(this.#market)?.outcomes ?? [];
  }

  /** The index of the listed row at `y` px below the top of the first. */
  #at(y) {
    let [low, high] = [0, this.#listed.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1] <= y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #drawNow() {
    this.#drawHead();
    this.#list();
    const count = this.#listed.length;
    // Only the rows from `from` to `to` are drawn. The spacers above and below are as high as all other rows.
    const top = Math.max(0, this.#scroller.scrollTop - this.#head.offsetHeight);
    const from = Math.max(0, this.#at(top) - SPARE);
    const to = Math.min(count, this.#at(top + this.#scroller.clientHeight) + 1 + SPARE);
    this.#above.style.height = `${this.#tops[from]}px`;
    this.#below.style.height = `${this.#tops[count] - this.#tops[to]}px`;
    const wanted = this.#listed.slice(from, to);
    const ids = new Set(wanted.map((event) => event.id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      const hasFocus = row.contains(document.activeElement);
      row.remove();
      this.#rows.delete(id);
      // Making a row costs more than filling it. One that had the focus must not have it as another event.
      if (row.cells_ && !hasFocus) this.#free.push(row);
    }
    // Rows that are in their place are not moved: moving one would take its focus.
    let place = this.#above;
    wanted.forEach((event, index) => {
      const row = event.group === undefined ? this.#row(event.id) : this.#groupRow(event);
      if (place.nextElementSibling !== row) place.after(row);
      place = row;
      row.setAttribute("aria-rowindex", from + index + this.#head.rows.length + 1);
      row.classList.toggle("odd", (from + index) % 2 === 1);
      if (event.group === undefined) this.#fill(row, this.#store.events.get(event.id));
    });
    this.#isDue = false;
    this.onDrawn?.(this.#found, this.#store.events.size);
    this.#free.length = Math.min(this.#free.length, SPARE);
  }

  /** Makes the list of rows and their places, if anything that they depend on has changed. */
  #list() {
    const { shape, labels, events, sorted } = this.#store;
    const of = JSON.stringify([shape, [...labels.values()], this.#search, this.#isGrouped, narrow.matches]);
    if (of === this.#listedOf) return;
    this.#listedOf = of;
    const found = sorted.filter(this.#matches);
    this.#listed = this.#isGrouped ? grouped(found) : found;
    this.#tops = [0];
    let end = 0;
    for (const { group, size } of this.#listed) {
      if (group !== undefined) end += GROUP;
      else end += narrow.matches ? CARD + CARD_LINE * size : ROW;
      this.#tops.push(end);
    }
    this.#found = found.length;
    this.#table.setAttribute("aria-rowcount", this.#listed.length + this.#head.rows.length);
    document.getElementById("nothing").hidden = found.length > 0 || events.size === 0;
  }

  /** Draws the head anew if the columns have changed. Then removes all rows, because they have the old columns. */
  #drawHead() {
    const form = JSON.stringify([this.#market, this.#store.columns, this.#outcomes, [...this.#store.labels]]);
    if (form === this.#form) return;
    this.#form = form;
    for (const row of this.#rows.values()) row.remove();
    this.#rows.clear();
    this.#free = [];
    const [names, outcomes] = [make("tr", { role: "row" }), make("tr", { role: "row" })];
    const role = "columnheader";
    const header = (scope, className, text, more) => make("th", { role, scope, className, text, ...more });
    names.append(header("col", "event", "Event", { rowspan: 2 }));
    const meta = "the bookmaker's margin, and how long ago it was last seen to offer this";
    for (const column of this.#store.columns) {
      const label = this.#store.labels.get(column) ?? column;
      names.append(header("colgroup", "first", label, { colspan: this.#outcomes.length + 1, title: column }));
      this.#outcomes.forEach((outcome, index) => {
        outcomes.append(header("col", index ? "" : "first", outcome));
      });
      outcomes.append(header("col", "meta", "margin age", { title: meta }));
    }
    this.#head.replaceChildren(names, outcomes);
    // The widths do not depend on which rows are drawn. Otherwise columns would jump while the user scrolls.
    const widths = this.#store.columns.flatMap(() => [...this.#outcomes.map(() => ""), `${META_WIDTH}px`]);
    const columns = [`${EVENT_WIDTH}px`, ...widths].map((width) => {
      const column = make("col");
      column.style.width = width;
      return column;
    });
    const group = make("colgroup");
    group.append(...columns);
    this.#table.querySelector("colgroup")?.remove();
    this.#head.before(group);
    const side = PRICE_WIDTH * this.#outcomes.length + META_WIDTH;
    this.#table.style.minWidth = `${EVENT_WIDTH + side * this.#store.columns.length}px`;
    this.#table.style.setProperty("--outcomes", Math.max(1, this.#outcomes.length));
  }

  #row(id) {
    let row = this.#rows.get(id);
    if (row) return row;
    row = this.#free.pop() ?? this.#make();
    this.#rows.set(id, row);
    row.dataset.event = id;
    row.shows = null;
    row.querySelector("a").setAttribute("href", address({ event: id }));
    return row;
  }

  #make() {
    const row = make("tr", { role: "row" });
    const header = make("th", { role: "rowheader", scope: "row", className: "event" });
    const link = make("a");
    link.append(make("b"), make("time"));
    header.append(link);
    row.append(header);
    row.cells_ = this.#store.columns.map((column) => {
      const prices = this.#outcomes.map((outcome, index) => {
        const cell = make("td", { role: "cell", className: index ? "price" : "price first", "data-column": column });
        cell.dataset.outcome = outcome;
        // Shown where the table is folded into cards.
        cell.dataset.label = outcome;
        return cell;
      });
      const meta = make("td", { role: "cell", className: "meta", "data-column": column });
      meta.dataset.label = this.#store.labels.get(column) ?? column;
      meta.append(make("span", { className: "margin" }), make("span", { className: "age" }));
      row.append(...prices, meta);
      return { prices, meta };
    });
    return row;
  }

  #groupRow({ id, group }) {
    let row = this.#rows.get(id);
    if (row) return row;
    row = make("tr", { role: "row", className: "group" });
    const span = 1 + this.#store.columns.length * (this.#outcomes.length + 1);
    row.append(make("th", { role: "rowheader", scope: "rowgroup", className: "event", text: group, colspan: span }));
    this.#rows.set(id, row);
    return row;
  }

  #fill(row, event) {
    if (row.shows === event && !this.#isDue) return;
    row.shows = event;
    const [name, time] = row.querySelector("a").children;
    setText(name, event.name, [event.name, event.tournament, `event ${event.id}`].filter(Boolean).join(", "));
    setTime(time, event.kickoff, kickoff(event.kickoff), "kickoff");
    const sides = this.#store.columns.map((column) => event.sides.get(column));
    const markets = sides.map((side) => side?.markets.get(this.#market));
    const offers = markets.map((market) => (market && isAvailable(market) ? market.outcomes : []));
    const find = (outcomes, name) => outcomes?.find((outcome) => outcome.name === name);
    this.#outcomes.forEach((name, index) => {
      const most = best(offers.map((outcomes) => find(outcomes, name)));
      markets.forEach((market, at) => {
        const outcome = find(market?.outcomes, name);
        const gone = market !== undefined && !isAvailable(market);
        const isBest = !gone && outcome?.is_active === true && outcome.odds === most;
        showPrice(row.cells_[at].prices[index], outcome, { best: isBest, gone });
      });
    });
    markets.forEach((market, at) => {
      const { prices, meta } = row.cells_[at];
      for (const cell of [...prices, meta]) cell.classList.toggle("absent", !sides[at]);
      const [margin, old] = meta.children;
      const confirmed = sides[at]?.confirmed ?? NaN;
      const passed = now() - confirmed;
      const isOld = passed > OLD_PRICE;
      setText(margin, market?.margin == null ? "" : `${market.margin.toFixed(1)}%`);
      setTime(old, confirmed, sides[at] ? age(passed) : "", isOld ? "not lately, last confirmed" : "last confirmed");
      old.classList.toggle("old", isOld);
    });
  }

  /** The keys up and down go from event to event, also to those that are not drawn yet. */
  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest("tr[data-event]");
    if (!step || !row) return;
    event.preventDefault();
    let index = this.#listed.findIndex((listed) => listed.id === Number(row.dataset.event)) + step;
    if (this.#listed[index]?.group !== undefined) index += step;
    const next = this.#listed[index];
    if (!next) return;
    const [top, end] = [this.#tops[index], this.#tops[index + 1]];
    const [from, room] = [this.#scroller.scrollTop, this.#scroller.clientHeight - this.#head.offsetHeight];
    if (top < from) this.#scroller.scrollTop = top;
    else if (end > from + room) this.#scroller.scrollTop = end - room;
    this.#drawNow();
    this.#rows.get(next.id)?.querySelector("a").focus({ preventScroll: true });
  }
}
