/**
 * A WebSocket to a goim server that comes back by itself: where to connect, authentication, heartbeats, replies.
 * What a client does on it is in goim.js.
 *
 * @module goim-connection
 */

import {
  CloseCode, DEFAULT_BACKOFF, Frame, GoimError, HEADER_SIZE, Op, backoffDelay, decode, encode, readNodes, reason,
} from "./goim-protocol.js";

/** @import { Backoff } from "./goim-protocol.js" */

/**
 * @typedef {object} ConnectionOptions
 * @property {string} [url] the WebSocket to connect to, such as `ws://127.0.0.1:3102/sub`
 * @property {string} [nodesUrl] or where to ask for it: goim's `/goim/nodes/weighted`
 * @property {string} [path] path of the WebSocket when `nodesUrl` is asked (`/sub`)
 * @property {number} [refreshNodes] seconds, more or less a fifth, after which it is asked again while connected (60);
 *   0 for never
 * @property {object | string | (() => object | string | Promise<object | string>)} token what the
 *   auth frame carries; a function is called at every connect, and when the server says that the token
 *   runs out. An object is sent as JSON.
 * @property {Partial<Backoff>} [backoff] stronger than what the server proposes
 * @property {number} [heartbeat] seconds between heartbeats (30), or less if the server wants less
 * @property {number} [timeout] seconds to wait for a connection, and for a reply (10)
 * @property {number} [stableAfter] seconds after which a connection counts as good: backoff starts anew (10)
 * @property {number} [maxBody] bytes of body that the server takes (4096)
 * @property {readonly number[]} [stopOn] disconnect codes after which not to try again (4001, 4004, 4009,
 *   and 4008 when the token is no function: the same would be refused again)
 */

const STOP_ON = Object.freeze([CloseCode.AUTH_REFUSED, CloseCode.REPLACED, CloseCode.TOO_MANY_LOGINS]);

/**
 * `closed` by the application, `refused` by the server for good; {@link Connection.connect} leaves both.
 * @typedef {"closed" | "refused" | "connecting" | "open" | "waiting"} State
 */

/**
 * Events, all CustomEvent:
 *
 * | event         | detail |
 * |---------------|--------|
 * | `statechange` | `{ state, delay }`: delay in ms until the next try, 0 unless `waiting` |
 * | `online`      | number of connections in this client's room, told by each heartbeat |
 * | `disconnect`  | `{ code, message, final }`: a connection, or a try, ended; final: it is not tried again |
 */
export class Connection extends EventTarget {
  #options;
  /** @type {State} */ #state = "closed";
  /** @type {WebSocket | null} */ #socket = null;
  #url = "";
  /** The server asks to go to another node; `now`: as soon as nothing is under way. */ #move = { asked: false, now: false };
  /** @type {object | null} the running try; a try that is no longer this one has been given up */ #try = null;
  /** @type {string[]} addresses that this round has not tried */ #urls = [];
  /** @type {ReturnType<typeof readNodes> | null} */ #nodes = null;
  /** @type {Map<number, { resolve: (frame: Frame) => void, reject: (error: GoimError) => void, timer: number }>} */
  #replies = new Map();
  #seq = 0;
  #attempt = 0;
  #openedAt = 0;
  #unanswered = 0;
  /** @type {Set<number>} of this connection, or of the wait for it */ #timers = new Set();
  #probe = 0;
  /** @type {AbortController | null} */ #listening = null;

