// What the client does beyond goim's protocol: the inbox, rooms, presence, tokens that run out.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EXTENSIONS, ErrorCode, GoimClient, Op, encode } from "../../examples/chat/page/goim.js";
import { FakeSocket, accepted, bytes, clock, json, opened, settle } from "./world.mjs";

const TOKEN = { mid: 1, room_id: "live://1", accepts: [1000, ...EXTENSIONS] };
const member = (options = {}) => opened({ token: () => TOKEN, ...options });

/** Numbered messages, as the server sends them. */
const inbox = (...seqs) => seqs.map((seq) => encode(1000, `m${seq}`, seq));
const given = (events) => events.filter(([type]) => type === "message").map(([, frame]) => frame.seq);
const told = (events, wanted) => events.filter(([type]) => type === wanted).map(([, detail]) => detail);

/** Loses the connection and makes the next one. */
async function again(socket) {
  socket.lose();
  clock.pass(60);
  const next = await accepted();
  assert.notEqual(next, socket);
  return next;
}

// ---- the inbox ----------------------------------------------------------------------------------

test("a message is given once: what comes again after a reconnect is passed over", async () => {
  const { client, socket, events } = await member();
  socket.push(...inbox(1, 2), encode(Op.RAW, bytes(...inbox(2, 3))));
  const next = await again(socket);
  next.push(...inbox(2, 3, 4), encode(1000, "no number"), ...inbox(4, 5));
  assert.deepEqual(given(events), [1, 2, 3, 4, 0, 5]);
  assert.deepEqual(told(events, "seen"), [1, 2, 3, 4, 5]);
  assert.equal(client.seen, 5);
});

test("it goes on behind the number that the application kept", async () => {
  const { client, socket, events } = await member({ seen: 7 });
  assert.equal(client.seen, 7);
  socket.push(...inbox(6, 7, 8));
  assert.deepEqual(given(events), [8]);
  for (const seen of [-1, 1.5, NaN, "7", 2 ** 31]) {
    assert.throws(() => new GoimClient({ url: "ws://test", token: "t", seen }), RangeError, `${seen}`);
  }
});

test("a message and a reply are never mistaken for each other", async () => {
  const { client, socket, events } = await member();
  const sent = client.send(1000, "question");
  const { seq } = socket.take(1000);
  socket.push(...inbox(1, -seq, 1000)); // the numbers that a counter from 1 would use
  socket.push(encode(1000, "answer", seq));
  assert.equal((await sent).text(), "answer");
  assert.equal(given(events).length, new Set([1, -seq, 1000]).size);
});

test("acknowledges are cumulative, and one for all that comes in 100 ms", async () => {
  const { socket } = await member();
  socket.push(...inbox(1, 2));
  clock.pass(0.06);
  socket.push(...inbox(3));
  clock.pass(0.039);
  assert.deepEqual(socket.rest(), []);
  clock.pass(0.001);
  assert.equal(await socket.reply(Op.ACK), "3");
  clock.pass(60);
  assert.deepEqual(socket.rest(), []);
});

test("many messages are acknowledged sooner, and one acknowledge waits for the other", async () => {
  const { socket } = await member({ ackEvery: 3 });
  socket.push(...inbox(1, 2));
  assert.deepEqual(socket.rest(), []);
  socket.push(...inbox(3, 4));
  assert.deepEqual(socket.rest(), [[Op.ACK, "3"]]);
  socket.push(...inbox(5, 6, 7, 8));
  clock.pass(1);
  assert.deepEqual(socket.rest(), [[Op.ACK, "3"]]);
  assert.equal(await socket.reply(Op.ACK), "3");
  assert.equal(await socket.reply(Op.ACK), "8");
  socket.push(...inbox(9));
  assert.deepEqual(socket.rest(), []);
  clock.pass(0.1);
  assert.equal(await socket.reply(Op.ACK), "9");
  assert.deepEqual(socket.rest(), []);
});

