// Addresses that can be shared. What follows the # names an event, one of its markets, or a market on the board:
// `#event=7`, `#event=7&market=5000/2.5`, `#market=5000/2.5`.

const PARTS = ["betpawa_market_id", "line", "handicap_type", "handicap_home", "handicap_away"];

/**
 * Names a market: "3743", "5000/2.5", "3774//asian/-1/1". Markets of different bookmakers are the same if their names
 * agree. Parts at the end that are missing are left out.
 */
export function marketKey(market) {
  const { betpawa_market_id: id, line } = market;
  // Most ids are digits and most markets have no handicap. A long list has a hundred thousand of them.
  if (market.handicap_type == null && market.handicap_home == null && market.handicap_away == null && /^\w+$/.test(id)) {
    return line == null ? id : `${id}/${line}`;
  }
  const parts = PARTS.map((part) => encodeURIComponent(market[part] ?? ""));
  return parts.join("/").replace(/\/+$/, "");
}

/** What follows the #, with the #; `""` if there is nothing to name. */
export function address({ event = null, market = null }) {
  const parts = [event !== null && `event=${event}`, market !== null && `market=${market}`].filter(Boolean);
  return parts.length ? `#${parts.join("&")}` : "";
}

/** The opposite of `address`. `event` is NaN if the address has something else in place of an id. */
export function read(hash) {
  const found = new Map(hash.slice(1).split("&").map((part) => part.split(/=(.*)/s)));
  const id = found.get("event");
  return {
    event: id === undefined ? null : /^-?\d+$/.test(id) ? Number(id) : NaN,
    market: found.has("market") ? normal(found.get("market")) : null,
  };
}

/** A program that passes an address on may escape more or less of it than `marketKey` does. */
function normal(market = "") {
  try {
    return market.split("/").map((part) => encodeURIComponent(decodeURIComponent(part))).join("/");
  } catch {
    return market; // An escape that is none. No market has this name.
  }
}

/** Puts an address into the address bar, in place of the one that is there. */
export function show(parts) {
  history.replaceState(null, "", location.pathname + location.search + address(parts));
}
