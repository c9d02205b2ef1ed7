// The health panel: what /v1/stats says, its rates of change, and what happened while the page was open.

import { make, setTime } from "./cells.js";
import { Chart } from "./chart.js";
import { bytes, clock, count, duration, rate } from "./format.js";
import { Quantiles } from "./quantiles.js";

/** How many lines the list of what happened keeps. */
const MOST_LINES = 40;

/**
 * The tiles. `read(stats, per, visible)` returns what a tile shows. `per(path)` is the growth of a counter per second
 * since the last answer. `visible` has the quantiles of the last minute. What is shown may bring another title and hint.
 */
const TILES = [
  {
    id: "age",
    title: "Age of what is served",
    hint: "since it was last proven to be the database's current state",
    read: (stats) => ({ value: duration(stats.age_ms), note: stats.status, points: [stats.age_ms] }),
  },
  {
    id: "commit-to-visible",
    title: "Commit to visible",
    hint:
      "from the end of a statement on the server to its change being readable here, over the last minute; " +
      "the lines are the median and the 99th percentile of each interval",
    lines: 2,
    read: (stats, per, visible) => {
      const times = stats.timings?.commit_to_visible;
      // Take an answer without buckets, too. The first buckets that come are then measured from 0, not left out as
      // history.
      const points = visible.take(times?.buckets ?? []);
      if (!times?.count) return { value: "–", note: "nothing measured yet", points: [NaN, NaN] };
      const [p50, p99] = visible.lately().map(duration);
      const note = `p99 ${p99} in the last minute · ${count(times.count)} changes in all`;
      return { value: `p50 ${p50}`, note, points };
    },
  },
  {
    id: "updates",
    title: "Updates per second",
    hint: "states published; the second figure is snapshots read again for them",
    read: (stats, per) => ({
      value: rate(per("counters.published")),
      note: `${rate(per("counters.snapshots_read"))} snapshots/s · ${count(stats.counters.published)} in all`,
      points: [per("counters.published")],
    }),
  },
  {
    id: "log",
    title: "Change log",
    hint: "rows of the change log that were read; and transactions whose rows it may still hold, not yet pruned",
    read: (stats, per) => {
      if (isSubscriber(stats)) return relay(stats, per);
      const { next_xid, pruned_below } = stats.change_log ?? {};
      const held = Number(next_xid) - Number(pruned_below);
      const waits = held >= 0 ? ` · holds up to ${count(held)} transactions` : "";
      const note = `${rate(per("counters.reads"))} reads/s${waits}`;
      return { value: `${rate(per("counters.log_rows"))} rows/s`, note, points: [per("counters.log_rows")] };
    },
  },
  {
    id: "memory",
    title: "Memory of the cache",
    hint: "bytes of events, odds, names and indexes",
    read: (stats) => ({
      value: bytes(stats.memory_bytes),
      note: `${count(stats.total_snapshots)} snapshots · ${count(stats.total_markets)} markets`,
      points: [stats.memory_bytes],
    }),
  },
  {
    id: "audit",
    title: "Audit",
    hint: "events read again in full and compared with the database; a mismatch is a change that no trigger saw",
    read: (stats, per) => {
      if (isSubscriber(stats)) return comparison(stats, per);
      const { audited_events, audit_passes, audit_mismatches } = stats.counters;
      return {
        value: audit_mismatches === 0 ? "no mismatch" : `${count(audit_mismatches)} mismatches`,
        bad: audit_mismatches > 0,
        note: `${count(audited_events)} events compared · ${count(audit_passes)} passes`,
        points: [per("counters.audited_events")],
      };
    },
  },
  {
    id: "resyncs",
    title: "Epoch and resyncs",
    hint:
      "times everything was read, the first warmup included; " +
      "and reads and connections that failed and were tried again",
    read: (stats, per) => ({
      value: `epoch ${stats.epoch}`,
      note: `${count(stats.counters.reloads)} full reads · ${count(stats.counters.failures)} failures`,
      points: [per("counters.reloads")],
    }),
  },
];

