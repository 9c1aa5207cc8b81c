/** The chat page: what people see and do. The connection is goim.js; what is said, examples/chat/app.py. */

import { GoimClient, Op } from "./goim.js";

const CHAT = 1000; // {"room_id", "text"} to the server; {"id", "name", "mid", "text", "at"} or plain text from it
const COUNT = 1001; // {"online"}

const KEEP = 500; // messages kept on the page
const GROUP = 3 * 60_000; // ms within which one author's messages stand together
const LINES = 8; // colours of author badges, .line-0 to .line-7

const $ = (id) => document.getElementById(id);
const log = $("log");
const list = $("messages");
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

// ---- who and where ------------------------------------------------------------------------------

/** A browser may forbid storage; the page then forgets with the tab. @param {"localStorage" | "sessionStorage"} kind */
function remember(kind, key, value) {
  try {
    window[kind].setItem(key, value);
  } catch { /* see above */ }
  return value;
}
function recall(kind, key) {
  try {
    return window[kind].getItem(key);
  } catch {
    return null;
  }
}

const pick = (words) => {
  const all = words.split(" ");
  return all[Math.floor(Math.random() * all.length)];
};
const guestName = () =>
  `${pick("Amber Brisk Calm Clever Coral Early Gentle Keen Lucky Quiet Sunny Swift")} ` +
  pick("Badger Crane Falcon Finch Heron Lynx Marten Otter Raven Robin Tern Wren");