test("what was not acknowledged is, before the connection is left", async () => {
  for (const leave of ["close", "reconnect"]) {
    const { client, socket } = await member();
    socket.push(...inbox(1, 2));
    client[leave]();
    assert.deepEqual(socket.rest(), [[Op.ACK, "2"]], leave);
    assert.ok(socket.closed);
    client.close();
  }
  const { client, socket } = await member();
  socket.push(...inbox(1));
  clock.pass(0.1);
  await socket.reply(Op.ACK);
  client.close();
  assert.deepEqual(socket.rest(), [], "once is enough");
});

test("an acknowledge that got lost goes out again; one that arrived does not", async () => {
  const { socket } = await member();
  socket.push(...inbox(1, 2));
  clock.pass(0.1);
  socket.take(Op.ACK); // and the connection breaks over it
  const next = await again(socket);
  next.push(...inbox(1, 2));
  clock.pass(0.1);
  assert.equal(await next.reply(Op.ACK), "2");
  const last = await again(next);
  clock.pass(0.1);
  assert.deepEqual(last.rest(), []);
});

test("after a page was loaded anew, second copies are acknowledged", async () => {
  const { socket, events } = await member({ seen: 2 });
  socket.push(...inbox(1, 2));
  clock.pass(0.1);
  assert.equal(await socket.reply(Op.ACK), "2");
  assert.deepEqual(given(events), []);
});

test("an inbox that has begun anew is given from its start", async () => {
  const { client, socket, events } = await member();
  socket.push(...inbox(1, 2, 3));
  clock.pass(0.1);
  await socket.reply(Op.ACK);
  const next = await again(socket);
  next.push(...inbox(1, 2));
  assert.deepEqual(given(events), [1, 2, 3, 1, 2]);
  assert.equal(client.seen, 2);
  clock.pass(0.1);
  assert.equal(await next.reply(Op.ACK), "2");
  const last = await again(next);
  last.push(...inbox(3, 1, 2)); // these are late, and not the first
  clock.pass(0.1);
  assert.equal(await last.reply(Op.ACK), "3");
  assert.deepEqual(given(events), [1, 2, 3, 1, 2, 3]);
});

test("by hand: only what the application names, kept while there is no connection", async () => {
  const { client, socket, events } = await member({ acknowledge: "manual" });
  socket.push(...inbox(1, 2, 3));
  clock.pass(10);
  assert.deepEqual(socket.rest(), []);
  client.ack(2);
  client.ack(1);
  clock.pass(0.1);
  assert.equal(await socket.reply(Op.ACK), "2");
  socket.lose();
  client.ack(3);
  clock.pass(1);
  const next = await accepted();
  next.push(...inbox(3)); // on its way before the server heard of it
  clock.pass(0.1);
  assert.equal(await next.reply(Op.ACK), "3");
  assert.deepEqual(given(events), [1, 2, 3]);
  client.ack(2); // nothing new
  client.ack(5); // read with sync(), for one
  clock.pass(0.1);
  assert.equal(await next.reply(Op.ACK), "5");
  next.push(...inbox(4, 5, 6));
  assert.deepEqual(given(events), [1, 2, 3, 6]);
  assert.throws(() => client.ack(-1), RangeError);
  assert.throws(() => client.ack("6"), RangeError);
});

test("no acknowledge without ACK in accepts, however the token is written", async () => {
  const silent = [{ token: { mid: 1, accepts: [1000] } }, ...["opaque", '{"mid":1}', "null"].map((token) => ({ token }))];
  for (const options of silent) {
    const { client, socket, events } = await opened(options);
    socket.push(...inbox(1));
    clock.pass(1);
    assert.deepEqual(given(events), [1]);
    assert.throws(() => client.ack(1), { name: "GoimError" });
    client.close();
    assert.deepEqual(socket.rest(), [], json(options));
  }
  const speaking = [{ token: json(TOKEN) }, { token: "opaque", accepts: [Op.ACK] }];
  for (const options of speaking) {
    const { client, socket } = await opened(options);
    socket.push(...inbox(1));
    clock.pass(0.1);
    assert.deepEqual(socket.rest(), [[Op.ACK, "1"]], json(options));
    client.close();
  }
});

