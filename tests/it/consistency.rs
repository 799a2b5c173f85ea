//! What a read may miss, on one node and on several: the modes, tokens, positions and digests.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater::log::kafka::Partitioner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::client::Client;
use crate::support::foreign::Foreign;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;
use crate::support::wait_for;

const SOON: Duration = Duration::from_secs(20);

fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

fn shown(reply: &[u8]) -> String {
    String::from_utf8_lossy(reply).into_owned()
}

/// A reply's fields, from RESP2's flat array.
fn fields(reply: &Reply) -> HashMap<String, Reply> {
    let items = reply.items().chunks(2);
    items
        .map(|pair| {
            (
                String::from_utf8_lossy(pair[0].bytes().expect("a name")).into_owned(),
                pair[1].clone(),
            )
        })
        .collect()
}

fn integer(fields: &HashMap<String, Reply>, name: &str) -> i64 {
    fields[name]
        .integer()
        .unwrap_or_else(|| panic!("{name}: {:?}", fields[name]))
}

/// Position, keys and digest of each partition.
pub fn digest(client: &mut Client, database: &str) -> Vec<(i64, i64, String)> {
    let reply = client.tree(&format!("HIGHWATER DIGEST {database}"));
    assert!(!reply.is_error(), "{reply:?}");
    let partitions = fields(&reply)["partitions"].clone();
    let of = |partition: &Reply| {
        let partition = fields(partition);
        let digest = String::from_utf8_lossy(partition["digest"].bytes().expect("a digest")).into_owned();
        (integer(&partition, "position"), integer(&partition, "keys"), digest)
    };
    partitions.items().iter().map(of).collect()
}

/// The digests of two nodes at the same position: the log stands still, both come to its end.
pub fn equal_digests(a: &mut Client, b: &mut Client, database: &str) -> Vec<(i64, i64, String)> {
    let deadline = Instant::now() + SOON;
    loop {
        let (one, two) = (digest(a, database), digest(b, database));
        let positions = |d: &[(i64, i64, String)]| d.iter().map(|p| p.0).collect::<Vec<_>>();
        if positions(&one) == positions(&two) {
            assert_eq!(one, two, "the nodes differ at one position");
            return one;
        }
        assert!(Instant::now() < deadline, "no common position: {one:?} {two:?}");
    }
}

#[test]
fn a_connection_chooses_what_its_reads_may_miss() {
    let node = Highwater::embedded();
    let mut client = node.client();
    client.check("HIGHWATER CONSISTENCY", "$7\r\nsession");
    for (word, told) in [
        ("eventual", "eventual"),
        ("LINEARIZABLE", "linearizable"),
        ("maxlag 250", "max-lag 250"),
        ("session", "session"),
    ] {
        client.check(&format!("HIGHWATER CONSISTENCY {word}"), "+OK");
        assert_eq!(client.text("HIGHWATER CONSISTENCY"), told);
        client.check("SET k 1", "+OK");
        client.check("GET k", "$1\r\n1");
        client.check("INCR k", ":2");
    }
    for wrong in ["none", "maxlag", "maxlag 0", "maxlag x", "session 1"] {
        let reply = client.line(&format!("HIGHWATER CONSISTENCY {wrong}"));
        assert!(
            reply.starts_with(b"-ERR HIGHWATER CONSISTENCY takes"),
            "{wrong}: {}",
            shown(&reply)
        );
    }
    client.check("CONFIG SET read-consistency max-lag max-lag-ms 77", "+OK");
    client.check("HIGHWATER CONSISTENCY DEFAULT", "+OK");
    assert_eq!(client.text("HIGHWATER CONSISTENCY"), "max-lag 77");
    client.check("HIGHWATER CONSISTENCY eventual", "+OK");
    client.check("RESET", "+RESET");
    assert_eq!(client.text("HIGHWATER CONSISTENCY"), "max-lag 77");
    let wrong = client.line("CONFIG SET read-consistency strong");
    assert!(wrong.starts_with(b"-ERR"), "{}", shown(&wrong));
    assert!(!client.tree("HIGHWATER HELP").items().is_empty());
}

