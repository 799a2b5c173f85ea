//! Split collections of a topic that Kafka compacts all the time, with a node that is away now and
//! then: nothing of an older version shows, nothing that was acknowledged is taken for an orphan,
//! and orphans get their tombstones.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::consistency::equal_digests;
use crate::split::{SMALL, compacted, is_element};
use crate::support::client::Client;
use crate::support::kafka::{self, Kafka};
use crate::support::resp::Reply;
use crate::support::server::Highwater;
use crate::support::{eventually, longer, wait_for};

const TIME: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(60);
const KEYS: [&str; 6] = ["hash", "other-hash", "set", "other-set", "zset", "other-zset"];
const ELEMENTS: u32 = 12;
/// How long the topic keeps tombstones. A node that stands still for longer reads all anew, and
/// answers `-LOADING` meanwhile.
const RETENTION: Duration = Duration::from_secs(15);
/// Times to live, milliseconds.
const BRIEF: u64 = 100;

/// The elements of a collection, with what they hold.
type Elements = BTreeMap<String, String>;

/// The commands of the key's type.
fn put(key: &str, name: &str, value: u32) -> String {
    match key {
        "hash" | "other-hash" => format!("HSET {key} {name} {value}"),
        "set" | "other-set" => format!("SADD {key} {name}"),
        _ => format!("ZADD {key} {value} {name}"),
    }
}

fn remove(key: &str, names: &str) -> String {
    match key {
        "hash" | "other-hash" => format!("HDEL {key} {names}"),
        "set" | "other-set" => format!("SREM {key} {names}"),
        _ => format!("ZREM {key} {names}"),
    }
}

/// The reply of a node that has loaded all. What is answered with `-LOADING` has done nothing.
fn ask(client: &mut Client, line: &str) -> Reply {
    wait_for("the node to have loaded all", SOON, || {
        let reply = client.line(line);
        (!reply.starts_with(b"-LOADING")).then(|| Reply::parse(&reply))
    })
}

fn shown(client: &mut Client, key: &str) -> Elements {
    let (line, is_set) = match key {
        "hash" | "other-hash" => (format!("HGETALL {key}"), false),
        "set" | "other-set" => (format!("SMEMBERS {key}"), true),
        _ => (format!("ZRANGE {key} 0 -1 WITHSCORES"), false),
    };
    let reply = ask(client, &line);
    assert!(!reply.is_error(), "{line}: {reply:?}");
    let text = |item: &Reply| String::from_utf8_lossy(item.bytes().expect("a text")).into_owned();
    let texts: Vec<String> = reply.items().iter().map(text).collect();
    if is_set {
        return texts.into_iter().map(|name| (name, String::new())).collect();
    }
    let (pairs, _) = texts.as_chunks::<2>();
    pairs
        .iter()
        .map(|[name, value]| (name.clone(), value.clone()))
        .collect()
}

struct Compacting {
    seed: u64,
    random: StdRng,
    /// The last one is away now and then.
    nodes: Vec<Highwater>,
    clients: Vec<Client>,
    truth: BTreeMap<&'static str, Elements>,
    step: u32,
    /// What was sent, and what was answered.
    story: Vec<String>,
}

impl Compacting {
    fn line(&mut self, node: usize, line: &str) -> i64 {
        let reply = ask(&mut self.clients[node], line);
        self.story.push(format!("{node}: {line}: {reply:?}"));
        reply.integer().unwrap_or_else(|| panic!("{line}: {reply:?}"))
    }

    fn fill(&mut self, node: usize, key: &'static str) {
        for _ in 0..self.random.random_range(5..10) {
            let name = format!("e{}", self.random.random_range(0..ELEMENTS));
            self.step += 1;
            self.line(node, &put(key, &name, self.step));
            let value = match key.ends_with("zset") || key.ends_with("hash") {
                true => self.step.to_string(),
                false => String::new(),
            };
            self.truth.entry(key).or_default().insert(name, value);
        }
    }

    /// Something happens to a collection. Afterwards it is known what it has.
    fn change(&mut self, key: &'static str) {
        let node = self.random.random_range(0..2);
        match self.random.random_range(0..7) {
            0 => self.fill(node, key),
            1 => {
                let removed = self.line(node, &format!("DEL {key}"));
                assert!(removed <= 1);
                self.truth.remove(key);
                self.fill(1 - node, key);
            }
            2 => {
                let names: Vec<String> = (0..ELEMENTS / 2).map(|n| format!("e{n}")).collect();
                self.line(node, &remove(key, &names.join(" ")));
                let elements = self.truth.entry(key).or_default();
                elements.retain(|name, _| !names.contains(name));
            }
            3 => {
                self.line(node, &format!("PEXPIRE {key} {BRIEF}"));
                sleep(Duration::from_millis(BRIEF + 5));
                self.truth.remove(key);
                if self.random.random_bool(0.5) {
                    self.fill(1 - node, key);
                }
            }
            4 | 5 => self.persist_in_time(node, key),
            _ if key.ends_with("hash") => {
                ask(
                    &mut self.clients[node],
                    &format!("HPEXPIRE {key} {BRIEF} FIELDS 3 e0 e1 e2"),
                );
                sleep(Duration::from_millis(BRIEF + 5));
                let elements = self.truth.entry(key).or_default();
                elements.retain(|name, _| !["e0", "e1", "e2"].contains(&name.as_str()));
            }
            _ => {
                let set = ask(&mut self.clients[node], &format!("SET {key} string"));
                assert!(!set.is_error(), "{set:?}");
                self.line(1 - node, &format!("DEL {key}"));
                self.truth.remove(key);
            }
        }
    }

