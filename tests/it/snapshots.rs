//! `highwater snapshot` and `highwater restore`: a node begins from a snapshot and follows the
//! topic from there; a snapshot that does not fit is refused; a log that is gone comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::consistency::digest;
use crate::support::client::Client;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::process::{self, Outcome};
use crate::support::server::{Builder, Highwater, binary};
use crate::support::{eventually, temp};

const SOON: Duration = Duration::from_secs(60);

fn highwater(args: &[&str]) -> Outcome {
    let mut command = Command::new(binary());
    command.args(args).env("NO_COLOR", "1");
    process::try_run(command, b"", SOON).expect("highwater can be started")
}

#[track_caller]
fn does(args: &[&str]) -> String {
    let outcome = highwater(args);
    assert!(outcome.success(), "{args:?}: {}", outcome.text());
    outcome.text()
}

/// It must refuse with these words.
#[track_caller]
fn refuses(args: &[&str], words: &[&str]) {
    let outcome = highwater(args);
    let text = outcome.text();
    assert!(!outcome.success(), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

/// Files of one test.
struct Place(tempfile::TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("is UTF-8").to_owned()
    }
}

/// Keys of all types in two databases, split collections among them, expiry times, a function.
fn fill(client: &mut Client) {
    for line in [
        "FUNCTION LOAD \"#!lua name=lib\\nredis.register_function('f', function() return 7 end)\"",
        "SET s value",
        "SET expiring x EX 100000",
        "SET gone x",
        "RPUSH small a b c",
        "HSET hash f v n 5",
        "HPEXPIRE hash 100000000 FIELDS 1 f",
        "SADD set a b",
        "ZADD zset 1 a 2 b",
        "XADD stream 1-1 f v",
        "XGROUP CREATE stream g 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS stream >",
        "DEL gone",
    ] {
        let reply = client.line(line);
        assert_ne!(reply[0], b'-', "{line}: {}", String::from_utf8_lossy(&reply));
    }
    for n in 0..40 {
        client.line(&format!("RPUSH list item{n}"));
        client.line(&format!("HSET large field{n} {n}"));
        client.line(&format!("ZADD scores {n} member{n}"));
    }
    client.check("SELECT 3", "+OK");
    client.check("SET elsewhere 3", "+OK");
    client.check("SELECT 0", "+OK");
}

/// The number of keys of a database, and the sum of what all its partitions show.
fn shown(client: &mut Client, database: &str) -> (i64, u128) {
    let partitions = digest(client, database);
    let sum = |digest: &str| u128::from_str_radix(digest, 16).expect("hex digits");
    partitions
        .iter()
        .fold((0, 0), |(keys, total), (_, of_partition, digest)| {
            (keys + of_partition, total.wrapping_add(sum(digest)))
        })
}

fn all_shown(client: &mut Client) -> [(i64, u128); 2] {
    [shown(client, "0"), shown(client, "3")]
}

fn on(kafka: &Kafka, topic: &str) -> Builder {
    Highwater::builder()
        .kafka(kafka, topic)
        .args(&["--partitions", "3", "--max-packed-elements", "16"])
}

#[test]
fn a_node_begins_from_a_snapshot_and_follows_the_topic() {
    let kafka = kafka::shared();
    let place = Place(temp::dir("snapshot"));
    let topic = fresh_topic("snapshot");
    let one = on(kafka, &topic).start();
    let mut client = one.client();
    fill(&mut client);
    let (work, file) = (place.text("work"), place.text("kv.snapshot"));
    let of_topic = [
        "--bootstrap-servers",
        &kafka.bootstrap,
        "--topic",
        &topic,
        "--dir",
        &work,
    ];
    let snapshot = [&["snapshot", "--to", &file][..], &of_topic].concat();
    does(&snapshot);
    // What comes after it is read from the topic.
    client.check("SET s later", "+OK");
    client.check("HDEL large field7", ":1");
    client.check("DEL set", ":1");

    let begun = on(kafka, &topic).args(&["--snapshot", &file]).start();
    assert!(begun.log().contains("beginning from the snapshot"), "{}", begun.log());
    let mut others = begun.client();
    others.check("FCALL f 0", ":7");
    eventually("the nodes agree", SOON, || {
        all_shown(&mut others) == all_shown(&mut client)
    });
    assert_eq!(others.info("rebuilds").as_deref(), Some("0"));
    let read: u64 = others
        .info("records_applied")
        .and_then(|n| n.parse().ok())
        .expect("a number");
    assert!(read < 20, "{read} records were read");
    others.check("SET by-the-new-one 1", "+OK");
    drop(begun);

    // The directory of snapshots goes on from where it was, and the new snapshot takes the place of
    // the old one.
    let before = fs::read(&file).expect("is there");
    does(&snapshot);
    assert_ne!(before, fs::read(&file).expect("is there"));
    let dir = place.path("restored");
    let told = does(&["restore", &file, "--dir", dir.to_str().expect("is UTF-8")]);
    assert!(told.contains("start a node there"), "{told}");
    refuses(
        &["restore", &file, "--dir", dir.to_str().expect("is UTF-8")],
        &["there is data in it already"],
    );
    let mut restored = on(kafka, &topic).dir(&dir).args(&["--snapshot", &file]).start();
    assert!(restored.log().contains("is not read"), "{}", restored.log());
    eventually("the nodes agree", SOON, || {
        all_shown(&mut restored.client()) == all_shown(&mut client)
    });
    assert!(
        !dir.join("snapshot").exists(),
        "the node serves, so it forgets where it came from"
    );
    assert!(restored.terminate().success());
    does(
        &[
            &["snapshot", "--to", &place.text("same")],
            &of_topic[..4],
            &["--dir", dir.to_str().expect("is UTF-8")],
        ]
        .concat(),
    );
}

#[test]
fn a_topic_that_is_not_there_is_not_made() {
    let (kafka, place) = (kafka::shared(), Place(temp::dir("snapshot")));
    let missing = fresh_topic("snapshot-missing");
    refuses(
        &[
            "snapshot",
            "--to",
            &place.text("file"),
            "--bootstrap-servers",
            &kafka.bootstrap,
            "--topic",
            &missing,
            "--dir",
            &place.text("other"),
        ],
        &[&missing],
    );
    assert!(!kafka.topic_exists(&missing));
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_and_brings_back_a_topic_that_is_gone() {
    let kafka = kafka::shared();
    let place = Place(temp::dir("snapshot"));
    let topic = fresh_topic("snapshot-gone");
    let mut one = on(kafka, &topic).start();
    let mut client = one.client();
    fill(&mut client);
    let expected = all_shown(&mut client);
    let (work, file) = (place.text("work"), place.text("kv.snapshot"));
    does(&[
        "snapshot",
        "--to",
        &file,
        "--bootstrap-servers",
        &kafka.bootstrap,
        "--topic",
        &topic,
        "--dir",
        &work,
    ]);
    assert!(one.terminate().success());

    let refused = |topic: &str, args: &[&str], words: &[&str]| {
        let (status, log) = on(kafka, topic).args(&["--snapshot", &file]).args(args).refuse(SOON);
        assert!(!status.success(), "{log}");
        words
            .iter()
            .for_each(|word| assert!(log.contains(word), "{word:?} is missing: {log}"));
    };
    refused(
        &fresh_topic("another"),
        &[],
        &["it is of the Kafka topic", &topic, "this node's log is"],
    );
    refused(&topic, &["--store", "fjall"], &["kept by sled", "--store sled"]);
    refused(&topic, &["--databases", "17"], &["snapshot", "--databases 16"]);
    let cut = place.path("cut");
    fs::write(&cut, &fs::read(&file).expect("is there")[..10_000]).expect("is written");
    let (status, log) = on(kafka, &topic).args(&["--snapshot", &place.text("cut")]).refuse(SOON);
    assert!(!status.success() && log.contains("ends too early"), "{log}");

    kafka.set_topic_config(
        &topic,
        &[("cleanup.policy", "compact"), ("delete.retention.ms", "1000")],
    );
    refused(&topic, &[], &["does not fit", "delete.retention.ms"]);

    // It stays refused in the same directory, whatever is given, until that is empty.
    let dir = place.path("refused");
    let again = |args: &[&str], word: &str| {
        let (status, log) = on(kafka, &topic).dir(&dir).args(args).refuse(SOON);
        assert!(!status.success() && log.contains(word), "{word:?} is missing: {log}");
    };
    again(&["--snapshot", &file], "empty the data directory");
    again(&[], "empty the data directory");
    fs::remove_dir_all(&dir).expect("is removed");
    again(&["--snapshot", &place.text("cut")], "ends too early");
    assert!(!dir.join("unpacking").exists() && !dir.join("store").exists());
    let whole = on(kafka, &topic).dir(&dir).start();
    eventually("it read the topic", SOON, || all_shown(&mut whole.client()) == expected);
    drop(whole);

    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 3, &[("cleanup.policy", "compact")]);
    refused(&topic, &[], &["does not fit", "the topic is now"]);

    comes_back(&place, expected);
}

/// A new topic, and a new embedded log, show what the snapshot has.
fn comes_back(place: &Place, expected: [(i64, u128); 2]) {
    let (kafka, file) = (kafka::shared(), place.text("kv.snapshot"));
    let new = fresh_topic("snapshot-new");
    let scratch = place.text("scratch");
    let to_topic = [
        "restore",
        &file,
        "--dir",
        &scratch,
        "--to-bootstrap-servers",
        &kafka.bootstrap,
        "--to-topic",
        &new,
    ];
    refuses(&to_topic, &["say --yes"]);
    does(&[&to_topic[..], &["--to-partitions", "3", "--yes"]].concat());
    let back = on(kafka, &new).start();
    assert_eq!(all_shown(&mut back.client()), expected);
    back.client().check("FCALL f 0", ":7");

    let embedded = place.text("embedded");
    does(&["restore", &file, "--dir", &embedded, "--embedded", "--yes"]);
    let node = Highwater::builder().dir(Path::new(&embedded)).start();
    let mut client = node.client();
    assert_eq!(all_shown(&mut client), expected);
    client.check("FCALL f 0", ":7");
    client.check("SET s again", "+OK");
}

/// Pairs of keys that are written together, and the highest number that was acknowledged.
fn write_pairs(port: u16, stop: &AtomicBool, acknowledged: &AtomicU64) {
    let mut client = Client::connect(port);
    let filler = "x".repeat(500);
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        client.check(&format!("MSET a {n} b {n} k{} {filler}", n % 200), "+OK");
        acknowledged.store(n, Ordering::Release);
    }
}

