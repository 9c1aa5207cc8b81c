/** The charts: time series as SVG, with one cursor for all of them. What they show is figures.js. */

import { CHARTS, SPAN, axis, written } from "./figures.js";

const GUTTER = 54; // px to the left of the plot, for the axis
const FOOT = 20; // px below, for the time
const HEAD = 6;
const LABEL = 32; // px that the time of day is wide
const COLOURS = 8; // .series-0 to .series-7

/** Series that have the same colour on every page. */
const KNOWN = {
  drops: ["drop_newest", "drop_oldest", "disconnect", "lost", "inbox", "operation"],
};

const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const second = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** @param {string} name @param {Record<string, string | number>} [attributes] */
function svg(name, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text) element.textContent = text;
  return element;
}

/** All charts. */
export class Charts {
  /** Where the cursor is, from 0 (five minutes ago) to 1 (now); null: nowhere. @type {number | null} */
  cursor = null;
  #end = Date.now();
  #frame = 0; // a pointer moves more often than a screen is drawn

  /**
   * @param {HTMLElement} host
   * @param {HTMLElement} readout says what is under a cursor that the keyboard moves
   * @param {import("./figures.js").History} history
   */
  constructor(host, readout, history) {
    this.history = history;
    this.readout = readout;
    this.charts = CHARTS.map((kind) => new Chart(kind, this));
    host.append(...this.charts.map((chart) => chart.figure));
    const resized = new ResizeObserver(() => this.draw());
    for (const { plot } of this.charts) resized.observe(plot);
  }

  /** Draw what the history has, up to `end` (ms since 1970). */
  draw(end = this.#end) {
    this.#end = end;
    const at = this.moment();
    for (const chart of this.charts) chart.draw(end, at);
  }

