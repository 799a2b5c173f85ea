//! Random commands on collections of all types, packed and split, through redis-server and through
//! nodes that hardly have memory, and that are stopped, killed and rebuilt between the commands:
//! every reply must be equal, and at the end all that there is.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::Oracle;
use super::random::{HASH_EXPIRY, HASHES, LISTS, Names, SETS, SORTED_SETS, Templates, are_equal, fill};
use crate::consistency::equal_digests;
use crate::support::client::Client;
use crate::support::kafka;
use crate::support::resp::Reply;
use crate::support::server::{Builder, Highwater, RedisServer};
use crate::support::{Stopping, eventually, longer};

const TIME: Duration = Duration::from_secs(8);
const SOON: Duration = Duration::from_secs(60);
/// Commands of one pipeline.
const LENGTH: usize = 16;
const DATABASES: [&str; 2] = ["0", "1"];
/// Time that is enough to take a time to live back, milliseconds. If it is not, nothing is judged.
const SOON_DUE: u64 = 3_000;
/// How long before they are over short times to live are set.
const BRIEF: u64 = 30;

/// Each type has keys of its own, so that collections grow.
const KEYS: [&[&str]; 4] = [
    &["h0", "h1", "h2"],
    &["s0", "s1", "s2"],
    &["z0", "z1", "z2"],
    &["l0", "l1", "string"],
];
const OF_KEYS: [&[Templates]; 4] = [&[HASHES, HASH_EXPIRY], &[SETS], &[SORTED_SETS], &[LISTS]];
const ALL_KEYS: &[&str] = &[
    "h0", "h1", "h2", "s0", "s1", "s2", "z0", "z1", "z2", "l0", "l1", "string",
];

#[rustfmt::skip]
const FIELDS: &[&str] = &[
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "1", "2", "3", "\"\\xff\"", "\"\"",
];

/// On any key. Seldom what removes everything.
const GENERAL: Templates = &[
    "DEL K",
    "UNLINK K K",
    "TYPE K",
    "EXISTS K K",
    "SET K V",
    "GET K",
    "RENAME K K",
    "RENAMENX K K",
    "COPY K K",
    "COPY K K REPLACE",
    "COPY K K DB 1 REPLACE",
    "COPY K K DB 0 REPLACE",
    "MOVE K 1",
    "MOVE K 0",
    "EXPIREAT K AT",
    "PEXPIREAT K PAT GT",
    "PEXPIRETIME K",
    "PERSIST K",
    "APPEND K V",
    "TOUCH K K",
    "EVAL \"return redis.call('DEL', KEYS[1])\" 1 K",
    "EVAL \"return {redis.call('HSET', KEYS[1], 'a', 1), redis.call('HLEN', KEYS[1])}\" 1 K",
    "EVAL \"redis.call('SADD', KEYS[1], 'a', 'b'); return redis.call('SCARD', KEYS[1])\" 1 K",
];
const SELDOM: Templates = &["FLUSHDB", "FLUSHALL", "SWAPDB 0 1", "SELECT 0", "SELECT 1", "SELECT 1"];

/// What grows a collection at once.
const GROWING: [&str; 4] = [
    "HSET K F V F N F V F V F V F N F V",
    "SADD K F F F F F F F F",
    "ZADD K N F N F N.5 F N F N F N F N F",
    "RPUSH K F V F F V N F F",
];

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("later than 1970").as_millis() as u64
}

struct Lives {
    seed: u64,
    random: StdRng,
    redis: RedisServer,
    oracle: Client,
    nodes: Vec<Highwater>,
    clients: Vec<Client>,
    /// The node that wrote last.
    last: usize,
    database: String,
    /// What was sent last, for the message of a failure.
    story: Vec<String>,
}

impl Lives {
    fn new(seed: u64, nodes: Vec<Highwater>) -> Lives {
        let redis = Oracle::Redis8.start(&[]);
        let clients = nodes.iter().map(connect).collect();
        Lives {
            seed,
            random: StdRng::seed_from_u64(seed),
            oracle: redis.client(),
            redis,
            nodes,
            clients,
            last: 0,
            database: DATABASES[0].to_owned(),
            story: Vec::new(),
        }
    }

