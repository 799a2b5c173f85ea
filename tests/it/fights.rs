//! Two nodes that are killed again and again, and a foreign producer, fight over the same counters, locks and expiring keys. Afterwards the
//! topic itself, record by record, tells whether everybody kept to the rules.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::consistency::equal_digests;
use crate::support::attempt::{Attempts, Ended};
use crate::support::foreign::{Foreign, is_foreign};
use crate::support::kafka::{self, SeenRecord};
use crate::support::server::Highwater;
use crate::support::{Stopping, longer, wait_for};

const CLIENTS_OF_A_NODE: usize = 3;
/// Keys of each kind.
const KEYS: u32 = 3;
const TIME: Duration = Duration::from_secs(20);
/// The foreign producer sets counters to multiples of this.
const LEAP: u64 = 1_000_000;
/// Clocks are read in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// What the nodes' clients know.
#[derive(Default)]
struct Book {
    /// Of each counter the values that were acknowledged, and how many increments may have happened besides.
    increments: HashMap<String, (Vec<u64>, usize)>,
    /// For how many milliseconds the lock was asked for with this token.
    asked_for: HashMap<String, u64>,
    /// Tokens whose holders have begun to give them back.
    released: HashSet<String>,
    holdings: Vec<Holding>,
}

/// While this lasts the client may believe that it alone has the lock.
#[derive(Debug, Clone)]
struct Holding {
    lock: String,
    token: String,
    from: Instant,
    until: Instant,
}

struct Fight {
    book: Mutex<Book>,
    over: AtomicBool,
}

impl Fight {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn client(&self, port: u16, number: usize, mut random: StdRng) {
        let mut node = Attempts::on(port);
        for n in 0.. {
            if self.is_over() {
                return;
            }
            let key = random.random_range(0..KEYS);
            match random.random_range(0..10) {
                0..2 => self.increment(&mut node, &format!("own-{key}")),
                2..5 => self.increment(&mut node, &format!("mixed-{key}")),
                5 => self.fight_for(&mut node, &format!("held-{key}"), &format!("{number}-{n}"), &mut random),
                6 => self.fight_for(&mut node, &format!("lock-{key}"), &format!("{number}-{n}"), &mut random),
                _ => expiring(
                    &mut node,
                    &format!("brief-{key}"),
                    &format!("{number}-{n}"),
                    &mut random,
                ),
            }
        }
    }

    fn increment(&self, node: &mut Attempts, counter: &str) {
        let ended = node.line(&format!("INCR {counter}"));
        let mut book = self.book();
        let (acknowledged, open) = book.increments.entry(counter.to_owned()).or_default();
        match ended {
            Ended::Answered(reply) => acknowledged.push(integer(&reply)),
            Ended::Open => *open += 1,
            Ended::Nothing => {}
        }
    }

    /// Takes a lock if it is free, and gives it back sometimes before its time.
    fn fight_for(&self, node: &mut Attempts, lock: &str, token: &str, random: &mut StdRng) {
        let milliseconds = random.random_range(20..300);
        self.book().asked_for.insert(token.to_owned(), milliseconds);
        let asked = Instant::now();
        if node.line(&format!("SET {lock} {token} NX PX {milliseconds}")) != Ended::Answered(b"+OK\r\n".to_vec()) {
            return;
        }
        let mut holding = Holding {
            lock: lock.to_owned(),
            token: token.to_owned(),
            from: Instant::now(),
            until: asked + Duration::from_millis(milliseconds),
        };
        if random.random_bool(0.6) {
            std::thread::sleep(Duration::from_millis(random.random_range(0..milliseconds)));
            holding.until = holding.until.min(Instant::now());
            self.give_back(node, lock, token);
        }
        self.book().holdings.push(holding);
    }

    /// Deletes the lock if it still has the token.
    fn give_back(&self, node: &mut Attempts, lock: &str, token: &str) {
        let own = Ended::Answered(format!("${}\r\n{token}\r\n", token.len()).into_bytes());
        let replies = node.lines(&[&format!("WATCH {lock}"), &format!("GET {lock}")]);
        if replies[1] == own && node.is_connected() {
            self.book().released.insert(token.to_owned());
            node.lines(&["MULTI", &format!("DEL {lock}"), "EXEC"]);
        } else {
            node.line("UNWATCH");
        }
    }

