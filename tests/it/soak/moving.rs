//! Servers of three kinds with keys of all types move in, and back out again, while they are used:
//! a million keys each with `--soak`.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::dump::{scores, shown, sorted, url};
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::{Highwater, RedisServer, binary};
use crate::support::{Stopping, longer, process, temp, wait_for};

/// Keys of a usual run, and of each part of a longer one: a million with `--soak`.
const FEW: u64 = 5_000;
const MANY: u64 = 17_000;
/// In the year 3021.
const FAR: u64 = 33_177_117_420_000;
/// Keys that are written, and compared, at once.
const PAGE: u64 = 500;
const LONG: Duration = Duration::from_secs(1_800);

fn line(n: u64, field_expiry: bool) -> Vec<String> {
    let value = "0123456789abcdef".repeat(1 + n as usize % 12);
    let ten = |element: &dyn Fn(u64) -> String| (0..10).map(|e| format!(" {}", element(e))).collect::<String>();
    let mut lines = vec![match n % 20 {
        0..10 => format!("SET key:{n} {n}-{value}"),
        10..14 => format!("HSET key:{n}{}", ten(&|e| format!("field-{e} {n}-{e}"))),
        14..16 => format!("RPUSH key:{n}{}", ten(&|e| format!("{n}-{e}-{value}"))),
        16 => format!("SADD key:{n}{}", ten(&|e| format!("member-{}", n + e))),
        17 | 18 => format!("ZADD key:{n}{}", ten(&|e| format!("{}.5 member-{e}", n + e))),
        _ => format!("XADD key:{n} {n}-1 field {value} other {n}"),
    }];
    match n % 20 {
        10 if field_expiry => lines.push(format!("HPEXPIREAT key:{n} {FAR} FIELDS 1 field-3")),
        19 => lines.push(format!("XGROUP CREATE key:{n} group 0")),
        _ => {}
    }
    if n.is_multiple_of(3) {
        lines.push(format!("PEXPIREAT key:{n} {}", FAR + n));
    }
    lines
}

fn fill(client: &mut Client, keys: u64, field_expiry: bool) {
    for first in (0..keys).step_by(PAGE as usize) {
        let page = first..keys.min(first + PAGE);
        let lines: Vec<String> = page.flat_map(|n| line(n, field_expiry)).collect();
        for (reply, line) in pipeline(client, &lines).iter().zip(&lines) {
            assert!(!reply.starts_with(b"-"), "{line}: {}", reply.escape_ascii());
        }
    }
}

fn pipeline(client: &mut Client, lines: &[String]) -> Vec<Vec<u8>> {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    client.pipeline(&lines)
}

/// Reads and writes all the time. What it writes is in a database that is not imported.
fn use_it(port: u16, keys: u64, over: &AtomicBool) {
    let mut client = Client::connect(port);
    for n in 0.. {
        if over.load(Ordering::Acquire) {
            return;
        }
        let key = n * 7919 % keys;
        client.pipeline(&[
            "SELECT 0",
            &format!("TYPE key:{key}"),
            &format!("EXISTS key:{key}"),
            "SELECT 1",
            &format!("SET written:{key} {n}"),
        ]);
    }
}

/// Every key has the same type, value and expiry at both, and neither has more of them.
fn assert_equal(from: u16, to: u16, what: &str) {
    let (mut from, mut to) = (Client::connect(from), Client::connect(to));
    assert_eq!(from.text("DBSIZE"), to.text("DBSIZE"), "{what}");
    let mut cursor = "0".to_owned();
    loop {
        let page = from.tree(&format!("SCAN {cursor} COUNT {PAGE}"));
        cursor = text(&page.items()[0]);
        let keys: Vec<String> = page.items()[1].items().iter().map(text).collect();
        let types = pipeline(
            &mut from,
            &keys.iter().map(|key| format!("TYPE {key}")).collect::<Vec<_>>(),
        );
        let questions: Vec<String> = keys
            .iter()
            .zip(&types)
            .flat_map(|(key, of)| questions(key, of))
            .collect();
        let [known, found] = [&mut from, &mut to].map(|client| pipeline(client, &questions));
        for ((question, known), found) in questions.iter().zip(known).zip(found) {
            assert_eq!(
                comparable(question, &found),
                comparable(question, &known),
                "{what}: {question}"
            );
        }
        for (key, _) in keys.iter().zip(&types).filter(|(_, of)| of.starts_with(b"+stream")) {
            let [known, found] = [&mut from, &mut to].map(|client| shown(client, key.as_bytes()));
            assert_eq!(found, known, "{what}: {key}");
        }
        if cursor == "0" {
            return;
        }
    }
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(reply.bytes().expect("text")).into_owned()
}

fn questions(key: &str, of: &[u8]) -> Vec<String> {
    let value = match of {
        b"+string\r\n" => format!("GET {key}"),
        b"+hash\r\n" => format!("HGETALL {key}"),
        b"+list\r\n" => format!("LRANGE {key} 0 -1"),
        b"+set\r\n" => format!("SMEMBERS {key}"),
        b"+zset\r\n" => format!("ZRANGE {key} 0 -1 WITHSCORES"),
        b"+stream\r\n" => format!("XLEN {key}"),
        other => panic!("{key}: {}", other.escape_ascii()),
    };
    vec![format!("TYPE {key}"), format!("PEXPIRETIME {key}"), value]
}

