// BullMQ: queues, workers, schedulers, flows, limits and the recovery of stalled jobs. The workers
// of a queue are on both nodes.
const assert = require("node:assert/strict");
const { FlowProducer, Queue, QueueEvents, Worker } = require("bullmq");
const { eventually, fail, run, sleep, urls } = require("./program.cjs");

const connections = urls
  .map((url) => new URL(url))
  .map(({ hostname, port, pathname }) => ({
    host: hostname,
    port: Number(port),
    db: Number(pathname.slice(1)),
  }));
const [here, there] = connections;

function worker(name, connection, process, options = {}) {
  // `drainDelay` in seconds: a worker that is closed ends its blocking command first.
  const made = new Worker(name, process, { connection, drainDelay: 1, ...options });
  made.on("error", fail);
  return made;
}

const close = (...all) => Promise.all(all.map((one) => one.close()));

// The workers of two nodes process each job once, and the queue's counts and events say so.
async function eachJobOnce() {
  const queue = new Queue("work", { connection: here });
  const events = new QueueEvents("work", { connection: there });
  await events.waitUntilReady();
  const runs = new Map();
  const done = new Set();
  events.on("completed", ({ jobId }) => done.add(jobId));
  const by = new Set();
  const workers = connections.map((connection, n) =>
    worker(
      "work",
      connection,
      async (job) => {
        runs.set(job.data.n, (runs.get(job.data.n) ?? 0) + 1);
        by.add(n);
        await eventually("both workers have a job", () => by.size === 2);
        await job.updateProgress(50);
        return job.data.n * 2;
      },
      { concurrency: 2 },
    ),
  );
  await Promise.all(workers.map((one) => one.waitUntilReady()));
  const jobs = Array.from({ length: 30 }, (_, n) => ({ name: "double", data: { n } }));
  const added = await queue.addBulk(jobs);
  await eventually("all jobs are done", () => done.size === jobs.length);
  assert.deepEqual(
    [...runs.values()],
    jobs.map(() => 1),
  );
  assert.equal(runs.size, jobs.length);
  assert.equal(await queue.getCompletedCount(), jobs.length);
  assert.equal(await queue.getActiveCount(), 0);
  assert.equal((await queue.getJob(added[21].id)).returnvalue, 42);
  await close(...workers, events, queue);
}

// Jobs come in order of their priority, a delayed one after its delay, a failing one again.
async function orderDelayAndRetries() {
  const queue = new Queue("order", { connection: here });
  const seen = [];
  for (const [name, priority] of [
    ["low", 10],
    ["high", 1],
    ["middle", 5],
  ]) {
    await queue.add(name, {}, { priority });
  }
  const added = Date.now();
  await queue.add("late", {}, { delay: 600 });
  await queue.add(
    "failing",
    {},
    { priority: 20, attempts: 3, backoff: { type: "fixed", delay: 50 } },
  );
  await queue.add("hopeless", {}, { priority: 30 });
  const working = worker("order", there, async (job) => {
    seen.push(job.name);
    if (job.name === "late") {
      assert.ok(Date.now() - added >= 590, "a delayed job came early");
    }
    if (job.name === "hopeless" || (job.name === "failing" && job.attemptsMade < 2)) {
      throw new Error("on purpose");
    }
  });
  await eventually("all jobs are done", async () => (await queue.getCompletedCount()) === 5);
  const byPriority = seen.filter((name) => ["high", "middle", "low"].includes(name));
  assert.deepEqual(byPriority, ["high", "middle", "low"]);
  assert.equal(seen.filter((name) => name === "failing").length, 3);
  const [failed] = await eventually("a failed job", async () => {
    const found = await queue.getFailed();
    return found.length > 0 && found;
  });
  assert.equal(failed.name, "hopeless");
  assert.equal(failed.failedReason, "on purpose");
  await failed.retry();
  await eventually("it fails again", () => seen.filter((name) => name === "hopeless").length === 2);
  await close(working);

  await queue.add("once", {}, { jobId: "same" });
  await queue.add("once", {}, { jobId: "same" });
  await queue.add("single", {}, { deduplication: { id: "one" } });
  await queue.add("single", {}, { deduplication: { id: "one" } });
  assert.equal(await queue.getWaitingCount(), 2);
  await queue.pause();
  assert.ok(await queue.isPaused());
  await queue.drain();
  assert.equal(await queue.count(), 0);
  await queue.clean(0, 100, "completed");
  assert.equal(await queue.getCompletedCount(), 0);
  await queue.obliterate({ force: true });
  await close(queue);
}

