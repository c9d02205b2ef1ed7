// Talking to the service: the token, requests with a time-out, and the stream of changes.

const TOKEN = "oddscache-token";
/** An answer of which nothing arrives for this long has failed, ms. On a slow network a whole one may take longer. */
const PATIENCE = 10_000;
/** The stream sends something every 15 s. If it is silent for this long, its connection is dead, ms. */
const SILENCE = 40_000;
/** A page that was hidden for this long closes its stream, ms, because a browser has only six connections to a host. */
const UNSEEN = 10_000;
/** Pauses between attempts grow from the first to the second value, ms. Each varies at random by half. */
const PAUSE = [250, 8_000];

let token = take();

/** Moves a token from the address to the tab's storage, where it is neither shown nor copied with a link. */
function take() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  try {
    if (given !== null) sessionStorage.setItem(TOKEN, given);
    return sessionStorage.getItem(TOKEN);
  } catch {
    return given; // No storage in this browser's mode: the token lasts as long as the page.
  } finally {
    if (given !== null) {
      address.searchParams.delete("token");
      history.replaceState(null, "", address);
    }
  }
}

export function useToken(value) {
  token = value;
  try {
    sessionStorage.setItem(TOKEN, value);
  } catch {
    // As above.
  }
}

/** A request that failed. `status` is that of the answer, or 0 if there was none. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** By how much the service's clock is ahead of the browser's, ms: read from the header `date`, which has seconds. */
let skew = 0;
/** The service's clock, in ms since 1970. */
export function now() {
  return Date.now() + skew;
}

async function request(path, headers, signal) {
  const all = new Headers(headers);
  if (token) all.set("authorization", `Bearer ${token}`);
  let response;
  try {
    response = await fetch(path, { headers: all, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw new Problem(0, signal.aborted ? "it does not answer in time" : `it cannot be reached (${error.message})`);
  }
  const date = Date.parse(response.headers.get("date") ?? "");
  if (Number.isFinite(date)) {
    const off = date - Date.now();
    skew = Math.abs(off) > 3_000 ? off : 0;
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Problem(response.status, body?.error ?? `it answers ${response.status}`);
}

/** The JSON of `path`, with the answer's headers. Calls `onPart(bytes)` with how much of it is here, decompressed. */
export async function ask(path, onPart = () => {}) {
  const stop = new AbortController();
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), PATIENCE);
  };
  wait();
  let bytes = 0;
  const count = (part, controller) => {
    wait();
    onPart((bytes += part.length));
    controller.enqueue(part);
  };
  try {
    const { body, headers } = await request(path, {}, stop.signal);
    const counted = body.pipeThrough(new TransformStream({ transform: count }));
    return { body: await new Response(counted).json(), headers };
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(0, `its answer ${stop.signal.aborted ? "stopped coming" : `broke off (${error.message})`}`);
  } finally {
    clearTimeout(timer);
  }
}

/** Reads `<process>-<version>`, as in event ids and ETags; `null` if it is not there. */
export function version(id) {
  const found = /([0-9a-f]{8})-(\d+)/.exec(id ?? "");
  return found && { process: found[1], version: Number(found[2]) };
}

/** Ends all pauses: when the network is back, or when `hurry` is called. */
const impatient = new EventTarget();
export function hurry() {
  impatient.dispatchEvent(new Event("now"));
}
addEventListener("online", hurry);

/** Waits before attempt number `tries`: longer each time, and at random, so that pages do not all try at once. */
export function pause(tries) {
  const mean = Math.min(PAUSE[1], PAUSE[0] * 2 ** Math.min(tries, 10));
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      impatient.removeEventListener("now", end);
      resolve();
    };
    const timer = setTimeout(end, mean * (0.5 + Math.random()));
    impatient.addEventListener("now", end);
  });
}

/** Calls `abort` once the page has been hidden for a while. Returns a function that ends this. */
function whenUnseen(abort) {
  let timer;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(abort, UNSEEN);
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
  };
}

/** Resolves at once if the page is in sight, else when it comes back. */
function seen() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}

/**
 * Reads the stream of changes for ever while the page is in sight. After a break it goes on after the last event. Calls
 * `onEvent(name, id, data)` for each event, `onUp()` when a stream begins, and `onDown(problem)` when it ends or cannot
 * be opened.
 */
export async function follow({ onEvent, onUp, onDown }) {
  let last = null;
  for (let tries = 0; ; tries += 1) {
    await seen();
    const stop = new AbortController();
    const end = whenUnseen(() => stop.abort());
    let alarm = setTimeout(() => stop.abort(), PATIENCE);
    try {
      const response = await request("/v1/changes?odds=true", last ? { "last-event-id": last } : {}, stop.signal);
      onUp();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new Parser();
      for (;;) {
        clearTimeout(alarm);
        // A new stream begins with an event.
        alarm = setTimeout(() => stop.abort(), last ? SILENCE : PATIENCE);
        const { done, value } = await reader.read();
        if (done) throw new Problem(0, "it has ended the stream of changes");
        for (const event of parser.feed(value)) {
          tries = 0;
          onEvent(event.name, event.id, JSON.parse(event.data));
          last = event.id ?? last;
        }
      }
    } catch (error) {
      const why = stop.signal.aborted ? "says nothing; a proxy may hold it back" : `broke off (${error.message})`;
      const known = error instanceof Problem && !stop.signal.aborted;
      onDown(known ? error : new Problem(0, `the stream of changes ${why}`));
    } finally {
      clearTimeout(alarm);
      end();
      stop.abort();
    }
    if (!document.hidden) await pause(tries);
  }
}

/** Makes server-sent events out of pieces of text. */
class Parser {
  #rest = "";
  #event = {};

  *feed(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        const { event: name, id, data } = this.#event;
        this.#event = {};
        if (data !== undefined) yield { name: name ?? "message", id, data };
        continue;
      }
      const colon = line.indexOf(":");
      if (colon <= 0) continue; // A comment keeps the connection alive.
      const [field, value] = [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
      this.#event[field] = field === "data" && this.#event.data !== undefined ? `${this.#event.data}\n${value}` : value;
    }
  }
}
