// rate-limiter-flexible: limits that all nodes share, blocking, penalties, rewards, a queue.
const assert = require("node:assert/strict");
const Redis = require("ioredis");
const { createClient } = require("redis");
const {
  BurstyRateLimiter,
  RateLimiterQueue,
  RateLimiterRedis,
  RateLimiterRedisNonAtomic,
  RateLimiterRes,
} = require("rate-limiter-flexible");
const { run, sleep, urls } = require("./program.cjs");

const clients = urls.map((url) => new Redis(url));

function limiters(options, Limiter = RateLimiterRedis) {
  return clients.map((storeClient) => new Limiter({ storeClient, ...options }));
}

const tries = (calls) => Promise.allSettled(calls.map((call) => call()));

// Of many requests on both nodes at once exactly as many pass as there are points.
async function sharedLimit() {
  const both = limiters({ keyPrefix: "shared", points: 20, duration: 30 });
  const outcomes = await tries(
    Array.from({ length: 50 }, (_, n) => () => both[n % 2].consume("user")),
  );
  const passed = outcomes.filter((outcome) => outcome.status === "fulfilled");
  const refused = outcomes.filter((outcome) => outcome.status === "rejected");
  assert.equal(passed.length, 20);
  for (const { reason } of refused) {
    assert.ok(reason instanceof RateLimiterRes, reason);
    assert.ok(
      reason.msBeforeNext > 0 && reason.msBeforeNext <= 30_000,
      `${reason.msBeforeNext} ms`,
    );
  }
  // Every request has its own count: none was counted twice, none was lost.
  const counts = outcomes.map(({ value, reason }) => (value ?? reason).consumedPoints);
  assert.deepEqual(
    counts.sort((a, b) => a - b),
    Array.from({ length: 50 }, (_, n) => n + 1),
  );
}

async function pointsByHand() {
  const [one] = limiters({ keyPrefix: "hand", points: 5, duration: 60, blockDuration: 60 });
  await one.consume("user", 2);
  await one.penalty("user", 1);
  await one.reward("user", 2);
  const { consumedPoints, remainingPoints } = await one.get("user");
  assert.deepEqual([consumedPoints, remainingPoints], [1, 4]);
  await assert.rejects(one.consume("user", 5), RateLimiterRes);
  assert.ok((await one.get("user")).msBeforeNext > 50_000, "the user is not blocked");
  assert.equal(await one.delete("user"), true);
  assert.equal(await one.get("user"), null);
  await one.block("user", 30);
  await assert.rejects(one.consume("user"), RateLimiterRes);
}

// What is consumed comes back when the time is over.
async function windowEnds() {
  const [one] = limiters({ keyPrefix: "window", points: 1, duration: 1 });
  await one.consume("user");
  const refused = await one.consume("user").catch((error) => error);
  assert.ok(refused.msBeforeNext > 0 && refused.msBeforeNext <= 1000, `${refused.msBeforeNext} ms`);
  await sleep(refused.msBeforeNext + 10);
  assert.equal((await one.consume("user")).consumedPoints, 1);

  const [forever] = limiters({ keyPrefix: "forever", points: 2, duration: 0 });
  await forever.consume("user", 2);
  await assert.rejects(forever.consume("user"), RateLimiterRes);
}

async function otherKinds() {
  const [usual] = limiters({ keyPrefix: "usual", points: 1, duration: 60 });
  const [burst] = limiters({ keyPrefix: "burst", points: 2, duration: 60 });
  const bursty = new BurstyRateLimiter(usual, burst);
  const outcomes = await tries(Array.from({ length: 5 }, () => () => bursty.consume("user")));
  assert.equal(outcomes.filter((outcome) => outcome.status === "fulfilled").length, 3);

  const [plain] = limiters(
    { keyPrefix: "plain", points: 3, duration: 60 },
    RateLimiterRedisNonAtomic,
  );
  for (const _ of [1, 2, 3]) {
    await plain.consume("user");
  }
  await assert.rejects(plain.consume("user"), RateLimiterRes);

  const [paced] = limiters({ keyPrefix: "paced", points: 2, duration: 1 });
  const queue = new RateLimiterQueue(paced, { maxQueueSize: 10 });
  const start = Date.now();
  await Promise.all([1, 2, 3].map(() => queue.removeTokens(1)));
  assert.ok(Date.now() - start >= 500, "three tokens came at once, there were two a second");
}

// The same with node-redis.
async function nodeRedis() {
  const storeClient = await createClient({ url: urls[1] }).connect();
  const options = {
    storeClient,
    useRedisPackage: true,
    keyPrefix: "node",
    points: 2,
    duration: 60,
  };
  const limiter = new RateLimiterRedis(options);
  await limiter.consume("user", 2);
  await assert.rejects(limiter.consume("user"), RateLimiterRes);
  assert.equal((await limiter.get("user")).consumedPoints, 3);
  await storeClient.close();
}

run(sharedLimit, pointsByHand, windowEnds, otherKinds, nodeRedis);