test("a subscription to ACK is as good as accepts, and so is its end", async () => {
  const { client, socket } = await opened();
  const asked = client.subscribe([Op.ACK]);
  await socket.reply(Op.SUB);
  await asked;
  socket.push(...inbox(1));
  clock.pass(0.1);
  assert.equal(await socket.reply(Op.ACK), "1");
  const over = client.unsubscribe([Op.ACK]);
  await socket.reply(Op.UNSUB);
  await over;
  socket.push(...inbox(2));
  clock.pass(0.1);
  assert.deepEqual(socket.rest(), []);
});

test("a rate limit delays an acknowledge and is told; a refusal ends it", async () => {
  const { socket, events } = await member();
  socket.push(...inbox(1));
  clock.pass(0.1);
  await socket.refuse(Op.ACK, ErrorCode.TOO_MANY, "slow down");
  const [{ error, op, delay }] = told(events, "error");
  assert.equal(error.code, 429);
  assert.equal(op, Op.ACK);
  assert.ok(delay >= 700 && delay <= 1300, `${delay}`);
  socket.push(...inbox(2));
  clock.pass(0.5);
  assert.deepEqual(socket.rest(), []);
  clock.pass(1);
  await settle();
  assert.equal(await socket.refuse(Op.ACK, 500), "2");
  clock.pass(3);
  await settle();
  assert.equal(await socket.refuse(Op.ACK, 400), "2");
  assert.equal(told(events, "error").at(-1).delay, 0);
  clock.pass(60);
  await settle();
  assert.deepEqual(socket.rest(), []);
});

test("sync gives page after page until there is none", async () => {
  const { client, socket, events } = await member();
  const pages = [];
  const reading = (async () => {
    for await (const page of client.sync({ after: 2, limit: 2 })) {
      pages.push(page.map((frame) => [frame.seq, frame.text()]));
    }
  })();
  await settle();
  assert.equal(await socket.reply(Op.SYNC, bytes(...inbox(3, 4))), "2,2");
  assert.equal(await socket.reply(Op.SYNC, bytes(...inbox(6))), "4,2");
  assert.equal(await socket.reply(Op.SYNC, ""), "6,2");
  await reading;
  assert.deepEqual(pages, [[[3, "m3"], [4, "m4"]], [[6, "m6"]]]);
  assert.deepEqual(given(events), [], "what is read back is no push");
  clock.pass(1);
  assert.deepEqual(socket.rest(), [], "and acknowledges nothing");
});

test("sync that is refused, cut, or goes nowhere, throws", async () => {
  const { client, socket } = await member();
  let ends = assert.rejects(client.sync().next(), { code: 429 });
  assert.equal(await socket.refuse(Op.SYNC, 429), "0,100");
  await ends;
  ends = assert.rejects(client.sync().next(), /package length/);
  await socket.reply(Op.SYNC, inbox(1)[0].subarray(0, 17));
  await ends;
  ends = assert.rejects(client.sync({ after: 5 }).next(), /the page after 5 ends with 5/);
  await socket.reply(Op.SYNC, bytes(...inbox(5)));
  await ends;
});

// ---- rooms and presence -------------------------------------------------------------------------

test("join, leave, members: what is asked, and what comes of it", async () => {
  const { client, socket } = await member();
  const joined = client.join("live://2");
  assert.equal(await socket.reply(Op.JOIN), "live://2");
  await joined;
  assert.deepEqual(client.rooms, ["live://2"]);
  const refused = assert.rejects(client.join("live://3"), { name: "GoimError", code: 403, message: "not for you" });
  await socket.refuse(Op.JOIN, 403, "not for you");
  await refused;
  assert.deepEqual(client.rooms, ["live://2"]);
  const page = client.members("live://2", { offset: 100, limit: 50 });
  const asked = await socket.reply(Op.MEMBERS, json({ room_id: "live://2", online: 120, mids: [7, 8], next: null }));
  assert.deepEqual(JSON.parse(asked), { room_id: "live://2", offset: 100, limit: 50 });
  assert.deepEqual(await page, { roomId: "live://2", online: 120, mids: [7, 8], next: null });
  const left = client.leave("live://2");
  assert.equal(await socket.reply(Op.LEAVE), "live://2");
  await left;
  assert.deepEqual(client.rooms, []);
});

