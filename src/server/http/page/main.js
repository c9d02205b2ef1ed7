// Puts the page together: loads the list, follows the changes, and never shows old prices as if they were current.

import { Board } from "./board.js";
import { Detail } from "./detail.js";
import { setText, setTime } from "./cells.js";
import { bytes, clock, count, duration, utc, zone } from "./format.js";
import { Health } from "./health.js";
import * as link from "./link.js";
import { Problem, ask, follow, hurry, pause, useToken, version } from "./service.js";
import { Store } from "./store.js";

/** How often to request /v1/stats, ms. */
const STATS_EVERY = 2_000;
/** The page is called stale beyond this age, ms. A healthy service proves its view current every second. */
const STALE_AFTER = 10_000;
/** `disconnected` is not shown before the page's odds are this old, ms. A lock may keep the service from reading for a
    moment, and only the next answer of /v1/stats tells the page that this is over. */
const BRIEFLY = 5_000;
/** How many events are shown before the whole list is here. */
const FIRST_EVENTS = 60;
/** How many ids one request names at most. */
const IDS_AT_ONCE = 500;
/** If more changes than this wait for the list, they are dropped and the list is loaded again. */
const MOST_WAITING = 1_000;
/** After the page comes back into sight, trouble is not listed for this long, ms. Most of it ends by itself. */
const SETTLING = 5_000;
/** States in which the service does not know the current state of the database. */
const BLIND = ["disconnected", "ended", "warming"];

const element = (id) => document.getElementById(id);
const store = new Store();
const health = new Health();
const detail = new Detail(store, () => link.show({ market: chosen }));
const board = new Board(store, (event) => (location.hash = link.address({ event })));

/** What the page knows of the service. Times are ms since 1970 by the browser's clock. */
const known = {
  /** The last answer of /v1/stats. */
  stats: null,
  /** When the state on the page was last proven current. The service itself may hold a newer one. */
  proven: NaN,
  /** What an answer of /v1/stats will prove once the page has this version: `{ at, proven }`, or `null`. */
  mark: null,
  /** Why the service does not answer, and why the stream is down; `null` if all is well, and at the start. */
  silent: null,
  streamless: null,
  /** The state on the page: its version and its cut. */
  version: null,
  asOf: NaN,
  /** Whether the whole list is here, with all changes since. If not: since when, and the last error. */
  whole: false,
  lacking: Date.now(),
  obstacle: null,
  /** How many bytes of the list are here while it is loaded. */
  arrived: 0,
};

// ---- prices ----

/** Changes that are not applied yet, `[id, data]`, in the order in which they came. */
let waiting = [];
let working = false;
/** How often the list was found to lack something. */
let losses = 0;

/** Marks the list as incomplete, so that it is loaded anew. Drops waiting changes, which the new list will contain. */
function lose() {
  losses += 1;
  if (known.whole) known.lacking = Date.now();
  known.whole = false;
  waiting = [];
}

/** Loads the list if it is incomplete and applies the changes that wait, until nothing is left to do. */
async function work() {
  if (working) return;
  working = true;
  try {
    while (!known.whole || waiting.length) {
      if (known.whole) {
        await applyNext();
      } else {
        await load();
        detail.refresh();
      }
    }
  } finally {
    working = false;
  }
}

async function applyNext() {
  try {
    await apply(...waiting.shift());
  } catch (error) {
    fail(error);
    lose();
    // The next change may fail in the same way, so do not hurry.
    if (!(error instanceof Problem)) await pause(1);
  }
}

function fail(error) {
  if (error instanceof Problem) unanswered(error);
  else console.warn(error);
  known.obstacle = error.message;
}

/**
 * Shows the first events while the whole list is on its way. The page says that it is loading, and calls nothing
 * current.
 */
async function preview() {
  try {
    const { body, headers } = await ask(`/v1/list?limit=${FIRST_EVENTS}`);
    if (known.version) return;
    store.replace(body, Date.now());
    known.asOf = Date.parse(headers.get("oddscache-as-of") ?? "");
  } catch (error) {
    // The request for the whole list meets the same trouble, and tells it.
    if (!(error instanceof Problem)) throw error;
  }
}

/** Loads the whole list, and tries until it is here. */
async function load() {
  for (let tries = 0; ; tries += 1) {
    // The list will contain all changes that came before this request.
    waiting = [];
    const [before, asked] = [losses, Date.now()];
    known.arrived = 0;
    try {
      const { body, headers } = await ask("/v1/list", (bytes) => (known.arrived = bytes));
      store.replace(body, Date.now());
      reach(version(headers.get("etag")), headers.get("oddscache-as-of"));
      // The list comes with its own age. That is a newer proof than the last answer of /v1/stats.
      known.mark = null;
      const age = headers.get("oddscache-age-ms");
      if (age !== null) known.proven = asked - Number(age);
      known.whole = losses === before;
      known.obstacle = null;
      break;
    } catch (error) {
      fail(error);
      await pause(tries);
    }
  }
  judge();
}

