//! Other versions: what a newer one wrote is refused with what to do, and nodes are restarted one
//! after the other while clients read and write. `docs/upgrading.md` has the steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::{self, Reply};
use crate::support::server::{Highwater, binary};
use crate::support::tree::root;
use crate::support::{Stopping, eventually, process, temp};

const SOON: Duration = Duration::from_secs(60);

// ---- formats ----

/// Copies a directory, as for a backup, but for the room that the log keeps free.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("a file");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().starts_with("reserve") {
            fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}

/// Changes some bytes of a file.
type Change = fn(&mut [u8]);

fn edit(dir: &Path, file: &str, change: Change) {
    let mut bytes = fs::read(dir.join(file)).expect("read a file");
    change(&mut bytes);
    fs::write(dir.join(file), bytes).expect("write a file");
}

const SEGMENT: &str = "log/00000000000000000000.segment";

/// The data of an embedded log is nowhere else. A version that does not know its format leaves it
/// alone.
#[test]
fn an_embedded_log_of_a_newer_format_is_refused_and_kept() {
    let mut node = Highwater::embedded();
    let mut client = node.client();
    client.check("SET k v", "+OK");
    client.check("HSET h f v", ":1");
    assert!(node.terminate().success());
    // The backup that is made before an upgrade.
    let temp = temp::dir("upgrades");
    let backup = temp.path().join("backup");
    copy(node.dir(), &backup);
    let changes: [(&str, Change, &str); 6] = [
        (
            "meta",
            |bytes| bytes[7] = b'2',
            "it has format 2, this version knows 1; start the version",
        ),
        (
            "log/meta",
            |bytes| bytes[7] = 2,
            "has format 2 at byte 0, and this version",
        ),
        ("log/mark", newer_mark, "has format 2 at byte 0, and this version"),
        (
            SEGMENT,
            |bytes| bytes[7] = 2,
            "has format 2 at byte 0, and this version",
        ),
        (
            SEGMENT,
            |bytes| bytes[51] = 2,
            "has format 2 at byte 48, and this version",
        ),
        (SEGMENT, newer_record, "holds a record that this version cannot read"),
    ];
    for (file, change, expected) in changes {
        let dir = temp.path().join("newer");
        copy(&backup, &dir);
        // The local store has what the log has; without it, the node reads all of the log.
        fs::remove_dir_all(dir.join("store")).expect("remove the store");
        edit(&dir, file, change);
        let newer = fs::read(dir.join(file)).expect("read a file");
        let (status, log) = Highwater::builder().dir(&dir).refuse(SOON);
        assert!(!status.success(), "{file}: {log}");
        assert!(
            log.contains(expected) && log.contains("start the version that wrote it"),
            "{file}: {log}"
        );
        let is_kept = fs::read(dir.join(file)).expect("read a file").starts_with(&newer);
        assert!(is_kept, "{file} was changed");
        fs::remove_dir_all(dir).expect("remove a directory");
    }
    // Going back: the backup is served.
    let restored = Highwater::builder().dir(&backup).start();
    restored.client().check("GET k", "$1\r\nv");
    restored.client().check("HGET h f", "$1\r\nv");
}

/// Both places of the mark.
fn newer_mark(bytes: &mut [u8]) {
    (bytes[3], bytes[8195]) = (2, 2);
}

/// Gives the first record a flag that nobody knows, and the frame the checksums for that.
fn newer_record(bytes: &mut [u8]) {
    const FRAME: usize = 48;
    const BODY: usize = FRAME + 48;
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let (salt, length) = (number(bytes, 16), number(bytes, FRAME + 4) as usize);
    bytes[BODY] |= 0x80;
    for (of, at) in [(BODY..BODY + length, FRAME + 12), (FRAME..FRAME + 44, FRAME + 44)] {
        let mut checksum = crc32fast::Hasher::new_with_initial(salt);
        checksum.update(&bytes[of]);
        bytes[at..at + 4].copy_from_slice(&checksum.finalize().to_le_bytes());
    }
}