/** @param {string} text */
const cleanName = (text) => text.trim().replace(/\s+/g, " ").slice(0, 32);
/** @param {string} text */
const cleanRoom = (text) =>
  text.trim().replace(/^#+/, "").toLowerCase().replace(/\s+/g, "-").replace(/[^\p{L}\p{N}._-]/gu, "").slice(0, 40);
/** @param {string} name */
const roomId = (name) => `chat://${name}`;
const roomOfHash = () => {
  try {
    return cleanRoom(decodeURIComponent(location.hash)) || "lobby";
  } catch {
    return "lobby"; // "#%" is no text
  }
};

// Each tab is a user of its own; a reload stays the same one.
const newMid = () => Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
const mid = Number(recall("sessionStorage", "goim-chat-mid") ?? remember("sessionStorage", "goim-chat-mid", newMid()));
let name = recall("localStorage", "goim-chat-name") ?? recall("sessionStorage", "goim-chat-guest")
  ?? remember("sessionStorage", "goim-chat-guest", guestName());
let room = roomOfHash(); // where the user wants to be
let shown = ""; // the room on the page
let tokenRoom = room; // where the connection started

// ---- the list of messages -----------------------------------------------------------------------

/** What each room showed when it was left. @type {Map<string, DocumentFragment>} */
const rooms = new Map();
let unread = 0;
let atEnd = true;

/** @param {string} id @returns {HTMLElement} */
const stamp = (id) => $(id).content.firstElementChild.cloneNode(true);

function setTime(item, at) {
  const time = item.querySelector("time");
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return;
  time.dateTime = date.toISOString();
  time.title = calendar.format(date);
  time.textContent = clock.format(date);
  item.dataset.at = String(at);
}

/** Whether `item` continues what its author said just before. */
function regroup(item) {
  const before = item?.previousElementSibling;
  if (!item?.dataset.mid) return;
  const near = Number(item.dataset.at) - Number(before?.dataset.at) < GROUP;
  item.classList.toggle("follows", before?.dataset.mid === item.dataset.mid && near);
}

function append(item, { counts = true } = {}) {
  list.append(item);
  regroup(item);
  while (list.childElementCount > KEEP) list.firstElementChild.remove();
  if (atEnd) scrollToEnd();
  if (counts && (!atEnd || document.hidden)) setUnread(unread + 1);
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
}

function setUnread(count) {
  unread = count;
  $("pill").hidden = atEnd || !unread;
  $("unread").textContent = unread === 1 ? "1 new message" : `${unread} new messages`;
  document.title = `${unread ? `(${unread}) ` : ""}#${shown || room}`;
}

/** @param {string} text */
function say(text) {
  const item = stamp("system-template");
  item.querySelector(".text").textContent = text;
  append(item, { counts: false });
}

/** A push that is no chat message: what curl sent. @param {string} text */
function showNotice(text) {
  const item = stamp("notice-template");
  item.querySelector(".text").textContent = text;
  setTime(item, Date.now());
  append(item);
}

function makeMessage({ author, by, text, at, own }) {
  const item = stamp("message-template");
  item.dataset.kind = own ? "own" : "other";
  item.dataset.mid = String(by);
  item.querySelector(".author").textContent = own ? "You" : author;
  item.querySelector(".text").textContent = text;
  const badge = item.querySelector(".badge");
  badge.textContent = [...author][0]?.toUpperCase() ?? "?";
  badge.classList.add(`line-${Math.abs(by) % LINES}`);
  setTime(item, at);
  return item;
}

// ---- sending ------------------------------------------------------------------------------------

/**
 * @typedef {object} Outgoing
 * @property {string} text
 * @property {HTMLElement} item
 * @property {string} room
 * @property {Promise<unknown>} [delivery] there once it was sent: settles with the server's answer
 */
/** Own messages that the room has not shown back yet, oldest first. @type {Outgoing[]} */
let outgoing = [];

/** @param {Outgoing} out @param {"pending" | "sent" | "failed"} state */
function mark(out, state, problem = "", again = "") {
  out.item.dataset.state = state;
  out.item.querySelector(".delivery").textContent = { pending: "Sending", sent: "Sent", failed: "Not sent" }[state];
  const line = out.item.querySelector(".problem");
  line.hidden = !problem;
  line.querySelector("span").textContent = problem;
  line.querySelector("button").textContent = again;
}

/** @param {string} text */
function post(text) {
  const item = makeMessage({ author: name, by: mid, text, at: Date.now(), own: true });
  const out = { text, item, room: shown };
  outgoing.push(out);
  mark(out, "pending");
  atEnd = true;
  append(item, { counts: false });
  setUnread(0);
  transmit(out);
}

/** Without a connection the message waits; flush() sends it. @param {Outgoing} out */
function transmit(out) {
  if (client.state !== "open") return;
  out.delivery = client.send(CHAT, JSON.stringify({ room_id: roomId(out.room), text: out.text })).then(
    () => {
      mark(out, "sent");
      if (out.room !== shown) forget(out); // the answer came after the user had left
    },
    ({ code, message }) => {
      if (!outgoing.includes(out)) return; // the room has shown it already
      const answered = code >= 400 && code < 600;
      fail(out, answered ? message : "No answer came", answered && code < 500 && code !== 429);
    },
  );
}

/** @param {Outgoing} out @param {string} why @param {boolean} [refused] the same text would be refused again */
function fail(out, why, refused = false) {
  mark(out, "failed", why, refused ? "Edit" : "Try again");
  if (atEnd) scrollToEnd();
  out.item.querySelector(".problem button").onclick = () => {
    if (refused) {
      forget(out);
      out.item.remove();
      $("text").value = out.text;
      fitText();
    } else {
      mark(out, "pending");
      delete out.delivery;
      transmit(out);
    }
    $("text").focus();
  };
}

function flush() {
  for (const out of outgoing) if (out.item.dataset.state === "pending") transmit(out);
}

/** What was accepted and not shown back by now never will be: the room, or the connection, was left. */
function forgetSent() {
  outgoing = outgoing.filter((out) => out.item.dataset.state !== "sent");
}

/** @param {Outgoing} out */
function forget(out) {
  outgoing = outgoing.filter((other) => other !== out);
}

// ---- what comes from the server -----------------------------------------------------------------

/** @param {string} text @returns {any} the JSON object in it, or null */
function readObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

function receiveChat(frame) {
  const text = frame.text();
  const said = readObject(text);
  if (typeof said?.text !== "string" || typeof said.mid !== "number") {
    if (text.trim()) showNotice(text);
  } else if (said.mid === mid) receiveOwn(said);
  else append(makeMessage({ author: String(said.name || "?"), by: said.mid, text: said.text, at: said.at, own: false }));
}

/** The room shows what this user sent: here, or in a tab that shares the session. */
function receiveOwn(said) {
  const out = outgoing.find(({ text, room }) => text === said.text && room === shown);
  if (!out) {
    const item = makeMessage({ author: name, by: mid, text: said.text, at: said.at, own: true });
    mark({ text: said.text, item, room: shown }, "sent");
    append(item);
    return;
  }
  forget(out);
  mark(out, "sent");
  setTime(out.item, said.at);
  place(out.item);
}

/** Everyone sees the room's order: a message goes behind all that the room showed before it. */
function place(item) {
  const next = outgoing.find((out) => out.item.isConnected && out.item.dataset.state !== "failed")?.item ?? null;
  if (item.nextElementSibling === next) return;
  const after = item.nextElementSibling;
  list.insertBefore(item, next);
  [item, next, after].forEach(regroup);
  if (atEnd) scrollToEnd();
}

const showOnline = (count) => {
  $("online").textContent = String(count);
};

// ---- the connection -----------------------------------------------------------------------------

const client = new GoimClient({
  nodesUrl: "/goim/nodes/weighted?platform=web",
  token: () => {
    tokenRoom = room;
    return { mid, key: "", room_id: roomId(room), platform: "web", accepts: [CHAT, COUNT, Op.ERROR], name };
  },
  resume: false, // the token says in which room
  backoff: { baseDelay: 1, maxDelay: 30 },
});

let retryAt = 0;
let ticking = 0;
let last = "closed";
let lost = false; // a connection that was there is gone
let refusal = "";

client.addEventListener("message", ({ detail: frame }) => {
  if (frame.op === CHAT) receiveChat(frame);
  else if (frame.op === COUNT) showOnline(readObject(frame.text())?.online ?? 0);
});
client.addEventListener("online", ({ detail }) => showOnline(detail));
client.addEventListener("disconnect", ({ detail: { final, message } }) => {
  refusal = final ? message : "";
});
client.addEventListener("statechange", ({ detail: { state, delay } }) => {
  retryAt = performance.now() + delay;
  lost ||= last === "open" && state === "waiting";
  last = state;
  showState(state);
  if (state === "open") entered();
});

const STATES = { open: "Live", connecting: "Connecting", waiting: "Offline", refused: "Disconnected" };

function showState(state) {
  document.querySelector("main").dataset.state = state;
  $("state").dataset.state = state;
  $("state").textContent = STATES[state];
  $("banner").hidden = state === "open" || (state === "connecting" && $("banner").hidden);
  $("banner-text").textContent = {
    open: "",
    connecting: "Connection lost. Reconnecting",
    waiting: "Connection lost. Reconnecting",
    refused: `The server ended this connection: ${refusal}`,
  }[state];
  $("retry").textContent = state === "refused" ? "Connect again" : "Retry now";
  $("retry").disabled = state === "connecting";
  clearInterval(ticking);
  $("countdown").textContent = "";
  if (state === "waiting") {
    showCountdown();
    ticking = setInterval(showCountdown, 250);
  }
  if (atEnd) scrollToEnd();
}

function showCountdown() {
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  $("countdown").textContent = seconds > 0 ? `in ${seconds} s` : "now";
}

function entered() {
  const back = lost && shown === tokenRoom;
  lost = false;
  forgetSent();
  showRoom(tokenRoom);
  say(back ? "Back online. What was said meanwhile is not shown." : welcome());
  if (room === tokenRoom) flush();
  else move(); // the user chose another room while this connection was made
}

/** Enter `room` on the connection that is there; without one the next token does it. */
async function move() {
  const wanted = room;
  if (client.state !== "open") {
    showRoom(wanted);
    return;
  }
  try {
    await client.changeRoom(roomId(wanted));
    showRoom(wanted);
    say(welcome());
  } catch (error) {
    if (client.state !== "open" || wanted !== room) return; // the next connection, or the next move, decides
    say(`You cannot enter #${wanted}: ${error.message}`);
    room = shown;
    location.hash = shown;
    $("room").value = shown;
  }
}

const welcome = () => `You are in #${shown} as ${name}`;

/** @param {string} wanted */
function showRoom(wanted) {
  if (wanted === shown) return;
  forgetSent();
  for (const out of outgoing) {
    if (out.item.dataset.state === "pending" && !out.delivery) fail(out, "You left the room");
  }
  if (shown) {
    const left = document.createDocumentFragment();
    left.append(...list.childNodes);
    rooms.set(shown, left);
  }
  shown = wanted;
  list.replaceChildren(rooms.get(wanted) ?? "");
  $("title").textContent = wanted;
  $("room").value = wanted;
  $("text").placeholder = `Message #${wanted}`;
  showCommand(`${location.origin}/goim/push/room?operation=${CHAT}&type=chat&room=${encodeURIComponent(wanted)}`);
  atEnd = true;
  setUnread(0);
}

/** The curl that pushes into this room, with places where a narrow panel may break it. @param {string} url */
function showCommand(url) {
  const parts = `curl -d 'hello' '${url}'`.split(/(?=[?&])|(?<=[^/]\/)(?!\/)/);
  $("curl").replaceChildren(...parts.flatMap((part) => [part, document.createElement("wbr")]));
}

// ---- what the user does -------------------------------------------------------------------------

const composer = $("composer");
const input = $("text");

function fitText() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  input.focus();
  if (!text) return;
  post(text);
  input.value = "";
  fitText();
});
input.addEventListener("input", fitText);
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

