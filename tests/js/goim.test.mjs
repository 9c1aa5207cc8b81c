// The browser client without a browser: its codec, and its life over a socket and a clock of the test's own.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  CloseCode, DEFAULT_BACKOFF, Frame, GoimClient, GoimError, Op, backoffDelay, decode, encode, readNodes,
} from "../../examples/chat/page/goim.js";
import { FakeSocket, accepted, bytes, clock, json, opened, settle } from "./world.mjs";

// ---- codec --------------------------------------------------------------------------------------

test("a frame is 16 bytes of big-endian header and the body", () => {
  const hex = Buffer.from(encode(1000, "h\u00e9", 0x01020304)).toString("hex");
  assert.equal(hex, "00000013" + "0010" + "0001" + "000003e8" + "01020304" + "68c3a9");
});

test("what was encoded is decoded, signs included, also from the middle of a buffer", () => {
  const inside = bytes([1, 2, 3], encode(-5, Uint8Array.of(0, 255), -7, -2)).subarray(3);
  assert.deepEqual(decode(inside), [new Frame(-5, Uint8Array.of(0, 255), -7, -2)]);
});

test("frames and batches in one message come out flat and in order", () => {
  const batch = encode(Op.RAW, bytes(encode(1000, "b"), encode(1001, "c")));
  const frames = decode(bytes(encode(1000, "a"), batch, encode(Op.RAW), encode(1000, "d")));
  assert.deepEqual(frames.map((frame) => frame.text()), ["a", "b", "c", "d"]);
});

test("a message cut at any byte is refused whole", () => {
  const whole = bytes(encode(1000, "abc"), encode(Op.RAW, encode(1000, "de")));
  const ends = [0, 19, whole.length]; // the frames' own ends
  for (let end = 0; end <= whole.length; end++) {
    if (ends.includes(end)) decode(whole.subarray(0, end));
    else assert.throws(() => decode(whole.subarray(0, end)), GoimError, `cut at ${end}`);
  }
});

test("headers that are none are refused", () => {
  const spoilt = (at, ...values) => {
    const frame = encode(1000, "abc");
    frame.set(values, at);
    return frame;
  };
  const cases = {
    "header length 15": spoilt(4, 0, 15),
    "length below the header": spoilt(0, 0, 0, 0, 15),
    "negative length": spoilt(0, 255, 255, 255, 255),
    "length beyond the message": spoilt(0, 127, 255, 255, 255),
    "a batch inside a batch": encode(Op.RAW, encode(Op.RAW, encode(1000))),
    "a cut batch": encode(Op.RAW, encode(1000, "abc").subarray(0, 18)),
  };
  for (const [name, message] of Object.entries(cases)) assert.throws(() => decode(message), GoimError, name);
});

test("random bytes are refused in no other way", () => {
  let state = 1; // a fixed sequence (Lehmer), so that a failure can be repeated
  const random = () => (state = (state * 48271) % 0x7fffffff) / 0x7fffffff;
  let refused = 0;
  for (let round = 0; round < 2000; round++) {
    const message = bytes(encode(Op.RAW, encode(1000, "abc")), encode(1001, "d"));
    for (let n = 0; n < 3; n++) message[Math.floor(random() * message.length)] = Math.floor(random() * 256);
    try {
      decode(message);
    } catch (error) {
      assert.ok(error instanceof GoimError, String(error));
      refused++;
    }
  }
  assert.ok(refused > 500 && refused < 2000, `${refused}`);
});

// ---- backoff and nodes --------------------------------------------------------------------------

test("delays grow by the factor up to the maximum, and jitter moves them either way", () => {
  const middle = [0, 1, 2, 50, 5000].map((attempt) => backoffDelay(attempt, DEFAULT_BACKOFF, () => 0.5));
  assert.deepEqual(middle.map((delay) => Math.round(delay * 100) / 100), [3, 5.4, 9.72, 300, 300]);
  assert.equal(backoffDelay(0, DEFAULT_BACKOFF, () => 0), 3 * 0.7);
  assert.ok(Math.abs(backoffDelay(0, DEFAULT_BACKOFF, () => 0.999999) - 3.9) < 0.001);
});