/** Whether the service follows a relay: it never reads the database, and the relay's publisher answers its questions. */
function isSubscriber({ counters }) {
  return counters.reads === 0 && counters.relay_answers > 0;
}

/** What a subscriber shows in place of the change log. */
function relay({ counters }, per) {
  return {
    title: "Relay",
    hint: "publications that came from the relay; whole states that were read; and changes that were missed",
    value: `${rate(per("counters.relay_deltas"))} changes/s`,
    note: `${count(counters.relay_states)} states read · ${count(counters.relay_gaps)} gaps`,
    points: [per("counters.relay_deltas")],
  };
}

/** What a subscriber shows in place of the audit. */
function comparison({ counters: { relay_answers, relay_mismatches } }, per) {
  return {
    title: "Comparison",
    hint: "the digest of all that is held, compared with the publisher's; after a mismatch the state is read again",
    value: relay_mismatches === 0 ? "no mismatch" : `${count(relay_mismatches)} mismatches`,
    bad: relay_mismatches > 0,
    note: `${count(relay_answers)} answers of the publisher`,
    points: [per("counters.relay_answers")],
  };
}

function at(stats, path) {
  return path.split(".").reduce((value, key) => value?.[key], stats);
}

export class Health {
  #panel = document.getElementById("health");
  #toggle = document.getElementById("health-toggle");
  #tiles = new Map();
  #lines = make("ol", { id: "happened", "aria-label": "What happened" });
  #last = null;
  #visible = new Quantiles();

  constructor() {
    const tiles = make("div", { className: "tiles" });
    for (const { id, title, hint, lines } of TILES) {
      const chart = new Chart(`${title}, last minutes`, lines);
      const tile = make("section", { className: "tile", id: `tile-${id}`, title: hint });
      const [value, note] = [make("p", { className: "value", text: "–" }), make("p", { className: "note" })];
      const heading = make("h3", { text: title });
      tile.append(heading, value, note, chart.element);
      tiles.append(tile);
      this.#tiles.set(id, { tile, heading, value, note, chart });
    }
    const happened = make("section", { className: "tile" });
    happened.append(make("h3", { text: "What happened" }), this.#lines);
    this.#panel.append(make("h2", { className: "unseen", text: "Health" }), tiles, happened);
    this.#toggle.addEventListener("click", () => this.open(this.#panel.hidden));
    // In a wide window the panel stands beside the board. Otherwise it replaces the board when it is opened.
    // health.css has the same width.
    const wide = matchMedia("(min-width: 1100px)");
    wide.addEventListener("change", () => this.open(wide.matches));
    this.open(wide.matches);
  }

  open(open) {
    this.#panel.hidden = !open;
    this.#toggle.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("with-health", open);
  }

  /** Shows an answer of /v1/stats. `null` means that there was none, and makes a gap in the charts. */
  take(stats) {
    const asked = performance.now();
    const seconds = this.#last ? (asked - this.#last.asked) / 1000 : NaN;
    const per = (path) => {
      const grown = at(stats, path) - at(this.#last?.stats, path);
      // A counter that went back belongs to another process.
      return grown >= 0 ? grown / seconds : NaN;
    };
    for (const { id, read } of TILES) {
      const { tile, heading, value, note, chart } = this.#tiles.get(id);
      const shown = stats ? read(stats, per, this.#visible) : null;
      chart.push(...(shown?.points ?? []));
      if (!shown) continue;
      value.textContent = shown.value;
      note.textContent = shown.note;
      if (shown.title) [heading.textContent, tile.title] = [shown.title, shown.hint];
      tile.classList.toggle("bad", shown.bad === true);
    }
    this.#last = stats && { stats, asked };
  }

  /** Adds a line to the list of what happened. */
  say(text, kind = "") {
    const line = make("li", { className: kind });
    const [now, time] = [Date.now(), make("time")];
    setTime(time, now, clock(now));
    line.append(time, make("span", { text }));
    this.#lines.prepend(line);
    while (this.#lines.children.length > MOST_LINES) this.#lines.lastElementChild.remove();
  }
}