test("a refusal without ERROR in accepts is seen all the same", async () => {
  const { client, socket } = await opened();
  const calls = {
    join: () => client.join("live://2"), sync: () => client.sync().next(), refresh: () => client.refresh(),
    watch: () => client.watch("live://2"), lastSeen: () => client.lastSeen([1]),
    members: () => client.members("live://2"),
  };
  for (const [name, call] of Object.entries(calls)) {
    for (const reply of [0, 1]) { // goim's answer to what it does not know; goim_core's to what it refuses
      if (reply && (name === "sync" || name === "refresh")) continue;
      const refused = assert.rejects(call(), { code: 403 }, name);
      await settle();
      const { op, seq } = socket.sent.at(-1);
      socket.push(encode(op + reply, "", seq));
      await refused;
    }
  }
  const refused = assert.rejects(client.subscribe([1001]), { code: 403 });
  await socket.reply(Op.SUB, "");
  await refused;
});

test("presence events say who came and went", async () => {
  const { client, socket, events } = await member();
  const watching = client.watch("live://1");
  assert.equal(await socket.reply(Op.WATCH), "live://1");
  await watching;
  socket.push(encode(Op.PRESENCE, json({ room_id: "live://1", joined: [7], left: [8, 9], online: 3 })));
  assert.deepEqual(events, [["presence", { roomId: "live://1", joined: [7], left: [8, 9], online: 3 }]]);
  socket.push(encode(Op.PRESENCE, "{"));
  assert.equal(client.state, "waiting", "a server that sends garbage is left");
});

test("last seen", async () => {
  const { client, socket } = await member();
  const seen = client.lastSeen([7, 8]);
  const answer = { 7: { online: true, seen: 1700000000.5 }, 8: { online: false, seen: null } };
  assert.equal(await socket.reply(Op.LAST_SEEN, json(answer)), "[7,8]");
  assert.deepEqual(await seen, answer);
});

/** A client with a place: moved, joined, watching, subscribed. */
async function settled(options = {}) {
  const all = await member(options);
  const { client, socket } = all;
  const done = Promise.all([
    client.changeRoom("live://2"), client.join("live://3"), client.join("live://4"), client.join("live://5"),
    client.leave("live://4"), client.watch("live://2"), client.watch("live://3"), client.watch("live://5"),
    client.unwatch("live://5"), client.subscribe([1001, 1002]), client.unsubscribe([1002, 1000]),
  ]);
  const { CHANGE_ROOM, JOIN, LEAVE, WATCH, UNWATCH, SUB, UNSUB } = Op;
  for (const op of [CHANGE_ROOM, JOIN, JOIN, JOIN, LEAVE, WATCH, WATCH, WATCH, UNWATCH, SUB, UNSUB]) {
    await socket.reply(op);
  }
  await done;
  return all;
}

test("a new connection is in the place of the old one before the application hears of it", async () => {
  const { client, socket, events } = await settled();
  socket.lose();
  client.addEventListener("statechange", () => client.state === "open" && client.send(1000, "first word"));
  clock.pass(1);
  const next = await accepted();
  assert.deepEqual(next.rest(), [
    [Op.CHANGE_ROOM, "live://2"], [Op.JOIN, "live://3"], [Op.JOIN, "live://5"], [Op.SUB, "1001"],
    [Op.UNSUB, "1002,1000"], [1000, "first word"],
  ]);
  await next.reply(Op.JOIN);
  assert.deepEqual(next.rest().at(-1), [Op.WATCH, "live://3"]);
  await next.reply(Op.CHANGE_ROOM);
  assert.deepEqual(next.rest().at(-1), [Op.WATCH, "live://2"]);
  assert.deepEqual(told(events, "error"), []);
});

test("where the token starts in the room already, only its watch is asked for again", async () => {
  const token = { ...TOKEN };
  const { client, socket } = await opened({ token: () => token });
  const done = Promise.all([client.changeRoom("live://2"), client.watch("live://2")]);
  await socket.reply(Op.CHANGE_ROOM);
  await socket.reply(Op.WATCH);
  await done;
  token.room_id = "live://2";
  assert.deepEqual((await again(socket)).rest(), [[Op.WATCH, "live://2"]]);
});

