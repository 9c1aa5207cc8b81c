// The browser client and a cluster: which node it goes to, and where it goes when that is gone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { GoimClient, Op, encode, readNodes } from "../../examples/chat/page/goim.js";
import { FakeSocket, accepted, clock, json, settle } from "./world.mjs";

const urls = (...hosts) => hosts.map((host) => ({ tcp: `tcp://${host}:3101`, ws: `ws://${host}:3102/sub` }));

/** Answers each question with the next list of hosts, or fails where that is null; what was asked. */
function answering(...lists) {
  const asked = [];
  globalThis.fetch = async (url) => {
    asked.push(String(url));
    const hosts = lists.shift();
    if (!hosts) throw new TypeError("no network");
    return { json: async () => ({ code: 0, data: { nodes: hosts, ws_port: 1, urls: urls(...hosts) } }) };
  };
  return asked;
}

function connected(options = {}) {
  const where = { nodesUrl: "http://c/nodes?platform=web" };
  const client = new GoimClient({ ...where, token: "t", backoff: { jitter: 0 }, ...options });
  client.connect();
  return client;
}

const newest = () => FakeSocket.all.at(-1).url;

test("a server that tells whole addresses is believed, each node at the door for this page", () => {
  const data = {
    ws_port: 3102, wss_port: 3103, nodes: ["a", "b"],
    urls: [
      { tcp: "tcp://a:3101", ws: "ws://a:3102/chat", wss: "wss://a.example:3103/chat" },
      { wss: "wss://b.example:9103/chat" }, { ws: "ws://[::1]:9102/chat" }, { ws: "ws://a:3102/chat" }, {},
    ],
  };
  const plain = readNodes(data, new URL("http://page.example/nodes"));
  assert.deepEqual(plain.urls, ["ws://a:3102/chat", "wss://b.example:9103/chat", "ws://[::1]:9102/chat"]);
  const secure = readNodes(data, new URL("https://page.example/nodes"));
  assert.deepEqual(secure.urls, ["wss://a.example:3103/chat", "wss://b.example:9103/chat"]);
});

test("where no node has wss, a secure page goes by the hosts, as with goim: a proxy may be in front", () => {
  const data = { nodes: ["a"], ws_port: 3102, wss_port: 0, urls: [{ ws: "ws://a:3102/sub" }] };
  const read = readNodes(data, new URL("https://page.example/nodes"));
  assert.deepEqual(read.urls, ["wss://a/sub", "wss://page.example/sub"]);
});

test("the nodes are tried in their order, and the next answer is asked for when all have failed", async () => {
  const asked = answering(["a", "b"], ["c"]);
  const client = connected();
  for (const host of ["a", "b"]) {
    await settle();
    assert.equal(newest(), `ws://${host}:3102/sub`);
    FakeSocket.all.at(-1).lose();
  }
  assert.equal(client.state, "waiting");
  assert.equal(asked.length, 1);
  clock.pass(3);
  await accepted();
  assert.equal(newest(), "ws://c:3102/sub");
  assert.equal(asked.length, 2);
  client.close();
});

test("a lost connection asks again, and goes where the new answer says", async () => {
  const asked = answering(["a", "b"], ["c", "a"]);
  const client = connected();
  const first = await accepted();
  assert.equal(first.url, "ws://a:3102/sub");
  first.lose();
  assert.equal(client.state, "waiting", "what is left of the old answer is not tried");
  clock.pass(3);
  await accepted();
  assert.equal(newest(), "ws://c:3102/sub");
  assert.deepEqual(asked, ["http://c/nodes?platform=web", "http://c/nodes?platform=web"]);
  client.close();
});