  /** @param {ConnectionOptions} options */
  constructor(options) {
    super();
    if (!options.url === !options.nodesUrl) throw new TypeError("options: give either url or nodesUrl");
    this.#options = {
      path: "/sub", refreshNodes: 60, heartbeat: 30, timeout: 10, stableAfter: 10, maxBody: 4096,
      /** @type {readonly number[]} */
      stopOn: typeof options.token === "function" ? STOP_ON : [...STOP_ON, CloseCode.EXPIRED],
      ...options,
    };
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /** Connect, and stay connected until {@link close}. While it waits for its next try, try now. */
  connect() {
    if (this.#state === "connecting" || this.#state === "open") return;
    this.#listen();
    this.#open();
  }

  /** Drop the connection and make a new one at once: with a new token, for one. */
  reconnect() {
    this._leaving();
    this.#drop(new GoimError("reconnecting"));
    this.#urls = [];
    this.#listen();
    this.#open();
  }

  /** Disconnect, and stay disconnected until {@link connect}, which starts where the token says. */
  close() {
    this._leaving();
    this.#end("closed");
  }

  /**
   * Send a frame; the promise is the server's reply to it. Rejects with a {@link GoimError} when the
   * server refuses the frame (its code: 429 where the rate limit was passed), when no reply comes, and
   * when the connection is or gets lost.
   * @param {number} op
   * @param {string | Uint8Array} [body]
   * @returns {Promise<Frame>}
   */
  send(op, body = "") {
    return new Promise((resolve, reject) => {
      if (this.#state !== "open") throw new GoimError("not connected");
      const seq = this.#nextSeq();
      const bytes = encode(op, body, seq);
      const size = bytes.length - HEADER_SIZE;
      const { maxBody, timeout } = this.#options;
      // The server would close the connection over it. 413 is what HTTP calls this.
      if (size > maxBody) throw new GoimError(`a body of ${size} bytes; at most ${maxBody} are allowed`, 413);
      const timer = later(timeout, () => {
        this.#replies.delete(seq);
        reject(new GoimError("no reply"));
      });
      this.#replies.set(seq, { resolve, reject, timer });
      this.#socket?.send(bytes);
    });
  }

  // For the class on top of this one.

  /** The server has let this connection in; `token` as it was sent. @protected @param {string} token */
  _opened(token) {}

  /** The server pushed a frame. @protected @param {Frame} frame */
  _pushed(frame) {}

  /** The application, or the page, is about to leave the connection. @protected */
  _leaving() {}

  /** The connection is over and will not come back by itself. @protected */
  _ended() {}

  /** What is the same as long as the connection is. @protected */
  get _era() {
    return this.#try;
  }

  /** Send a frame whose reply nobody waits for. @protected @param {number} op @param {string} [body] */
  _post(op, body) {
    if (this.#state === "open") this.#socket?.send(encode(op, body, this.#nextSeq()));
  }

  /** The online count is one heartbeat away. @protected */
  _beat() {
    this._post(Op.HEARTBEAT);
  }

  /**
   * Call `what` in some seconds, unless the connection ends before.
   * @protected @param {number} seconds @param {() => void} what @returns {number}
   */
  _later(seconds, what) {
    const timer = later(seconds, () => {
      this.#timers.delete(timer);
      what();
    });
    this.#timers.add(timer);
    return timer;
  }

  /** @protected @param {number} timer */
  _cancel(timer) {
    clearTimeout(timer);
    this.#timers.delete(timer);
  }

  /** A token as it is sent: the option's, asked for now. @protected */
  async _token() {
    const { token } = this.#options;
    return written(typeof token === "function" ? await token() : token);
  }

  /** @protected @param {string} type @param {unknown} detail */
  _emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // One try, from the address to the end.

  async #open() {
    this.#drop(new GoimError("not connected"));
    const attempt = (this.#try = {});
    this.#enter("connecting");
    try {
      if (!this.#urls.length) {
        this.#urls = await this.#addresses();
        // The list may not know yet that the server goes.
        if (this.#move.asked) this.#urls.sort((a, b) => Number(a === this.#url) - Number(b === this.#url));
      }
      const token = await this._token();
      if (attempt === this.#try) this.#start(token);
    } catch (error) {
      if (attempt === this.#try) this.#lost(0, error instanceof Error ? error.message : String(error));
    }
  }

  async #addresses() {
    const { url } = this.#options;
    if (url) return [url];
    try {
      this.#nodes = await this.#ask();
    } catch (error) {
      if (!this.#nodes) throw error; // else what was known last may still work
    }
    return [...this.#nodes.urls];
  }

  async #ask() {
    const { nodesUrl = "", path, timeout } = this.#options;
    const from = new URL(nodesUrl, globalThis.location?.href);
    const secure = (globalThis.location ?? from).protocol === "https:";
    const response = await fetch(from, { signal: AbortSignal.timeout(timeout * 1000), cache: "no-store" });
    const { code, message, data } = await response.json();
    if (code !== 0) throw new GoimError(`nodes: ${message || "no answer"}`, code);
    return readNodes(data, from, { secure, path });
  }

  /** Whoever knew one node only finds the others when it dies. Not all clients ask at once. */
  #refreshLater() {
    const { url, refreshNodes } = this.#options;
    if (url || !(refreshNodes > 0)) return;
    this._later(refreshNodes * (0.8 + 0.4 * Math.random()), async () => {
      const era = this.#try;
      try {
        const nodes = await this.#ask();
        if (era === this.#try) this.#nodes = nodes; // else another answer has come since
      } catch { /* what is known may still work */ }
      if (era === this.#try) this.#refreshLater();
    });
  }

  /** @param {string} token */
  #start(token) {
    this.#url = /** @type {string} */ (this.#urls.shift());
    const socket = new WebSocket(this.#url);
    const deadline = this._later(this.#options.timeout, () => this.#lost(0, "no answer in time"));
    const letIn = () => {
      this._cancel(deadline);
      this.#accepted(token);
    };
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(encode(Op.AUTH, token, this.#nextSeq()));
    socket.onmessage = ({ data }) => this.#receive(socket, data, letIn);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason || "connection lost");
    this.#socket = socket;
  }

  /** @param {string} token */
  #accepted(token) {
    this.#openedAt = performance.now();
    this.#unanswered = 0;
    this.#move = { asked: false, now: false };
    this.#tickLater();
    this.#refreshLater();
    this.#state = "open";
    this._opened(token); // before all else, so that at "open" the connection is in its place
    this._emit("statechange", { state: "open", delay: 0 });
    this._beat();
  }

  /** @param {WebSocket} socket @param {ArrayBuffer | string} data @param {() => void} letIn */
  #receive(socket, data, letIn) {
    try {
      if (typeof data === "string") throw new GoimError("frame: expected a binary message");
      for (const frame of decode(new Uint8Array(data))) {
        if (socket !== this.#socket) return; // a frame before this one, or its listener, ended the connection
        if (frame.op !== Op.AUTH_REPLY) this.#take(frame);
        else if (this.#state === "connecting") letIn();
      }
    } catch (error) {
      if (socket === this.#socket) this.#lost(0, /** @type {Error} */ (error).message);
    }
  }

  /** @param {Frame} frame */
  #take(frame) {
    if (frame.op === Op.HEARTBEAT_REPLY) this.#answered(frame);
    else if (frame.op === Op.DISCONNECT_REPLY) {
      const { code, message } = reason(frame);
      this.#lost(code, message);
    } else if (frame.op === Op.MOVE) this.#askedToMove(frame);
    else if (frame.seq < 0) this.#replied(frame);
    else this._pushed(frame);
  }

  /** @param {Frame} frame */
  #replied(frame) {
    const reply = this.#replies.get(frame.seq);
    if (!reply) return; // come late, or nobody waits for it
    this.#replies.delete(frame.seq);
    clearTimeout(reply.timer);
    if (frame.op !== Op.ERROR) reply.resolve(frame);
    else {
      const { code, message } = reason(frame);
      reply.reject(new GoimError(message, code));
    }
    if (this.#move.now) this.#goElsewhere();
  }

  /** @param {Frame} frame */
  #askedToMove(frame) {
    if (this.#move.asked) return;
    this.#move.asked = true;
    this._later(Number(frame.json()?.seconds) || 0, () => {
      this.#move.now = true;
      this.#goElsewhere();
    });
  }

  /** The server waits for what is under way, too, and closes when it has waited long enough. */
  #goElsewhere() {
    if (!this.#replies.size) this.#lost(CloseCode.GOING_AWAY, "the server asked to connect elsewhere");
  }

  #tickLater() {
    this._later(Math.min(this.#options.heartbeat, this.#nodes?.heartbeat || Infinity), () => {
      if (this.#unanswered >= 2) this.#lost(0, "two heartbeats without an answer");
      else {
        this.#unanswered++;
        this._beat();
        this.#tickLater();
      }
    });
  }

  /** @param {Frame} frame */
  #answered({ body }) {
    this.#unanswered = 0;
    this._cancel(this.#probe);
    if (body.length >= 4) this._emit("online", new DataView(body.buffer, body.byteOffset).getInt32(0));
  }

  /** The page or the network is back: do not wait, and do not trust a socket that slept. */
  #wake() {
    if (this.#state === "waiting") this.#open();
    else if (this.#state === "open") {
      this._cancel(this.#probe);
      this.#probe = this._later(5, () => this.#lost(0, "connection lost"));
      this._beat();
    }
  }

  #listen() {
    if (this.#listening) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    globalThis.addEventListener?.("online", () => this.#wake(), { signal });
    globalThis.addEventListener?.("pagehide", () => this._leaving(), { signal });
    const page = globalThis.document;
    page?.addEventListener("visibilitychange", () => page.hidden || this.#wake(), { signal });
  }

  /** The connection or the try for one ended. @param {number} code @param {string} message */
  #lost(code, message) {
    const wasOpen = this.#state === "open";
    if (wasOpen && performance.now() - this.#openedAt >= this.#options.stableAfter * 1000) this.#attempt = 0;
    this.#drop(new GoimError(message, code));
    const marker = (this.#try = {});
    const final = this.#options.stopOn.includes(code);
    this._emit("disconnect", { code, message, final });
    if (marker !== this.#try) return; // a listener closed or reconnected
    if (final) this.#end("refused");
    else if (!wasOpen && this.#urls.length) this.#open(); // the next address of this round
    else {
      this.#urls = [];
      const backoff = { ...DEFAULT_BACKOFF, ...this.#nodes?.backoff, ...this.#options.backoff };
      // Who was asked to move was given its own moment, and need not look for another.
      const now = wasOpen && this.#move.asked && !this.#attempt;
      const seconds = now ? 0 : backoffDelay(this.#attempt, backoff);
      this.#attempt++;
      this._later(seconds, () => this.#open());
      this.#enter("waiting", seconds * 1000);
    }
  }

  /** @param {"closed" | "refused"} state */
  #end(state) {
    this.#listening?.abort();
    this.#listening = null;
    this.#drop(new GoimError(state));
    this.#urls = [];
    this.#attempt = 0;
    this._ended();
    this.#enter(state);
  }

  /** Let go of the socket, of all timers, and of everyone who waits for a reply. @param {GoimError} error */
  #drop(error) {
    this.#try = null;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    const replies = [...this.#replies.values()];
    this.#replies.clear();
    for (const { reject, timer } of replies) {
      clearTimeout(timer);
      reject(error);
    }
  }

  /** Below zero: no push has such a number, so that a reply is never taken for a message, nor the other way. */
  #nextSeq() {
    this.#seq = this.#seq > -0x80000000 ? this.#seq - 1 : -1; // int32
    return this.#seq;
  }

  /** @param {State} state @param {number} [delay] */
  #enter(state, delay = 0) {
    if (state === this.#state) return;
    this.#state = state;
    this._emit("statechange", { state, delay });
  }
}

/** A token as it is sent. @param {object | string} token */
export function written(token) {
  return typeof token === "string" ? token : JSON.stringify(token);
}

/** @param {number} seconds @param {() => void} what @returns {number} */
function later(seconds, what) {
  return /** @type {any} */ (setTimeout(what, seconds * 1000));
}
