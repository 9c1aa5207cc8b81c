/**
 * A goim client for browsers: one ES module, no dependency, no build step.
 *
 *     import { GoimClient } from "./goim.js";
 *
 *     const client = new GoimClient({
 *       nodesUrl: "/goim/nodes/weighted?platform=web",
 *       token: () => ({ mid: 1, key: "", room_id: "live://1000", platform: "web", accepts: [1000, 18] }),
 *     });
 *     client.addEventListener("message", ({ detail: frame }) => console.log(frame.op, frame.text()));
 *     client.connect();
 *
 * It stays connected until close(): a lost connection is tried again with exponential backoff and
 * jitter, and at once when the network or the page comes back.
 *
 * @module goim
 */

const HEADER_SIZE = 16;
const UTF8 = { encoder: new TextEncoder(), decoder: new TextDecoder() };

/** The operations of the goim protocol. Applications use their own from 64 on, by custom from 1000. */
export const Op = Object.freeze({
  HEARTBEAT: 2, HEARTBEAT_REPLY: 3, SEND_MSG: 4, SEND_MSG_REPLY: 5, DISCONNECT_REPLY: 6,
  AUTH: 7, AUTH_REPLY: 8, RAW: 9, CHANGE_ROOM: 12, CHANGE_ROOM_REPLY: 13,
  SUB: 14, SUB_REPLY: 15, UNSUB: 16, UNSUB_REPLY: 17,
  ERROR: 18, // goim_core's extension: sent only to a client whose token lists it in `accepts`
});

/** Codes of a disconnect that come from goim_core; below 4000 they are those of RFC 6455. */
export const CloseCode = Object.freeze({ AUTH_REFUSED: 4001, REPLACED: 4004 });

/** What a rejected promise carries. `code` is the server's, or 0 when the failure is on this side. */
export class GoimError extends Error {
  /** @param {string} message @param {number} [code] */
  constructor(message, code = 0) {
    super(message);
    this.name = "GoimError";
    this.code = code;
  }
}

/** One protocol frame. */
export class Frame {
  /** @param {number} op @param {Uint8Array} body @param {number} seq @param {number} ver */
  constructor(op, body, seq, ver) {
    this.op = op;
    this.body = body;
    this.seq = seq;
    this.ver = ver;
  }

  /** The body as UTF-8 text; bytes that are none become U+FFFD. */
  text() {
    return UTF8.decoder.decode(this.body);
  }
}

/**
 * The bytes of one frame: 16 bytes of big-endian header, then the body.
 * @param {number} op
 * @param {string | Uint8Array} [body] text is sent as UTF-8
 * @param {number} [seq]
 * @param {number} [ver]
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function encode(op, body = "", seq = 0, ver = 1) {
  const content = typeof body === "string" ? UTF8.encoder.encode(body) : body;
  const bytes = new Uint8Array(HEADER_SIZE + content.length);
  const view = new DataView(bytes.buffer);
  view.setInt32(0, bytes.length);
  view.setInt16(4, HEADER_SIZE);
  view.setInt16(6, ver);
  view.setInt32(8, op);
  view.setInt32(12, seq);
  bytes.set(content, HEADER_SIZE);
  return bytes;
}

/**
 * All frames of one WebSocket message, with batches (op 9) unpacked. Bodies are views into `bytes`.
 * @param {Uint8Array} bytes
 * @returns {Frame[]}
 * @throws {GoimError} when the bytes are not complete frames
 */
export function decode(bytes) {
  /** @type {Frame[]} */
  const frames = [];
  unpack(bytes, frames, false);
  return frames;
}

/** @param {Uint8Array} bytes @param {Frame[]} into @param {boolean} inBatch */
function unpack(bytes, into, inBatch) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < bytes.length; ) {
    const left = bytes.length - at;
    if (left < HEADER_SIZE) throw new GoimError(`frame: ${left} bytes are no header`);
    const length = view.getInt32(at);
    const headerLength = view.getInt16(at + 4);
    if (headerLength !== HEADER_SIZE) throw new GoimError(`frame: header length ${headerLength}`);
    if (length < HEADER_SIZE || length > left) {
      throw new GoimError(`frame: package length ${length} with ${left} bytes there`);
    }
    const body = bytes.subarray(at + HEADER_SIZE, at + length);
    const op = view.getInt32(at + 8);
    if (op !== Op.RAW) into.push(new Frame(op, body, view.getInt32(at + 12), view.getInt16(at + 6)));
    else if (inBatch) throw new GoimError("frame: a batch inside a batch");
    else unpack(body, into, true);
    at += length;
  }
}

