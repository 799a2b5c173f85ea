// node-redis with a cache of its own: what another writer changes is read again.
const assert = require("node:assert/strict");
const { BasicClientSideCache, createClient } = require("redis");
const { eventually, fail, run, urls } = require("./program.cjs");

const [url, otherUrl] = urls;
const options = { ttl: 0, maxEntries: 0, evictPolicy: "LRU" };

let caching;
let cache;
let other;

async function connected() {
  cache = new BasicClientSideCache(options);
  caching = createClient({ url, RESP: 3, clientSideCache: cache });
  other = createClient({ url: otherUrl });
  for (const client of [caching, other]) {
    client.on("error", fail);
    await client.connect();
  }
}

// Reads until the value is in the cache: the second read is no request.
async function cached(key, value) {
  await eventually(`${key} is ${value}`, async () => (await caching.get(key)) === value);
  const { hitCount } = cache.stats();
  await eventually(`${key} is in the cache`, async () => {
    assert.equal(await caching.get(key), value);
    return cache.stats().hitCount > hitCount;
  });
}

async function changedByAnotherClient() {
  await other.set("cached", "one");
  await cached("cached", "one");
  const changes = [
    ["two", () => other.set("cached", "two")],
    ["twofold", () => other.append("cached", "fold")],
    ["three", () => other.multi().set("cached", "three").exec()],
    ["four", () => other.eval("return redis.call('SET', KEYS[1], 'four')", { keys: ["cached"] })],
  ];
  for (const [value, change] of changes) {
    await change();
    await cached("cached", value);
  }
  await other.del("cached");
  await eventually("the key is gone", async () => (await caching.get("cached")) === null);
  await other.set("cached", "again", { PX: 300 });
  await cached("cached", "again");
  await eventually("the key has expired", async () => (await caching.get("cached")) === null);
  await other.hSet("hash", { a: "1", b: "2" });
  await eventually("the hash", async () => (await caching.hGet("hash", "a")) === "1");
  await other.hSet("hash", "a", "3");
  await eventually("the new field", async () => (await caching.hGet("hash", "a")) === "3");
}

// With FOREIGN set, somebody produces to the topic, past all nodes: a new value of "produced" when
// the key "wanted" exists.
async function changedByAnotherProducer() {
  if (!process.env.FOREIGN) {
    return;
  }
  await other.set("produced", "before");
  await cached("produced", "before");
  await other.set("wanted", "1");
  await cached("produced", "after");
}

async function flushed() {
  await other.set("flushed", "1");
  await cached("flushed", "1");
  await other.flushDb();
  await eventually("all is gone", async () => (await caching.get("flushed")) === null);
}

run(connected, changedByAnotherClient, changedByAnotherProducer, flushed);