const OPS = [[Op.SUB, "1001"], [Op.UNSUB, "1002,1000"]];

test("leaving a room ends its watch, also when it is entered again", async () => {
  const { client, socket } = await settled();
  const done = Promise.all([
    client.changeRoom(""), client.changeRoom("live://2"), client.leave("live://3"), client.join("live://3"),
  ]);
  for (const op of [Op.CHANGE_ROOM, Op.CHANGE_ROOM, Op.LEAVE, Op.JOIN]) await socket.reply(op);
  await done;
  const next = await again(socket);
  for (const op of [Op.CHANGE_ROOM, Op.JOIN, Op.JOIN]) await next.reply(op);
  assert.deepEqual(next.rest(), OPS);
});

test("a room that the client is in twice is watched until it is in it no more", async () => {
  const { client, socket } = await settled();
  const done = Promise.all([client.join("live://2"), client.changeRoom("")]);
  await socket.reply(Op.JOIN);
  await socket.reply(Op.CHANGE_ROOM);
  await done;
  const next = await again(socket);
  for (const op of [Op.CHANGE_ROOM, Op.JOIN, Op.JOIN, Op.JOIN]) await next.reply(op);
  assert.deepEqual(next.rest().slice(2), [[Op.WATCH, "live://3"], [Op.WATCH, "live://2"]]);
});

test("the watch of the token's room ends where the token starts elsewhere", async () => {
  const token = { ...TOKEN };
  const { client, socket, events } = await opened({ token: () => token });
  const watched = client.watch("live://1");
  await socket.reply(Op.WATCH);
  await watched;
  token.room_id = "live://9";
  assert.deepEqual((await again(socket)).rest(), []);
  assert.deepEqual(told(events, "error"), []);
  const opaque = await opened({ token: "opaque" });
  const watching = opaque.client.watch("live://1");
  await opaque.socket.reply(Op.WATCH);
  await watching;
  assert.deepEqual((await again(opaque.socket)).rest(), [[Op.WATCH, "live://1"]], "who knows");
});

test("a room that is no longer allowed is told once and not asked for again", async () => {
  const { client, socket, events } = await settled();
  const next = await again(socket);
  await next.refuse(Op.JOIN, 403, "banned"); // live://3
  await next.refuse(Op.JOIN, 429); // live://5
  await next.refuse(Op.CHANGE_ROOM, 403);
  assert.deepEqual(told(events, "error").map(({ op, body, error, delay }) => [op, body, error.code, delay > 0]), [
    [Op.JOIN, "live://3", 403, false], [Op.JOIN, "live://5", 429, true], [Op.CHANGE_ROOM, "live://2", 403, false],
  ]);
  assert.deepEqual(client.rooms, ["live://5"]);
  clock.pass(2);
  await settle();
  assert.equal(await next.reply(Op.JOIN), "live://5");
  await next.reply(Op.SUB);
  await next.reply(Op.UNSUB);
  assert.deepEqual(next.rest(), [], "and nothing that was refused is watched");
  const back = client.join("live://3"); // let in again
  await next.reply(Op.JOIN);
  await back;
  const last = await again(next);
  assert.equal(await last.reply(Op.JOIN), "live://5");
  assert.equal(await last.reply(Op.JOIN), "live://3");
  assert.deepEqual(last.rest(), OPS, "what was given up is not watched");
});

test("a connection that breaks while it resumes forgets nothing", async () => {
  const { client, socket } = await settled();
  const next = await again(socket);
  await next.refuse(Op.JOIN, 429);
  const last = await again(next);
  const entered = [[Op.CHANGE_ROOM, "live://2"], [Op.JOIN, "live://3"], [Op.JOIN, "live://5"]];
  assert.deepEqual(last.rest().slice(0, 3), entered);
  clock.pass(60);
  await settle();
  assert.ok(next.closed);
  client.close();
  assert.equal(clock.timers.size, 0);
});