/** The page shows this state from now on. */
function reach(at, asOf) {
  known.version = at;
  known.asOf = Date.parse(asOf ?? "");
}

/** Notes the proof of the last answer of /v1/stats, if the page has reached the version that the answer is about. */
function prove() {
  const { mark, version: here } = known;
  if (!mark || !known.whole || !here) return;
  // Each process counts its versions from the beginning, so those of another one cannot be compared.
  const says = mark.at.process === here.process;
  if (says && here.version < mark.at.version) return;
  if (says) known.proven = mark.proven;
  known.mark = null;
}

/** Applies one change. Its odds come with it, or are requested. */
async function apply(id, change) {
  const at = version(id);
  // The list that was loaded last already contains this change.
  if (at && known.version?.process === at.process && at.version <= known.version.version) return;
  const ids = [...new Set([change.betpawa, ...Object.values(change.competitors), change.kickoffs, change.names].flat())];
  store.apply(ids, change.odds ?? (await elements(ids)), Date.now());
  reach(at, change.as_of);
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
      lose();
      work();
    } else if (name === "change") {
      if (waiting.push([id, data]) > MOST_WAITING) lose();
      work();
    }
  },
  onDown(problem) {
    known.streamless = problem.message;
    unanswered(problem);
    poll();
    // Old odds, which the page calls stale, are better than none.
    work();
  },
});

// ---- health and staleness ----

