// What the programs share: where their nodes are, waiting, and how they end.
const assert = require("node:assert/strict");

const urls = [process.env.REDIS_URL, process.env.SECOND_URL];
// What a program may take as a whole, in milliseconds.
const DEADLINE = 110_000;
// What a condition may take.
const SOON = 60_000;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Waits until `condition` returns something true, and returns that.
async function eventually(what, condition) {
  for (const end = Date.now() + SOON; ; await sleep(20)) {
    const found = await condition();
    if (found) {
      return found;
    }
    assert.ok(Date.now() < end, `not in time: ${what}`);
  }
}

function fail(error) {
  console.log(error);
  process.exit(1);
}

// Runs the parts of a program one after the other, and ends the process.
async function run(...parts) {
  setTimeout(() => fail(new Error("the program's time is up")), DEADLINE).unref();
  process.on("unhandledRejection", fail);
  for (const part of parts) {
    const start = Date.now();
    await part();
    console.error(`${part.name}: ${Date.now() - start} ms`);
  }
  console.log("OK");
  process.exit(0);
}

module.exports = { eventually, fail, run, sleep, urls };