    /// PERSIST comes when it expires, a moment before or after: its reply says which.
    fn persist_in_time(&mut self, node: usize, key: &'static str) {
        let (begun, early) = (Instant::now(), self.random.random_range(0..20));
        let expires = self.line(node, &format!("PEXPIRE {key} {BRIEF}")) == 1;
        let at = Duration::from_millis(BRIEF + 8 - early);
        sleep(at.saturating_sub(begun.elapsed()));
        let persisted = self.line(1 - node, &format!("PERSIST {key}")) == 1;
        if expires && !persisted {
            // The other node's clock is this one's.
            self.truth.remove(key);
            eventually("it is over", SOON, || self.line(node, &format!("EXISTS {key}")) == 0);
        }
    }

    fn check(&mut self, node: usize) {
        for key in KEYS {
            let expected = self.truth.get(key).cloned().unwrap_or_default();
            let found = shown(&mut self.clients[node], key);
            let story = &self.story[self.story.len().saturating_sub(60)..];
            assert_eq!(found, expected, "seed {}, {key} on node {node}, {story:#?}", self.seed);
        }
    }

    fn leave(&mut self) {
        let node = self.nodes.last_mut().expect("a node");
        match self.random.random_bool(0.5) {
            true => node.kill9(),
            false => assert!(node.terminate().success()),
        }
    }

    /// It comes back, with its store or without.
    fn come_back(&mut self) {
        let last = self.nodes.len() - 1;
        let node = &mut self.nodes[last];
        if self.random.random_bool(0.3) {
            fs::remove_dir_all(node.dir().join("store")).expect("the store can be removed");
        }
        node.restart();
        self.clients[last] = connect(node);
        self.check(last);
    }

    fn run(&mut self, kafka: &Kafka, topic: &str) {
        let begun = Instant::now();
        let mut is_away = false;
        let is_compacted = || {
            let records = kafka.records(topic, "read_committed");
            let end = records.last().map_or(0, |record| record.offset);
            (records.len() as i64) < end / 2
        };
        while begun.elapsed() < TIME * longer() || (begun.elapsed() < SOON && !is_compacted()) {
            for _ in 0..10 {
                let key = *KEYS.choose(&mut self.random).expect("a key");
                self.change(key);
                self.check(0);
                self.check(1);
            }
            match is_away {
                true => self.come_back(),
                false => self.leave(),
            }
            is_away = !is_away;
        }
        assert!(is_compacted(), "the broker has not compacted the topic");
        if is_away {
            self.come_back();
        }
    }
}

fn connect(node: &Highwater) -> Client {
    let mut client = node.client();
    client.set_deadline(SOON);
    client.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    client
}

#[test]
fn split_collections_stay_right_while_their_topic_is_compacted() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let kafka = kafka::shared();
    let topic = kafka.topic_compacted_all_the_time("split-compacted", 1, RETENTION);
    let node = || {
        let node = Highwater::builder().kafka(kafka, &topic).args(SMALL);
        // A node that was away or stood still for long may have missed tombstones.
        node.args(&["--maxmemory", "16kb"]).allow("rebuil").start()
    };
    let nodes: Vec<Highwater> = (0..3).map(|_| node()).collect();
    let mut compacting = Compacting {
        seed,
        random: StdRng::seed_from_u64(seed),
        clients: nodes.iter().map(connect).collect(),
        nodes,
        truth: BTreeMap::new(),
        step: 0,
        story: Vec::new(),
    };
    compacting.run(kafka, &topic);
    // What is small is one record: only its topic tells how many elements have one of their own.
    let live = || {
        let records = compacted(kafka, &topic);
        let live = records.into_iter().filter(|(_, record)| record.value.is_some());
        let (elements, heads): (Vec<_>, Vec<_>) = live.partition(|(key, _)| is_element(key));
        let is_split = |record: &kafka::SeenRecord| record.headers.iter().any(|(name, _)| name == "redis-split");
        let heads = heads.into_iter().filter(|(_, record)| is_split(record));
        let split: Vec<String> = heads
            .map(|(key, _)| String::from_utf8_lossy(&key).into_owned())
            .collect();
        (elements.len(), split)
    };
    eventually("orphans get their tombstones", SOON, || {
        let (elements, split) = live();
        let expected = split.iter().filter_map(|key| compacting.truth.get(key.as_str()));
        elements == expected.map(BTreeMap::len).sum::<usize>()
    });
    println!("{} changes of elements", compacting.step);
    let [one, other, third] = &compacting.nodes[..] else {
        panic!("three nodes")
    };
    equal_digests(&mut one.client(), &mut other.client(), "0");
    equal_digests(&mut one.client(), &mut third.client(), "0");
}