/// The local store has nothing that the log does not have.
#[test]
fn a_store_of_a_newer_format_is_built_from_the_log_again() {
    let mut node = Highwater::builder().allow("the local store cannot be used").start();
    let mut client = node.client();
    client.check("SET k v", "+OK");
    client.check("SET gone v", "+OK");
    client.check("DEL gone", ":1");
    assert!(node.terminate().success());
    let position: PathBuf = node.dir().join("store/position");
    let text = fs::read_to_string(&position).expect("the position file");
    let (body, _checksum) = text.rsplit_once("crc ").expect("a checksum");
    let (first, rest) = body.split_once('\n').expect("lines");
    let (words, _format) = first.rsplit_once(' ').expect("a format");
    let newer = format!("{words} 999\n{rest}");
    let checksum = crc32fast::hash(newer.as_bytes());
    fs::write(&position, format!("{newer}crc {checksum:08x}\n")).expect("write the position file");
    node.restart();
    let mut client = node.client();
    client.check("GET k", "$1\r\nv");
    client.check("GET gone", "$-1");
    assert!(
        node.log().contains("position file is of another version"),
        "{}",
        node.log()
    );
}

/// The line for newer nodes, the question what a topic uses, and the way to an older node.
#[test]
fn the_commands_of_the_document_do_what_it_says() {
    let kafka = kafka::shared();
    let document = fs::read_to_string(root().join("docs/upgrading.md")).expect("the document");
    let features = document
        .lines()
        .find_map(|line| line.trim().strip_prefix("max-features "));
    let (topic, features) = (fresh_topic("steps"), features.expect("a line of settings"));
    let newer = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--max-features", features])
        .start();
    let mut client = newer.client();
    client.check("HSET h f v", ":1");
    client.check("XADD s 1-1 f v", "$3\r\n1-1");
    client.check("CONFIG SET max-features all", "+OK");
    let records = kafka.kcat(&["-C", "-t", &topic, "-e", "-q", "-f", "%k %s\n"], b"");
    let records = String::from_utf8_lossy(&records.stdout).into_owned();
    let used = records.lines().rfind(|line| line.contains("highwater:features"));
    assert_eq!(used, Some("\0highwater:features hash split stream"), "{records}");

    let older = Highwater::on_kafka(kafka, &fresh_topic("steps-back"));
    let [from, to] = [newer.port, older.port].map(|port| format!("redis://127.0.0.1:{port}"));
    let mut import = Command::new(binary());
    import.args(["import", &from, "--to", &to]);
    process::run("highwater import", import, b"", SOON);
    let mut client = older.client();
    client.check("HGET h f", "$1\r\nv");
    client.check("XLEN s", ":1");
}

// ---- a rolling restart ----

/// A node under load.
struct Target {
    port: u16,
    /// Grows when the node is about to stop, when it has stopped, and when it serves again.
    changes: AtomicU64,
    /// Reads and rounds of writes that were answered.
    reads: AtomicU64,
    writes: AtomicU64,
}

struct Load {
    nodes: [Target; 2],
    ended: AtomicBool,
}

/// Keys of each writer, and a counter that it shares with the other one.
const KEYS: u64 = 4;
const COUNTER: &str = "counter";

fn keys_of(writer: usize) -> impl Iterator<Item = String> {
    (0..KEYS).map(move |key| format!("w{writer}:{key}"))
}

fn all_keys() -> Vec<String> {
    let keys = (0..2).flat_map(keys_of);
    keys.chain([COUNTER.to_owned()]).collect()
}

/// Whether a node serves that has changed so many times.
fn serves_at(changes: u64) -> bool {
    changes.is_multiple_of(3)
}

impl Load {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn changes(&self, node: usize) -> u64 {
        self.nodes[node].changes.load(Ordering::Acquire)
    }

    fn change(&self, node: usize) {
        self.nodes[node].changes.fetch_add(1, Ordering::AcqRel);
    }

    fn serves(&self, node: usize) -> bool {
        serves_at(self.changes(node))
    }

    /// What it was asked to write may still come.
    fn is_stopping(&self, node: usize) -> bool {
        self.changes(node) % 3 == 1
    }

    /// A connection, and when it was made. `None`: the node does not serve.
    fn connect(&self, node: usize) -> Option<(Client, u64)> {
        let since = self.changes(node);
        if !serves_at(since) {
            return None;
        }
        match Client::try_connect(self.nodes[node].port) {
            Ok(client) => Some((client, since)),
            Err(_) if self.changes(node) != since => None,
            Err(error) => panic!("a node that stays does not let a client in: {error}"),
        }
    }

    /// Waits until each reader and writer has done more.
    fn wait_until_all_go_on(&self) {
        for counter in self.nodes.iter().flat_map(|node| [&node.reads, &node.writes]) {
            let before = counter.load(Ordering::Relaxed);
            eventually("the clients to go on", SOON, || {
                counter.load(Ordering::Relaxed) > before + 2
            });
        }
    }
}