#[test]
fn one_node_tells_positions_tokens_and_where_a_key_comes_from() {
    let node = Highwater::embedded();
    let mut client = node.client();
    client.check("HIGHWATER WHERE nothing", "$-1");
    client.check("SET k hello PX 3600000", "+OK");
    let place = fields(&client.tree("HIGHWATER WHERE k"));
    assert_eq!(
        (integer(&place, "partition"), integer(&place, "home-partition")),
        (0, 0)
    );
    assert_eq!((integer(&place, "size"), integer(&place, "misplaced")), (5, 0));
    assert!(integer(&place, "expire-at") > integer(&place, "timestamp") + 3_000_000);
    let offset = integer(&place, "offset");
    client.check("SET k again", "+OK");
    let place = fields(&client.tree("HIGHWATER WHERE k"));
    assert!(integer(&place, "offset") > offset);
    assert_eq!(place["expire-at"].integer(), None);
    // A write of the same pipeline has a place by then.
    let replies = client.pipeline(&["SET k third", "HIGHWATER WHERE k", "HIGHWATER TOKEN"]);
    assert!(integer(&fields(&Reply::parse(&replies[1])), "offset") > integer(&place, "offset"));

    let token = String::from_utf8_lossy(Reply::parse(&replies[2]).bytes().expect("a token")).into_owned();
    assert!(token.starts_with("hw1~0:"), "{token}");
    client.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
    let ahead = token.replacen("hw1~0:", "hw1~0:9", 1);
    let begun = Instant::now();
    client.check(
        &format!("HIGHWATER WAITFOR {ahead} 50"),
        "-STALE this node did not reach the token's position within 50 ms",
    );
    assert!(begun.elapsed() >= Duration::from_millis(50));
    client.check(
        "HIGHWATER WAITFOR hw2 1",
        "-ERR this is no token; HIGHWATER TOKEN gives one",
    );
    client.check(
        &format!("HIGHWATER WAITFOR {token} x"),
        "-ERR timeout is not an integer or out of range",
    );
    let other = client.line(&format!("HIGHWATER WAITFOR {token}x"));
    assert!(
        other.starts_with(b"-ERR the token is of another topic"),
        "{}",
        shown(&other)
    );

    let lags = client.tree("HIGHWATER LAG");
    let lag = fields(&lags.items()[0]);
    assert_eq!(integer(&lag, "database"), 0);
    assert!(integer(&lag, "end") >= integer(&lag, "position"));
}

#[test]
fn where_tells_the_record_that_a_key_comes_from() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("where", 3);
    let node = Highwater::builder().kafka(kafka, &topic);
    let node = node.allow("outside of the partition").start();
    let mut client = node.client();
    for n in 0..20 {
        client.check(&format!("SET k{n} v{n} PX {}", 10_000_000 + n), "+OK");
        client.check(&format!("INCRBY counter {n}"), &format!(":{}", n * (n + 1) / 2));
    }
    // By a producer that knows no partitioner.
    let lines: String = (0..6).map(|n| format!("far{n}:v\n")).collect();
    kafka.kcat(&["-P", "-t", &topic, "-K:", "-p", "0"], lines.as_bytes());
    wait_for("kcat's records", SOON, || {
        (client.line("EXISTS far5") == b":1\r\n").then_some(())
    });
    let records = kafka.records(&topic, "read_committed");
    let numbered = |name: &'static str, count: u32| (0..count).map(move |n| format!("{name}{n}"));
    let mut misplaced = 0;
    for key in numbered("k", 20)
        .chain(numbered("far", 6))
        .chain(["counter".to_owned()])
    {
        let place = fields(&client.tree(&format!("HIGHWATER WHERE {key}")));
        let newest = records
            .iter()
            .rfind(|record| record.key.as_deref() == Some(key.as_bytes()));
        let newest = newest.unwrap_or_else(|| panic!("{key} is in the topic"));
        assert_eq!(place["topic"].bytes(), Some(topic.as_bytes()));
        assert_eq!(integer(&place, "partition"), i64::from(newest.partition), "{key}");
        assert_eq!(integer(&place, "offset"), newest.offset, "{key}");
        assert_eq!(place["timestamp"].integer(), newest.timestamp, "{key}");
        assert_eq!(
            integer(&place, "size") as usize,
            newest.value.as_ref().map_or(0, Vec::len),
            "{key}"
        );
        let expiry = newest.headers.iter().find(|(name, _)| name == "redis-expire-at");
        assert_eq!(place["expire-at"].bytes(), expiry.map(|(_, time)| &time[..]), "{key}");
        let home = Partitioner::Murmur2.partition(key.as_bytes(), 3) as i32;
        assert_eq!(integer(&place, "home-partition"), i64::from(home), "{key}");
        assert_eq!(integer(&place, "misplaced") == 1, newest.partition != home, "{key}");
        misplaced += integer(&place, "misplaced");
    }
    assert!(misplaced > 0, "no record lies where it does not belong");
}