test("close forgets the place, and so does resume: false; both keep the inbox's number", async () => {
  const { client, socket, events } = await settled();
  socket.push(...inbox(1));
  client.close();
  client.connect();
  const next = await accepted();
  next.push(...inbox(1, 2));
  assert.deepEqual(next.rest(), []);
  assert.deepEqual(given(events), [1, 2]);
  client.close();
  const other = await settled({ resume: false });
  assert.deepEqual((await again(other.socket)).rest(), []);
});

// ---- tokens that run out ------------------------------------------------------------------------

test("EXPIRING asks the token function, which may take its time", async () => {
  const waiting = [];
  let first = true;
  const token = () => (first ? ((first = false), TOKEN) : new Promise((resolve) => waiting.push(resolve)));
  const { socket, events } = await opened({ token });
  socket.push(encode(Op.EXPIRING, json({ seconds: 30 })));
  assert.deepEqual(events, [["expiring", { seconds: 30 }]]);
  await settle();
  assert.equal(waiting.length, 0, "not all clients at once");
  clock.pass(15);
  assert.deepEqual(socket.rest(), []);
  waiting.pop()({ ...TOKEN, fresh: true });
  await settle();
  assert.deepEqual(JSON.parse(await socket.reply(Op.REFRESH, "")), { ...TOKEN, fresh: true });
  assert.deepEqual(told(events, "error"), []);
});

test("a token function that fails is asked again; a refusal is told, without the token", async () => {
  let tries = 0;
  const token = () => {
    if (++tries === 2) throw new TypeError("no network");
    return TOKEN;
  };
  const { socket, events } = await opened({ token });
  socket.push(encode(Op.EXPIRING, json({ seconds: 30 })));
  clock.pass(15);
  await settle();
  const [failed] = told(events, "error");
  assert.equal(failed.error.message, "no network");
  assert.ok(failed.delay > 0);
  clock.pass(2);
  await settle();
  await socket.refuse(Op.REFRESH, 403, "another user");
  const { error, op, body, delay } = told(events, "error").at(-1);
  assert.deepEqual([error.message, op, body, delay], ["another user", Op.REFRESH, "", 0]);
  clock.pass(15);
  await settle();
  assert.deepEqual(socket.rest(), []);
});

test("a token that was answered too late is not sent on the next connection", async () => {
  const waiting = [];
  let first = true;
  const token = () => (first ? ((first = false), TOKEN) : new Promise((resolve) => waiting.push(resolve)));
  const { socket } = await opened({ token });
  socket.push(encode(Op.EXPIRING, json({ seconds: 30 })));
  clock.pass(15);
  socket.lose(4008);
  clock.pass(1);
  await settle();
  const [early, now] = waiting;
  now(TOKEN);
  const next = await accepted();
  early({ ...TOKEN, late: true });
  await settle();
  assert.deepEqual(next.rest(), []);
});

test("refresh by hand; where the token is no function, later connections use the new one", async () => {
  const { client, socket } = await opened({ token: "old", accepts: EXTENSIONS });
  socket.push(encode(Op.EXPIRING, json({ seconds: 30 })));
  clock.pass(15);
  await settle();
  assert.deepEqual(socket.rest(), [], "the same again would not help");
  const refused = assert.rejects(client.refresh("bad"), { code: 403 });
  await socket.refuse(Op.REFRESH, 403);
  await refused;
  const refreshed = client.refresh("new");
  assert.equal(await socket.reply(Op.REFRESH, ""), "new");
  await refreshed;
  const next = await again(socket);
  assert.equal(next.token, "new");
  next.lose(4008);
  assert.equal(client.state, "refused");
});

test("nothing that has to be asked is asked without a connection", async () => {
  const client = new GoimClient({ url: "ws://test", token: TOKEN });
  for (const call of ["join", "leave", "watch", "unwatch", "members", "lastSeen", "refresh", "changeRoom"]) {
    await assert.rejects(client[call]("live://1"), /not connected/, call);
  }
  await assert.rejects(client.sync().next(), /not connected/);
  assert.equal(FakeSocket.all.length, 0);
});
