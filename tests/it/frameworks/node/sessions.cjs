// express-session with connect-redis: what a visitor did on one node is there on the other.
const assert = require("node:assert/strict");
const http = require("node:http");
const { RedisStore } = require("connect-redis");
const express = require("express");
const session = require("express-session");
const { createClient } = require("redis");
const { eventually, fail, run, urls } = require("./program.cjs");

// A web server whose sessions are on one node.
async function server(redis) {
  const client = await createClient({ url: redis }).connect();
  const store = new RedisStore({ client, prefix: "sess:", ttl: 60 });
  const app = express();
  app.use(
    session({
      store,
      secret: "s",
      resave: false,
      saveUninitialized: false,
      cookie: { maxAge: 60_000 },
    }),
  );
  app.get("/visit", (request, response) => {
    request.session.visits = (request.session.visits ?? 0) + 1;
    response.send(`${request.session.visits}`);
  });
  app.get("/seen", (request, response) => response.send(`${request.session.visits ?? 0}`));
  app.get("/leave", (request, response) =>
    request.session.destroy((error) => response.send(`${error ?? "left"}`)),
  );
  app.use((error, _request, _response, _next) => fail(error));
  const listening = http.createServer(app).listen(0, "127.0.0.1");
  await new Promise((resolve) => listening.once("listening", resolve));
  return { client, store, url: `http://127.0.0.1:${listening.address().port}` };
}

let servers;

async function get(n, path, cookie) {
  const response = await fetch(servers[n].url + path, { headers: cookie ? { cookie } : {} });
  const set = response.headers.get("set-cookie");
  return { text: await response.text(), cookie: set ? set.split(";")[0] : cookie };
}

async function visits() {
  servers = await Promise.all(urls.map(server));
  const { text, cookie } = await get(0, "/visit");
  assert.equal(text, "1");
  assert.equal((await get(0, "/visit", cookie)).text, "2");
  await eventually(
    "the other node has the session",
    async () => (await get(1, "/seen", cookie)).text === "2",
  );
  assert.equal((await get(1, "/visit", cookie)).text, "3");
  assert.equal((await get(1, "/seen")).text, "0", "a visitor without a cookie has a session");
  const sid = decodeURIComponent(cookie.split("=")[1]).slice(2).split(".")[0];
  const ttl = await servers[1].client.ttl(`sess:${sid}`);
  assert.ok(ttl > 50 && ttl <= 60, `the TTL is ${ttl}`);
  assert.equal((await get(1, "/leave", cookie)).text, "left");
  await eventually("the session is gone", async () => (await get(0, "/seen", cookie)).text === "0");
}

async function theWholeStore() {
  const { store, client } = servers[0];
  for (const n of Array(250).keys()) {
    await store.set(`s${n}`, { n, cookie: {} });
  }
  assert.equal(await store.length(), 250);
  assert.deepEqual(
    (await store.all()).map(({ n }) => n).sort((a, b) => a - b),
    [...Array(250).keys()],
  );
  await client.expire("sess:s0", 5);
  await store.touch("s0", { cookie: {} });
  assert.ok((await client.ttl("sess:s0")) > 50, "touch does not move the TTL");
  await store.clear();
  assert.equal(await store.length(), 0);
}

run(visits, theWholeStore);