/// An open transaction of somebody else holds up what comes behind it in the topic: the node cannot know yet.
#[test]
fn a_node_that_is_behind_says_so_where_it_was_asked_to_and_recovers() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("behind", 1);
    let node = Highwater::builder().kafka(kafka, &topic);
    let node = node.args(&["--write-timeout", "2s"]).allow("Timed out").start();
    let foreign = Foreign::new(kafka, &topic);
    let [mut session, mut strict, mut bounded] = [node.client(), node.client(), node.client()];
    strict.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    bounded.check("HIGHWATER CONSISTENCY MAXLAG 300", "+OK");
    session.check_soon("SET k 1", "+OK");
    wait_for("a read that is new enough", SOON, || {
        (bounded.line("GET k") == b"$1\r\n1\r\n").then_some(())
    });
    let begun = Instant::now();
    foreign.begin(&[("k", Some("2"))]);
    let refused = shown(&strict.line("GET k"));
    assert!(
        refused.starts_with("-STALE ") && refused.contains("did not apply within 2 s"),
        "{refused}"
    );
    let refused = wait_for("a read that is too old to be refused", SOON, || {
        let reply = bounded.line("GET k");
        (reply != b"$1\r\n1\r\n").then(|| shown(&reply))
    });
    let told = refused
        .strip_prefix("-STALE this node is ")
        .and_then(|rest| rest.split_once(" ms behind"));
    let behind: u128 = told
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or_else(|| panic!("{refused}"));
    assert!((300..=begun.elapsed().as_millis() + 300).contains(&behind), "{refused}");
    session.check("GET k", "$1\r\n1");
    foreign.commit();
    for client in [&mut strict, &mut bounded] {
        wait_for("reads to work again", SOON, || {
            (client.line("GET k") == b"$1\r\n2\r\n").then_some(())
        });
    }
    session.check("GET k", "$1\r\n2");
}

/// Kafka tells readers neither that a transaction is open nor whose it is: they only see nothing new.
#[test]
fn an_open_transaction_of_another_producer_is_named_wherever_it_holds_something_up() {
    const NAMED: &str = "a transaction of another producer has been open for";
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("open", 1);
    let on_kafka = || {
        let node = Highwater::builder().kafka(kafka, &topic).allow(NAMED);
        node.args(&["--write-timeout", "3s"])
    };
    let node = on_kafka().start();
    let mut client = node.client();
    client.check("INCR counter", ":1");
    let foreign = Foreign::new(kafka, &topic);
    foreign.begin(&[("counter", Some("5"))]);

    let refused = shown(&client.line("INCR counter"));
    let names_it = |text: &str| text.contains(NAMED) && text.contains(&format!("topic {topic}, partition 0"));
    assert!(refused.starts_with("-NOTWRITTEN ") && names_it(&refused), "{refused}");
    let told = wait_for("INFO to name it", SOON, || client.info("log_held_up"));
    assert!(names_it(&told), "{told}");
    let mut starting = on_kafka().start_without_waiting();
    wait_for("LOADING to name it", SOON, || {
        let reply = Client::try_connect(starting.port)
            .ok()
            .map(|mut client| shown(&client.line("GET counter")));
        reply.filter(|reply| reply.starts_with("-LOADING ") && names_it(reply))
    });
    assert!(names_it(&node.log()), "{}", node.log());

    // The line that it says ends the transaction does so.
    let (_, line) = told
        .split_once("To end it: kafka-transactions.sh ")
        .expect("a line to type");
    let typed: Vec<&str> = line.split_whitespace().collect();
    kafka.java("org.apache.kafka.tools.TransactionsCommand", &typed, b"");
    starting.wait_until_ready();
    client.check("INCR counter", ":2");
    wait_for("INFO to be silent again", SOON, || {
        client.info("log_held_up").is_none().then_some(())
    });
}

