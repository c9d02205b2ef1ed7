// The charts of an event's panel: how the prices of a market moved, a chart for each outcome, a line for each bookmaker.

import { make, setText } from "./cells.js";
import { clock, marks, price } from "./format.js";
import { Moves } from "./moves.js";
import { Problem, ask, now } from "./service.js";

const HOUR = 3_600_000;
/** How far back a chart goes. */
const SPANS = [["6 hours", 6 * HOUR], ["1 day", 24 * HOUR], ["1 week", 7 * 24 * HOUR], ["all", Infinity]];
const USUAL = "1 week";

/** How many answers of 1,000 snapshots a chart may be made of. */
const MOST_ANSWERS = 10;

/** A line has a colour and a pattern, because not everybody can tell the colours. No two of 25 lines have both. */
const COLOURS = ["--accent", "--down", "--up", "--warn", "--muted"];
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3], [14, 4]];
const style = (index) => [COLOURS[index % 5], DASHES[(index + Math.floor(index / 5)) % 5]];

/** The height of a chart without its legend, px. */
const HEIGHT = 150;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** uPlot, loaded when the first chart is drawn. */
let plot;
const loadPlot = () => (plot ??= import("./uplot.js").then((file) => file.default));

export class History {
  #region;
  #back;
  #title = make("h3");
  #spans = make("select", { "aria-label": "Time shown" });
  #note = make("p", { role: "status" });
  #charts = make("div", { className: "charts" });
  #plots = [];
  /** `{ event, key, moves, labels, sides, from }`; `null` while it is closed. */
  #open = null;

  /** Draws into `region`. `onClose()`: the user goes back to the markets. */
  constructor(region, onClose) {
    this.#region = region;
    this.#back = make("button", { type: "button", text: "All markets" });
    for (const [name] of SPANS) this.#spans.append(make("option", { value: name, text: name }));
    const head = make("div", { className: "head" });
    head.append(this.#back, this.#title, this.#spans);
    region.append(head, this.#note, this.#charts);
    this.#back.addEventListener("click", () => {
      this.close();
      onClose();
    });
    this.#spans.addEventListener("change", () => this.#load());
    new ResizeObserver(() => this.#fit()).observe(this.#charts);
  }

  get isOpen() {
    return this.#open !== null;
  }

  /** Shows a market of an event. `sides` are what its bookmakers offer now, by column. */
  show(event, key, title, sides) {
    this.#open = { event, key, moves: null, labels: new Map(), sides, from: -Infinity };
    this.#region.hidden = false;
    this.#spans.value = USUAL;
    setText(this.#title, title);
    this.note(sides);
    this.#load();
    this.#back.focus();
  }

  close() {
    this.#open = null;
    this.#clear();
    this.#region.hidden = true;
  }

  /** What the bookmakers offer now, by column: `{ captured, markets, label }`. Goes on with the lines. */
  note(sides) {
    if (!this.#open) return;
    this.#open.sides = sides;
    const { key, moves, labels } = this.#open;
    for (const [column, { captured, markets, label }] of sides) {
      labels.set(column, label);
      moves?.add(column, captured, markets.get(key));
    }
    this.#draw();
  }

  #clear() {
    for (const drawn of this.#plots) drawn.plot.destroy();
    this.#plots = [];
    this.#charts.replaceChildren();
  }

  /** Requests the history of the time that is chosen. */
  async #load() {
    const open = this.#open;
    const [, span] = SPANS.find(([name]) => name === this.#spans.value);
    const [market, line] = open.key.split("/");
    const query = [`market=${market}`, line && `line=${line}`];
    open.from = now() - span;
    if (span !== Infinity) query.push(`from=${new Date(open.from).toISOString()}`);
    setText(this.#note, "Loading");
    this.#clear();
    open.moves = null;
    const asked = (open.asked = Symbol("a request"));
    const isWanted = () => this.#open === open && open.asked === asked;
    try {
      const path = `/v1/events/${open.event}/history?${query.filter(Boolean).join("&")}`;
      const plotted = loadPlot();
      // The latest come first.
      const answers = [];
      let next = null;
      do {
        const { body } = await ask(next === null ? path : `${path}&to=${encodeURIComponent(next)}`);
        if (!isWanted()) return;
        answers.unshift(body.snapshots);
        next = body.next_to;
      } while (next !== null && answers.length < MOST_ANSWERS);
      await plotted;
      if (!isWanted()) return;
      const moves = new Moves(open.key);
      for (const snapshots of answers) moves.take(snapshots);
      // Older ones are not known.
      if (next !== null) open.from = Date.parse(next);
      open.isCut = next !== null;
      open.moves = moves;
      this.note(open.sides);
    } catch (error) {
      const reason = error instanceof Problem ? `The service says: ${error.message}.` : `${error.message}.`;
      if (isWanted()) setText(this.#note, `The prices over time cannot be shown. ${reason}`);
    }
  }

  async #build(open) {
    const Plot = await loadPlot();
    if (this.#open !== open || open.moves === null) return;
    this.#clear();
    for (const outcome of open.moves.outcomes) {
      const figure = make("figure");
      const caption = make("figcaption");
      const ends = make("span", { className: "meta" });
      caption.append(make("b", { text: outcome }), " ", ends);
      figure.append(caption);
      this.#charts.append(figure);
      const options = this.#options(Plot, open, figure.clientWidth);
      const drawn = new Plot(options, open.moves.lines(outcome, open.from, now()), figure);
      drawn.root.querySelector("canvas").setAttribute("aria-hidden", "true");
      this.#plots.push({ outcome, ends, plot: drawn });
    }
    this.#draw();
  }

  #options(Plot, { moves, labels }, width) {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const series = moves.columns.map((column, index) => {
      const [name, dash] = style(index);
      return {
        label: labels.get(column) ?? column,
        stroke: colour(name),
        dash,
        width: 2,
        paths: Plot.paths.stepped({ align: 1 }),
        points: { show: false },
        value: (_, odds) => price(odds),
      };
    });
    return {
      width,
      height: HEIGHT,
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: true } },
      axes: [{ ...axis, space: 70, values: (_, times) => marks(times) }, { ...axis, size: 46, values: (_, ticks) => ticks.map((odds) => price(odds)) }],
      series: [{ label: "Time", value: (_, at) => (at === null ? "–" : clock(at * 1_000)) }, ...series],
    };
  }

  /** Draws what is known by now. */
  #draw() {
    const { moves, labels, isCut, from } = this.#open ?? {};
    if (!moves) return;
    // A bookmaker that was not there before needs a line of its own, and an outcome a chart.
    const drawn = this.#plots.map(({ outcome }) => outcome);
    const lacks = this.#plots.some(({ plot }) => plot.series.length !== moves.columns.length + 1);
    if (lacks || drawn.join() !== moves.outcomes.join()) {
      this.#build(this.#open);
      return;
    }
    for (const { outcome, ends, plot } of this.#plots) {
      plot.setData(moves.lines(outcome, from, now()));
      const moved = ([column, first, latest]) => `${labels.get(column) ?? column} ${price(first)} → ${price(latest)}`;
      setText(ends, moves.ends(outcome).map(moved).join(", "));
    }
    const none = "Nobody offered this market in that time.";
    const cut = `Earlier snapshots than those of ${clock(from)} are left out, because they are too many.`;
    setText(this.#note, isCut ? cut : moves.outcomes.length ? "" : none);
  }

  #fit() {
    for (const { plot } of this.#plots) {
      const width = plot.root.parentElement.clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }
  }
}