/// Sends commands at once. `None`: the node was stopped meanwhile.
fn send(load: &Load, node: usize, (client, since): &mut (Client, u64), lines: &[String]) -> Option<Vec<Vec<u8>>> {
    let request: Vec<u8> = lines.iter().flat_map(|line| resp::command_line(line)).collect();
    let sent = client.try_write(&request).ok();
    let replies: Option<Vec<Vec<u8>>> = sent.and_then(|()| lines.iter().map(|_| client.try_reply().ok()?).collect());
    let is_served = |reply: &Vec<u8>| !reply.starts_with(b"-");
    match replies {
        Some(replies) if replies.iter().all(is_served) => Some(replies),
        _ if load.changes(node) != *since => None,
        failed => {
            let shown = failed.unwrap_or_default().concat();
            panic!("a node that stays fails: {lines:?}: {}", resp::show(&shown));
        }
    }
}

/// Reads all keys on one node again and again. No value is older than one that was read before,
/// also after a restart.
fn read_on(load: &Load, node: usize) {
    let keys = all_keys();
    let lines = [format!("MGET {}", keys.join(" ")), format!("GET {COUNTER}")];
    let mut newest = vec![0; keys.len()];
    while !load.has_ended() {
        let Some(mut client) = load.connect(node) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        while let Some(replies) = send(load, node, &mut client, &lines) {
            let counter = newest.len() - 1;
            let found = Reply::parse(&replies[0]);
            let found = found.items().iter().map(number).enumerate();
            for (place, value) in found.chain([(counter, number(&Reply::parse(&replies[1])))]) {
                let before = std::mem::replace(&mut newest[place], value);
                assert!(value >= before, "{}: {value} after {before}", keys[place]);
            }
            load.nodes[node].reads.fetch_add(1, Ordering::Relaxed);
            if load.has_ended() {
                return;
            }
        }
    }
}

fn number(reply: &Reply) -> u64 {
    let text = reply.bytes().map(String::from_utf8_lossy);
    text.map_or(0, |text| text.parse().expect("a number"))
}

/// Writes through a node, or through the other one while that does not serve. Returns the last
/// number that is acknowledged.
fn write_on(load: &Load, writer: usize) -> u64 {
    let mut next = 1;
    while !load.has_ended() {
        if load.is_stopping(0) || load.is_stopping(1) {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let node = if load.serves(writer) { writer } else { 1 - writer };
        let Some(mut client) = load.connect(node) else {
            continue;
        };
        while load.serves(writer) == (node == writer) && !load.has_ended() {
            let mut lines: Vec<String> = keys_of(writer).map(|key| format!("SET {key} {next}")).collect();
            lines.push(format!("INCR {COUNTER}"));
            if send(load, node, &mut client, &lines).is_none() {
                break;
            }
            next += 1;
            load.nodes[writer].writes.fetch_add(1, Ordering::Relaxed);
        }
    }
    next - 1
}

#[test]
fn nodes_restart_one_after_the_other_and_no_client_of_the_other_one_notices() {
    let topic = fresh_topic("rolling");
    let node = Highwater::builder().kafka(kafka::shared(), &topic);
    // What a busy machine delays is no failure.
    let node = node.args(&["--write-timeout", "15s"]);
    let mut nodes = [node.clone().start(), node.start()];
    let load = Load {
        nodes: [nodes[0].port, nodes[1].port].map(|port| Target {
            port,
            changes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        }),
        ended: AtomicBool::new(false),
    };
    let load = &load;
    let acknowledged = thread::scope(|scope| {
        let stopping = Stopping(&load.ended);
        let readers = [0, 1].map(|node| scope.spawn(move || read_on(load, node)));
        let writers = [0, 1].map(|writer| scope.spawn(move || write_on(load, writer)));
        for (node, process) in nodes.iter_mut().enumerate() {
            load.wait_until_all_go_on();
            load.change(node);
            assert!(process.terminate().success());
            load.change(node);
            process.restart();
            load.change(node);
        }
        load.wait_until_all_go_on();
        drop(stopping);
        let [(), ()] = readers.map(|reader| reader.join().expect("a reader"));
        writers.map(|writer| writer.join().expect("a writer"))
    });
    println!("{acknowledged:?} rounds of writes");
    for node in &nodes {
        let mut client = node.client();
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            for key in keys_of(writer) {
                eventually("what was acknowledged is there", SOON, || {
                    number(&client.tree(&format!("GET {key}"))) >= *acknowledged
                });
            }
        }
    }
}