#[test]
fn wait_and_waitaof_tell_what_the_embedded_log_has() {
    let node = Highwater::embedded();
    let mut client = node.client();
    client.check("SET k 1", "+OK");
    client.check("WAIT 0 0", ":0");
    client.check("WAIT 1 20", ":0");
    client.check("WAIT x 20", "-ERR value is not an integer or out of range");
    client.check("WAIT 1 -1", "-ERR timeout is negative");
    client.check("WAITAOF 1 0 0", "*2\r\n:1\r\n:0");
    client.check("WAITAOF 1 1 20", "*2\r\n:1\r\n:0");
    client.check("WAITAOF 2 0 0", "-ERR value is out of range, must be between 0 and 1");
    client.check("WAITAOF 0 -1 0", "-ERR value is out of range, must be positive");
    client.check("WAITAOF 0 0 x", "-ERR timeout is not an integer or out of range");
    let relaxed = Highwater::builder().args(&["--fsync", "everysec"]).start();
    relaxed.client().check("WAITAOF 1 0 20", "*2\r\n:0\r\n:0");
}

#[test]
fn a_rebuilt_store_has_the_digest_that_the_lost_one_had() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Highwater::builder().allow("rebuil").start();
    let mut client = node.client();
    let empty = digest(&mut client, "0");
    assert_eq!(
        (empty[0].1, empty[0].2.as_str()),
        (0, "00000000000000000000000000000000")
    );
    for n in 0..1_500 {
        let key = random.random_range(0..400);
        match random.random_range(0..10) {
            0 => drop(client.line(&format!("DEL k{key}"))),
            1 => drop(client.line(&format!("SET k{key} {n} PX 10000000"))),
            2 if n % 300 == 2 => drop(client.line("FLUSHDB")),
            3 => drop(client.line(&format!("SETRANGE k{key} {} x", random.random_range(0..60_000)))),
            _ => drop(client.line(&format!("SET k{key} {n}"))),
        }
    }
    client.check("SELECT 2", "+OK");
    client.check("SET other 1", "+OK");
    client.check("SELECT 0", "+OK");
    let keys = client.tree("DBSIZE").integer();
    let (first, other) = (digest(&mut client, "0"), digest(&mut client, "2"));
    assert_eq!(Some(first[0].1), keys);
    assert_ne!(first[0].2, other[0].2);
    node.kill9();
    std::fs::remove_dir_all(node.dir().join("store")).expect("the store can be removed");
    node.restart();
    let mut client = node.client();
    assert_eq!(digest(&mut client, "0"), first);
    assert_eq!(digest(&mut client, "2"), other);
    client.check("SET k1 changed", "+OK");
    assert_ne!(digest(&mut client, "0")[0].2, first[0].2);
}

/// Writes on other connections until it is dropped.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(ports: &[u16], seed: u64) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let write = |(number, &port): (usize, &u16)| {
            let stop = stop.clone();
            let mut random = StdRng::seed_from_u64(seed + number as u64);
            std::thread::spawn(move || {
                let mut client = Client::connect(port);
                while !stop.load(Ordering::Relaxed) {
                    let lines: Vec<String> = (0..50)
                        .map(|_| match (random.random_range(0..2_000), random.random_range(0..8)) {
                            (key, 0) => format!("DEL k{key}"),
                            (key, 1) => format!("SET k{key} {} PX 10000000", random.random::<u32>()),
                            (key, _) => format!("SET k{key} {}", random.random::<u64>()),
                        })
                        .collect();
                    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                    client.pipeline(&lines);
                }
            })
        };
        let threads = ports.iter().enumerate().map(write).collect();
        Writers { stop, threads }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a writer");
        }
    }
}

