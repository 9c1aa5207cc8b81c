/** Figures: from what the server answers to what the charts draw, and how numbers are written. No DOM. */

/** How much of the past the charts show, in ms. */
export const SPAN = 300_000;

const total = (/** @type {Record<string, number>} */ counts) =>
  Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0);

/**
 * The charts. `read` gives the values of a moment by series; what the server does not tell is undefined and
 * is no series. `rate` is how much a counter has grown in a second, by a function that reads it. `missing` is
 * the value of a series at a moment that did not have it yet, `quiet` what stands where there is no series.
 */
export const CHARTS = [
  {
    name: "connections", title: "Connections", unit: "count", area: true,
    read: ({ stats }) => ({ connections: stats.connections, users: stats.users }),
  },
  {
    name: "churn", title: "Opened and closed", unit: "rate",
    read: (_, rate) => ({ opened: rate(({ stats }) => stats.opened), closed: rate(({ stats }) => total(stats.closes)) }),
  },
  {
    name: "rooms", title: "Rooms", unit: "count", area: true,
    read: ({ stats }) => ({ rooms: stats.rooms }),
  },
  {
    name: "deliveries", title: "Deliveries", unit: "rate", area: true,
    read: (_, rate) => ({
      deliveries: rate(({ stats }) => stats.deliveries),
      pushes: rate(({ pushes }) => pushes && Object.values(pushes).map(total).reduce((sum, count) => sum + count, 0)),
    }),
  },
  {
    name: "pending", title: "Pushes that wait", unit: "count", area: true,
    read: ({ stats }) => ({ pending: stats.pending }),
  },
  {
    name: "drops", title: "Drops", unit: "rate", missing: 0, quiet: "Nothing dropped",
    read: ({ stats }, rate) => each(stats.drops, (reason) => rate(({ stats }) => stats.drops[reason] ?? 0)),
  },
  {
    name: "lag", title: "Lag", unit: "seconds",
    read: ({ lag }) => ({ loop: lag?.loop, queue: lag?.queue }),
  },
  {
    name: "outbox", title: "Outboxes", unit: "bytes", area: true,
    read: ({ stats }) => ({ waiting: stats.outbox_bytes }),
  },
  {
    name: "hooks", title: "Hooks, mean time", unit: "seconds", quiet: "No hook was called",
    read: ({ hooks }, rate) => each(hooks, (hook) => {
      const calls = rate(({ hooks }) => hooks?.[hook]?.count ?? 0);
      return calls ? rate(({ hooks }) => hooks?.[hook]?.seconds ?? 0) / calls : undefined;
    }),
  },
];

function each(counts, value) {
  return Object.fromEntries(Object.keys(counts ?? {}).map((name) => [name, value(name)]));
}

/**
 * What the charts draw of one moment: `{at, values}` with the values by chart and series.
 *
 * Counters count since the server's start, so a server that was started again has no rate yet: null, as
 * after a time without answers. Seconds are the server's, which a slow network does not bend.
 *
 * @param {any} before the answer of a moment ago, or null
 * @param {any} now
 * @param {number} at ms since 1970
 */
export function momentOf(before, now, at) {
  const seconds = before === null ? 0 : now.uptime - before.uptime;
  /** @param {(data: any) => number | undefined} read */
  const rate = (read) => {
    const after = read(now);
    if (after === undefined || !(seconds > 0)) return after === undefined ? undefined : null;
    const grown = after - (read(before) ?? 0);
    return grown < 0 ? null : grown / seconds;
  };
  return { at, values: Object.fromEntries(CHARTS.map((chart) => [chart.name, chart.read(now, rate)])) };
}

/** Whether `now` is of another run of the server than `before`. */
export const restarted = (before, now) => now.uptime < before.uptime || now.node !== before.node;

/** Moments of the last five minutes. A null stands for a time without answers: lines break there. */
export class History {
  /** @type {({at: number, values: any} | null)[]} */ moments = [];

  add(moment) {
    this.moments.push(moment);
    const oldest = moment.at - SPAN;
    while (this.moments[0] === null || this.moments[0].at < oldest) this.moments.shift();
  }

  /** From here on nothing is known. */
  interrupt() {
    if (this.moments.length && this.moments.at(-1) !== null) this.moments.push(null);
  }
}

// ---- how numbers are written ---------------------------------------------------------------------

/** Units by size, smallest first: from how many on, divided by what, and its name. */
const SCALES = {
  count: [[0, 1, ""], [1e4, 1e3, "k"], [1e6, 1e6, "M"], [1e9, 1e9, "G"]],
  rate: [[0, 1, "/s"], [1e4, 1e3, "k/s"], [1e6, 1e6, "M/s"], [1e9, 1e9, "G/s"]],
  seconds: [[0, 1e-6, " \u00b5s"], [1e-3, 1e-3, " ms"], [1, 1, " s"]],
  bytes: [[0, 1, " B"], [1 << 10, 1 << 10, " KiB"], [1 << 20, 1 << 20, " MiB"], [2 ** 30, 2 ** 30, " GiB"]],
};
const LEAST = { count: 4, rate: 1, seconds: 1e-3, bytes: 1 << 10 };

const scaleOf = (value, unit) => SCALES[unit].findLast(([from]) => Math.abs(value) >= from);
const plain = [0, 1, 2].map((digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
const digitsFor = (value) => (value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2);

/** A value with its unit, in three digits or so; a count to the last one. @param {string} unit */
export function written(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (unit === "count") return plain[0].format(value);
  if (value === 0) return `0${unit === "seconds" ? " ms" : SCALES[unit][0][2]}`;
  const [, size, name] = scaleOf(value, unit);
  const scaled = value / size;
  return `${plain[digitsFor(scaled)].format(scaled)}${name}`;
}

/**
 * An axis from 0 to at least `most` in 2 to 4 even steps: `{top, ticks: [{value, text}]}`. One unit for all,
 * steps of 1, 2 or 5 and zeros, and no part of a connection.
 *
 * @param {number} most @param {string} unit
 */
export function axis(most, unit) {
  const wanted = Math.max(most, LEAST[unit]);
  const [, size, name] = scaleOf(wanted, unit);
  const rough = wanted / size / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((round) => round * power >= rough * 0.9999) * power;
  if (unit === "count" && size === 1) step = Math.max(step, 1);
  const count = Math.ceil(wanted / size / step - 1e-9);
  const digits = Math.min(2, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  const ticks = Array.from({ length: count + 1 }, (_, at) => ({
    value: at * step * size,
    text: at === 0 ? "0" : `${plain[digits].format(at * step)}${name}`,
  }));
  return { top: count * step * size, ticks };
}

/** Seconds as "3 d 4 h", "4 h 12 min", "12 min 5 s" or "5 s". */
export function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) first = 3;
  let rest = Math.floor(seconds);
  return units.slice(first, first + 2).map(([name, size]) => {
    const count = Math.floor(rest / size);
    rest -= count * size;
    return `${count} ${name}`;
  }).join(" ");
}