    fn line(&mut self) -> String {
        let random = &mut self.random;
        let kind = random.random_range(0..KEYS.len());
        let chance = random.random_range(0..1_000);
        let (templates, keys) = match chance {
            0..15 => (SELDOM, ALL_KEYS),
            15..150 => (GENERAL, if random.random_bool(0.3) { ALL_KEYS } else { KEYS[kind] }),
            150..300 => (&GROWING[kind..=kind], KEYS[kind]),
            300..320 => (*OF_KEYS[kind].choose(random).expect("some"), ALL_KEYS),
            _ => (*OF_KEYS[kind].choose(random).expect("some"), KEYS[kind]),
        };
        let fields = FIELDS;
        fill(
            templates.choose(random).expect("a template"),
            &Names { keys, fields },
            random,
        )
    }

    /// Some lines, a part of them between MULTI and EXEC.
    fn lines(&mut self) -> Vec<String> {
        let mut lines: Vec<String> = (0..LENGTH).map(|_| self.line()).collect();
        if self.random.random_bool(0.4) {
            let from = self.random.random_range(0..LENGTH);
            let to = self.random.random_range(from..=LENGTH);
            lines.insert(to, "EXEC".to_owned());
            lines.insert(from, "MULTI".to_owned());
        }
        lines
    }

    /// The commands go on at another node. It first waits for what was written there.
    fn choose_node(&mut self) {
        let chosen = self.random.random_range(0..self.nodes.len());
        if chosen == self.last {
            return;
        }
        let token = self.clients[self.last].text("HIGHWATER TOKEN");
        let client = &mut self.clients[chosen];
        client.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
        client.check(&format!("SELECT {}", self.database), "+OK");
        self.last = chosen;
    }

    /// Both answer the same.
    fn play(&mut self) {
        let lines = self.lines();
        let replies = self.send(&lines);
        let mut queued: Option<Vec<usize>> = None;
        for (at, (expected, got)) in replies.into_iter().enumerate() {
            match (lines[at].as_str(), &mut queued) {
                ("MULTI", _) => {
                    queued = Some(Vec::new());
                    self.judge(&lines, at, "MULTI", expected, got);
                }
                ("EXEC", Some(places)) => {
                    let count = expected.items().len();
                    if count == 0 || count != got.items().len() {
                        // An error, null, or nothing was queued.
                        self.judge(&lines, at, "EXEC", expected, got);
                    } else {
                        let all = places.iter().zip(expected.items().iter().zip(got.items()));
                        for (place, (expected, got)) in all {
                            self.judge(&lines, at, &lines[*place], expected.clone(), got.clone());
                        }
                    }
                    queued = None;
                }
                (line, None) => self.judge(&lines, at, line, expected, got),
                (_, Some(places)) => {
                    if expected.bytes() == Some(b"QUEUED") {
                        places.push(at);
                    }
                    self.judge(&lines, at, "QUEUED", expected, got);
                }
            }
        }
        let selected = lines.iter().rev().find_map(|line| line.strip_prefix("SELECT "));
        if let Some(selected) = selected {
            self.database = selected.to_owned();
        }
    }

    fn send(&mut self, lines: &[String]) -> Vec<(Reply, Reply)> {
        self.choose_node();
        self.send_to_chosen(lines)
    }

    fn send_to_chosen(&mut self, lines: &[String]) -> Vec<(Reply, Reply)> {
        self.story
            .push(format!("-- node {}, database {}", self.last, self.database));
        self.story.extend(lines.iter().cloned());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let expected = self.oracle.pipeline(&lines);
        let got = self.clients[self.last].pipeline(&lines);
        let pairs = expected.iter().zip(&got);
        pairs.map(|(a, b)| (Reply::parse(a), Reply::parse(b))).collect()
    }

    fn judge(&self, lines: &[String], at: usize, line: &str, expected: Reply, got: Reply) {
        if are_equal(line, expected.clone(), got.clone()) {
            return;
        }
        // Lines about the same keys, and about all of them.
        let keys: Vec<&str> = line.split(' ').filter(|word| ALL_KEYS.contains(word)).collect();
        let is_near = |line: &&String| {
            let mut words = line.split(' ').map(|word| word.trim_matches('"'));
            SELDOM.contains(&line.as_str()) || line.starts_with("-- ") || words.any(|word| keys.contains(&word))
        };
        let from = self.story.len().saturating_sub(lines.len());
        let story: Vec<&str> = self.story[..from].iter().filter(is_near).map(String::as_str).collect();
        panic!(
            "seed {}\n{}\n==\n{}\n{line}\n    redis      {expected:?}\n    highwater  {got:?}",
            self.seed,
            story[story.len().saturating_sub(200)..].join("\n"),
            lines[..=at].join("\n"),
        );
    }