#[test]
fn two_nodes_have_one_digest_also_when_writes_went_on_while_it_was_made() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("digest", 3);
    let one = Highwater::on_kafka(kafka, &topic);
    let mut two = Highwater::builder().kafka(kafka, &topic).allow("rebuil").start();
    let (mut a, mut b) = (one.client(), two.client());
    let writers = Writers::start(&[one.port, two.port], seed);
    let begun = Instant::now();
    let mut under_load = Vec::new();
    while begun.elapsed() < Duration::from_secs(3) {
        under_load.push(digest(&mut a, "0"));
        under_load.push(digest(&mut b, "0"));
    }
    writers.finish();
    println!("{} digests under load", under_load.len());
    // Of two digests at one position, made on any node at any time, both are the same.
    let mut known: HashMap<(usize, i64), (i64, String)> = HashMap::new();
    for (partition, (position, keys, sum)) in under_load.iter().flat_map(|d| d.iter().enumerate()) {
        let before = known.entry((partition, *position)).or_insert((*keys, sum.clone()));
        assert_eq!(*before, (*keys, sum.clone()), "partition {partition} at {position}");
    }
    let last = equal_digests(&mut a, &mut b, "0");
    assert_eq!(last.len(), 3);
    assert!(last.iter().all(|partition| partition.1 > 0), "{last:?}");
    two.kill9();
    std::fs::remove_dir_all(two.dir().join("store")).expect("the store can be removed");
    two.restart();
    assert_eq!(equal_digests(&mut a, &mut two.client(), "0"), last);
}

#[test]
fn a_linearizable_read_sees_what_was_acknowledged_on_another_node() {
    let kafka = kafka::shared();
    let topic = fresh_topic("linearizable");
    let one = Highwater::on_kafka(kafka, &topic);
    let two = Highwater::on_kafka(kafka, &topic);
    let (mut a, mut b) = (one.client(), two.client());
    b.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    let mut times = Vec::new();
    for n in 0..400 {
        a.check(&format!("SET k{} {n}", n % 7), "+OK");
        let begun = Instant::now();
        let reply = b.line(&format!("GET k{}", n % 7));
        times.push(begun.elapsed());
        assert_eq!(shown(&reply), shown(&bulk(&n.to_string())));
    }
    times.sort();
    println!(
        "a linearizable read took {:?} (median), {:?} (slowest of 400)",
        times[200], times[399]
    );
    for n in 0..50 {
        a.check(&format!("MSET left {n} right {n}"), "+OK");
        let item = bulk(&n.to_string());
        let expected = [b"*2\r\n".to_vec(), item.clone(), item.clone()].concat();
        assert_eq!(shown(&b.line("MGET left right")), shown(&expected));
        // One question serves a whole pipeline, and what only looks, conditions and transactions see it too.
        let replies = b.pipeline(&["GET left", "GET right", "SETNX left x", "MULTI", "GET left", "EXEC"]);
        assert_eq!((&replies[0], &replies[1]), (&item, &item));
        assert_eq!(shown(&replies[2]), ":0\r\n");
        assert_eq!(shown(&replies[5]), shown(&[b"*1\r\n".to_vec(), item].concat()));
        a.check("DEL left", ":1");
        b.check("EXISTS left", ":0");
        a.check(&format!("SET only{n} 1"), "+OK");
        b.check("DBSIZE", &format!(":{}", 7 + 1 + n + 1));
    }
    // A database whose topic the other node has just made.
    for database in 3..6 {
        a.check(&format!("SELECT {database}"), "+OK");
        a.check("SET new 1", "+OK");
        b.check(&format!("SELECT {database}"), "+OK");
        b.check("GET new", "$1\r\n1");
        b.check("DBSIZE", ":1");
    }
}