test("nodes: every host once, then the domain, then where the answer came from", () => {
  const data = {
    domain: "chat.example", ws_port: 3102, wss_port: 3103, nodes: ["10.0.0.1", "::1", "10.0.0.1"],
    heartbeat: 240, backoff: { max_delay: 60, base_delay: 1, factor: 2, jitter: 0 },
  };
  const read = readNodes(data, new URL("http://page.example/goim/nodes/weighted"));
  assert.deepEqual(read.urls, [
    "ws://10.0.0.1:3102/sub", "ws://[::1]:3102/sub", "ws://chat.example:3102/sub", "ws://page.example:3102/sub",
  ]);
  assert.deepEqual(read.backoff, { baseDelay: 1, factor: 2, maxDelay: 60, jitter: 0 });
  assert.equal(read.heartbeat, 240);
});

test("nodes: https asks for wss, no nodes leave the page's own host, nanoseconds are seconds", () => {
  const read = readNodes({ ws_port: 1, wss_port: 3103, nodes: null, heartbeat: 240e9 }, new URL("https://[::1]:8/x"));
  assert.deepEqual(read, { urls: ["wss://[::1]:3103/sub"], heartbeat: 240, backoff: {} });
  assert.deepEqual(readNodes({}, new URL("https://a.example/")).urls, ["wss://a.example/sub"]);
});

// ---- the client's life --------------------------------------------------------------------------

test("auth comes first; open after its reply; then a heartbeat tells the online count", async () => {
  const { client, socket, events } = await opened();
  assert.equal(client.state, "open");
  socket.push(encode(Op.HEARTBEAT_REPLY, Uint8Array.of(0, 0, 1, 2), socket.take(Op.HEARTBEAT).seq));
  assert.deepEqual(events, [["online", 258]]);
});

test("replies find their request by seq, in any order; ERROR rejects; the rest are pushes", async () => {
  const { client, socket, events } = await opened();
  const first = client.send(1000, "a");
  const second = client.send(1000, "b");
  const refused = client.send(1000, "c");
  const [a, b, c] = [socket.take(1000), socket.take(1000), socket.take(1000)];
  socket.push(
    encode(1000, "for b", b.seq),
    encode(Op.RAW, bytes(encode(1000, "pushed"), encode(1000, "too"))),
    encode(Op.ERROR, json({ op: 1000, code: 403, message: "no" }), c.seq),
    encode(1000, "for a", a.seq),
  );
  assert.equal((await first).text(), "for a");
  assert.equal((await second).text(), "for b");
  await assert.rejects(refused, { name: "GoimError", code: 403, message: "no" });
  assert.deepEqual(events.map(([type, frame]) => [type, frame.text()]), [["message", "pushed"], ["message", "too"]]);
});

test("changing the room sends its id, and asks for the new count", async () => {
  const { client, socket } = await opened();
  socket.take(Op.HEARTBEAT);
  const moved = client.changeRoom("live://2");
  const { seq } = socket.take(Op.CHANGE_ROOM);
  socket.push(encode(Op.CHANGE_ROOM_REPLY, "live://2", seq));
  await moved;
  socket.take(Op.HEARTBEAT);
  const stayed = client.changeRoom("live://3");
  socket.push(encode(Op.CHANGE_ROOM_REPLY, "live://2", socket.take(Op.CHANGE_ROOM).seq));
  await assert.rejects(stayed, { code: 403 });
});

test("a reply that does not come rejects; come late, it is no push", async () => {
  const { client, socket, events } = await opened();
  const sent = client.send(1000, "a");
  clock.pass(10);
  await assert.rejects(sent, /no reply/);
  socket.push(encode(1000, "late", socket.take(1000).seq));
  assert.deepEqual(events, []);
});

test("a body too large for the server, or no connection, rejects at once", async () => {
  const { client, socket } = await opened();
  await assert.rejects(client.send(1000, new Uint8Array(4097)), { code: 413 });
  client.close();
  assert.ok(socket.closed);
  await assert.rejects(client.send(1000), /not connected/);
});

test("a lost connection rejects what waits, and comes back with growing delays", async () => {
  const { client, socket, events } = await opened();
  const waiting = client.send(1000, "a");
  socket.onclose({ code: 1006, reason: "" });
  await assert.rejects(waiting, { code: 1006 });
  assert.deepEqual(events, [
    ["disconnect", { code: 1006, message: "connection lost", final: false }],
    ["statechange", { state: "waiting", delay: 1000 }],
  ]);
  for (const delay of [1, 2, 4]) {
    clock.pass(delay - 0.001);
    assert.equal(client.state, "waiting");
    clock.pass(0.001);
    assert.equal(client.state, "connecting");
    await settle();
    if (delay < 4) FakeSocket.all.at(-1).onclose({ code: 1006, reason: "" });
  }
  await accepted();
  assert.equal(client.state, "open");
  clock.pass(10); // stable: the next delay is the first again
  FakeSocket.all.at(-1).onclose({ code: 1001, reason: "stopping" });
  assert.deepEqual(events.at(-1), ["statechange", { state: "waiting", delay: 1000 }]);
});