/**
 * @typedef {object} Backoff all in seconds, with goim's defaults
 * @property {number} baseDelay the first delay (3)
 * @property {number} factor how much longer each next one is (1.8)
 * @property {number} maxDelay no longer than this, before jitter (300)
 * @property {number} jitter share by which a delay is moved at random, either way (0.3)
 */

/** @type {Readonly<Backoff>} */
export const DEFAULT_BACKOFF = Object.freeze({ baseDelay: 3, factor: 1.8, maxDelay: 300, jitter: 0.3 });

/**
 * Seconds to wait before try number `attempt`, counted from 0.
 * @param {number} attempt
 * @param {Backoff} [backoff]
 * @param {() => number} [random] in [0, 1)
 */
export function backoffDelay(attempt, backoff = DEFAULT_BACKOFF, random = Math.random) {
  const delay = Math.min(backoff.maxDelay, backoff.baseDelay * backoff.factor ** attempt);
  return delay * (1 + backoff.jitter * (2 * random() - 1));
}

/**
 * What an answer of `/goim/nodes/weighted` means to a client.
 * @param {any} data the answer's `data`
 * @param {URL} from where the answer came from: its host is the last resort
 * @param {{ secure?: boolean, path?: string }} [options]
 * @returns {{ urls: string[], heartbeat: number, backoff: Partial<Backoff> }} heartbeat in seconds, 0 if not told
 */
export function readNodes(data, from, { secure = from.protocol === "https:", path = "/sub" } = {}) {
  const port = secure ? data.wss_port : data.ws_port;
  const hosts = new Set([...(data.nodes ?? []), data.domain, from.hostname].filter(Boolean));
  const urls = [...hosts].map((host) => {
    const name = host.includes(":") && !host.startsWith("[") ? `[${host}]` : host; // bare IPv6
    return `${secure ? "wss" : "ws"}://${name}${port ? `:${port}` : ""}${path}`;
  });
  const heartbeat = Number(data.heartbeat) || 0;
  const { base_delay, factor, max_delay, jitter } = data.backoff ?? {};
  const told = Object.entries({ baseDelay: base_delay, factor, maxDelay: max_delay, jitter });
  return {
    urls,
    heartbeat: heartbeat > 1e6 ? heartbeat / 1e9 : heartbeat, // Go prints a duration in nanoseconds
    backoff: Object.fromEntries(told.filter(([, value]) => typeof value === "number")),
  };
}

/**
 * @typedef {object} GoimOptions
 * @property {string} [url] the WebSocket to connect to, such as `ws://127.0.0.1:3102/sub`
 * @property {string} [nodesUrl] or where to ask for it: goim's `/goim/nodes/weighted`
 * @property {string} [path] path of the WebSocket when `nodesUrl` is asked (`/sub`)
 * @property {object | string | (() => object | string | Promise<object | string>)} token what the
 *   auth frame carries; a function is called at every connect. An object is sent as JSON.
 * @property {Partial<Backoff>} [backoff] stronger than what the server proposes
 * @property {number} [heartbeat] seconds between heartbeats (30), or less if the server wants less
 * @property {number} [timeout] seconds to wait for a connection, and for a reply (10)
 * @property {number} [stableAfter] seconds after which a connection counts as good: backoff starts anew (10)
 * @property {number} [maxBody] bytes of body that the server takes (4096)
 * @property {readonly number[]} [stopOn] disconnect codes after which not to try again (4001 refused, 4004 replaced)
 */

/** @typedef {"closed" | "connecting" | "open" | "waiting"} State */

/**
 * A connection to a goim server that comes back by itself. Events, all CustomEvent:
 *
 * | event         | detail |
 * |---------------|--------|
 * | `statechange` | `{ state, delay }`: delay in ms until the next try, 0 unless `waiting` |
 * | `message`     | a {@link Frame} that the server pushed |
 * | `online`      | number of connections in this client's room, told by each heartbeat |
 * | `disconnect`  | `{ code, message, final }`: a connection, or a try, ended; final: it is not tried again |
 */
