// An event's full markets, with all bookmakers side by side. They are kept current while the dialog is open.

import { best, make, showPrice } from "./board.js";
import { age, kickoff } from "./format.js";
import { Problem, ask, now, pause } from "./service.js";
import { byColumn, eventName, isAvailable, noteMoves, tournamentName } from "./store.js";

/** Markets of different bookmakers are the same if these agree. */
const identity = ({ betpawa_market_id, line, handicap_type, handicap_home, handicap_away }) =>
  JSON.stringify([betpawa_market_id, line, handicap_type, handicap_home, handicap_away]);

/** The bookmaker's share in per cent, computed as /v1/list does; `null` if an outcome has no odds above 0. */
function margin(market) {
  let shares = 0;
  for (const { odds } of market.outcomes) {
    if (!(odds > 0)) return null;
    shares += 1 / odds;
  }
  return market.outcomes.length ? (shares - 1) * 100 : null;
}

function title(market) {
  const parts = [market.betpawa_market_name];
  if (market.line !== null && market.line !== undefined) parts.push(String(market.line));
  const sides = [market.handicap_home, market.handicap_away].filter((side) => side !== null && side !== undefined);
  if (sides.length) parts.push(`(${sides.map((side) => (side > 0 ? `+${side}` : side)).join(" / ")})`);
  return parts.join(" ");
}

export class Detail {
  #dialog = document.getElementById("detail");
  #body = document.getElementById("detail-body");
  #note = document.getElementById("detail-note");
  #search = document.getElementById("detail-search");
  #id = null;
  #sides = null;
  #table = null;
  #form = "";
  /** Why the dialog may show old odds; `null` if it shows current ones. */
  #problem = null;
  #busy = false;
  #again = false;
  #wake = () => {};

  constructor(store) {
    store.addEventListener("change", (event) => {
      if (this.#id !== null && event.detail.has(this.#id)) this.refresh();
    });
    this.#search.addEventListener("input", () => this.#filter());
    document.getElementById("detail-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
    this.#dialog.addEventListener("close", () => {
      this.#id = null;
      if (location.hash.startsWith("#event=")) history.replaceState(null, "", location.pathname);
    });
    setInterval(() => this.#id !== null && this.#draw(), 1_000);
  }

  open(id) {
    this.#id = id;
    this.#problem = null;
    this.#clear();
    this.#search.value = "";
    document.getElementById("detail-title").textContent = `Event ${id}`;
    this.#say("loading");
    history.replaceState(null, "", `#event=${id}`);
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#wake();
    this.refresh();
  }

  #clear() {
    this.#sides = null;
    this.#form = "";
    this.#body.replaceChildren();
  }

  #say(text) {
    // Only if the text differs, because a screen reader reads out each change.
    if (this.#note.textContent !== text) this.#note.textContent = text;
  }

