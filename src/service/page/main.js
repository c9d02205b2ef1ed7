// Puts the page together: loads the list, follows the changes, and never shows old prices as if they were current.

import { Board } from "./board.js";
import { Detail } from "./detail.js";
import { clock, count, duration } from "./format.js";
import { Health } from "./health.js";
import { Problem, ask, follow, hurry, pause, useToken, version } from "./service.js";
import { Store } from "./store.js";

/** How often /v1/stats is asked for, ms. */
const STATS_EVERY = 2_000;
/** Older than this, what the service serves is called stale, ms. A healthy one proves itself every second. */
const STALE_AFTER = 10_000;
/** So many ids are asked for at a time. */
const IDS_AT_ONCE = 500;
/** States in which the service does not know the database. */
const BLIND = ["disconnected", "ended", "warming"];

const element = (id) => document.getElementById(id);
const store = new Store();
const health = new Health();
const detail = new Detail(store);
const board = new Board(store, (id) => detail.open(id));

/** What is known of the service. Times are ms since 1970 by the browser's clock. */
const known = {
  /** The last answer of /v1/stats; when its view was last proven current. */
  stats: null,
  proven: NaN,
  /** Why nobody answers, or the stream is down; `null` if all is well. */
  silent: null,
  streamless: "the page is starting",
  /** The state on the page: its version and its cut. */
  version: null,
  asOf: NaN,
  /** Whether all of the list is here, with all changes since. */
  whole: false,
};

// ---- prices ----

/** Changes wait for those before them, and all wait for the list. */
let queue = Promise.resolve();
function inTurn(work) {
  queue = queue.then(work).catch((error) => {
    console.warn(error);
    known.streamless = String(error);
  });
}

/** Loads the whole list, and tries until it is there. */
async function load() {
  known.whole = false;
  for (let tries = 0; ; tries += 1) {
    try {
      const { body, headers } = await ask("/v1/list");
      known.version = version(headers.get("etag"));
      known.asOf = Date.parse(headers.get("oddscache-as-of") ?? "");
      store.replace(body, Date.now());
      known.whole = true;
      judge();
      return;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      unanswered(error);
      await pause(tries);
    }
  }
}

/** One change: its odds come with it, or are asked for. */
async function apply(id, change) {
  const at = version(id);
  // The list that was loaded last has it already.
  if (at && known.version?.process === at.process && at.version <= known.version.version) return;
  const ids = [...new Set([change.betpawa, ...Object.values(change.competitors), change.kickoffs].flat())];
  try {
    store.apply(ids, change.odds ?? (await elements(ids)), Date.now());
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    // Without it the list is not whole.
    return load();
  }
  known.version = at;
  known.asOf = Date.parse(change.as_of);
}

async function elements(ids) {
  const all = [];
  for (let from = 0; from < ids.length; from += IDS_AT_ONCE) {
    const { body } = await ask(`/v1/list?ids=${ids.slice(from, from + IDS_AT_ONCE).join(",")}`);
    all.push(...body);
  }
  return all;
}

follow({
  onUp() {
    known.streamless = null;
    judge();
  },
  onEvent(name, id, data) {
    if (name === "start" || name === "lagged") {
      if (name === "lagged") health.say("changes were missed: the list is loaded anew");
      known.whole = false;
      inTurn(load);
      inTurn(() => detail.refresh());
    } else if (name === "change") {
      inTurn(() => apply(id, data));
    }
  },
  onDown(problem) {
    known.streamless = problem.message;
    unanswered(problem);
    poll();
  },
});

// ---- health and staleness ----

let polling = false;
async function poll() {
  if (polling) return;
  polling = true;
  try {
    const { body } = await ask("/v1/stats");
    notice(known.stats, body);
    known.stats = body;
    known.silent = null;
    if (body.age_ms !== null) known.proven = Date.now() - body.age_ms;
    health.take(body);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    health.take(null);
    known.silent = `${error.status ? "the service refuses" : "no connection to the service"}: ${error.message}`;
    unanswered(error);
  } finally {
    polling = false;
    judge();
  }
}
setInterval(poll, STATS_EVERY);
poll();

const word = (status) => (status ?? "").split(/[ :]/)[0];

/** Tells of what changed between two answers of /v1/stats. */
function notice(before, stats) {
  const status = word(stats.status);
  if (word(before?.status) !== status) health.say(stats.status.replace(/ since \S+:/, ":"), status);
  if (before && before.epoch !== stats.epoch) health.say(`epoch ${stats.epoch}: everything was replaced`);
  const missed = stats.counters.audit_mismatches - (before?.counters.audit_mismatches ?? 0);
  if (missed > 0) health.say(`the audit found ${count(missed)} events that no trigger had told of`, "bad");
}

