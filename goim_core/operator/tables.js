/** The tables of counts: what was dropped, closed and refused, and which rooms are large. */

import { written } from "./figures.js";

/** Close codes by number: goim_core.CloseCode, with what an operator wants to know of them. */
export const CLOSES = {
  1000: "normal",
  1001: "going away",
  1002: "protocol error",
  1007: "invalid data",
  1009: "too big",
  1011: "internal error",
  1013: "try again later",
  4001: "auth refused",
  4002: "auth timeout",
  4003: "heartbeat timeout",
  4004: "replaced",
  4005: "slow",
  4006: "handshake timeout",
  4007: "lost",
  4008: "expired",
  4009: "too many logins",
};

const DROPS = {
  drop_newest: "outbox full, the new one went",
  drop_oldest: "outbox full, the oldest went",
  disconnect: "outbox full, the client was closed",
  lost: "the connection ended first",
  inbox: "too many while catching up",
  operation: "no operation to push",
};

/** @typedef {{name: string, more?: string, count: number, share?: number, text?: string}} Row */

const TABLES = [
  { name: "drops", title: "Drops", heads: ["Reason", "Messages"], none: "No message was dropped.",
    rows: ({ stats }) => counted(stats.drops, (reason) => ({ name: reason, more: DROPS[reason] })) },
  { name: "closes", title: "Closes", heads: ["Code", "Connections"], none: "No connection has ended.",
    rows: ({ stats }) => counted(stats.closes, (code) => ({ name: code, more: CLOSES[code] })) },
  { name: "refusals", title: "Refusals", heads: ["Limit", "Times"], none: "No limit was met.",
    rows: ({ stats }) => counted(stats.refusals, (limit) => ({ name: limit })) },
  { name: "top", title: "Largest rooms", heads: ["Room", "Online"], none: "No rooms to list.",
    rows: ({ top }) => (top ?? []).map(({ room_id, online }) => ({ name: room_id, count: online, share: online / top[0].online })) },
];

function counted(counts, named) {
  const rows = Object.entries(counts ?? {}).filter(([, count]) => count > 0);
  return rows.sort(([, one], [, other]) => other - one).map(([name, count]) => ({ ...named(name), count }));
}

/** All tables. */
export class Tables {
  /** @param {HTMLElement} host */
  constructor(host) {
    this.tables = TABLES.map((kind) => new Table(kind));
    host.append(...this.tables.map((table) => table.card));
  }

  show(data) {
    for (const table of this.tables) table.show(table.kind.rows(data));
  }
}

class Table {
  /** @param {typeof TABLES[number]} kind */
  constructor(kind) {
    this.kind = kind;
    /** @type {HTMLElement} */
    this.card = document.getElementById("table-template").content.firstElementChild.cloneNode(true);
    this.card.dataset.table = kind.name;
    this.card.setAttribute("aria-label", kind.title);
    this.card.querySelector("caption").textContent = kind.title;
    this.card.querySelector(".empty").textContent = kind.none;
    this.body = this.card.querySelector("tbody");
    this.card.querySelector("tr").append(...kind.heads.map((text) => cell("th", text)));
    for (const head of this.card.querySelectorAll("th")) head.scope = "col";
  }

  /** Rows stay where they are and change their text, so that one can be read, selected and copied. */
  show(/** @type {Row[]} */ rows) {
    while (this.body.childElementCount > rows.length) this.body.lastElementChild.remove();
    while (this.body.childElementCount < rows.length) this.body.append(row());
    rows.forEach(({ name, more, count, share }, at) => {
      const line = this.body.children[at];
      put(line.querySelector(".name"), name);
      put(line.querySelector(".more"), more ?? "");
      put(line.lastElementChild, written(count, "count"));
      line.style.setProperty("--share", String(share ?? 0));
    });
    this.card.classList.toggle("none", rows.length === 0);
  }
}

function row() {
  const line = document.createElement("tr");
  const name = cell("td");
  for (const part of ["name", "more"]) {
    const text = document.createElement("span");
    text.className = part;
    name.append(text, " ");
  }
  line.append(name, cell("td"));
  return line;
}

function cell(kind, text = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