#[test]
fn a_session_is_carried_to_another_node_by_its_token() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("token", 2);
    let one = Highwater::on_kafka(kafka, &topic);
    let two = Highwater::on_kafka(kafka, &topic);
    let (mut a, mut b) = (one.client(), two.client());
    for n in 0..200 {
        a.check(&format!("SET k{n} {n}"), "+OK");
        let token = a.text("HIGHWATER TOKEN");
        b.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
        assert_eq!(shown(&b.line(&format!("GET k{n}"))), shown(&bulk(&n.to_string())));
        b.check("DBSIZE", &format!(":{}", n + 1));
    }
    // What was only read counts too, and the way back.
    b.check("GET k199", "$3\r\n199");
    let token = b.text("HIGHWATER TOKEN");
    a.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
    // A new database.
    a.check("SELECT 4", "+OK");
    a.check("SET k 1", "+OK");
    let token = a.text("HIGHWATER TOKEN");
    b.check(&format!("HIGHWATER WAITFOR {token}"), "+OK");
    b.check("SELECT 4", "+OK");
    b.check("GET k", "$1\r\n1");
    let elsewhere = Highwater::embedded();
    let refused = elsewhere.client().line(&format!("HIGHWATER WAITFOR {token} 100"));
    assert!(
        refused.starts_with(b"-ERR the token is of another topic"),
        "{}",
        shown(&refused)
    );
}

#[test]
fn a_node_that_cannot_tell_how_new_it_is_says_so() {
    let kafka = Kafka::start();
    let topic = fresh_topic("stopped");
    let node = Highwater::builder()
        .kafka(&kafka, &topic)
        .args(&["--write-timeout", "2s"])
        .allow("lost the connection to Kafka")
        .allow("Timed out")
        .start();
    let (mut bounded, mut strict, mut plain) = (node.client(), node.client(), node.client());
    bounded.check("HIGHWATER CONSISTENCY MAXLAG 300", "+OK");
    strict.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    plain.check_soon("SET k 1", "+OK");
    bounded.check_soon("GET k", "$1\r\n1");
    strict.check("GET k", "$1\r\n1");
    kafka.freeze();
    let stopped = Instant::now();
    // For a while what is known is new enough.
    let refused = loop {
        let reply = bounded.line("GET k");
        if reply != b"$1\r\n1\r\n" {
            break shown(&reply);
        }
        assert!(stopped.elapsed() < SOON, "reads went on");
    };
    assert!(
        refused.starts_with("-STALE this node is ") && refused.contains("more than the 300 ms allowed"),
        "{refused}"
    );
    assert!(
        stopped.elapsed() >= Duration::from_millis(200),
        "it was new enough for a while"
    );
    let begun = Instant::now();
    let refused = shown(&strict.line("GET k"));
    assert!(
        refused.starts_with("-STALE the log did not tell its end within 2 s"),
        "{refused}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
    // What reads no data is answered, and so are sessions that ask for less.
    strict.check("PING", "+PONG");
    plain.check("GET k", "$1\r\n1");
    assert!(plain.tree("HIGHWATER LAG").items().len() == 1);
    kafka.thaw();
    let deadline = Instant::now() + SOON;
    while strict.line("GET k") != b"$1\r\n1\r\n" || bounded.line("GET k") != b"$1\r\n1\r\n" {
        assert!(Instant::now() < deadline, "reads did not recover");
    }
}

#[test]
fn on_kafka_wait_tells_the_copies_that_the_topic_asks_for() {
    let kafka = kafka::shared();
    let node = Highwater::on_kafka(kafka, &fresh_topic("wait"));
    let mut client = node.client();
    client.check("SET k 1", "+OK");
    // One broker: no replica has it.
    client.check("WAIT 0 0", ":0");
    client.check("WAIT 1 20", ":0");
    client.check("WAITAOF 0 0 0", "*2\r\n:0\r\n:0");
    client.check(
        "WAITAOF 1 0 0",
        "-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.",
    );
}