export class GoimClient extends EventTarget {
  #options;
  /** @type {State} */ #state = "closed";
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {object | null} the running try; a try that is no longer this one has been given up */ #try = null;
  /** @type {string[]} addresses that this round has not tried */ #urls = [];
  /** @type {ReturnType<typeof readNodes> | null} */ #nodes = null;
  /** @type {Map<number, { resolve: (frame: Frame) => void, reject: (error: GoimError) => void, timer: number }>} */
  #replies = new Map();
  #seq = 0;
  #attempt = 0;
  #openedAt = 0;
  #unanswered = 0;
  /** @type {{ retry?: number, deadline?: number, beat?: number, probe?: number }} */ #timers = {};
  /** @type {AbortController | null} */ #listening = null;

  /** @param {GoimOptions} options */
  constructor(options) {
    super();
    if (!options.url === !options.nodesUrl) throw new TypeError("options: give either url or nodesUrl");
    this.#options = {
      path: "/sub", heartbeat: 30, timeout: 10, stableAfter: 10, maxBody: 4096,
      /** @type {readonly number[]} */ stopOn: [CloseCode.AUTH_REFUSED, CloseCode.REPLACED],
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
    this.#drop(new GoimError("reconnecting"));
    this.#urls = [];
    this.#listen();
    this.#open();
  }

  /** Disconnect, and stay disconnected until {@link connect}. */
  close() {
    this.#listening?.abort();
    this.#listening = null;
    this.#drop(new GoimError("closed"));
    this.#urls = [];
    this.#attempt = 0;
    this.#enter("closed");
  }

  /**
   * Send a frame; the promise is the server's reply to it. Rejects with a {@link GoimError} when the
   * server refuses the frame (its code), when no reply comes, and when the connection is or gets lost.
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
      // The entry stays after a timeout, so that a late reply is not taken for a push.
      const timer = later(timeout, () => reject(new GoimError("no reply")));
      this.#replies.set(seq, { resolve, reject, timer });
      this.#socket?.send(bytes);
    });
  }

  /**
   * Move to the room `type://id`; empty leaves the room. Like {@link subscribe} this holds for the
   * connection: the token decides where the next one starts.
   * @param {string} roomId
   */
  async changeRoom(roomId) {
    const reply = await this.send(Op.CHANGE_ROOM, roomId);
    // To a client without ERROR in `accepts`, goim_core refuses by naming the room that it is still in.
    if (reply.text() !== roomId) throw new GoimError("the server did not change the room", 403);
    this.#beat(); // its answer is the online count of the new room
    return reply;
  }

  /** Also get pushes of these operations. @param {number[]} ops */
  subscribe(ops) {
    return this.send(Op.SUB, ops.join(","));
  }

  /** No longer get pushes of these operations. @param {number[]} ops */
  unsubscribe(ops) {
    return this.send(Op.UNSUB, ops.join(","));
  }