/// The same for the same value, whichever server says it.
fn comparable(question: &str, reply: &[u8]) -> Vec<u8> {
    match question.split(' ').next() {
        Some("HGETALL") => sorted(&Reply::parse(reply), 2),
        Some("SMEMBERS") => sorted(&Reply::parse(reply), 1),
        Some("ZRANGE") => scores(&Reply::parse(reply)),
        _ => reply.to_vec(),
    }
}

fn highwater(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env("NO_COLOR", "1");
    command
}

/// How long it took.
fn moved(args: &[&str]) -> Duration {
    let begun = Instant::now();
    let outcome = process::try_run(highwater(args), b"", LONG).expect("highwater can be started");
    assert!(outcome.success(), "{}", outcome.text());
    begun.elapsed()
}

/// Stops an import when it has copied so many keys: where it says that it goes on.
fn stopped_import(source: &str, target: u16, keys: u64) -> String {
    let mut command = highwater(&["import", source, "--to", &url(target)]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut import = process::spawn(command).expect("highwater can be started");
    let mut client = Client::connect(target);
    wait_for("a part of the keys to be copied", LONG, || {
        let copied = client.tree("DBSIZE").integer().expect("a number");
        let has_ended = import.try_wait().expect("wait for a child").is_some();
        (has_ended || copied >= keys as i64).then_some(())
    });
    process::signal(&import, libc::SIGTERM);
    let status = process::wait_until_exit(&mut import, LONG).expect("it ends");
    let mut told = String::new();
    let mut stderr = import.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut told).expect("read what it says");
    assert!(!status.success(), "{told}");
    let place = told
        .split("--resume ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    place.unwrap_or_else(|| panic!("{told}")).to_owned()
}

type Start = fn(&[&str]) -> RedisServer;

/// `back` loads what is exported.
fn moves_in_and_back(name: &str, start: Start, back: Start, field_expiry: bool) {
    let source = start(&[]);
    let keys = match u64::from(longer()) {
        1 => FEW,
        times => MANY * times,
    };
    fill(&mut source.client(), keys, field_expiry);
    let from = format!("{}/0", url(source.port));
    let on_kafka = Highwater::on_kafka(kafka::shared(), &fresh_topic("moving"));
    let (embedded, keep) = (Highwater::embedded(), temp::dir("moving"));
    let over = AtomicBool::new(false);
    let times = thread::scope(|scope| {
        let _over = Stopping(&over);
        scope.spawn(|| use_it(source.port, keys, &over));
        let to = url(embedded.port);
        // A few keys may be copied before they are counted.
        if longer() > 1 {
            let place = stopped_import(&from, embedded.port, keys / 10);
            moved(&["import", &from, "--to", &to, "--resume", &place]);
        } else {
            moved(&["import", &from, "--to", &to]);
        }
        assert_equal(source.port, embedded.port, name);
        embedded.client().check("FLUSHALL", "+OK");
        [embedded.port, on_kafka.port].map(|port| moved(&["import", &from, "--to", &url(port)]))
    });
    for node in [&embedded, &on_kafka] {
        assert_equal(source.port, node.port, name);
    }
    let file = keep.path().join("out.rdb").display().to_string();
    let out = moved(&["export", &url(on_kafka.port), &file]);
    let dir = keep.path().display().to_string();
    let redis = back(&["--dir", &dir, "--dbfilename", "out.rdb"]);
    assert_equal(on_kafka.port, redis.port, name);
    // Only a value to compare the others with.
    let empty = start(&[]);
    let restored = moved(&["import", &from, "--to", &url(empty.port)]);
    let bytes = std::fs::metadata(&file).expect("the file is there").len();
    for (what, time) in [
        ("into the embedded log", times[0]),
        ("into Kafka", times[1]),
        ("into another such server", restored),
        ("out of Kafka into a file", out),
    ] {
        let (thousands, megabytes) = (keys as f64 / 1e3, bytes as f64 / 1e6);
        let seconds = time.as_secs_f64();
        println!(
            "{name}, {keys} keys, {megabytes:.0} MB as a file, {what}: {seconds:.1} s, {:.0}k keys/s, {:.1} MB/s",
            thousands / seconds,
            megabytes / seconds
        );
    }
}

#[test]
fn a_filled_redis_7_moves_in_and_back() {
    moves_in_and_back("Redis 7.0", RedisServer::start, RedisServer::start, false);
}

#[test]
fn a_filled_redis_8_moves_in_and_back() {
    moves_in_and_back("Redis 8.0", RedisServer::start_8, RedisServer::start_8, true);
}

#[test]
fn a_filled_valkey_8_moves_in_and_back() {
    moves_in_and_back("Valkey 8.1", RedisServer::start_valkey, RedisServer::start, false);
}