    fn foreign(&self, foreign: &Foreign, mut random: StdRng) {
        for n in 1.. {
            if self.is_over() {
                return;
            }
            let key = random.random_range(0..KEYS);
            let (counter, lock, brief) = (format!("mixed-{key}"), format!("lock-{key}"), format!("brief-{key}"));
            let leap = (n * LEAP).to_string();
            let name = format!("foreign-{n}");
            match random.random_range(0..5) {
                0 => foreign.write(&counter, Some(&leap)),
                1 => foreign.write(&brief, Some(&name)),
                2 => foreign.write_in_transaction(&[(&counter, Some(&leap)), (&brief, Some(&name))]),
                _ => {
                    foreign.write(&lock, Some(&name));
                    std::thread::sleep(Duration::from_millis(random.random_range(0..40)));
                    foreign.write_in_transaction(&[(&lock, None)]);
                }
            }
            std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
        }
    }
}

/// Writes a key with a time to live or without, or changes that time.
fn expiring(node: &mut Attempts, key: &str, value: &str, random: &mut StdRng) {
    let milliseconds = random.random_range(1..80);
    let line = match random.random_range(0..5) {
        0 => format!("SET {key} {value}"),
        1 | 2 => format!("SET {key} {value} PX {milliseconds}"),
        3 => format!("PERSIST {key}"),
        _ => format!("GETEX {key} PX {milliseconds}"),
    };
    node.line(&line);
}

fn integer(reply: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(reply);
    let digits = text.trim_start_matches(':').trim_end();
    digits.parse().unwrap_or_else(|_| panic!("a number: {text}"))
}

/// A record as the rules look at it.
struct Step {
    offset: i64,
    written_at: u64,
    foreign: bool,
    state: Option<State>,
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    value: String,
    expire_at: Option<u64>,
}

impl State {
    fn is_over(&self, at: u64) -> bool {
        self.expire_at.is_some_and(|end| end <= at)
    }
}

fn step(record: SeenRecord) -> (String, Step) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let foreign = is_foreign(&record);
    let expiry = record.headers.iter().find(|(name, _)| name == "redis-expire-at");
    let expire_at = expiry.map(|(_, time)| text(time.clone()).parse().expect("a time"));
    let step = Step {
        offset: record.offset,
        written_at: record.timestamp.expect("a time") as u64,
        foreign,
        state: record.value.map(|value| State {
            value: text(value),
            expire_at,
        }),
    };
    (text(record.key.expect("a key")), step)
}

fn check_counter(name: &str, steps: &[Step], book: &Book) {
    let (acknowledged, open) = &book.increments[name];
    let mut value = 0;
    let mut counted = HashSet::new();
    for step in steps {
        let new: u64 = step
            .state
            .as_ref()
            .expect("counters stay")
            .value
            .parse()
            .expect("a number");
        if !step.foreign {
            assert_eq!(new, value + 1, "{name} at offset {}: an update was lost", step.offset);
            assert!(counted.insert(new), "{name}: {new} came twice");
        }
        value = new;
    }
    let missing: Vec<&u64> = acknowledged.iter().filter(|value| !counted.contains(value)).collect();
    assert!(
        missing.is_empty(),
        "{name}: acknowledged and not in the log: {missing:?}"
    );
    let range = acknowledged.len()..=acknowledged.len() + open;
    assert!(
        range.contains(&counted.len()),
        "{name}: {} increments in the log, not {range:?}",
        counted.len()
    );
}

fn check_lock(name: &str, steps: &[Step], book: &Book) {
    let mut held: Option<State> = None;
    for step in steps.iter() {
        let context = || {
            format!(
                "{name} at offset {}, held: {held:?}, written: {:?}",
                step.offset, step.state
            )
        };
        match (&held, &step.state) {
            _ if step.foreign => {}
            (None, _) => {}
            (Some(held), Some(new)) => {
                let computed_at = new.expire_at.expect("a time") - book.asked_for[&new.value];
                assert!(held.is_over(computed_at), "taken while it was held: {}", context());
            }
            (Some(held), None) => {
                let given_back = book.released.contains(&held.value);
                assert!(
                    given_back || held.is_over(step.written_at),
                    "deleted while it was held: {}",
                    context()
                );
            }
        }
        held = step.state.clone();
    }
    // The same as the clients saw it; nobody takes these locks from them.
    if name.starts_with("held") {
        let mut holdings: Vec<&Holding> = book.holdings.iter().filter(|holding| holding.lock == name).collect();
        holdings.sort_by_key(|holding| holding.from);
        for pair in holdings.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            let apart = first.until <= second.from + ROUNDING;
            assert!(
                apart,
                "{name} was held by {} and {} at once: {pair:?}",
                first.token, second.token
            );
        }
    }
}