    /// Keys and fields that are over soon: until then nobody asks.
    fn let_expire(&mut self) {
        let due = now() + BRIEF;
        let mut lines = Vec::new();
        for _ in 0..self.random.random_range(1..4) {
            let template = match self.random.random_range(0..6) {
                0..3 => "PEXPIREAT K DUE",
                3..5 => "HPEXPIREAT K DUE FIELDS 4 F F F F",
                _ => "SET string V PXAT DUE",
            };
            let template = template.replace("DUE", &due.to_string());
            let keys = if template.starts_with('H') { KEYS[0] } else { ALL_KEYS };
            lines.push(fill(&template, &Names { keys, fields: FIELDS }, &mut self.random));
        }
        // What they answer tells whether one of the two was late.
        self.send(&lines);
        while now() <= due + 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Redis counts fields that are over as there until it has removed them.
        let fields = lines.iter().filter_map(|line| line.strip_prefix("HPEXPIREAT "));
        for line in fields {
            let words: Vec<&str> = line.split(' ').collect();
            self.oracle.line(&format!("HDEL {} {}", words[0], words[4..].join(" ")));
        }
    }

    /// What is to expire soon stays after all.
    fn persist(&mut self) {
        self.choose_node();
        let due = now() + SOON_DUE;
        let key = *ALL_KEYS.choose(&mut self.random).expect("a key");
        let keys = &[key];
        let fields = FIELDS;
        let lines = [format!("PEXPIREAT {key} {due}"), format!("PERSIST {key}")];
        let names = Names { keys, fields };
        let fields = [
            format!("HPEXPIREAT K {due} FIELDS 4 a b c d"),
            "HPERSIST K FIELDS 4 a b c d".to_owned(),
        ];
        let fields = fields.map(|template| fill(&template, &names, &mut self.random));
        let lines = if key.starts_with('h') && self.random.random_bool(0.5) {
            fields
        } else {
            lines
        };
        let replies = self.send_to_chosen(&lines);
        if now() >= due {
            // It may be over in one of the two only, and they may differ from now on.
            self.forget(key);
            return;
        }
        for (at, (expected, got)) in replies.into_iter().enumerate() {
            self.judge(&lines, at, &lines[at], expected, got);
        }
    }

    /// Removes a key whatever it holds, so that both have nothing of it.
    fn forget(&mut self, key: &str) {
        self.send_to_chosen(&[format!("DEL {key}")]);
    }

    /// A node ends and begins again: with its store, or without.
    fn next_life(&mut self) {
        let chosen = self.random.random_range(0..self.nodes.len());
        let token = self.clients[self.last].text("HIGHWATER TOKEN");
        let node = &mut self.nodes[chosen];
        let how = self.random.random_range(0..4);
        self.story.push(format!("-- node {chosen} ends: {how}"));
        match how {
            0 => assert!(node.terminate().success()),
            1 => node.kill9(),
            _ => {
                node.kill9();
                fs::remove_dir_all(node.dir().join("store")).expect("the store can be removed");
                node.allow("rebuil");
            }
        }
        node.restart();
        let mut client = connect(node);
        client.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
        client.check(&format!("SELECT {}", self.database), "+OK");
        self.clients[chosen] = client;
    }

    /// All that there is, on each node.
    fn compare_all(&mut self) {
        let token = self.clients[self.last].text("HIGHWATER TOKEN");
        let mut oracle = self.redis.client();
        for node in &self.nodes {
            let mut client = node.client();
            client.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
            for database in DATABASES {
                let select = format!("SELECT {database}");
                assert_eq!(oracle.line(&select), client.line(&select));
                let expected = keys(&mut oracle);
                let mut found = Vec::new();
                eventually("the same keys", SOON, || {
                    found = keys(&mut client);
                    // What has lost its last element is removed some time.
                    expected.iter().all(|key| found.contains(key)) && {
                        let mut exists = |key: &String| client.line(&format!("EXISTS {key}")) == b":1\r\n";
                        found.iter().all(|key| expected.contains(key) || !exists(key))
                    }
                });
                for key in &expected {
                    for line in questions(key) {
                        let (a, b) = (Reply::parse(&oracle.line(&line)), Reply::parse(&client.line(&line)));
                        self.judge(std::slice::from_ref(&line), 0, &line, a, b);
                    }
                }
            }
        }
    }

