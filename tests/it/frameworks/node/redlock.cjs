// Redlock: at most one holder of a lock, whichever node it speaks to.
const assert = require("node:assert/strict");
const Redis = require("ioredis");
const Redlock = require("redlock");
const { run, sleep, urls } = require("./program.cjs");

const clients = urls.map((url) => new Redis(url));
const lockers = clients.map(
  (client) => new Redlock([client], { retryCount: 200, retryDelay: 20, retryJitter: 20 }),
);
const impatient = new Redlock([clients[1]], { retryCount: 0 });

// Many count with a read and a write of their own, under the lock: no count is lost.
async function counting() {
  await clients[0].set("count", 0);
  let inside = 0;
  const work = async (locker, client) => {
    const lock = await locker.lock("count-lock", 10_000);
    inside += 1;
    assert.equal(inside, 1, "two hold the lock");
    // Who gets the lock has seen it released, and so all that came before in the topic's partition.
    const count = Number(await client.get("count"));
    await client.set("count", count + 1);
    inside -= 1;
    await lock.unlock();
  };
  const all = Array.from({ length: 20 }, (_, n) => work(lockers[n % 2], clients[n % 2]));
  await Promise.all(all);
  assert.equal(await clients[0].incrby("count", 0), all.length);
}

async function refusedExtendedExpired() {
  const lock = await lockers[0].lock(["a", "b"], 2000);
  await assert.rejects(impatient.lock("b", 500), { name: "LockError" });
  const extended = await lock.extend(60_000);
  await sleep(2100);
  await assert.rejects(impatient.lock("a", 500), { name: "LockError" });
  await extended.unlock();
  const next = await lockers[1].lock("a", 1000);
  await sleep(1050);
  const taken = await lockers[0].lock("a", 60_000);
  // Its time is over and another one has the lock: it cannot be given back.
  await assert.rejects(next.unlock(), { name: "LockError" });
  assert.equal(await clients[0].exists("a"), 1);
  await taken.unlock();
}

run(counting, refusedExtendedExpired);
