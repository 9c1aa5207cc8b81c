/** The trace: which users are followed, and the lines that the server has of them. */

import { Locked, ask } from "./service.js";

const SHOWN = 500; // lines on the page, and in one answer
const $ = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3,
});

export class Trace {
  #next = 0; // the number of the next line to ask for
  #follow = true;
  #traced = "";

  /** @param {(error: Locked) => void} locked called where the server asks for a key */
  constructor(locked) {
    this.locked = locked;
    this.list = $("lines");
    $("trace-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#switch($("mid").value.trim(), true);
    });
    $("clear").addEventListener("click", () => this.#clear());
    $("newest").addEventListener("click", () => this.#toEnd());
    this.list.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.list;
      this.#follow = scrollHeight - scrollTop - clientHeight < 24;
      $("newest").hidden = this.#follow;
    });
  }

  /** Ask for new lines. Raises what {@link ask} does. */
  async poll() {
    let full = true;
    for (let rounds = 0; full && rounds < 3; rounds++) { // the server keeps 1,000 lines
      const { code, data } = await ask("GET", "trace", [["after", String(this.#next)]]);
      if (code !== 0) return;
      // Another run of the server counts its lines from 0 again.
      this.#next = data.next < this.#next ? 0 : data.next;
      this.#show(data.traced);
      this.#append(data.lines);
      full = data.lines.length >= SHOWN;
    }
  }

  async #switch(mid, on) {
    try {
      const { code, message, data } = await ask("POST", "trace", [["mid", mid], ["on", on ? "1" : "0"]]);
      if (code === 0) this.#show(data.traced);
      else this.#say(message, true);
      if (code === 0 && on) $("mid").value = "";
    } catch (error) {
      this.#say(error.message, true);
      if (error instanceof Locked) this.locked(error);
    }
  }

  #say(text, bad = false) {
    this.#traced = "";
    $("traced").classList.toggle("problem", bad);
    $("traced").replaceChildren(text);
  }

  #show(/** @type {number[]} */ traced) {
    const now = traced.join();
    if ($("traced").childElementCount === traced.length && now === this.#traced && now) return;
    if (!now) {
      // What was said of a user number that is none stays until one is traced.
      if (!$("traced").classList.contains("problem")) this.#say("No user is traced.");
      return;
    }
    this.#say("");
    this.#traced = now;
    $("traced").append(...traced.map((mid) => this.#chip(String(mid))));
  }

  #chip(mid) {
    const stop = document.createElement("button");
    stop.type = "button";
    stop.textContent = mid;
    stop.setAttribute("aria-label", `Stop tracing ${mid}`);
    stop.addEventListener("click", () => void this.#switch(mid, false));
    return stop;
  }

  #append(lines) {
    if (!lines.length) return;
    this.list.append(...lines.slice(-SHOWN).map(row));
    while (this.list.childElementCount > SHOWN) this.list.firstElementChild.remove();
    $("no-lines").hidden = true;
    if (this.#follow) this.#toEnd();
  }

  #toEnd() {
    this.list.scrollTop = this.list.scrollHeight;
  }

  #clear() {
    this.list.replaceChildren();
    this.#follow = true;
    $("newest").hidden = true;
    $("no-lines").hidden = false;
  }
}

function row({ time, mid, key, text }) {
  const line = document.createElement("li");
  const parts = { time: clock.format(time * 1000), mid: String(mid), key: String(key), text: String(text) };
  for (const [name, value] of Object.entries(parts)) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = value;
    if (name === "key") part.title = value;
    line.append(part, " ");
  }
  line.dataset.way = parts.text.startsWith("<-") ? "in" : parts.text.startsWith("->") ? "out" : "";
  return line;
}
