/** The operator page: asks the server each second, and shows what it answers. */

import { Charts } from "./chart.js";
import { History, duration, momentOf, restarted } from "./figures.js";
import { pushForm } from "./push.js";
import { Locked, ask, useKey } from "./service.js";
import { Tables } from "./tables.js";
import { Trace } from "./trace.js";

const PACE = 1000; // ms between two questions
const PATIENCE = 15_000; // the longest delay between two tries

const $ = (id) => document.getElementById(id);
const history = new History();
const charts = new Charts($("charts"), $("readout"), history);
const tables = new Tables($("tables"));
const trace = new Trace(lock);
/** The answer before this one, for rates. */
let before = null;
let failures = 0;
let timer = 0;
let next = 0; // when the next try is, while the server is away
let asking = false;

// ---- the loop ---------------------------------------------------------------------------------------

async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const begun = performance.now();
  try {
    const { code, message, data } = await ask("GET", "stats");
    if (code !== 0) throw new Error(message);
    show(data);
    await trace.poll();
    failures = 0;
    again(Math.max(100, PACE - (performance.now() - begun)));
  } catch (error) {
    if (error instanceof Locked) lock(error);
    else away(error);
  } finally {
    asking = false;
  }
}

function again(delay) {
  next = Date.now() + delay;
  timer = setTimeout(poll, delay);
}

function away(error) {
  failures += 1;
  interrupt();
  again(Math.min(PATIENCE, PACE * 2 ** (failures - 1)));
  is("away", error.message);
  count();
}

/** Lines break here, and no rate is made of figures that are so far apart. */
function interrupt() {
  before = null;
  history.interrupt();
  charts.draw(Date.now());
}

// ---- what is shown ----------------------------------------------------------------------------------

function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** @param {"connecting" | "live" | "away" | "locked"} state */
function is(state, status) {
  document.body.dataset.state = state;
  $("retry").hidden = state !== "away";
  $("key-form").hidden = state !== "locked";
  $("board").hidden = state === "locked";
  if (state !== "away") put("countdown", "");
  if (state !== "live") troubles({});
  put("status", status);
}

function show(data) {
  const now = Date.now();
  if (before && restarted(before, data)) interrupt();
  history.add(momentOf(before, data, now));
  before = data;
  put("node", data.node);
  put("version", `goim_core ${data.version}`);
  put("uptime", `up ${duration(data.uptime)}`);
  const ready = data.draining ? "draining" : data.ready ? "ready" : "not ready";
  put("ready", ready);
  $("ready").dataset.is = ready;
  document.title = `${data.node}: goim operator`;
  const wrong = data.stats.troubles ?? {};
  is("live", Object.keys(wrong).length ? "" : "Live. No troubles.");
  troubles(wrong);
  tables.show(data);
  charts.draw(now);
}

/** @param {Record<string, string>} wrong what is wrong, by part */
function troubles(wrong) {
  const lines = Object.entries(wrong).map(([part, trouble]) => `${part}: ${trouble}`);
  if ($("troubles").dataset.lines === lines.join("\n")) return; // is read out only when it changes
  $("troubles").dataset.lines = lines.join("\n");
  $("troubles").replaceChildren(...lines.map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  }));
}

function count() {
  if (document.body.dataset.state !== "away") return;
  put("countdown", asking ? "Trying" : `Next try in ${Math.max(1, Math.ceil((next - Date.now()) / 1000))} s`);
}

// ---- the key ----------------------------------------------------------------------------------------

/** @param {Locked} error */
function lock(error) {
  clearTimeout(timer);
  if (before) interrupt();
  is("locked", "Locked");
  put("key-problem", error.message);
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  // A header takes no other letters, and no key has them.
  const fits = /^[\x21-\x7e]+$/.test(key);
  put("key-problem", fits ? "" : "A key is letters, digits and signs, without spaces.");
  if (!fits) return;
  useKey(key);
  $("key").value = "";
  void poll();
});

$("retry").addEventListener("click", () => void poll());
setInterval(count, 250);
pushForm(lock);
void poll();