  point(/** @type {number | null} */ cursor) {
    this.cursor = cursor === null ? null : Math.min(1, Math.max(0, cursor));
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
    });
  }

  /** The moment that is nearest to the cursor, or null. */
  moment() {
    if (this.cursor === null) return null;
    const wanted = this.#end - SPAN + this.cursor * SPAN;
    const away = (moment) => Math.abs(moment.at - wanted);
    return this.history.moments.reduce(
      (best, moment) => (moment && (!best || away(moment) < away(best)) ? moment : best), null,
    );
  }

  /** Move the cursor by so many moments, for the keyboard. */
  step(by) {
    const moments = this.history.moments.filter((moment) => moment !== null);
    if (!moments.length) return;
    const now = moments.indexOf(this.moment() ?? moments.at(-1));
    const next = moments[Math.min(moments.length - 1, Math.max(0, now + by))];
    this.point(1 - (this.#end - next.at) / SPAN);
  }
}

class Chart {
  /** @type {string[]} */ #names = [];
  /** @type {Map<string, number>} */ #colours;
  /** @type {Map<string, {item: HTMLElement, value: HTMLElement}>} */ #legend = new Map();

  /** @param {typeof CHARTS[number]} kind @param {Charts} all */
  constructor(kind, all) {
    this.kind = kind;
    this.all = all;
    this.#colours = new Map(KNOWN[kind.name]?.map((name, place) => [name, place]));
    /** @type {HTMLElement} */
    this.figure = document.getElementById("chart-template").content.firstElementChild.cloneNode(true);
    this.figure.dataset.chart = kind.name;
    this.figure.querySelector("h2").textContent = kind.title;
    this.plot = this.figure.querySelector(".plot");
    this.plot.setAttribute("aria-label", `${kind.title}: the arrow keys read values`);
    this.svg = svg("svg", { "aria-hidden": "true" });
    this.plot.append(this.svg);
    this.#listen();
  }

  #listen() {
    const { plot, all } = this;
    const point = ({ clientX }) => {
      const { left, width } = plot.getBoundingClientRect();
      all.point((clientX - left - GUTTER) / (width - GUTTER));
    };
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointermove", point);
    for (const gone of ["pointerleave", "pointercancel", "blur"]) plot.addEventListener(gone, () => all.point(null));
    plot.addEventListener("focus", () => {
      if (!plot.matches(":focus-visible")) return;
      all.step(0);
      this.#say();
    });
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      all.step(by);
      this.#say();
    });
  }

  #say() {
    const moment = this.all.moment();
    if (!moment) return;
    const values = Object.entries(moment.values[this.kind.name]).filter(([, value]) => value !== undefined);
    const said = values.map(([name, value]) => `${name} ${written(value, this.kind.unit)}`).join(", ");
    this.all.readout.textContent = `${second.format(moment.at)}: ${said || "nothing"}`;
  }

  /** @param {number} end @param {{at: number, values: any} | null} marked */
  draw(end, marked) {
    const moments = this.all.history.moments;
    const last = moments.findLast((moment) => moment !== null) ?? null;
    const shown = marked ?? last;
    this.#name(moments);
    this.#values(shown);
    const time = this.figure.querySelector(".at");
    time.textContent = marked ? second.format(marked.at) : "";
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (width <= GUTTER || height <= FOOT + HEAD) return; // not on the page
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const scale = this.#scale(moments, end, width, height);
    this.svg.replaceChildren(
      ...grid(scale, width), ...times(end, scale, width, height),
      ...this.#names.flatMap((name, place) => this.#lines(name, moments, scale, this.kind.area && place === 0)).reverse(),
      ...(marked ? this.#marks(marked, scale) : []),
      ...(this.#names.length || !last ? [] : [quiet(this.kind.quiet ?? "Not told by this server", scale, width)]),
    );
  }

  #scale(moments, end, width, height) {
    let most = 0;
    for (const moment of moments) {
      if (moment === null) continue;
      const values = moment.values[this.kind.name];
      for (const name of this.#names) most = Math.max(most, values[name] ?? 0);
    }
    const { top, ticks } = axis(most, this.kind.unit);
    const bottom = height - FOOT;
    return {
      ticks, bottom,
      x: (at) => round(GUTTER + (1 - (end - at) / SPAN) * (width - GUTTER - 2)),
      y: (value) => round(bottom - (value / top) * (bottom - HEAD)),
    };
  }

  /** Which series there are; the legend follows. */
  #name(moments) {
    const present = new Set();
    for (const moment of moments) {
      for (const [name, value] of Object.entries(moment?.values[this.kind.name] ?? {})) {
        if (value !== undefined) present.add(name);
      }
    }
    const names = [...present];
    if (names.length === this.#names.length && names.every((name) => this.#legend.has(name))) return;
    this.#names = names;
    this.#legend = new Map(names.map((name) => [name, this.#entry(name)]));
    this.figure.querySelector(".legend").replaceChildren(...[...this.#legend.values()].map(({ item }) => item));
  }

  /** A series keeps its colour, whichever others come and go. */
  #colour(name) {
    if (!this.#colours.has(name)) this.#colours.set(name, this.#colours.size);
    return `series-${this.#colours.get(name) % COLOURS}`;
  }

  #entry(name) {
    const item = document.createElement("li");
    const label = document.createElement("span");
    const value = document.createElement("b");
    item.className = this.#colour(name);
    label.textContent = name;
    item.append(label, value);
    return { item, value };
  }

  #values(moment) {
    for (const [name, { value }] of this.#legend) {
      const text = written(this.#value(moment, name), this.kind.unit);
      if (value.textContent !== text) value.textContent = text;
    }
  }

  /** The value of a series, null where it is not known. */
  #value(moment, name) {
    const value = moment?.values[this.kind.name][name];
    return (value === undefined && moment ? this.kind.missing : value) ?? null;
  }

  /** The first series is drawn over the others, and over what is filled below it. */
  #lines(name, moments, scale, filled) {
    const runs = [];
    let run = null;
    for (const moment of moments) {
      const value = this.#value(moment, name);
      if (value === null) run = null;
      else if (run) run.push([scale.x(moment.at), scale.y(value)]);
      else runs.push((run = [[scale.x(moment.at), scale.y(value)]]));
    }
    // A run of one point is a line of no length, which a round cap makes a dot.
    const line = runs.map(([first, ...more]) => `M${first}${more.map((at) => `L${at}`).join("") || `L${first}`}`).join("");
    const colour = this.#colour(name);
    const drawn = [svg("path", { class: `line ${colour}`, d: line })];
    if (!filled) return drawn;
    const area = runs.map((run) => `M${run[0][0]},${scale.bottom}${run.map((at) => `L${at}`).join("")}V${scale.bottom}Z`).join("");
    return [...drawn, svg("path", { class: `area ${colour}`, d: area })];
  }

  #marks(moment, scale) {
    const x = scale.x(moment.at);
    const known = this.#names.filter((name) => this.#value(moment, name) !== null);
    const dots = known.map((name) =>
      svg("circle", { class: `dot ${this.#colour(name)}`, cx: x, cy: scale.y(this.#value(moment, name)), r: 3.5 }));
    return [svg("path", { class: "cursor", d: `M${x},${HEAD - 4}V${scale.bottom}` }), ...dots];
  }
}

const round = (/** @type {number} */ number) => Math.round(number * 10) / 10;

function grid({ ticks, y }, width) {
  return ticks.flatMap(({ value, text }) => {
    const at = Math.round(y(value)) + 0.5;
    return [
      svg("path", { class: value === 0 ? "ground" : "grid", d: `M${GUTTER},${at}H${width}` }),
      svg("text", { class: "tick", x: GUTTER - 8, y: at + 3.5, "text-anchor": "end" }, text),
    ];
  });
}

function times(end, { x }, width, height) {
  const found = [];
  for (let at = Math.floor(end / 60_000) * 60_000; at > end - SPAN; at -= 60_000) {
    const place = x(at);
    if (place > width - LABEL / 2 || place < GUTTER + LABEL / 2) continue;
    found.push(svg("text", { class: "tick", x: place, y: height - 5, "text-anchor": "middle" }, minute.format(at)));
  }
  return found;
}

function quiet(text, { bottom }, width) {
  return svg("text", { class: "quiet", x: (GUTTER + width) / 2, y: bottom / 2 + HEAD, "text-anchor": "middle" }, text);
}
