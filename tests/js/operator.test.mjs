// The operator page's figures: rates from counters, and how numbers are written.

import assert from "node:assert/strict";
import { test } from "node:test";
import { History, SPAN, axis, duration, momentOf, restarted, written } from "../../goim_core/operator/figures.js";

const told = (uptime, stats = {}, more = {}) => ({
  node: "n", uptime, stats: { connections: 1, users: 1, rooms: 1, opened: 0, deliveries: 0, pending: 0, drops: {}, closes: {}, ...stats }, ...more,
});

test("a rate is what a counter grew, by the server's seconds", () => {
  const before = told(10, { deliveries: 100, opened: 5, closes: { 4007: 1 }, drops: { lost: 2 } });
  const now = told(12, { deliveries: 150, opened: 6, closes: { 4007: 1, 4005: 3 }, drops: { lost: 2, inbox: 4 } });
  const { at, values } = momentOf(before, now, 99);
  assert.equal(at, 99);
  assert.equal(values.deliveries.deliveries, 25);
  assert.deepEqual(values.churn, { opened: 0.5, closed: 1.5 });
  assert.deepEqual(values.drops, { lost: 0, inbox: 2 });
});

test("without a moment before there is no rate, and a counter that fell has none", () => {
  assert.deepEqual(momentOf(null, told(10, { opened: 7 }), 1).values.churn, { opened: null, closed: null });
  const again = momentOf(told(10, { opened: 7 }), told(11, { opened: 3 }), 1);
  assert.deepEqual(again.values.churn, { opened: null, closed: 0 });
  assert.equal(momentOf(told(10), told(10, { opened: 7 }), 1).values.churn.opened, null); // no time has passed
});

test("what a server does not tell is no series", () => {
  const { values } = momentOf(told(1), told(2), 1);
  assert.deepEqual([values.outbox.waiting, values.lag.loop, values.deliveries.pushes], [undefined, undefined, undefined]);
  assert.deepEqual([values.hooks, values.drops], [{}, {}]);
  const more = momentOf(told(1, {}, { pushes: { room: { ok: 1 } } }),
    told(2, { outbox_bytes: 9 }, { lag: { loop: 0.5 }, pushes: { room: { ok: 2, failed: 1 }, all: { ok: 1 } } }), 1);
  assert.deepEqual([more.values.outbox.waiting, more.values.lag.loop, more.values.deliveries.pushes], [9, 0.5, 3]);
});

test("a hook's time is the mean of its calls, and nothing without calls", () => {
  const hooks = (count, seconds) => ({ hooks: { connect: { count, seconds } } });
  const mean = (one, other) => momentOf(told(1, {}, one), told(3, {}, other), 1).values.hooks.connect;
  assert.equal(mean(hooks(2, 1), hooks(6, 3)), 0.5);
  assert.equal(mean(hooks(2, 1), hooks(2, 1)), undefined);
});

test("another run of the server is told by its uptime and its name", () => {
  assert.equal(restarted(told(10), told(11)), false);
  assert.equal(restarted(told(10), told(9)), true);
  assert.equal(restarted(told(10), { ...told(11), node: "m" }), true);
});

test("five minutes are kept, and times without answers", () => {
  const history = new History();
  history.interrupt();
  for (let at = 0; at <= 2 * SPAN; at += 1000) {
    if (at === 1000 || at === 2 * SPAN - 1000) {
      history.interrupt();
      history.interrupt();
    }
    history.add({ at, values: {} });
  }
  assert.deepEqual(history.moments[0], { at: SPAN, values: {} });
  assert.equal(history.moments.length, SPAN / 1000 + 2);
  assert.equal(history.moments.filter((moment) => moment === null).length, 1);
});

test("numbers are written with their units", () => {
  for (const [value, unit, text] of [
    [0, "count", "0"], [1234567, "count", "1,234,567"], [null, "count", "\u2013"], [undefined, "rate", "\u2013"],
    [0, "rate", "0/s"], [0.126, "rate", "0.13/s"], [12.34, "rate", "12.3/s"], [123.4, "rate", "123/s"],
    [9876, "rate", "9,876/s"], [12345, "rate", "12.3k/s"], [2.5e6, "rate", "2.5M/s"],
    [0, "seconds", "0 ms"], [0.000412, "seconds", "412 \u00b5s"], [0.0123, "seconds", "12.3 ms"], [2.5, "seconds", "2.5 s"],
    [0, "bytes", "0 B"], [1023, "bytes", "1,023 B"], [1536, "bytes", "1.5 KiB"], [3 << 20, "bytes", "3 MiB"],
  ]) assert.equal(written(value, unit), text);
});

test("an axis has round steps, its top above the highest value, and one unit", () => {
  const texts = (most, unit) => axis(most, unit).ticks.map(({ text }) => text);
  assert.deepEqual(texts(0, "count"), ["0", "1", "2", "3", "4"]);
  assert.deepEqual(texts(5, "count"), ["0", "2", "4", "6"]);
  assert.deepEqual(texts(73, "count"), ["0", "20", "40", "60", "80"]);
  assert.deepEqual(texts(12345, "count"), ["0", "5k", "10k", "15k"]);
  assert.deepEqual(texts(0, "rate"), ["0", "0.5/s", "1/s"]);
  assert.deepEqual(texts(0.03, "seconds"), ["0", "10 ms", "20 ms", "30 ms"]);
  assert.deepEqual(texts(5000, "bytes"), ["0", "2 KiB", "4 KiB", "6 KiB"]);
  for (const unit of ["count", "rate", "seconds", "bytes"]) {
    for (let most = 1e-6; most < 1e12; most *= 1.37) {
      const { top, ticks } = axis(most, unit);
      assert.ok(top >= most * 0.999999 && ticks.length >= 3 && ticks.length <= 6, `${most} ${unit}`);
      assert.equal(new Set(ticks.map(({ text }) => text)).size, ticks.length, `${most} ${unit}`);
      assert.ok(Math.abs(ticks.at(-1).value - top) <= top * 1e-9);
    }
  }
});

test("durations are written in two units", () => {
  assert.deepEqual([0.4, 59.9, 61, 3600, 90061, 263203].map(duration),
    ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h", "3 d 1 h"]);
});
