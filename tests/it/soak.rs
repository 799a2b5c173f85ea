//! Mixed load for as long as one likes (`HIGHWATER_TEST_LONG`), values of 1 B to 256 KB, with restarts in between, SIGTERM and kill -9 in
//! turn. Every answer is judged; memory, disk and the time until a node serves again have bounds, and do not grow.

mod model;
mod moving;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::attempt::Attempts;
use crate::support::kafka::{Kafka, fresh_topic};
use crate::support::server::Highwater;
use crate::support::temp::disk_usage;
use crate::support::{Stopping, longer, wait_for};
use model::{Content, Operation, Register};

/// The whole load of a usual run.
const TIME: Duration = Duration::from_secs(20);
/// Lives of the node in the first half of the time; in the second it is left alone.
const LIVES: u32 = 6;
const CLIENTS: usize = 4;
const LARGEST: f64 = 256.0 * 1024.0;
const MIB: u64 = 1 << 20;
const SAMPLE: Duration = Duration::from_millis(250);

/// What no node may need, with `--maxmemory 64mb` and some 200 MB of data.
const MOST_MEMORY: u64 = 768 * MIB;
const MOST_MEMORY_IDLE: u64 = 512 * MIB;
const LONGEST_START: Duration = Duration::from_secs(30);

/// Where the node's log is.
enum Log {
    Embedded,
    Kafka(Kafka, String),
}

/// Tells the clients of a life of its end.
#[derive(Default)]
struct End {
    /// Connections may break from now on.
    near: AtomicBool,
    /// Nobody goes on.
    reached: AtomicBool,
}

/// A client and the keys that it alone writes.
struct Owner {
    registers: Vec<Register>,
    /// So many have been written once.
    written: usize,
    random: StdRng,
}

impl Owner {
    fn new(number: usize, registers: usize, random: StdRng) -> Owner {
        let register = |n: usize| match kind(n) {
            Kind::Together => Register::new(["a", "b", "c"].map(|part| format!("{part}-{number}-{n}")).to_vec()),
            _ if n % 4 < 2 => Register::of_field(format!("hash-{number}"), format!("field-{n}")),
            _ => Register::new(vec![format!("key-{number}-{n}")]),
        };
        Owner {
            registers: (0..registers).map(register).collect(),
            written: 0,
            random,
        }
    }

    /// Looks at all keys, writes those that are not there yet, then does what chance wants until the end; how many commands were answered.
    fn live(&mut self, port: u16, end: &End) -> u64 {
        let mut node = Attempts::on(port);
        let (mut answered, mut looked) = (0, 0);
        while !end.reached.load(Ordering::Acquire) {
            let (n, operation) = if looked < self.written {
                looked += 1;
                (looked - 1, Operation::Get)
            } else if self.written < self.registers.len() {
                self.written += 1;
                looked += 1;
                (looked - 1, Operation::Set(self.content(looked - 1), None))
            } else {
                self.anything()
            };
            answered += u64::from(self.registers[n].perform(&mut node, operation));
            if !node.is_connected() {
                assert!(
                    end.near.load(Ordering::Acquire),
                    "a connection broke, or had no answer in time"
                );
                break;
            }
        }
        answered
    }

    fn anything(&mut self) -> (usize, Operation) {
        let n = self.random.random_range(0..self.registers.len());
        let chance = self.random.random_range(0..100);
        let ttl = match self.random.random_bool(0.5) {
            true => self.random.random_range(1..1_000),
            false => self.random.random_range(1_000..60_000),
        };
        let operation = match (kind(n), chance) {
            (_, 0..40) => Operation::Get,
            (Kind::Counter, 40..90) => Operation::Increment,
            (Kind::Counter | Kind::Plain, 90..95) => Operation::Expire(ttl),
            (_, 90..) => Operation::Delete,
            (Kind::Together, 65..) => Operation::Exec(self.content(n)),
            (Kind::Plain, 80..) => Operation::Set(self.content(n), Some(ttl)),
            _ => Operation::Set(self.content(n), None),
        };
        (n, operation)
    }

    /// A number, or bytes; then all orders of magnitude are as likely.
    fn content(&mut self, n: usize) -> Content {
        if matches!(kind(n), Kind::Counter) {
            return Content::Number(0);
        }
        let length = self.random.random_range(0.0..=LARGEST.ln()).exp();
        Content::Bytes {
            seed: self.random.random(),
            length: length as usize,
        }
    }