// A scheduler makes a job again and again, until it is removed.
async function repeated() {
  const queue = new Queue("repeat", { connection: here });
  const times = [];
  const workers = connections.map((connection) =>
    worker("repeat", connection, async () => times.push(Date.now())),
  );
  await queue.upsertJobScheduler("tick", { every: 200, limit: 4 }, { name: "tick" });
  await eventually("four ticks", () => times.length >= 4);
  assert.equal(await queue.getJobSchedulersCount(), 1);
  await queue.removeJobScheduler("tick");
  await sleep(300);
  assert.equal(times.length, 4, "a scheduler with a limit of 4 went on");
  assert.ok(times[3] - times[0] >= 400, `the ticks came too fast: ${times}`);
  await close(...workers, queue);
}

// A parent runs when its children are done, and has what they returned.
async function flow() {
  const flows = new FlowProducer({ connection: here });
  const parents = new Queue("parents", { connection: here });
  const children = worker("children", there, async (job) => job.data.n);
  let sum;
  const parent = worker("parents", here, async (job) => {
    sum = Object.values(await job.getChildrenValues()).reduce((a, b) => a + b, 0);
    return sum;
  });
  const leaves = [1, 2, 3].map((n) => ({ name: "child", queueName: "children", data: { n } }));
  await flows.add({ name: "parent", queueName: "parents", children: leaves });
  await eventually("the parent is done", async () => (await parents.getCompletedCount()) === 1);
  assert.equal(sum, 6);
  await close(children, parent, parents, flows);
}

// Workers of both nodes together stay within the limit of their queue.
async function limited() {
  const queue = new Queue("limited", { connection: here });
  const times = [];
  const options = { limiter: { max: 2, duration: 400 } };
  await queue.addBulk(Array.from({ length: 6 }, () => ({ name: "job", data: {} })));
  const process = async () => times.push(Date.now());
  const workers = connections.map((connection) => worker("limited", connection, process, options));
  await eventually("six jobs", () => times.length === 6);
  // Three windows: the last of six begins two windows after the first. The first job may be late
  // by almost a window on a busy machine.
  assert.ok(times[5] - times[0] >= 400, `six jobs, two in 400 ms, took ${times[5] - times[0]} ms`);
  await close(...workers, queue);
}

// A job whose worker says nothing more is taken by another one.
async function stalled() {
  const queue = new Queue("stalled", { connection: here });
  let started = 0;
  const hangs = () => {
    started += 1;
    return new Promise(() => {});
  };
  const options = { lockDuration: 500, skipLockRenewal: true, skipStalledCheck: true };
  const lost = worker("stalled", here, hangs, options);
  await queue.add("job", {});
  await eventually("the job has started", () => started === 1);
  const saved = [];
  const finder = worker("stalled", there, async (job) => saved.push(job.id), {
    stalledInterval: 300,
  });
  const noticed = [];
  finder.on("stalled", (id) => noticed.push(id));
  await eventually("the job is done", async () => (await queue.getCompletedCount()) === 1);
  assert.equal(saved.length, 1);
  assert.deepEqual(noticed, saved);
  await lost.close(true);
  await close(finder, queue);
}

run(eachJobOnce, orderDelayAndRetries, repeated, flow, limited, stalled);
