/** The form that pushes, by goim's push API. */

import { Locked, ask } from "./service.js";

const $ = (id) => document.getElementById(id);
const several = (text) => text.split(/[\s,]+/).filter(Boolean);

/** To whom: what the field is for, and what it becomes in the query. */
const TARGETS = {
  room: {
    label: "Room", example: "live://1000", button: "Push to the room",
    query: (text) => {
      const [kind, ...rest] = text.trim().split("://");
      return [["type", kind], ["room", rest.join("://")]];
    },
  },
  mids: { label: "Users, by number", example: "123, 456", button: "Push to these users", query: (text) => several(text).map((mid) => ["mids", mid]) },
  keys: { label: "Connections, by key", example: "key-1, key-2", button: "Push to these keys", query: (text) => several(text).map((key) => ["keys", key]) },
  all: { label: "Connections a second", example: "0: all at once", button: "Push to everyone", query: (text) => [["speed", text.trim()]] },
};

/** @param {(error: Locked) => void} locked called where the server asks for a key */
export function pushForm(locked) {
  const form = $("push-form");
  /** What was typed for each target. @type {Record<string, string>} */
  const typed = {};
  let to = "room";

  function choose() {
    typed[to] = $("target").value;
    to = new FormData(form).get("to");
    $("target-label").textContent = TARGETS[to].label;
    $("target").placeholder = TARGETS[to].example;
    $("target").value = typed[to] ?? "";
    $("push").textContent = TARGETS[to].button;
    answer("", "");
  }

  function answer(is, text) {
    $("answer").dataset.is = is;
    $("answer").textContent = text;
  }

  async function push(event) {
    event.preventDefault();
    if ($("push").disabled) return;
    $("push").disabled = true;
    answer("", "Pushing\u2026");
    const query = [["operation", $("operation").value.trim()], ...TARGETS[to].query($("target").value)];
    try {
      const { code, message } = await ask("POST", `../push/${to}`, query, $("body").value);
      answer(code === 0 ? "good" : "bad", code === 0 ? "Code 0: accepted" : `Code ${code}: ${message}`);
    } catch (error) {
      answer("bad", error.message);
      if (error instanceof Locked) locked(error);
    } finally {
      $("push").disabled = false;
    }
  }

  for (const choice of form.elements.to) choice.addEventListener("change", choose);
  form.addEventListener("submit", push);
  $("body").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  choose();
}