    /// Looks at all keys.
    fn check(&mut self, port: u16) {
        let mut node = Attempts::on(port);
        for register in &mut self.registers {
            assert!(register.perform(&mut node, Operation::Get), "the node does not answer");
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Counter,
    /// Several keys, written by MSET or EXEC.
    Together,
}

fn kind(register: usize) -> Kind {
    match register % 20 {
        0 => Kind::Together,
        1..4 => Kind::Counter,
        _ => Kind::Plain,
    }
}

/// What a node takes at one moment, in bytes.
#[derive(Clone, Copy, Default)]
struct Sample {
    memory: u64,
    log: u64,
    store: u64,
}

/// From one start of the node to its end.
struct Life {
    /// From the start until it served, unless it was the first.
    start: Option<Duration>,
    answered: u64,
    /// Of all keys and values at its end.
    live: u64,
    samples: Vec<Sample>,
    peak_memory: u64,
}

struct Soak {
    name: &'static str,
    node: Highwater,
    log: Log,
    owners: Vec<Owner>,
    lives: Vec<Life>,
}

impl Soak {
    fn new(name: &'static str, node: Highwater, log: Log) -> Soak {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let registers = (300 * longer() as usize).min(2_400);
        let owners = (0..CLIENTS).map(|number| Owner::new(number, registers, StdRng::from_rng(&mut random)));
        Soak {
            name,
            node,
            log,
            owners: owners.collect(),
            lives: Vec::new(),
        }
    }

    fn sample(&self) -> Sample {
        Sample {
            memory: self.node.memory(),
            log: match &self.log {
                Log::Embedded => disk_usage(&self.node.dir().join("log")),
                Log::Kafka(kafka, topic) => kafka.disk_usage(topic),
            },
            store: disk_usage(&self.node.dir().join("store")),
        }
    }

    /// The clients do what they like for this time, until `stop` ends it under them.
    fn live(&mut self, start: Option<Duration>, time: Duration, how: &str, stop: impl FnOnce(&mut Highwater, &End)) {
        let (end, begun, port) = (&End::default(), Instant::now(), self.node.port);
        let mut owners = std::mem::take(&mut self.owners);
        let (mut samples, mut answered, mut peak_memory) = (Vec::new(), 0, 0);
        std::thread::scope(|scope| {
            let _reached = Stopping(&end.reached);
            let live = |owner| scope.spawn(move || Owner::live(owner, port, end));
            let clients: Vec<_> = owners.iter_mut().map(live).collect();
            while begun.elapsed() < time && !clients.iter().any(|client| client.is_finished()) {
                samples.push(self.sample());
                std::thread::sleep(SAMPLE);
            }
            peak_memory = self.node.peak_memory();
            end.near.store(true, Ordering::Release);
            stop(&mut self.node, end);
            answered = clients.into_iter().map(|client| client.join().expect("a client")).sum();
        });
        self.owners = owners;
        let registers = self.owners.iter().flat_map(|owner| &owner.registers);
        let life = Life {
            start,
            answered,
            live: registers.map(Register::live_bytes).sum(),
            samples,
            peak_memory,
        };
        println!(
            "{} life {}, {} s, then {how}: {life}",
            self.name,
            self.lives.len() + 1,
            time.as_secs()
        );
        self.lives.push(life);
    }

    /// Starts the node again; how long it took until it served.
    fn restart(&mut self) -> Duration {
        let begun = Instant::now();
        self.node.restart();
        begun.elapsed()
    }

    fn check(&mut self) {
        let port = self.node.port;
        std::thread::scope(|scope| {
            for owner in &mut self.owners {
                scope.spawn(|| owner.check(port));
            }
        });
    }

    fn run(mut self) {
        let half = TIME * longer() / 2;
        let mut start = None;
        for n in 0..LIVES {
            match n % 2 {
                0 => self.live(start, half / LIVES, "kill -9", |node, _| node.kill9()),
                _ => self.live(start, half / LIVES, "SIGTERM", |node, _| {
                    assert!(node.terminate().success())
                }),
            }
            start = Some(self.restart());
        }
        self.live(start, half, "nothing", |_, end| {
            end.reached.store(true, Ordering::Release)
        });
        // So long nobody asks anything, in a long run.
        std::thread::sleep(half / 40);
        let idle = self.node.memory();
        wait_for("memory to be given back", Duration::from_secs(60), || {
            (self.node.memory() < MOST_MEMORY_IDLE).then_some(())
        });
        self.check();
        self.node.kill9();
        std::fs::remove_dir_all(self.node.dir().join("store")).expect("the store can be removed");
        self.node.allow("rebuil");
        let rebuilt = self.restart();
        self.check();
        println!(
            "{}: {} MiB of memory when idle; everything again without the store after {rebuilt:.1?}",
            self.name,
            idle / MIB
        );
        self.judge();
    }

    /// Whether what was taken had bounds, and whether it grew.
    fn judge(&self) {
        let live = self.lives.iter().map(|life| life.live).max().expect("there are lives");
        let peak = self
            .lives
            .iter()
            .map(|life| life.peak_memory)
            .max()
            .expect("there are lives");
        assert!(peak < MOST_MEMORY, "{} MiB of memory", peak / MIB);
        let longest = self.lives.iter().filter_map(|life| life.start).max();
        assert!(longest < Some(LONGEST_START), "it served after {longest:?}");
        let last = &self.lives.last().expect("there are lives").samples;
        // Its first third warms up.
        let name = |what: &str| format!("{}: {what}", self.name);
        does_not_grow(&name("memory"), &last[last.len() / 3..], 64 * MIB, |sample| {
            sample.memory
        });
        // In the first life everything is written for the first time.
        let all: Vec<Sample> = self.lives[1..].iter().flat_map(|life| life.samples.clone()).collect();
        // The log is compacted when half of it is old; sled needs up to ten times what is live (docs/decisions/store-sled.md).
        let log: fn(&Sample) -> u64 = |sample| sample.log;
        for (what, times, of) in [("log", 3, log), ("store", 10, |sample| sample.store)] {
            let most = all.iter().map(of).max().expect("there are samples");
            let bound = times * live + 512 * MIB;
            assert!(most < bound, "{what}: {most} bytes for {live} bytes of data");
            // A few segments, in which there is little to compact when the run is short.
            does_not_grow(&name(what), &all, 256 * MIB, of);
        }
    }
}

/// Compares the last third with the first.
fn does_not_grow(what: &str, samples: &[Sample], slack: u64, of: impl Fn(&Sample) -> u64) {
    let third = samples.len() / 3;
    let most = |samples: &[Sample]| samples.iter().map(&of).max().unwrap_or(0);
    let (first, last) = (most(&samples[..third]), most(&samples[samples.len() - third..]));
    let (before, after) = (first / MIB, last / MIB);
    println!("{what}: {before} MiB in the first third, {after} MiB in the last");
    assert!(last < first + first / 4 + slack, "{what} grew");
}

impl std::fmt::Display for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let most = |of: fn(&Sample) -> u64| self.samples.iter().map(of).max().unwrap_or(0) / MIB;
        write!(
            f,
            "{} answered, {} MiB live; at most {} MiB log, {} MiB store, {} MiB memory",
            self.answered,
            self.live / MIB,
            most(|sample| sample.log),
            most(|sample| sample.store),
            self.peak_memory / MIB
        )?;
        self.start
            .map_or(Ok(()), |start| write!(f, "; served after {start:.2?}"))
    }
}

