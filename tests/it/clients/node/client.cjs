// Round-trips through node-redis with its defaults. Usage: node client.cjs URL
const assert = require("node:assert/strict");
const { BasicClientSideCache, createClient, RESP_TYPES, WatchError } = require("redis");

const url = process.argv[2];

async function binary(client) {
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
  const key = Buffer.concat([Buffer.from("node:"), bytes]);
  const inBuffers = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  assert.equal(await client.set(key, bytes), "OK");
  assert.deepEqual(await inBuffers.get(key), bytes);
  const large = Buffer.alloc(512 * 1024, bytes);
  await client.set("node:large", large);
  assert.ok(large.equals(await inBuffers.get("node:large")), "a value of 512 KiB did not come back");
}

async function plain(client) {
  assert.equal(await client.get("node:absent"), null);
  await client.set("node:ttl", "v", { EX: 100 });
  const ttl = await client.ttl("node:ttl");
  assert.ok(ttl > 90 && ttl <= 100, `TTL is ${ttl}`);
  assert.equal(await client.del(["node:ttl", "node:absent"]), 1);
}

async function pipeline(client) {
  const numbers = Array.from({ length: 100 }, (_, i) => String(i));
  // Commands of one tick go out together.
  const [, got] = await Promise.all([
    Promise.all(numbers.map((n) => client.set(`node:p${n}`, n))),
    Promise.all(numbers.map((n) => client.get(`node:p${n}`))),
  ]);
  assert.deepEqual(got, numbers);
}

async function transaction(client) {
  assert.deepEqual(await client.multi().set("node:n", "41").incr("node:n").exec(), ["OK", 42]);
  await client.watch("node:n");
  await client.set("node:n", "1");
  await assert.rejects(client.multi().set("node:n", "2").exec(), WatchError);
}

async function failure(client) {
  await client.set("node:word", "abc");
  await assert.rejects(client.incr("node:word"), /not an integer/);
}

// A value that the client keeps goes when another client changes it.
async function cache(client) {
  const clientSideCache = new BasicClientSideCache({ ttl: 0, maxEntries: 0, evictPolicy: "LRU" });
  const caching = await createClient({ url, RESP: 3, clientSideCache }).connect();
  await client.set("node:cached", "before");
  for (const _ of [1, 2]) {
    assert.equal(await caching.get("node:cached"), "before");
  }
  assert.equal(clientSideCache.stats().hitCount, 1);
  await client.set("node:cached", "after");
  // The invalidation comes on the other connection: it may be on its way.
  for (const end = Date.now() + 30_000; (await caching.get("node:cached")) !== "after"; ) {
    assert.ok(Date.now() < end, "the cached value is not invalidated");
    // A value of the cache needs no I/O: without this, nothing would ever be received.
    await new Promise(setImmediate);
  }
  await caching.close();
}

async function database() {
  const client = await createClient({ url, database: 1 }).connect();
  await client.set("node:one", "1");
  assert.equal(await client.del("node:one"), 1);
  await client.close();
}

async function main() {
  const client = createClient({ url });
  client.on("error", (error) => console.log(`client error: ${error}`));
  await client.connect();
  for (const part of [binary, plain, pipeline, transaction, failure, cache]) {
    await part(client);
  }
  await client.close();
  await database();
  console.log("OK");
}

main().catch((error) => {
  console.log(error);
  process.exit(1);
});