fn check_expiring(name: &str, steps: &[Step]) {
    let mut written = HashSet::new();
    let mut before: Option<&State> = None;
    for step in steps {
        let (offset, at) = (step.offset, step.written_at);
        match (before, &step.state) {
            (Some(old), None) => assert!(
                old.is_over(at),
                "{name} at offset {offset}: deleted though it did not expire: {old:?}"
            ),
            // Every SET has a value of its own: one that was there before has got another expiry, and must be there still.
            (_, Some(new)) if !written.insert(&new.value) => assert!(
                before.is_some_and(|old| old.value == new.value),
                "{name} at offset {offset}: {new:?} came back over {before:?}"
            ),
            _ => {}
        }
        before = step.state.as_ref();
    }
}

/// Both nodes show what the log has at its end, without what has expired.
fn check_shown(nodes: &[Highwater], all: &BTreeMap<String, Vec<Step>>) {
    for (name, steps) in all.iter().filter(|(name, _)| !name.contains('\0')) {
        let newest = steps.last().and_then(|step| step.state.clone());
        // Every time that was given is over soon.
        let lasting = newest.filter(|state| state.expire_at.is_none());
        let expected = lasting.map_or("$-1\r\n".to_owned(), |s| {
            format!("${}\r\n{}\r\n", s.value.len(), s.value)
        });
        for node in nodes {
            let mut client = node.client();
            wait_for(&format!("{name} to be {expected:?}"), Duration::from_secs(10), || {
                (client.line(&format!("GET {name}")) == expected.as_bytes()).then_some(())
            });
        }
    }
}

#[test]
fn two_nodes_that_are_killed_and_a_foreign_producer_keep_to_the_rules() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("fights", 2);
    let mut nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let foreign = Foreign::new(kafka, &topic);
    let fight = Fight {
        book: Mutex::default(),
        over: AtomicBool::new(false),
    };
    let mut kills = 0;
    std::thread::scope(|scope| {
        let fight = &fight;
        for (index, node) in nodes.iter().enumerate() {
            for client in 0..CLIENTS_OF_A_NODE {
                let (port, random) = (node.port, StdRng::from_rng(&mut random));
                scope.spawn(move || fight.client(port, index * CLIENTS_OF_A_NODE + client, random));
            }
        }
        let of_foreign = StdRng::from_rng(&mut random);
        scope.spawn(|| fight.foreign(&foreign, of_foreign));
        let _over = Stopping(&fight.over);
        let begun = Instant::now();
        while begun.elapsed() < TIME * longer() {
            std::thread::sleep(Duration::from_millis(random.random_range(100..1_500)));
            let victim = &mut nodes[random.random_range(0..2)];
            victim.kill9();
            kills += 1;
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            victim.restart();
        }
    });
    let mut all: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    for record in kafka.records(&topic, "read_committed") {
        let (key, step) = step(record);
        all.entry(key).or_default().push(step);
    }
    let book = fight.book();
    let done: usize = book
        .increments
        .values()
        .map(|(acknowledged, _)| acknowledged.len())
        .sum();
    let open: usize = book.increments.values().map(|(_, open)| open).sum();
    println!(
        "{kills} times kill -9, {done} INCR acknowledged, {open} open, {} times a lock was held",
        book.holdings.len()
    );
    for (name, steps) in &all {
        match name.split('-').next() {
            Some("own" | "mixed") => check_counter(name, steps, &book),
            Some("held" | "lock") => check_lock(name, steps, &book),
            Some("brief") => check_expiring(name, steps),
            _ => panic!("nobody wrote {name}"),
        }
    }
    assert!(done > 100 && book.holdings.len() > 30, "too little happened");
    check_shown(&nodes, &all);
    equal_digests(&mut nodes[0].client(), &mut nodes[1].client(), "0");
}
