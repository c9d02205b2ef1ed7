// An event's panel: its full markets, with all bookmakers side by side. They are kept current while it is open.

import { setText, setTime } from "./cells.js";
import { age, kickoff, offset } from "./format.js";
import { History } from "./history.js";
import { marketKey } from "./link.js";
import { Markets } from "./markets.js";
import { Problem, ask, now, pause } from "./service.js";
import { byColumn, eventName, noteMoves, tournamentName } from "./store.js";

/** If the answer to a request takes longer than this, the panel says that it waits, ms. */
const SLOW = 1_000;

const element = (id) => document.getElementById(id);

/** The bookmakers of an event of /v1/events/{id} by column: `{ captured, confirmed, markets, label }`. */
function sidesOf(event) {
  const sides = new Map();
  const add = (key, snapshot, label) => {
    const markets = new Map(snapshot.markets.map((market) => [marketKey(market), market]));
    const [captured, confirmed] = [snapshot.captured_at, snapshot.last_confirmed_at].map((at) => Date.parse(at));
    sides.set(key, { captured, confirmed, markets, label: label || key });
  };
  for (const [id, snapshot] of Object.entries(event.betpawa)) {
    add(`betpawa ${id}`, snapshot, event.bookmakers[id]?.name);
  }
  for (const [source, snapshot] of Object.entries(event.competitors)) add(source, snapshot);
  return sides;
}

export class Detail {
  #dialog = element("detail");
  #search = element("detail-search");
  #markets = new Markets(element("detail-body"), (key, title) => this.#showHistory(key, title));
  #history = new History(element("detail-history"), () => this.#showMarkets());
  /** The market whose history is shown. */
  #charted = null;
  #id = null;
  /** The market that the address names, until the panel has marked it. */
  #wanted = null;
  /** What the panel shows; `null` if nothing is here yet, or the event is gone. */
  #sides = null;
  /** Why the panel may show old odds, or none; `null` if it shows current ones. */
  #problem = null;
  /** Said beside the number of markets. */
  #remark = "";
  /** Since when there is something newer than what the panel shows, ms; `null` if there is not. */
  #lacking = null;
  #busy = false;
  #again = false;
  #wake = () => {};