function unanswered(problem) {
  if (problem.status === 401 && !element("token").open) element("token").showModal();
}

/** Why what the page shows may be old; `null` if it is current. */
function trouble() {
  const { stats, silent, streamless, proven } = known;
  if (silent !== null) return { name: "no connection", why: silent };
  if (!stats) return { name: "starting", why: null };
  if (BLIND.includes(word(stats.status))) return { name: word(stats.status), why: blind(stats.status) };
  if (streamless !== null) return { name: "no changes", why: `changes do not arrive: ${streamless}` };
  if (Date.now() - proven > STALE_AFTER) {
    return { name: "old", why: `for more than ${duration(STALE_AFTER)} nothing proved it current: ${stats.status}` };
  }
  if (!known.whole) return { name: "loading", why: null };
  return null;
}

function blind(status) {
  const lost = /^disconnected since \S+: (.*)$/s.exec(status);
  return lost ? `the service has lost the database: ${lost[1]}` : `the service does not follow the database: ${status}`;
}

let staleSince = null;

/** Says in which state the page is. Called whenever something is learnt, and by the clock. */
function judge() {
  const found = trouble();
  const stale = found !== null && found.why !== null;
  const shown = found?.name ?? word(known.stats.status).replace("polling", "polling only");
  const [pill, banner] = [element("status"), element("banner")];
  if (pill.textContent !== shown) pill.textContent = shown;
  pill.dataset.name = stale ? "stale" : shown;
  pill.title = known.stats?.status ?? "";
  // While the list is loaded again after a break, the old prices are still old.
  const state = stale || (found && staleSince !== null) ? "stale" : (found?.name ?? "current");
  document.body.dataset.state = state;
  if (state === "stale" && stale) {
    if (staleSince === null) {
      staleSince = Number.isFinite(known.proven) ? known.proven : Date.now();
      // What the service says of itself is in the list already.
      if (known.silent !== null || !BLIND.includes(word(known.stats?.status))) health.say(found.why, "bad");
    }
    let is = "There is nothing to see yet";
    if (Number.isFinite(known.asOf)) is = `What you see is the state of ${clock(known.asOf)}`;
    const text = `Stale since ${clock(staleSince)}: ${found.why}. ${is}. Trying again by itself.`;
    // Not when nothing changed: it is read out each time.
    if (banner.textContent !== text) banner.textContent = text;
    banner.hidden = false;
  } else if (state !== "stale") {
    if (staleSince !== null) {
      health.say(`current again, after ${duration(Date.now() - staleSince)}`, "good");
      staleSince = null;
    }
    banner.hidden = true;
  }
  tick();
}

function tick() {
  element("age").textContent = duration(Date.now() - known.proven);
  element("epoch").textContent = known.stats?.epoch ?? "–";
  element("as-of").textContent = clock(known.asOf);
  document.title = document.body.dataset.state === "stale" ? "stale · oddscache" : "oddscache";
}
setInterval(judge, 500);

// ---- what the user does ----

const radios = element("markets");
function drawMarkets() {
  for (const [key, { label }] of store.markets) {
    if (radios.querySelector(`[value="${CSS.escape(key)}"]`)) continue;
    const choice = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "market", value: key });
    choice.append(input, document.createElement("span"));
    choice.lastElementChild.textContent = label;
    radios.append(choice);
    if (radios.children.length === 1) {
      input.checked = true;
      board.show(key);
    }
  }
}
store.addEventListener("columns", drawMarkets);
radios.addEventListener("change", (event) => board.show(event.target.value));

element("tools").addEventListener("submit", (event) => event.preventDefault());
element("search").addEventListener("input", (event) => board.search(event.target.value));
board.onDrawn = (shown, all) => {
  const text = shown === all ? `${count(all)} events` : `${count(shown)} of ${count(all)} events`;
  if (known.version && element("count").textContent !== text) element("count").textContent = text;
};
addEventListener("keydown", (event) => {
  if (event.key === "/" && !/input/i.test(event.target.tagName) && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    element("search").focus();
  }
});

element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(element("token-value").value);
  element("token-value").value = "";
  element("token").close();
  hurry();
  poll();
});

const opened = /^#event=(-?\d+)$/.exec(location.hash);
if (opened) detail.open(Number(opened[1]));
