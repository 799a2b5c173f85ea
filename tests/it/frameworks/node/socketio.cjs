// Socket.IO: two web servers, each with its adapter on one node, and a browser's client on each.
const assert = require("node:assert/strict");
const http = require("node:http");
const Redis = require("ioredis");
const { createClient } = require("redis");
const { Server } = require("socket.io");
const { io: connect } = require("socket.io-client");
const byChannels = require("@socket.io/redis-adapter");
const byStreams = require("@socket.io/redis-streams-adapter");
const { eventually, fail, run, urls } = require("./program.cjs");

async function pubsubAdapter(url) {
  const publishing = createClient({ url });
  const subscribed = publishing.duplicate();
  for (const client of [publishing, subscribed]) {
    client.on("error", fail);
    await client.connect();
  }
  return byChannels.createAdapter(publishing, subscribed);
}

async function shardedAdapter(url) {
  const [publishing, subscribed] = [new Redis(url), new Redis(url)];
  return byChannels.createShardedAdapter(publishing, subscribed);
}

async function streamsAdapter(url) {
  const client = new Redis(url);
  return byStreams.createAdapter(client, { blockTimeInMs: 500, heartbeatInterval: 200 });
}

// The sockets of one room are on both servers: what is sent reaches them all, and once.
async function rooms(adapter, countsServers) {
  const servers = await Promise.all(
    urls.map(async (url) => {
      const web = http.createServer().listen(0, "127.0.0.1");
      const io = new Server(web, { adapter: await adapter(url) });
      io.on("connection", (socket) => {
        socket.join(socket.handshake.query.room);
      });
      await eventually("the web server listens", () => web.address());
      return { io, url: `http://127.0.0.1:${web.address().port}` };
    }),
  );
  const heard = [[], [], []];
  const clients = await Promise.all(
    [
      [0, "red"],
      [1, "red"],
      [1, "blue"],
    ].map(async ([n, room], c) => {
      const client = connect(servers[n].url, {
        query: { room },
        transports: ["websocket"],
        forceNew: true,
      });
      client.on("news", (text) => heard[c].push(text));
      client.on("question", (answer) => answer(c));
      await eventually("a client is connected", () => client.connected);
      return client;
    }),
  );
  const [one, two] = servers.map(({ io }) => io);
  const known = countsServers ? 2 : 1;
  for (const io of [one, two]) {
    await eventually(
      "the servers know of each other",
      async () => (await io.of("/").adapter.serverCount()) === known,
    );
  }

  one.emit("news", "to all from one");
  two.emit("news", "to all from two");
  one.to("red").emit("news", "to red");
  two.to("blue").emit("news", "to blue");
  await eventually(
    "everybody hears",
    () => heard[0].length + heard[1].length + heard[2].length === 9,
  );
  assert.deepEqual(heard[0].sort(), ["to all from one", "to all from two", "to red"]);
  assert.deepEqual(heard[1].sort(), ["to all from one", "to all from two", "to red"]);
  assert.deepEqual(heard[2].sort(), ["to all from one", "to all from two", "to blue"]);

  // Those who ask all servers count them first.
  const sockets = await one.fetchSockets();
  assert.equal(sockets.length, countsServers ? 3 : 1);
  if (countsServers) {
    const answers = await one.timeout(10_000).emitWithAck("question");
    assert.deepEqual(answers.sort(), [0, 1, 2]);
  }
  one.in("red").socketsJoin("blue");
  two.in("red").disconnectSockets(true);
  await eventually("red is gone", () => !clients[0].connected && !clients[1].connected);
  assert.ok(clients[2].connected);
  clients.forEach((client) => client.disconnect());
  await Promise.all(servers.map(({ io }) => io.close()));
}

// PUBSUB NUMSUB and SHARDNUMSUB count the subscribers of their own node. By that number all
// adapters know how many servers there are to ask. So servers on different nodes find only their
// own sockets (docs/guarantees.md, Messages).
const sameNode = urls[0] === urls[1];
const channels = () => rooms(pubsubAdapter, sameNode);
const shards = () => rooms(shardedAdapter, sameNode);
const streams = () => rooms(streamsAdapter, sameNode);

run(channels, shards, streams);