/// A kill right after sled has made its file shorter costs a rebuild (docs/decisions/store-sled.md).
const SHORTER: &str = "its data file has";

#[test]
fn an_embedded_node_stays_right_and_within_bounds() {
    let node = Highwater::builder()
        .allow(SHORTER)
        .args(&["--maxmemory", "64mb"])
        .start();
    Soak::new("embedded", node, Log::Embedded).run();
}

#[test]
fn a_node_on_kafka_stays_right_and_within_bounds() {
    let topic = fresh_topic("soak");
    let config = [
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "16777216"),
        ("min.cleanable.dirty.ratio", "0.3"),
        ("segment.ms", "5000"),
        ("file.delete.delay.ms", "1000"),
    ];
    // Its own, that is not taken for dead on a busy machine.
    let kafka = Kafka::start_with(&["broker.session.timeout.ms=18000"]);
    kafka.create_topic(&topic, 1, &config);
    let node = Highwater::builder().kafka(&kafka, &topic);
    // On a busy machine a broker's answer may be late; that is judged by what clients see.
    let node = node
        .allow("REQTMOUT")
        .allow("lost the connection to Kafka")
        .allow(SHORTER);
    let node = node.args(&["--maxmemory", "64mb"]).start();
    Soak::new("Kafka", node, Log::Kafka(kafka, topic)).run();
}
