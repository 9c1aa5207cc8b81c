/**
 * goim's protocol for browsers: frames, and what a client needs to know around them. No state, no I/O.
 *
 * @module goim-protocol
 */

/** Bytes before the body of a frame. */
export const HEADER_SIZE = 16;

const UTF8 = { encoder: new TextEncoder(), decoder: new TextDecoder() };

/** The operations of the goim protocol. Applications use their own from 64 on, by custom from 1000. */
export const Op = Object.freeze({
  HEARTBEAT: 2, HEARTBEAT_REPLY: 3, SEND_MSG: 4, SEND_MSG_REPLY: 5, DISCONNECT_REPLY: 6,
  AUTH: 7, AUTH_REPLY: 8, RAW: 9, CHANGE_ROOM: 12, CHANGE_ROOM_REPLY: 13,
  SUB: 14, SUB_REPLY: 15, UNSUB: 16, UNSUB_REPLY: 17,
  // goim_core's extensions: each works only for a client whose token lists it in `accepts`.
  ERROR: 18, ACK: 20, ACK_REPLY: 21, SYNC: 22, SYNC_REPLY: 23, JOIN: 24, JOIN_REPLY: 25, LEAVE: 26, LEAVE_REPLY: 27,
  MEMBERS: 28, MEMBERS_REPLY: 29, WATCH: 30, WATCH_REPLY: 31, UNWATCH: 32, UNWATCH_REPLY: 33, PRESENCE: 34,
  LAST_SEEN: 36, LAST_SEEN_REPLY: 37, REFRESH: 38, REFRESH_REPLY: 39, EXPIRING: 40, MOVE: 42,
});

/** Everything of goim_core that a client may put into its token's `accepts`. */
export const EXTENSIONS = Object.freeze([
  Op.ERROR, Op.ACK, Op.SYNC, Op.JOIN, Op.LEAVE, Op.MEMBERS, Op.WATCH, Op.UNWATCH, Op.PRESENCE, Op.LAST_SEEN,
  Op.REFRESH, Op.EXPIRING, Op.MOVE,
]);

/** Codes of a disconnect that come from goim_core; below 4000 they are those of RFC 6455. */
export const CloseCode = Object.freeze({
  GOING_AWAY: 1001, AUTH_REFUSED: 4001, REPLACED: 4004, EXPIRED: 4008, TOO_MANY_LOGINS: 4009,
});

/** Codes with which goim_core refuses one frame. An application has its own beside them. */
export const ErrorCode = Object.freeze({
  BAD_REQUEST: 400, FORBIDDEN: 403, NOT_FOUND: 404, CONFLICT: 409, TOO_MANY: 429, INTERNAL: 500, TIMEOUT: 504,
});

/** What a rejected promise carries. `code` is the server's, or 0 when the failure is on this side. */
export class GoimError extends Error {
  /** @param {string} message @param {number} [code] */
  constructor(message, code = 0) {
    super(message);
    this.name = "GoimError";
    this.code = code;
  }
}

/** One protocol frame. `seq` is a push's number in the user's inbox, 0 when it is not kept there. */
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

  /**
   * The body as JSON.
   * @returns {any}
   * @throws {GoimError} when it is none
   */
  json() {
    try {
      return JSON.parse(this.text());
    } catch {
      throw new GoimError(`op ${this.op}: expected JSON, got ${this.text().slice(0, 80)}`);
    }
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
 * What an answer of `/goim/nodes/weighted` means to a client: the addresses to try, in their order.
 * goim tells hosts, and one port for all of them; goim_core tells the addresses of each node as `urls` beside them.
 * @param {any} data the answer's `data`
 * @param {URL} from where the answer came from: its host is the last resort
 * @param {{ secure?: boolean, path?: string }} [options]
 * @returns {{ urls: string[], heartbeat: number, backoff: Partial<Backoff> }} heartbeat in seconds, 0 if not told
 */
export function readNodes(data, from, { secure = from.protocol === "https:", path = "/sub" } = {}) {
  const told = (data.urls ?? []).map(({ ws, wss }) => (secure ? wss : ws ?? wss)).filter(Boolean);
  const port = secure ? data.wss_port : data.ws_port;
  const hosts = new Set([...(data.nodes ?? []), data.domain, from.hostname].filter(Boolean));
  const guessed = [...hosts].map((host) => {
    const name = host.includes(":") && !host.startsWith("[") ? `[${host}]` : host; // bare IPv6
    return `${secure ? "wss" : "ws"}://${name}${port ? `:${port}` : ""}${path}`;
  });
  const heartbeat = Number(data.heartbeat) || 0;
  const { base_delay, factor, max_delay, jitter } = data.backoff ?? {};
  const delays = Object.entries({ baseDelay: base_delay, factor, maxDelay: max_delay, jitter });
  return {
    urls: told.length ? [...new Set(told)] : guessed,
    heartbeat: heartbeat > 1e6 ? heartbeat / 1e9 : heartbeat, // Go prints a duration in nanoseconds
    backoff: Object.fromEntries(delays.filter(([, value]) => typeof value === "number")),
  };
}

/** The code and message of an op 6 or op 18 body. In goim an op 6 body is opaque. @param {Frame} frame */
export function reason(frame) {
  const text = frame.text();
  try {
    const { code = 0, message = "" } = JSON.parse(text);
    return { code: Number(code), message: String(message) || text };
  } catch {
    return { code: 0, message: text || "closed by the server" };
  }
}
