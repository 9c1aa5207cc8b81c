/**
 * A goim client for browsers: ES modules, no dependency, no build step.
 *
 *     import { EXTENSIONS, GoimClient } from "./goim.js";
 *
 *     const client = new GoimClient({
 *       nodesUrl: "/goim/nodes/weighted?platform=web",
 *       token: () => ({ mid: 1, room_id: "live://1000", platform: "web", accepts: [1000, ...EXTENSIONS] }),
 *       seen: Number(localStorage.seen ?? 0),
 *     });
 *     client.addEventListener("message", ({ detail: frame }) => console.log(frame.op, frame.seq, frame.text()));
 *     client.addEventListener("seen", ({ detail: seq }) => (localStorage.seen = seq));
 *     client.connect();
 *
 * It stays connected until close(): a lost connection is tried again with exponential backoff and
 * jitter, and at once when the network or the page comes back. The new connection goes on where the
 * old one was: in its rooms, with its operations, and after the last message that was seen.
 *
 * @module goim
 */

import { Connection, written } from "./goim-connection.js";
import { ErrorCode, Frame, GoimError, Op, backoffDelay, decode } from "./goim-protocol.js";

export * from "./goim-protocol.js";

/** @import { ConnectionOptions } from "./goim-connection.js" */

/**
 * @typedef {object} ClientOptions
 * @property {readonly number[]} [accepts] what the token accepts, for a token that is not readable as JSON
 * @property {number} [seen] the last number of the inbox that was seen before this client was made (0)
 * @property {"auto" | "manual"} [acknowledge] `auto`: what listeners were given is acknowledged;
 *   `manual`: what {@link GoimClient.ack} names. Either needs ACK (20) in the token's `accepts`.
 * @property {number} [ackDelay] seconds in which acknowledges are gathered into one (0.1)
 * @property {number} [ackEvery] messages after which one is sent sooner (100)
 * @property {boolean} [resume] enter rooms, watches and operations again after a reconnect (true);
 *   false leaves it to the token where a connection begins
 */

/** @typedef {ConnectionOptions & ClientOptions} GoimOptions */
/** @typedef {{ roomId: string, online: number, mids: number[], next: number | null }} Members */
/** @typedef {{ online: boolean, seen: number | null }} Seen `seen` in seconds since 1970, null if never */

/** Seconds between the tries of what the client asks for by itself. */
const PERSISTENCE = Object.freeze({ baseDelay: 1, factor: 2, maxDelay: 30, jitter: 0.3 });

/** Requests whose reply has the request's body. */
const ECHOED = new Set(/** @type {number[]} */ ([
  Op.CHANGE_ROOM, Op.SUB, Op.UNSUB, Op.JOIN, Op.LEAVE, Op.WATCH, Op.UNWATCH,
]));

/** Requests whose reply may be empty; to all others an empty one is a refusal. */
const MAY_BE_EMPTY = new Set(/** @type {number[]} */ ([Op.SYNC, Op.REFRESH]));

/** Where a connection was, for the next one to go on there. `room` is null while it is the token's. */
const nowhere = () => ({
  room: /** @type {string | null} */ (null),
  joined: /** @type {Set<string>} */ (new Set()),
  watched: /** @type {Set<string>} */ (new Set()),
  ops: /** @type {Map<number, boolean>} subscribed, or unsubscribed */ (new Map()),
});

/**
 * Numbers of the inbox: to be acknowledged, sent on this connection, confirmed by the server, and confirmed
 * before this connection until its first message has come. Then how many messages wait, and for what.
 */
const noAcks = () => ({ due: 0, sent: 0, confirmed: 0, begins: 0, messages: 0, timer: 0, busy: false });

/**
 * One user's connection to a goim server; it comes back by itself. Events, all CustomEvent:
 *
 * | event         | detail |
 * |---------------|--------|
 * | `statechange` | `{ state, delay }`: delay in ms until the next try, 0 unless `waiting` |
 * | `message`     | a {@link Frame} that the server pushed; one with a number (`seq`) is given once |
 * | `seen`        | the number of the last message seen, to be kept for the option `seen` |
 * | `online`      | number of connections in this client's room, told by each heartbeat |
 * | `presence`    | `{ roomId, joined, left, online }`: users who came to and left a watched room |
 * | `expiring`    | `{ seconds }`: the token runs out then; a `token` function is asked for a new one |
 * | `error`       | `{ error, op, body, delay }`: the server did not do what the client asked for by itself |
 * | `disconnect`  | `{ code, message, final }`: a connection, or a try, ended; final: it is not tried again |
 *
 * By itself it asks for acknowledges, for its rooms after a reconnect, and for a refresh of its token: an
 * `error` has the delay in ms until it asks again, 0 where the server refused and it will not.
 *
 * Methods that ask the server reject as {@link Connection.send} does. The operations that they need have
 * to be in the token's `accepts`; {@link EXTENSIONS} is all of them.
 */