  /** `onClose()`: the user has closed the panel. */
  constructor(store, onClose) {
    store.addEventListener("change", (event) => {
      if (this.#id !== null && event.detail.has(this.#id)) this.refresh();
    });
    this.#search.addEventListener("input", () => this.#markets.filter(this.#search.value));
    element("detail-close").addEventListener("click", () => this.close());
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.close();
    });
    this.#dialog.addEventListener("close", () => {
      // The event comes later than the end: another event may be open by now.
      if (this.#dialog.open) return;
      this.#id = null;
      onClose();
    });
    setInterval(() => this.#id !== null && this.#draw(), 1_000);
  }

  /** The name of the open event; `""` if none is open. */
  get title() {
    return this.#id === null ? "" : element("detail-title").textContent;
  }

  close() {
    this.#dialog.close();
  }

  /** Opens an event, and shows one of its markets if `market` names one. NaN stands for an address without an id. */
  open(id, market) {
    this.#wanted = market;
    if (this.#id === id && this.#dialog.open) {
      this.#mark();
      return;
    }
    this.#id = id;
    this.#problem = Number.isNaN(id) ? "The address names no event: what stands behind event= is no id." : null;
    this.#clear();
    this.#search.value = "";
    this.#markets.filter("");
    setText(element("detail-title"), Number.isNaN(id) ? "No event" : `Event ${id}`);
    setText(element("detail-when"), "", "");
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#draw();
    this.#wake();
    this.refresh();
  }

  /** Says the same as the page's banner, which the open panel covers. `null`: nothing. */
  warn(text) {
    const banner = element("detail-banner");
    if (text !== null) setText(banner, text);
    banner.hidden = text === null;
  }

  /** Shows how the prices of a market moved, in place of the markets. */
  #showHistory(key, title) {
    this.#charted = key;
    element("detail-body").hidden = true;
    this.#history.show(this.#id, key, title, this.#sides);
  }

  /** Shows the markets again. */
  #showMarkets() {
    this.#history.close();
    element("detail-body").hidden = false;
    if (this.#charted !== null) this.#markets.focusHistory(this.#charted);
    this.#charted = null;
  }

  #clear() {
    this.#charted = null;
    this.#showMarkets();
    this.#sides = null;
    this.#remark = "";
    this.#lacking = null;
    this.#markets.clear();
  }

  /**
   * Requests the event until it is here or known to be gone. All calls that come meanwhile cause one more request
   * together.
   */
  async refresh() {
    if (this.#id === null || Number.isNaN(this.#id)) return;
    this.#lacking ??= Date.now();
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
      } while (this.#again && this.#id !== null && !Number.isNaN(this.#id));
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
      if (gone) this.#leave(error.message);
      else this.#fail(error.message);
      this.#draw();
      return !gone;
    }
  }

  /** The service does not hold the event. If it comes back, a change says so. */
  #leave(message) {
    this.#clear();
    this.#problem = `This event is no longer shown, or not yet. The service says: ${message}.`;
  }

  #fail(message) {
    const old = this.#sides ? "What you see may be old: " : "";
    this.#problem = `${old}${message}. Trying again by itself.`;
  }

  #take(event) {
    const sides = sidesOf(event);
    for (const [column, { markets }] of sides) {
      for (const [key, market] of markets) {
        const was = this.#sides?.get(column)?.markets.get(key);
        if (was) noteMoves(was, market, Date.now());
      }
    }
    this.#sides = sides;
    this.#problem = null;
    // A change that came after the request is not in this answer.
    this.#lacking = this.#again ? Date.now() : null;
    this.#name(event);
    this.#draw();
    this.#history.note(sides);
    this.#mark();
  }

  #name(event) {
    setText(element("detail-title"), [eventName(event), tournamentName(event.tournament)].filter(Boolean).join(" · "));
    const at = event.kickoff === null ? NaN : Date.parse(event.kickoff);
    const text = Number.isFinite(at) ? `${kickoff(at)} ${offset(at)}` : kickoff(at);
    setTime(element("detail-when"), at, text, "kickoff");
  }

  /** Marks the market that the address names, once it is known whether the event has it. */
  #mark() {
    if (!this.#sides) return;
    const wanted = this.#wanted;
    this.#wanted = null;
    if (wanted === null) return;
    // The filter may hide it.
    this.#search.value = "";
    this.#markets.filter("");
    this.#remark = this.#markets.mark(wanted) ? "" : "No bookmaker offers the market of this address.";
    this.#draw();
  }

  #draw() {
    if (this.#sides) this.#markets.draw(this.#id, this.#sides);
    const waits = this.#lacking === null ? 0 : Date.now() - this.#lacking;
    const old = this.#sides !== null && (this.#problem !== null || waits > SLOW);
    this.#dialog.classList.toggle("old", old);
    setText(element("detail-note"), this.#note(waits));
    setText(element("detail-ages"), this.#ages());
  }

  /** What the panel is doing. It changes rarely, because a screen reader reads out each change. */
  #note(waits) {
    if (this.#problem !== null) return this.#problem;
    if (!this.#sides) return waits > SLOW ? "Loading. The network or the service is slow." : "Loading";
    const count = this.#markets.count === 1 ? "1 market" : `${this.#markets.count} markets`;
    if (waits > SLOW) return `${count}. These prices have changed, and the new ones are being loaded.`;
    return [count, this.#remark].filter(Boolean).join(". ");
  }

  /** When each bookmaker's odds were last confirmed. */
  #ages() {
    if (!this.#sides) return "";
    const columns = [...this.#sides].sort(([a], [b]) => byColumn(a, b));
    const ages = columns.map(([, { label, confirmed }]) => `${label} ${age(now() - confirmed)}`);
    return ages.length ? `last confirmed ${ages.join(", ")} ago` : "";
  }
}