  async #open() {
    this.#drop(new GoimError("not connected"));
    const attempt = (this.#try = {});
    this.#enter("connecting");
    try {
      if (!this.#urls.length) this.#urls = await this.#addresses();
      const { token } = this.#options;
      const value = await (typeof token === "function" ? token() : token);
      if (attempt === this.#try) this.#start(value);
    } catch (error) {
      if (attempt === this.#try) this.#lost(0, error instanceof Error ? error.message : String(error));
    }
  }

  async #addresses() {
    const { url, nodesUrl = "", path, timeout } = this.#options;
    if (url) return [url];
    const from = new URL(nodesUrl, globalThis.location?.href);
    const secure = (globalThis.location ?? from).protocol === "https:";
    try {
      const response = await fetch(from, { signal: AbortSignal.timeout(timeout * 1000), cache: "no-store" });
      const { code, message, data } = await response.json();
      if (code !== 0) throw new GoimError(`nodes: ${message || "no answer"}`, code);
      this.#nodes = readNodes(data, from, { secure, path });
    } catch (error) {
      if (!this.#nodes) throw error; // else what was known last may still work
    }
    return [...this.#nodes.urls];
  }

  /** @param {object | string} token */
  #start(token) {
    const socket = new WebSocket(/** @type {string} */ (this.#urls.shift()));
    socket.binaryType = "arraybuffer";
    socket.onopen = () =>
      socket.send(encode(Op.AUTH, typeof token === "string" ? token : JSON.stringify(token), this.#nextSeq()));
    socket.onmessage = ({ data }) => this.#receive(socket, data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason || "connection lost");
    this.#socket = socket;
    this.#timers.deadline = later(this.#options.timeout, () => this.#lost(0, "no answer in time"));
  }

  /** @param {WebSocket} socket @param {ArrayBuffer | string} data */
  #receive(socket, data) {
    let frames;
    try {
      if (typeof data === "string") throw new GoimError("frame: expected a binary message");
      frames = decode(new Uint8Array(data));
    } catch (error) {
      this.#lost(0, /** @type {Error} */ (error).message);
      return;
    }
    for (const frame of frames) {
      if (socket !== this.#socket) return; // a frame before this one, or its listener, ended the connection
      this.#take(frame);
    }
  }

  /** @param {Frame} frame */
  #take(frame) {
    const reply = this.#replies.get(frame.seq);
    if (frame.op === Op.AUTH_REPLY) this.#opened();
    else if (frame.op === Op.HEARTBEAT_REPLY) this.#answered(frame);
    else if (frame.op === Op.DISCONNECT_REPLY) {
      const { code, message } = reason(frame);
      this.#lost(code, message);
    } else if (reply) {
      this.#replies.delete(frame.seq);
      clearTimeout(reply.timer);
      if (frame.op !== Op.ERROR) reply.resolve(frame);
      else {
        const { code, message } = reason(frame);
        reply.reject(new GoimError(message, code));
      }
    } else this.#emit("message", frame);
  }

  #opened() {
    if (this.#state !== "connecting") return;
    clearTimeout(this.#timers.deadline);
    this.#openedAt = performance.now();
    this.#unanswered = 0;
    const seconds = Math.min(this.#options.heartbeat, this.#nodes?.heartbeat || Infinity);
    this.#timers.beat = /** @type {any} */ (setInterval(() => this.#tick(), seconds * 1000));
    this.#enter("open");
    this.#beat();
  }

  #tick() {
    if (this.#unanswered >= 2) this.#lost(0, "two heartbeats without an answer");
    else {
      this.#unanswered++;
      this.#beat();
    }
  }

  #beat() {
    if (this.#state === "open") this.#socket?.send(encode(Op.HEARTBEAT, "", this.#nextSeq()));
  }

  /** @param {Frame} frame */
  #answered({ body }) {
    this.#unanswered = 0;
    clearTimeout(this.#timers.probe);
    if (body.length >= 4) this.#emit("online", new DataView(body.buffer, body.byteOffset).getInt32(0));
  }

  /** The page or the network is back: do not wait, and do not trust a socket that slept. */
  #wake() {
    if (this.#state === "waiting") this.#open();
    else if (this.#state === "open") {
      clearTimeout(this.#timers.probe);
      this.#timers.probe = later(5, () => this.#lost(0, "connection lost"));
      this.#beat();
    }
  }

  #listen() {
    if (this.#listening) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    globalThis.addEventListener?.("online", () => this.#wake(), { signal });
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
    this.#emit("disconnect", { code, message, final });
    if (marker !== this.#try) return; // a listener closed or reconnected
    if (final) this.close();
    else if (!wasOpen && this.#urls.length) this.#open(); // the next address of this round
    else {
      this.#urls = [];
      const backoff = { ...DEFAULT_BACKOFF, ...this.#nodes?.backoff, ...this.#options.backoff };
      const seconds = backoffDelay(this.#attempt++, backoff);
      this.#timers.retry = later(seconds, () => this.#open());
      this.#enter("waiting", seconds * 1000);
    }
  }

  /** Let go of the socket, of all timers, and of everyone who waits for a reply. @param {GoimError} error */
  #drop(error) {
    this.#try = null;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
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

  #nextSeq() {
    this.#seq = (this.#seq % 0x7fffffff) + 1; // int32; 0 is a push
    return this.#seq;
  }

  /** @param {State} state @param {number} [delay] */
  #enter(state, delay = 0) {
    if (state === this.#state) return;
    this.#state = state;
    this.#emit("statechange", { state, delay });
  }

  /** @param {string} type @param {unknown} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** @param {number} seconds @param {() => void} what @returns {number} */
function later(seconds, what) {
  return /** @type {any} */ (setTimeout(what, seconds * 1000));
}

/** The code and message of an op 6 or op 18 body. In goim an op 6 body is opaque. @param {Frame} frame */
function reason(frame) {
  const text = frame.text();
  try {
    const { code = 0, message = "" } = JSON.parse(text);
    return { code: Number(code), message: String(message) || text };
  } catch {
    return { code: 0, message: text || "closed by the server" };
  }
}