test("garbage from the server ends the connection, and what was behind it is not looked at", async () => {
  for (const data of [new ArrayBuffer(20), "text", bytes(encode(1000, "a"), [1]).buffer]) {
    const { client, socket, events } = await opened();
    socket.onmessage({ data });
    assert.ok(socket.closed);
    assert.equal(client.state, "waiting");
    assert.deepEqual(events.map(([type]) => type), ["disconnect", "statechange"]);
  }
});

test("a disconnect tells why; the server's last word is final, others are not", async () => {
  const { AUTH_REFUSED, REPLACED, TOO_MANY_LOGINS, EXPIRED } = CloseCode;
  for (const code of [AUTH_REFUSED, REPLACED, TOO_MANY_LOGINS, EXPIRED, 1001]) {
    const { client, socket, events } = await opened();
    const final = [AUTH_REFUSED, REPLACED, TOO_MANY_LOGINS].includes(code);
    socket.push(encode(Op.DISCONNECT_REPLY, json({ code, message: "why" })), encode(1000, "too late"));
    assert.deepEqual(events[0], ["disconnect", { code, message: "why", final }]);
    const next = final ? { state: "refused", delay: 0 } : { state: "waiting", delay: 1000 };
    assert.deepEqual(events[1], ["statechange", next]);
    assert.equal(events.length, 2);
    assert.equal(clock.timers.size, final ? 0 : 1);
    client.connect();
    await accepted();
    assert.equal(client.state, "open");
    client.close();
  }
  const { client, socket } = await opened({ stopOn: [] });
  socket.onclose({ code: 4001, reason: "refused" });
  assert.equal(client.state, "waiting");
});

test("two heartbeats without an answer end the connection; answered ones keep it", async () => {
  const { client, socket } = await opened({ heartbeat: 30 });
  for (let n = 0; n < 5; n++) {
    clock.pass(30);
    socket.push(encode(Op.HEARTBEAT_REPLY, new Uint8Array(4)));
  }
  assert.equal(client.state, "open");
  clock.pass(89);
  assert.equal(client.state, "open");
  clock.pass(1);
  assert.equal(client.state, "waiting");
});

test("no answer to auth in time is a lost try", async () => {
  const { client } = await opened();
  client.reconnect();
  await settle();
  FakeSocket.all.at(-1).onopen();
  clock.pass(10);
  assert.equal(client.state, "waiting");
});

test("close while it connects leaves no socket, no timer, and no second try", async () => {
  const { client } = await opened();
  client.reconnect();
  client.close();
  await settle();
  assert.equal(FakeSocket.all.length, 1);
  assert.equal(clock.timers.size, 0);
  assert.equal(client.state, "closed");
});

test("connect, while it waits, tries at once", async () => {
  const { client, socket } = await opened();
  socket.onclose({ code: 1006, reason: "" });
  client.connect();
  await accepted();
  assert.equal(client.state, "open");
  assert.equal(FakeSocket.all.length, 2);
});

test("the addresses of one answer are tried one after the other before it waits", async () => {
  globalThis.fetch = async () => ({ json: async () => ({ code: 0, data: { ws_port: 1, nodes: ["a", "b"] } }) });
  const client = new GoimClient({ nodesUrl: "http://c/nodes", token: "t", backoff: { jitter: 0 } });
  client.connect();
  for (const host of ["a", "b", "c"]) {
    await settle();
    assert.equal(FakeSocket.all.at(-1).url, `ws://${host}:1/sub`);
    assert.equal(client.state, "connecting");
    FakeSocket.all.at(-1).onclose({ code: 1006, reason: "" });
  }
  assert.equal(client.state, "waiting");
  globalThis.fetch = async () => { throw new TypeError("no network"); };
  clock.pass(3);
  await settle();
  assert.equal(FakeSocket.all.at(-1).url, "ws://a:1/sub", "what was known last is tried again");
  client.close();
});
