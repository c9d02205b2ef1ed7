// The table of an event's panel: a group of rows for each market, a column for each bookmaker.

import { best, make, setText, showPrice } from "./cells.js";
import { address } from "./link.js";
import { byColumn, isAvailable } from "./store.js";

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

/** The markets of all bookmakers by key, each with its title and the names of its outcomes. */
function together(columns, sides) {
  const markets = new Map();
  for (const column of columns) {
    for (const [key, market] of sides.get(column).markets) {
      const known = markets.get(key) ?? { title: title(market), outcomes: [] };
      markets.set(key, known);
      for (const { name } of market.outcomes) if (!known.outcomes.includes(name)) known.outcomes.push(name);
    }
  }
  return markets;
}

export class Markets {
  #region;
  #onHistory;
  /** The elements of each market by key: `{ group, link, button, outcomes, margins, prices }`. */
  #drawn = new Map();
  #form = "";
  #words = [];

  /** Draws into `region`. `onHistory(key, title)`: the user asks how the prices of a market moved. */
  constructor(region, onHistory) {
    this.#region = region;
    this.#onHistory = onHistory;
  }

  get count() {
    return this.#drawn.size;
  }

  clear() {
    this.#form = "";
    this.#drawn.clear();
    this.#region.replaceChildren();
  }

  /** `sides` are the bookmakers of event `id` by column: `{ label, markets }`. */
  draw(id, sides) {
    const columns = [...sides.keys()].sort(byColumn);
    const markets = together(columns, sides);
    const labels = columns.map((column) => sides.get(column).label);
    const form = JSON.stringify([id, columns, labels, [...markets]]);
    if (form !== this.#form) this.#build(id, columns, labels, markets);
    this.#form = form;
    for (const [key, rows] of this.#drawn) {
      fill(rows, columns.map((column) => sides.get(column).markets.get(key)));
    }
  }

  /** Shows only the markets whose titles have all words of `text`. */
  filter(text) {
    this.#words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { group } of this.#drawn.values()) {
      group.hidden = !this.#words.every((word) => group.dataset.market.includes(word));
    }
  }

  /** Marks a market and scrolls to it. `null` marks none. Returns whether it is there. */
  mark(key) {
    for (const { link } of this.#drawn.values()) link.removeAttribute("aria-current");
    const found = this.#drawn.get(key);
    if (!found) return false;
    found.link.setAttribute("aria-current", "true");
    found.link.focus({ preventScroll: true });
    found.group.scrollIntoView({ block: "nearest" });
    return true;
  }

  focusHistory(key) {
    this.#drawn.get(key)?.button.focus();
  }

  /** Builds the table anew. The focus and the mark stay on their market. */
  #build(id, columns, labels, markets) {
    const links = [...this.#drawn].map(([key, { link }]) => [key, link]);
    const focused = links.find(([, link]) => link === document.activeElement)?.[0];
    const marked = links.find(([, link]) => link.hasAttribute("aria-current"))?.[0];
    const table = make("table");
    table.append(make("caption", { className: "unseen", text: "All markets, a column for each bookmaker" }), head(labels));
    this.#drawn.clear();
    for (const [key, market] of markets) {
      const rows = groupOf(address({ event: id, market: key }), columns, market);
      rows.button.addEventListener("click", () => this.#onHistory(key, market.title));
      this.#drawn.set(key, rows);
      table.append(rows.group);
    }
    this.#region.replaceChildren(table);
    this.filter(this.#words.join(" "));
    this.#drawn.get(focused)?.link.focus({ preventScroll: true });
    this.#drawn.get(marked)?.link.setAttribute("aria-current", "true");
  }
}

function head(labels) {
  const row = make("tr");
  row.append(...["Outcome", ...labels].map((text) => make("th", { scope: "col", text })));
  const thead = make("thead");
  thead.append(row);
  return thead;
}

/** The rows of a market: its title, which is a link to it, and a row for each outcome. */
function groupOf(href, columns, { title, outcomes }) {
  const group = make("tbody", { "data-market": title.toLowerCase() });
  const link = make("a", { href, text: title, title: "a link to this market" });
  const header = make("th", { scope: "rowgroup" });
  const button = make("button", { type: "button", text: "History", "aria-label": `History of ${title}` });
  header.append(link, button);
  const margins = columns.map(() => make("td", { className: "meta", title: "the bookmaker's margin" }));
  const top = make("tr", { className: "market" });
  top.append(header, ...margins);
  group.append(top);
  const prices = outcomes.map((name) => {
    const row = make("tr");
    const cell = (column) => make("td", { className: "price", "data-column": column, "data-outcome": name });
    const cells = columns.map(cell);
    row.append(make("th", { scope: "row", text: name }), ...cells);
    group.append(row);
    return cells;
  });
  return { group, link, button, outcomes, margins, prices };
}

/** Fills the rows of a market with what each bookmaker offers. */
function fill({ outcomes, margins, prices }, offered) {
  offered.forEach((market, at) => {
    const share = market && margin(market);
    setText(margins[at], share == null ? "" : `${share.toFixed(1)}%`);
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
