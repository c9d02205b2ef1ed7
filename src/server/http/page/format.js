// Numbers and times as the page writes them. Times are shown in the browser's time zone.

const time = { hour: "2-digit", minute: "2-digit" };
const minuteFormat = new Intl.DateTimeFormat("en-GB", time);
const clockFormat = new Intl.DateTimeFormat("en-GB", { ...time, second: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short" });
const kickoffFormat = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", ...time });
const offsetFormat = new Intl.DateTimeFormat("en-GB", { timeZoneName: "shortOffset" });
const countFormat = new Intl.NumberFormat("en-GB");

/** Odds: two digits, or three where the third says something. */
export function price(odds) {
  if (odds === null || odds === undefined) return "–";
  const two = odds.toFixed(2);
  return Math.abs(Number(two) - odds) < 0.0005 ? two : odds.toFixed(3);
}

/** A time of day, from milliseconds since 1970; with its day if that is not today: "Mon 23 Nov 23:59:58". */
export function clock(at) {
  if (!Number.isFinite(at)) return "–";
  const day = dayFormat.format(at);
  const time = clockFormat.format(at);
  return day === dayFormat.format(Date.now()) ? time : `${day.replaceAll(",", "")} ${time}`;
}

/** The marks of an axis of times, from seconds since 1970: "18:30", and the day below the first one and at midnight. */
export function marks(times) {
  const day = (at) => dayFormat.format(at * 1_000).replaceAll(",", "");
  return times.map((at, index) => {
    const first = index === 0 || day(at) !== day(times[index - 1]);
    return first ? `${minuteFormat.format(at * 1_000)}\n${day(at)}` : minuteFormat.format(at * 1_000);
  });
}

/** A kickoff: "Mon 23 Nov 18:30". */
export function kickoff(at) {
  return Number.isFinite(at) ? kickoffFormat.format(at).replaceAll(",", "") : "no kickoff";
}

/** The exact time in UTC, for titles: "2026-11-23 18:30:05 UTC"; `""` if there is none. */
export function utc(at) {
  return Number.isFinite(at) ? `${new Date(at).toISOString().slice(0, 19).replace("T", " ")} UTC` : "";
}

/** How far the browser's time zone is from UTC at a time: "UTC+1", "UTC−3:30", "UTC". */
export function offset(at) {
  const part = offsetFormat.formatToParts(at).find(({ type }) => type === "timeZoneName");
  return part.value.replace("GMT", "UTC").replace(/\+0$/, "").replace("-", "−");
}

/** The browser's time zone: "Europe/Berlin, now UTC+1". */
export function zone() {
  const [name, now] = [offsetFormat.resolvedOptions().timeZone, offset(Date.now())];
  return name === now ? name : `${name}, now ${now}`;
}

/** A short age in one unit, for dense tables: 4s, 12m, 3h, 2d. */
export function age(ms) {
  if (!Number.isFinite(ms)) return "–";
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** A length of time with the unit that fits. */
export function duration(ms) {
  if (ms === Infinity) return "off the scale";
  if (!Number.isFinite(ms)) return "–";
  if (ms < 1) return `${Math.max(0, ms * 1000).toFixed(0)} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
  return `${Math.floor(ms / 3_600_000)} h ${Math.floor((ms % 3_600_000) / 60_000)} min`;
}

/** Bytes in MB, or the unit that fits. */
export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  if (count < 1e6) return `${(count / 1e3).toFixed(0)} kB`;
  if (count < 1e9) return `${(count / 1e6).toFixed(1)} MB`;
  return `${(count / 1e9).toFixed(2)} GB`;
}

export function count(number) {
  return Number.isFinite(number) ? countFormat.format(number) : "–";
}

/** A rate or another small number. */
export function rate(number) {
  if (!Number.isFinite(number)) return "–";
  return number >= 100 ? count(Math.round(number)) : number.toFixed(1);
}
