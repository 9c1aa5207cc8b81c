// The browser client and a cluster: which node it goes to, and where it goes when that is gone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { GoimClient, readNodes } from "../../examples/chat/page/goim.js";
import { FakeSocket, accepted, clock, settle } from "./world.mjs";

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

function connected() {
  const client = new GoimClient({ nodesUrl: "http://c/nodes?platform=web", token: "t", backoff: { jitter: 0 } });
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
