// Elements, and the prices and times in them: for the board and for an event's panel.

import { price, utc } from "./format.js";
import { MOVE_SHOWN } from "./store.js";

/** A price that moved lights up until the first draw after this time, ms. */
const LIT = 1_000;

/** An element with a class, a role and text. */
export function make(tag, { className, role, text, ...attributes } = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (role) element.setAttribute("role", role);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Sets the text and the title, each only if it differs: writing one costs a layout, and a screen reader may read it. */
export function setText(element, text, title = element.title) {
  if (element.textContent !== text) element.textContent = text;
  if (element.title !== title) element.title = title;
}

/** Shows a time, ms since 1970, as `text`. Its title has the exact time in UTC. */
export function setTime(element, at, text, what = "") {
  setText(element, text, [what, utc(at)].filter(Boolean).join(": "));
  const exact = Number.isFinite(at) ? new Date(at).toISOString() : "";
  if (element.tagName === "TIME" && element.dateTime !== exact) element.dateTime = exact;
}

/**
 * Shows a price in a cell: its text, its move, and whether it is the best or not available. The cell lights up if the
 * price moved just now.
 */
export function showPrice(cell, outcome, { best = false, gone = false } = {}) {
  const moved = outcome?.moved && Date.now() - outcome.moved.at < MOVE_SHOWN ? outcome.moved : null;
  const direction = moved ? (moved.up ? "up" : "down") : "";
  // Not an animation: that would cost each of its frames a style, and many prices move at once.
  const lit = moved !== null && Date.now() - moved.at < LIT;
  const off = outcome !== undefined && (gone || !outcome.is_active);
  const text = outcome === undefined ? "" : price(outcome.odds);
  const from = moved && price(moved.from);
  const state = `${text} ${direction} ${from} ${lit} ${best} ${off}`;
  if (cell.shown === state) return;
  cell.shown = state;
  cell.dataset.moved = direction;
  cell.classList.toggle("lit", lit);
  cell.classList.toggle("best", best);
  cell.classList.toggle("off", off);
  cell.classList.toggle("empty", text === "");
  const said = [best && "best", off && "not available", moved && `${direction} from ${from}`];
  showValue(cell, off ? "s" : "span", text, said.filter(Boolean).join(", "));
}

/** Shows the text in an element `tag` of the cell, and the words as its title and for a screen reader. */
function showValue(cell, tag, text, words) {
  if (cell.firstElementChild?.localName !== tag) cell.replaceChildren(make(tag), make("span", { className: "unseen" }));
  const [value, unseen] = cell.children;
  setText(value, text);
  setText(unseen, words && `, ${words}`);
  if (cell.title !== words) cell.title = words;
}

/** The greatest odds that are available; NaN if all bookmakers have the same. */
export function best(outcomes) {
  const odds = outcomes.filter((outcome) => outcome?.is_active && outcome.odds !== null).map((outcome) => outcome.odds);
  const most = Math.max(...odds);
  return odds.length > 1 && most > Math.min(...odds) ? most : NaN;
}
