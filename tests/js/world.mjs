// A world of the test's own around the client: its time, its sockets, and a server's side of them.

import assert from "node:assert/strict";
import { beforeEach } from "node:test";
import { GoimClient, Op, decode, encode } from "../../examples/chat/page/goim.js";

export const bytes = (...parts) => Uint8Array.from(parts.flatMap((part) => [...part]));
export const json = (value) => JSON.stringify(value);

/** Time that passes only when the test says so. */
export const clock = {
  now: 0,
  last: 0,
  timers: new Map(),
  set(what, delay) {
    this.timers.set(++this.last, { what, at: this.now + delay });
    return this.last;
  },
  pass(seconds) {
    const until = this.now + seconds * 1000;
    for (;;) {
      const [id, next] = [...this.timers].sort((a, b) => a[1].at - b[1].at)[0] ?? [];
      if (!next || next.at > until) break;
      this.now = next.at;
      this.timers.delete(id);
      next.what();
    }
    this.now = until;
  },
};
globalThis.setTimeout = (what, delay) => clock.set(what, delay);
globalThis.clearTimeout = (id) => clock.timers.delete(id);
Object.defineProperty(globalThis, "performance", { value: { now: () => clock.now } });

export class FakeSocket {
  static all = [];
  sent = [];
  closed = false;
  constructor(url) {
    this.url = url;
    FakeSocket.all.push(this);
  }
  send(message) {
    assert.ok(!this.closed);
    this.sent.push(...decode(message));
  }
  close() {
    this.closed = true;
  }
  /** One message from the server. */
  push(...frames) {
    this.onmessage({ data: bytes(...frames).buffer });
  }
  /** The connection breaks. */
  lose(code = 1006) {
    this.onclose({ code, reason: "" });
  }
  /** The first frame with this op that was sent and not taken. */
  take(op) {
    const at = this.sent.findIndex((frame) => frame.op === op);
    assert.notEqual(at, -1, `no frame with op ${op} was sent`);
    return this.sent.splice(at, 1)[0];
  }
  /** Takes such a frame and answers it, by default with its own body; what was asked. */
  async reply(op, body) {
    const { seq, body: asked } = this.take(op);
    this.push(encode(op + 1, body ?? asked, seq));
    await settle();
    return Buffer.from(asked).toString();
  }
  async refuse(op, code, message = "no") {
    const frame = this.take(op);
    this.push(encode(Op.ERROR, json({ op, code, message }), frame.seq));
    await settle();
    return frame.text();
  }
  /** What was sent and not taken, but for heartbeats, which are sent at will. */
  rest() {
    return this.sent.filter(({ op }) => op !== Op.HEARTBEAT).map((frame) => [frame.op, frame.text()]);
  }
}
globalThis.WebSocket = FakeSocket;

/** Lets what was awaited go on. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

beforeEach(() => {
  FakeSocket.all = [];
  clock.timers.clear();
});

const EVENTS = ["statechange", "message", "online", "disconnect", "seen", "presence", "expiring", "error"];

/** A client that has just been let in, and all that it says from then on. */
export async function opened(options = {}) {
  const client = new GoimClient({
    url: "ws://test/sub", token: async () => ({ mid: 1 }), backoff: { baseDelay: 1, factor: 2, jitter: 0 }, ...options,
  });
  const events = [];
  for (const type of EVENTS) client.addEventListener(type, ({ detail }) => events.push([type, detail]));
  client.connect();
  const socket = await accepted();
  events.length = 0;
  return { client, socket, events };
}

/** The newest socket, with its auth frame answered; `token` is what it said. */
export async function accepted() {
  await settle();
  const socket = FakeSocket.all.at(-1);
  socket.onopen();
  const auth = socket.take(Op.AUTH);
  socket.token = auth.text();
  assert.ok(auth.seq < 0, "requests count below zero, inboxes above");
  socket.push(encode(Op.AUTH_REPLY, "", auth.seq));
  await settle();
  return socket;
}