/// Tells a thread to stop, also when a test fails.
struct Stops<'f>(&'f AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_running_embedded_log_has_snapshots_and_an_interrupted_one_is_none() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place(temp::dir("snapshot"));
    let node = Highwater::builder()
        .args(&["--segment-bytes", "1mb", "--fsync", "everysec"])
        .start();
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    fill(&mut node.client());
    let dir = node.dir().to_str().expect("is UTF-8").to_owned();
    thread::scope(|scope| {
        scope.spawn(|| write_pairs(node.port, &stop, &acknowledged));
        let _stops = Stops(&stop);
        for round in 0..4 {
            eventually("some writes", SOON, || {
                acknowledged.load(Ordering::Acquire) > 300 * round
            });
            let file = place.text(&format!("{round}.snapshot"));
            let least = acknowledged.load(Ordering::Acquire);
            does(&["snapshot", "--dir", &dir, "--to", &file]);
            let restored = place.text(&format!("restored{round}"));
            does(&["restore", &file, "--dir", &restored]);
            let other = Highwater::builder().dir(Path::new(&restored)).start();
            let mut client = other.client();
            let [a, b] = ["GET a", "GET b"].map(|line| client.text(line));
            assert_eq!(a, b, "a group is there as a whole");
            assert!(a.parse::<u64>().expect("a number") >= least, "{a} of {least}");
            client.check("HGET hash n", "$1\r\n5");
            client.check("LLEN list", ":40");
        }
        // Interrupted ones: what was there stays until another one is whole.
        let (file, restored) = (place.text("0.snapshot"), place.text("last"));
        for _ in 0..8 {
            let before = fs::read(&file).expect("is there");
            let mut command = Command::new(binary());
            command.args(["snapshot", "--dir", &dir, "--to", &file]);
            let mut child = process::spawn(command).expect("is started");
            thread::sleep(Duration::from_millis(random.random_range(0..60)));
            let ended = process::kill_group(&mut child);
            let after = fs::read(&file).expect("is there");
            assert!(
                ended.success() || after == before || after.ends_with(b"\n"),
                "seed {seed}"
            );
            let mut command = Command::new(binary());
            command.args(["restore", &file, "--dir", &restored]);
            let mut child = process::spawn(command).expect("is started");
            thread::sleep(Duration::from_millis(random.random_range(0..60)));
            process::kill_group(&mut child);
            // It is empty, or whole.
            let outcome = highwater(&["restore", &file, "--dir", &restored]);
            assert!(
                outcome.success() || outcome.text().contains("there is data in it"),
                "seed {seed}: {}",
                outcome.text()
            );
            let other = Highwater::builder().dir(Path::new(&restored)).start();
            let [a, b] = ["GET a", "GET b"].map(|line| other.client().text(line));
            assert_eq!(a, b, "seed {seed}");
            assert!(a.parse::<u64>().expect("a number") > 0, "seed {seed}");
            drop(other);
            fs::remove_dir_all(&restored).expect("is removed");
        }
    });
}