$("name").value = name;
$("name-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = cleanName($("name").value);
  $("name").value = wanted || name;
  if (!wanted || wanted === name) return;
  name = wanted;
  remember("localStorage", "goim-chat-name", name);
  await Promise.allSettled(outgoing.map((out) => out.delivery));
  client.reconnect(); // the token carries the name
});

$("room-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = cleanRoom($("room").value);
  $("room").value = wanted || room;
  if (wanted) location.hash = wanted;
  if (matchMedia("(max-width: 860px)").matches) $("panel").hidePopover?.();
  input.focus();
});
addEventListener("hashchange", () => {
  const wanted = roomOfHash();
  if (wanted === room) return;
  room = wanted;
  move();
});

$("retry").addEventListener("click", () => {
  client.connect();
  input.focus();
});

$("copy").addEventListener("click", async () => {
  const command = $("curl");
  let copied = true;
  try {
    await navigator.clipboard.writeText(command.textContent); // absent on plain http, except on this machine
  } catch {
    getSelection().selectAllChildren(command);
    copied = document.execCommand("copy");
  }
  $("copy").textContent = copied ? "Copied" : "Press Ctrl+C to copy";
  setTimeout(() => ($("copy").textContent = "Copy command"), 2000);
});

// ---- the window ---------------------------------------------------------------------------------

log.addEventListener("scroll", () => {
  atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  if (atEnd && unread && !document.hidden) setUnread(0);
  else $("pill").hidden = atEnd || !unread;
}, { passive: true });
$("pill").addEventListener("click", () => {
  atEnd = true;
  scrollToEnd();
  input.focus();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && atEnd) setUnread(0);
});
new ResizeObserver(() => atEnd && scrollToEnd()).observe(log);

// A panel that was opened on a narrow window stays in the way when the window gets wide.
matchMedia("(max-width: 860px)").addEventListener("change", () => $("panel").hidePopover?.());

// iOS does not shrink the page for its keyboard; zooming by hand is left alone.
const view = window.visualViewport;
view?.addEventListener("resize", () => {
  if (view.scale !== 1) return;
  document.documentElement.style.setProperty("--height", `${view.height}px`);
  scrollTo(0, 0);
});

showRoom(room);
client.connect();
if (matchMedia("(hover: hover)").matches) input.focus();