test("while it is connected it asks again, so that it knows those that came when its only node dies", async (context) => {
  context.mock.method(Math, "random", () => 0);
  const asked = answering(["a"], ["a", "b"], null, ["a", "b", "c"]);
  const client = connected();
  const first = await accepted();
  const beat = async (seconds) => {
    clock.pass(seconds);
    await settle();
    if (first.sent.some(({ op }) => op === Op.HEARTBEAT)) await first.reply(Op.HEARTBEAT, new Uint8Array(4));
  };
  for (const seconds of [20, 20, 7]) await beat(seconds);
  assert.equal(asked.length, 1);
  context.mock.method(Math, "random", () => 1);
  await beat(1);
  assert.equal(asked.length, 2, "a fifth before the minute is over");
  for (const seconds of [20, 20, 20, 11]) await beat(seconds);
  assert.equal(asked.length, 2);
  await beat(1.1);
  assert.equal(asked.length, 3, "a fifth after it; nobody answered, and the old list stays");
  globalThis.fetch = async () => {
    throw new TypeError("the node is dead");
  };
  first.lose();
  clock.pass(3);
  for (const host of ["a", "b"]) {
    await settle();
    assert.equal(newest(), `ws://${host}:3102/sub`);
    if (host === "a") FakeSocket.all.at(-1).lose();
  }
  client.close();
});

test("a client that is closed, or wants none, or has one address, does not ask again", async () => {
  for (const options of [{ refreshNodes: 0 }, { nodesUrl: "", url: "ws://a:3102/sub" }, {}]) {
    const asked = answering(["a"], ["a"], ["a"]);
    const client = connected(options);
    await accepted();
    const before = asked.length;
    if (Object.keys(options).length === 0) client.close();
    clock.pass(80);
    await settle();
    assert.equal(asked.length, before);
    client.close();
  }
});

test("where nobody answers, the nodes that were known last are tried, all of them", async () => {
  answering(["a", "b"]);
  const client = connected();
  (await accepted()).lose();
  clock.pass(3);
  for (const host of ["a", "b"]) {
    await settle();
    assert.equal(newest(), `ws://${host}:3102/sub`);
    if (host === "a") FakeSocket.all.at(-1).lose();
  }
  await accepted();
  assert.equal(client.state, "open");
  client.close();
});

// ---- asked to go to another node ----------------------------------------------------------------

test("MOVE: at its time it goes to another node, though the list still begins with this one", async () => {
  answering(["a", "b"], ["a", "b"]);
  const client = connected();
  const first = await accepted();
  const events = [];
  client.addEventListener("disconnect", ({ detail }) => events.push(detail));
  first.push(encode(Op.MOVE, json({ seconds: 2.5 })));
  first.push(encode(Op.MOVE, json({ seconds: 0 }))); // once is enough
  clock.pass(2.4);
  assert.equal(client.state, "open");
  assert.ok(!first.closed);
  clock.pass(0.1);
  assert.ok(first.closed);
  assert.deepEqual(events, [{ code: 1001, message: "the server asked to connect elsewhere", final: false }]);
  clock.pass(0); // not the 3 s of a backoff
  await accepted();
  assert.equal(newest(), "ws://b:3102/sub");
  assert.equal(client.state, "open");
  client.close();
});

test("MOVE: a server that closes before that is left without a backoff, too", async () => {
  answering(["a", "b"], ["a", "b"]);
  const client = connected();
  const first = await accepted();
  first.push(encode(Op.MOVE, json({ seconds: 20 })));
  first.lose(1001);
  clock.pass(0);
  await accepted();
  assert.equal(newest(), "ws://b:3102/sub");
  clock.pass(25);
  assert.equal(client.state, "open", "the time of the old connection went with it");
  client.close();
});

test("MOVE: what is under way is waited for", async () => {
  answering(["a", "b"], ["a", "b"]);
  const client = connected();
  const first = await accepted();
  const replies = [client.send(1000, "x"), client.send(1000, "y")];
  first.push(encode(Op.MOVE, "null"));
  clock.pass(0);
  for (const _ of replies) {
    assert.equal(client.state, "open");
    await first.reply(1000, "done");
  }
  assert.deepEqual((await Promise.all(replies)).map((frame) => frame.text()), ["done", "done"]);
  clock.pass(0);
  await accepted();
  assert.equal(newest(), "ws://b:3102/sub");
  client.close();
});

test("MOVE: who is sent on again and again waits in between", async () => {
  answering(["a", "b"], ["a", "b"], ["a", "b"]);
  const client = connected();
  (await accepted()).push(encode(Op.MOVE, "{}"));
  clock.pass(0);
  clock.pass(0);
  (await accepted()).push(encode(Op.MOVE, "{}"));
  clock.pass(1);
  assert.equal(client.state, "waiting");
  clock.pass(6);
  await accepted();
  assert.equal(newest(), "ws://a:3102/sub");
  client.close();
});