  /**
   * Requests the event until it is here or known to be gone. All calls that come meanwhile cause one more request
   * together.
   */
  async refresh() {
    if (this.#id === null) return;
    if (this.#busy) {
      this.#again = true;
      return;
    }
    this.#busy = true;
    try {
      let tries = 0;
      do {
        this.#again = false;
        const id = this.#id;
        const failed = await this.#ask(id);
        if (failed) {
          // `open` ends the pause, so that another event need not wait for it.
          await Promise.race([pause(tries), new Promise((resolve) => (this.#wake = resolve))]);
        }
        tries = failed ? tries + 1 : 0;
        this.#again ||= failed || this.#id !== id;
      } while (this.#again && this.#id !== null);
    } finally {
      this.#busy = false;
    }
  }

  /** Requests the event once. Returns whether to try again. */
  async #ask(id) {
    try {
      const { body } = await ask(`/v1/events/${id}`);
      if (this.#id === id) this.#take(body);
      return false;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (this.#id !== id) return false;
      const gone = error.status === 404;
      if (gone) this.#clear();
      const old = this.#sides ? "What you see may be old: " : "";
      this.#problem = gone ? error.message : `${old}${error.message}. Trying again by itself.`;
      this.#draw();
      return !gone;
    }
  }

  #take(event) {
    const sides = new Map();
    const add = (key, snapshot, label) => {
      const markets = new Map(snapshot.markets.map((market) => [identity(market), market]));
      const before = this.#sides?.get(key)?.markets;
      for (const [same, market] of markets) {
        const was = before?.get(same);
        if (was) noteMoves(was, market, Date.now());
      }
      sides.set(key, { confirmed: Date.parse(snapshot.last_confirmed_at), markets, label: label || key });
    };
    for (const [id, snapshot] of Object.entries(event.betpawa)) {
      add(`betpawa ${id}`, snapshot, event.bookmakers[id]?.name);
    }
    for (const [source, snapshot] of Object.entries(event.competitors)) add(source, snapshot);
    this.#sides = sides;
    this.#problem = null;
    const at = event.kickoff === null ? NaN : Date.parse(event.kickoff);
    const words = [eventName(event), kickoff(at), tournamentName(event.tournament)];
    document.getElementById("detail-title").textContent = words.filter(Boolean).join(" · ");
    this.#draw();
  }

  #draw() {
    if (this.#problem !== null) this.#say(this.#problem);
    if (!this.#sides) return;
    const columns = [...this.#sides.keys()].sort(byColumn);
    const markets = new Map();
    for (const column of columns) {
      for (const [same, market] of this.#sides.get(column).markets) {
        const known = markets.get(same) ?? { title: title(market), outcomes: [] };
        markets.set(same, known);
        for (const { name } of market.outcomes) if (!known.outcomes.includes(name)) known.outcomes.push(name);
      }
    }
    const labels = columns.map((column) => this.#sides.get(column).label);
    const form = JSON.stringify([columns, labels, [...markets]]);
    if (form !== this.#form) this.#build(columns, labels, markets);
    this.#form = form;
    for (const [same, { outcomes, margins, prices }] of this.#table) {
      const offered = columns.map((column) => this.#sides.get(column).markets.get(same));
      offered.forEach((market, at) => {
        const share = market && margin(market);
        margins[at].textContent = share == null ? "" : `${share.toFixed(1)}%`;
      });
      outcomes.forEach((name, row) => {
        const find = (market) => market?.outcomes.find((outcome) => outcome.name === name);
        const most = best(offered.map((market) => (market && isAvailable(market) ? find(market) : undefined)));
        offered.forEach((market, at) => {
          const outcome = find(market);
          const gone = market !== undefined && !isAvailable(market);
          const isBest = !gone && outcome?.is_active === true && outcome.odds === most;
          showPrice(prices[row][at], outcome, { best: isBest, gone });
        });
      });
    }
    const ages = columns.map((column, at) => `${labels[at]} ${age(now() - this.#sides.get(column).confirmed)}`);
    if (this.#problem === null) this.#say(`${markets.size} markets · last confirmed ${ages.join(", ")} ago`);
  }

  #build(columns, labels, markets) {
    const table = make("table");
    const head = make("tr");
    head.append(...["Outcome", ...labels].map((text) => make("th", { scope: "col", text })));
    const thead = make("thead");
    thead.append(head);
    table.append(thead);
    this.#table = new Map();
    for (const [same, market] of markets) {
      const group = make("tbody", { "data-market": market.title.toLowerCase() });
      const header = make("tr", { className: "market" });
      const margins = columns.map(() => make("td", { className: "meta", title: "the bookmaker's margin" }));
      header.append(make("th", { scope: "rowgroup", text: market.title }), ...margins);
      group.append(header);
      const prices = market.outcomes.map((name) => {
        const row = make("tr");
        const cell = (column) => make("td", { className: "price", "data-column": column, "data-outcome": name });
        const cells = columns.map(cell);
        row.append(make("th", { scope: "row", text: name }), ...cells);
        group.append(row);
        return cells;
      });
      this.#table.set(same, { outcomes: market.outcomes, margins, prices });
      table.append(group);
    }
    this.#body.replaceChildren(table);
    this.#filter();
  }

  #filter() {
    const words = this.#search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const group of this.#body.querySelectorAll("tbody")) {
      group.hidden = !words.every((word) => group.dataset.market.includes(word));
    }
  }
}