let polling = false;
async function poll() {
  if (polling) return;
  polling = true;
  const asked = Date.now();
  try {
    const { body } = await ask("/v1/stats");
    notice(known.stats, body);
    known.stats = body;
    known.silent = null;
    // The answer is about the newest published version. It proves the page's state once the page has that version.
    prove();
    const at = version(body.version);
    if (at && body.age_ms !== null) known.mark ??= { at, proven: asked - body.age_ms };
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
preview();

const word = (status) => (status ?? "").split(/[ :]/)[0];

/** Lists what changed between two answers of /v1/stats. */
function notice(before, stats) {
  const status = word(stats.status);
  if (word(before?.status) !== status) health.say(stats.status.replace(/ since \S+:/, ":"), status);
  if (before && before.epoch !== stats.epoch) health.say(`epoch ${stats.epoch}: everything was replaced`);
  const missed = stats.counters.audit_mismatches - (before?.counters.audit_mismatches ?? 0);
  if (missed > 0) health.say(`the audit found ${count(missed)} events whose change no trigger saw`, "bad");
}

function unanswered(problem) {
  if (problem.status === 401 && !element("token").open) element("token").showModal();
}

/** Why the page may show old odds; `null` if it shows current ones. */
function trouble() {
  prove();
  const { stats, silent, streamless, proven, whole } = known;
  if (silent !== null) return { name: "no connection", why: silent };
  if (!stats) return { name: "starting", why: null };
  const status = word(stats.status);
  const age = Date.now() - proven;
  if (BLIND.includes(status) && !(status === "disconnected" && age <= BRIEFLY)) {
    return { name: status, why: blind(stats.status) };
  }
  if (streamless !== null) return { name: "no changes", why: `changes do not arrive: ${streamless}` };
  if (!whole && Date.now() - known.lacking > STALE_AFTER) {
    if (known.arrived > 0) return { name: "loading", why: "the list of odds is still coming, over a slow network" };
    return { name: "loading", why: `the list of odds does not come: ${known.obstacle ?? "no answer yet"}` };
  }
  // While some changes are not logged, the age counts from the last read of everything, and may be as large as the
  // bound.
  const bound = stats.degraded?.bound_ms ?? 0;
  if (age > STALE_AFTER + bound) {
    if (!whole) return { name: "loading", why: "the list of odds is being loaded anew" };
    if (known.version && version(stats.version)?.process !== known.version.process) {
      return { name: "behind", why: "one service reports its health, and another one sends the changes" };
    }
    if (known.mark) return { name: "behind", why: "changes do not arrive, though the service has them" };
    return { name: "old", why: `for more than ${duration(STALE_AFTER)} nothing proved it current: ${stats.status}` };
  }
  if (!whole) return { name: "loading", why: null };
  if (stats.degraded) return { name: "degraded", why: null };
  return null;
}

/** Why the cache is degraded, for the banner. */
function lacking({ since, bound_ms, faults }) {
  const what = faults.map((fault) => `${fault.what} (repair: ${fault.repair})`).join("; ");
  const bound = bound_ms === null ? "All else is current" : `A change that is not logged shows within ${duration(bound_ms)}`;
  return `Degraded since ${clock(Date.parse(since))}: ${what}. ${bound}.`;
}

function blind(status) {
  const lost = /^disconnected since \S+: (.*)$/s.exec(status);
  if (lost) return `the service cannot read what is new: ${lost[1]}`;
  return `the service does not follow: ${status}`;
}

let staleSince = null;
/** Whether the list of what happened already says that the page is stale. */
let told = false;
/** When the page came into sight. */
let inSight = -Infinity;
document.addEventListener("visibilitychange", () => {
  inSight = Date.now();
  if (!document.hidden) poll();
});

/** Shows in which state the page is. Called by a timer, and whenever the page learns something. */
function judge() {
  // The state is about the board, so the board must be drawn before it: a busy browser may be late with its frame.
  board.drawDue();
  const found = trouble();
  const stale = found !== null && found.why !== null;
  const shown = found?.name ?? word(known.stats.status).replace("polling", "polling only");
  const pill = element("status");
  pill.dataset.name = stale ? "stale" : shown;
  setText(pill, shown, known.stats?.status ?? "");
  // While the list is loaded again after a break, the old prices are still old.
  const state = stale || (found && staleSince !== null) ? "stale" : (found?.name ?? "current");
  if (document.body.dataset.state !== state) document.body.dataset.state = state;
  if (state === "stale" && stale) {
    staleSince ??= Number.isFinite(known.proven) ? known.proven : Date.now();
    // A hidden page has no stream and few timers. So it gets stale, which is worth no line.
    if (!told && !document.hidden && Date.now() - inSight > SETTLING) {
      told = true;
      // "What happened" already has a line for each state of the service.
      if (known.silent !== null || !BLIND.includes(word(known.stats?.status))) health.say(found.why, "bad");
    }
    let is = "There is nothing to see yet";
    if (Number.isFinite(known.asOf)) is = `What you see is the state of ${clock(known.asOf)}`;
    const text = `Stale since ${clock(staleSince)}: ${found.why}. ${is}. Trying again by itself.`;
    const times = [`since ${utc(staleSince)}`, Number.isFinite(known.asOf) && `state of ${utc(known.asOf)}`];
    tell(text, times.filter(Boolean).join(", "));
  } else if (state !== "stale") {
    if (told) health.say(`current again, after ${duration(Date.now() - staleSince)}`, "good");
    [staleSince, told] = [null, false];
    const { degraded } = known.stats ?? {};
    tell(state === "degraded" ? lacking(degraded) : null, utc(Date.parse(degraded?.since ?? "")));
  }
  tick();
}

/** Shows a text in the banner, and in an open event, which covers the banner. `null` hides it. */
function tell(text, title) {
  const banner = element("banner");
  if (text !== null) setText(banner, text, title);
  banner.hidden = text === null;
  detail.warn(text);
}

function tick() {
  const loading = element("progress");
  loading.hidden = known.whole;
  setText(loading, `loading the odds: ${bytes(known.arrived)} so far`);
  element("age").textContent = duration(Date.now() - known.proven);
  element("epoch").textContent = known.stats?.epoch ?? "–";
  setTime(element("as-of"), known.asOf, clock(known.asOf), "the database's clock at the state that you see");
  const stale = document.body.dataset.state === "stale" && "stale";
  document.title = [stale, detail.title, "oddscache"].filter(Boolean).join(" · ");
}
setInterval(judge, 500);

// ---- what the user does ----

const radios = element("markets");
const radio = (key) => radios.querySelector(`[value="${CSS.escape(key)}"]`);
/** The market of the board that the user or the address names; `null` if none does. */
let chosen = null;

function drawMarkets() {
  for (const [key, { label }] of store.markets) {
    if (radio(key)) continue;
    const choice = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "market", value: key });
    choice.append(input, document.createElement("span"));
    choice.lastElementChild.textContent = label;
    radios.append(choice);
  }
  // The first market stands in for one that the list does not have, or not yet.
  const wanted = (chosen !== null && radio(chosen)) || radios.querySelector("input");
  if (!wanted) return;
  wanted.checked = true;
  board.show(wanted.value);
}
store.addEventListener("columns", drawMarkets);
radios.addEventListener("change", (event) => {
  chosen = event.target.value;
  link.show({ market: chosen });
  board.show(chosen);
});

setText(element("zone"), `Times: ${zone()}`, "the time zone of this browser; the title of a time has its exact UTC");
element("group").addEventListener("change", (event) => board.group(event.target.checked));
element("tools").addEventListener("submit", (event) => event.preventDefault());
element("search").addEventListener("input", (event) => board.search(event.target.value));
board.onDrawn = (shown, all) => {
  const text = shown === all ? `${count(all)} events` : `${count(shown)} of ${count(all)} events`;
  if (known.version) setText(element("count"), text);
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

/** Shows what the address names. */
function visit() {
  const { event, market } = link.read(location.hash);
  if (event !== null) {
    detail.open(event, market);
    return;
  }
  detail.close();
  chosen = market;
  drawMarkets();
}
addEventListener("hashchange", visit);
visit();