export class GoimClient extends Connection {
  #options;
  /** What the token says of itself. @type {ReturnType<typeof told>} */ #told = told("", []);
  #place = nowhere();
  #seen;
  #ack = noAcks();
  /** @type {string | null} */ #renewed = null;

  /** @param {GoimOptions} options */
  constructor(options) {
    super(options);
    this.#options = {
      seen: 0, acknowledge: "auto", ackDelay: 0.1, ackEvery: 100, resume: true,
      /** @type {readonly number[]} */ accepts: [],
      ...options,
    };
    this.#seen = inboxNumber("seen", this.#options.seen);
  }

  /** The number of the last message of the inbox that listeners were given, or that was acknowledged. */
  get seen() {
    return this.#seen;
  }

  /** The rooms that were joined, beside the one that the connection started in or changed to. */
  get rooms() {
    return [...this.#place.joined];
  }

  /** Move to the room `type://id`; empty leaves the room. @param {string} roomId */
  async changeRoom(roomId) {
    const reply = await this.#ask(Op.CHANGE_ROOM, roomId);
    const before = this.#room;
    this.#place.room = roomId;
    this.#unwatchLeft(before);
    this._beat(); // its answer is the online count of the new room
    return reply;
  }

  /** Be in one more room `type://id` (JOIN, 24). @param {string} roomId */
  async join(roomId) {
    await this.#ask(Op.JOIN, roomId);
    this.#place.joined.add(roomId);
  }

  /** Leave a room that was joined (LEAVE, 26). @param {string} roomId */
  async leave(roomId) {
    await this.#ask(Op.LEAVE, roomId);
    this.#place.joined.delete(roomId);
    this.#unwatchLeft(roomId);
  }

  /**
   * Who is in a room that this client is in (MEMBERS, 28): at most `limit` users after the first
   * `offset`. `next` is the offset of those after them, null at the end.
   * @param {string} roomId
   * @param {{ offset?: number, limit?: number }} [page]
   * @returns {Promise<Members>}
   */
  async members(roomId, { offset = 0, limit = 100 } = {}) {
    const reply = await this.#ask(Op.MEMBERS, JSON.stringify({ room_id: roomId, offset, limit }));
    return named(reply.json());
  }

  /**
   * From now on get `presence` events of a room that this client is in (WATCH, 30; PRESENCE, 34).
   * @param {string} roomId
   */
  async watch(roomId) {
    await this.#ask(Op.WATCH, roomId);
    this.#place.watched.add(roomId);
  }

  /** No longer get `presence` events of the room (UNWATCH, 32). @param {string} roomId */
  async unwatch(roomId) {
    await this.#ask(Op.UNWATCH, roomId);
    this.#place.watched.delete(roomId);
  }

  /** Also get pushes of these operations. @param {number[]} ops */
  async subscribe(ops) {
    const reply = await this.#ask(Op.SUB, ops.join(","));
    for (const op of ops) this.#place.ops.set(op, true);
    return reply;
  }

  /** No longer get pushes of these operations. @param {number[]} ops */
  async unsubscribe(ops) {
    const reply = await this.#ask(Op.UNSUB, ops.join(","));
    for (const op of ops) this.#place.ops.set(op, false);
    return reply;
  }

  /**
   * What is kept in the inbox after number `after`, oldest first, in pages of at most `limit` (SYNC, 22):
   *
   *     for await (const page of client.sync()) for (const frame of page) show(frame);
   *
   * Seen before or not; it acknowledges nothing.
   * @param {{ after?: number, limit?: number }} [from]
   * @returns {AsyncGenerator<Frame[], void, void>}
   */
  async *sync({ after = 0, limit = 100 } = {}) {
    for (;;) {
      const page = decode((await this.#ask(Op.SYNC, `${after},${limit}`)).body);
      if (!page.length) return;
      const { seq } = page[page.length - 1];
      if (seq <= after) throw new GoimError(`sync: the page after ${after} ends with ${seq}`);
      after = seq;
      yield page;
    }
  }

  /**
   * Everything up to number `seq` of the inbox has arrived (ACK, 20); what of it has not been given to
   * listeners will not be. It is sent soon, as one with what follows; without a connection, on the next.
   * @param {number} seq
   */
  ack(seq) {
    inboxNumber("seq", seq);
    if (this.state === "open" && !this.#accepts(Op.ACK)) throw new GoimError("ack: ACK (20) is not in accepts");
    this.#saw(seq);
    this.#owe(seq);
  }

  /**
   * Whether these users are here, and when they were last (LAST_SEEN, 36): by their ids.
   * @param {number[]} mids at most 100
   * @returns {Promise<Record<string, Seen>>}
   */
  async lastSeen(mids) {
    return (await this.#ask(Op.LAST_SEEN, JSON.stringify(mids))).json();
  }

  /**
   * Give the server a newer token of the same user (REFRESH, 38): this one, or what the option `token`
   * says now. Where that is no function, the next connections begin with this one.
   * @param {object | string} [token]
   */
  async refresh(token) {
    const text = token === undefined ? await this._token() : written(token);
    await this.#ask(Op.REFRESH, text);
    this.#renewed = text;
  }

  // Requests.

  /**
   * A request and its own reply. Without ERROR in `accepts` a refusal is a reply that does not say what it should.
   * @param {number} op @param {string} body
   */
  async #ask(op, body) {
    const reply = await this.send(op, body);
    const said = ECHOED.has(op) ? reply.text() === body : reply.body.length > 0 || MAY_BE_EMPTY.has(op);
    if (reply.op !== op + 1 || !said) {
      throw new GoimError("refused; with ERROR (18) in accepts the server says why", ErrorCode.FORBIDDEN);
    }
    return reply;
  }

  /**
   * Ask until the server answers or refuses; a rate limit, silence, and a failure over there pass.
   * @param {number} op @param {() => string | Promise<string>} body asked for at each try
   * @param {() => void} [refused]
   * @returns {Promise<Frame | null>} null when it was refused, or the connection is another by now
   */
  async #insist(op, body, refused) {
    const era = this._era;
    for (let tries = 0; era === this._era; tries++) {
      let text = "";
      try {
        const made = body();
        text = typeof made === "string" ? made : await made; // what is there already is sent at once
        if (era === this._era) return await this.#ask(op, text);
      } catch (error) {
        if (era !== this._era) break;
        const code = error instanceof GoimError ? error.code : 0;
        const passes = code === 0 || code === ErrorCode.TOO_MANY || (code >= 500 && code < 600);
        const seconds = passes ? backoffDelay(tries, PERSISTENCE) : 0;
        if (!passes) refused?.();
        this._emit("error", { error, op, body: op === Op.REFRESH ? "" : text, delay: seconds * 1000 });
        if (!passes) break;
        await new Promise((resolve) => this._later(seconds, () => resolve(null))); // or never, with the connection
      }
    }
    return null;
  }

  // The inbox.

  /** @protected @param {Frame} frame */
  _pushed(frame) {
    if (frame.op === Op.PRESENCE) this._emit("presence", named(frame.json()));
    else if (frame.op === Op.EXPIRING) this.#expires(frame);
    else if (frame.seq === 0) this._emit("message", frame);
    else {
      // A connection begins behind what is acknowledged. One that does not has another inbox, begun anew.
      if (frame.seq <= this.#ack.begins) this.#forgetInbox();
      this.#ack.begins = 0;
      const fresh = frame.seq > this.#seen; // else a second copy: the acknowledge of the first was lost
      if (fresh) this._emit("message", frame);
      this.#saw(frame.seq);
      if (this.#options.acknowledge === "auto") this.#owe(frame.seq);
    }
  }

  /** @param {number} seq */
  #saw(seq) {
    if (seq <= this.#seen) return;
    this.#seen = seq;
    this._emit("seen", seq);
  }

  #forgetInbox() {
    this._cancel(this.#ack.timer);
    this.#ack = noAcks();
    this.#seen = 0;
  }

  /** @param {number} seq */
  #owe(seq) {
    this.#ack.due = Math.max(this.#ack.due, seq);
    this.#ack.messages++;
    this.#acknowledgeSoon();
  }

  #acknowledgeSoon() {
    const { due, sent, messages, busy, timer } = this.#ack;
    if (busy || due <= sent || this.state !== "open" || !this.#accepts(Op.ACK)) return;
    if (messages >= this.#options.ackEvery) this.#acknowledge();
    else if (!timer) this.#ack.timer = this._later(this.#options.ackDelay, () => this.#acknowledge());
  }

  async #acknowledge() {
    const ack = this.#ack;
    this._cancel(ack.timer);
    ack.timer = 0;
    ack.busy = true; // one at a time: whatever comes meanwhile is one more
    const reply = await this.#insist(Op.ACK, () => {
      ack.messages = 0;
      return String((ack.sent = ack.due));
    });
    if (reply) ack.confirmed = Number(reply.text()) || 0;
    ack.busy = false;
    if (ack === this.#ack) this.#acknowledgeSoon();
  }

  /** What has not been acknowledged goes out now; nobody will be there for the reply. @protected */
  _leaving() {
    const { due, confirmed } = this.#ack;
    if (due > confirmed && this.#accepts(Op.ACK)) this._post(Op.ACK, String(due));
  }

  // From one connection to the next.

  /** @protected @param {string} token */
  _opened(token) {
    this.#told = told(token, this.#options.accepts);
    const { due, confirmed } = this.#ack;
    this.#ack = { ...noAcks(), due, sent: confirmed, confirmed, begins: confirmed };
    if (!this.#options.resume) this.#place = nowhere();
    this.#resume();
    this.#acknowledgeSoon();
  }

  /** @protected */
  _ended() {
    this.#place = nowhere();
  }

  /** @protected */
  async _token() {
    const chosen = typeof this.#options.token === "function" ? null : this.#renewed;
    return chosen ?? super._token();
  }

  #resume() {
    const place = this.#place;
    const { room, joined, watched, ops } = place;
    /** @param {string} roomId */
    const watch = (roomId) => this.#insist(Op.WATCH, () => roomId, () => watched.delete(roomId));
    /** @param {number} op @param {string} roomId @param {() => void} refused */
    const enter = async (op, roomId, refused) => {
      const entered = await this.#insist(op, () => roomId, () => {
        refused();
        this.#unwatchLeft(roomId);
      });
      if (entered && watched.has(roomId)) watch(roomId);
    };
    const moved = room !== null && room !== this.#told.room;
    if (moved) enter(Op.CHANGE_ROOM, room, () => (place.room = null));
    for (const roomId of joined) enter(Op.JOIN, roomId, () => joined.delete(roomId));
    for (const roomId of watched) {
      if (joined.has(roomId) || (moved && roomId === room)) continue; // once it is entered
      if (this.#told.room === null || this.#told.room === roomId) watch(roomId);
      else watched.delete(roomId); // the token starts elsewhere now
    }
    for (const op of [Op.SUB, Op.UNSUB]) {
      const those = [...ops.keys()].filter((name) => ops.get(name) === (op === Op.SUB));
      if (those.length) this.#insist(op, () => those.join(","), () => those.forEach((name) => ops.delete(name)));
    }
  }

  /** The room of CHANGE_ROOM, or of the token. */
  get #room() {
    return this.#place.room ?? this.#told.room;
  }

  /**
   * A room that was left is not watched any more, unless the client is in it another way.
   * @param {string | null} roomId
   */
  #unwatchLeft(roomId) {
    const { joined, watched } = this.#place;
    if (roomId !== null && roomId !== this.#room && !joined.has(roomId)) watched.delete(roomId);
  }

  /** @param {number} op */
  #accepts(op) {
    return this.#place.ops.get(op) ?? this.#told.accepts.has(op);
  }

  /** @param {Frame} frame */
  #expires(frame) {
    const seconds = Number(frame.json().seconds) || 0;
    this._emit("expiring", { seconds });
    if (typeof this.#options.token !== "function") return; // the same again would not help
    // Not all clients at once; nor one without a pause, when its new tokens run out as soon.
    this._later(seconds * (0.1 + 0.4 * Math.random()), () => this.#insist(Op.REFRESH, () => this._token()));
  }
}

/** @param {string} name @param {unknown} value @returns {number} */
function inboxNumber(name, value) {
  if (Number.isInteger(value) && Number(value) >= 0 && Number(value) <= 0x7fffffff) return Number(value);
  throw new RangeError(`${name}: expected a number of the inbox, got ${value}`);
}

/**
 * The room and the operations that a token in goim's JSON asks for; any other token keeps them to itself.
 * @param {string} token @param {readonly number[]} accepts
 */
function told(token, accepts) {
  let read = null;
  try {
    read = JSON.parse(token);
  } catch { /* see above */ }
  const room = read === null ? null : String(read.room_id ?? "");
  return { room, accepts: new Set(Array.isArray(read?.accepts) ? read.accepts : accepts) };
}

/** With the names that JavaScript has for things. @param {any} data @returns {any} */
function named({ room_id: roomId, ...rest }) {
  return { roomId, ...rest };
}