    fn run(&mut self) {
        let begun = Instant::now();
        let (mut batches, mut lives) = (0, 0);
        while begun.elapsed() < TIME * longer() {
            match self.random.random_range(0..100) {
                0..2 => {
                    self.next_life();
                    self.compare_all();
                    lives += 1;
                }
                2..7 => self.let_expire(),
                7..10 => self.persist(),
                10..13 => self.compare_all(),
                _ => self.play(),
            }
            batches += 1;
            if self.story.len() > 4_000 {
                self.story.drain(..2_000);
            }
        }
        self.next_life();
        self.compare_all();
        println!("{batches} pipelines, {lives} lives");
    }
}

fn connect(node: &Highwater) -> Client {
    let mut client = node.client();
    client.set_deadline(SOON);
    client
}

fn keys(client: &mut Client) -> Vec<String> {
    let reply = Reply::parse(&client.line("KEYS *"));
    let key = |item: &Reply| String::from_utf8_lossy(item.bytes().expect("a key")).into_owned();
    reply.items().iter().map(key).collect()
}

/// Shows all that a key holds, whatever its type is: other types answer with an error.
fn questions(key: &str) -> Vec<String> {
    let fields = FIELDS.join(" ");
    let count = FIELDS.len();
    [
        "TYPE K".to_owned(),
        "PEXPIRETIME K".to_owned(),
        "GET K".to_owned(),
        "HGETALL K".to_owned(),
        "HLEN K".to_owned(),
        format!("HMGET K {fields}"),
        format!("HPEXPIRETIME K FIELDS {count} {fields}"),
        "SMEMBERS K".to_owned(),
        "SCARD K".to_owned(),
        format!("SMISMEMBER K {fields}"),
        "ZRANGE K 0 -1 WITHSCORES".to_owned(),
        "ZCARD K".to_owned(),
        format!("ZMSCORE K {fields}"),
        "LRANGE K 0 -1".to_owned(),
        "LLEN K".to_owned(),
    ]
    .map(|line| line.replacen('K', key, 1))
    .into_iter()
    .collect()
}

/// Meanwhile others read, so that collections come into memory and leave it while they change.
fn read_on(port: u16, over: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(u64::from(port));
    let mut connected = None;
    while !over.load(Ordering::Acquire) {
        let Some(client) = &mut connected else {
            // The node may be away.
            std::thread::sleep(Duration::from_millis(20));
            connected = Client::try_connect(port).ok();
            continue;
        };
        let key = ALL_KEYS.choose(&mut random).expect("a key");
        let line = ["HGETALL", "HLEN", "SMEMBERS", "SCARD", "ZCARD", "LLEN", "TYPE"]
            .choose(&mut random)
            .expect("a command");
        let asked = client.try_write(format!("{line} {key}\r\nSELECT {}\r\n", random.random_range(0..2)).as_bytes());
        let mut answered = || client.try_reply().is_ok_and(|reply| reply.is_some());
        if asked.is_err() || !answered() || !answered() {
            connected = None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `start` gets further arguments.
fn against_redis(nodes: usize, start: impl Fn() -> Builder) {
    let seed: u64 = match std::env::var("HIGHWATER_TEST_SEED") {
        Ok(seed) => seed.parse().expect("HIGHWATER_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let most = ["1", "3", "6"].choose(&mut random).expect("a limit");
    let memory = ["1kb", "8kb", "64kb"].choose(&mut random).expect("a limit");
    println!("max-packed-elements {most}, maxmemory {memory}");
    let args = ["--max-packed-elements", most, "--maxmemory", memory];
    let args = [&args[..], &["--set-max-listpack-entries", "0"]].concat();
    let nodes: Vec<Highwater> = (0..nodes).map(|_| start().args(&args).start()).collect();
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let mut lives = Lives::new(seed, nodes);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Stopping(&over);
        for port in ports {
            let over = &over;
            scope.spawn(move || read_on(port, over));
        }
        lives.run();
    });
    if let [one, other] = &lives.nodes[..] {
        for database in DATABASES {
            equal_digests(&mut one.client(), &mut other.client(), database);
        }
    }
}

#[test]
fn collections_through_many_lives_of_a_node() {
    against_redis(1, || {
        Highwater::builder().args(&["--fsync", "no", "--segment-bytes", "64kb"])
    });
}

#[test]
fn collections_through_many_lives_of_two_nodes() {
    let topic = kafka::shared().compacted_topic("lives", 2);
    against_redis(2, || Highwater::builder().kafka(kafka::shared(), &topic));
}
