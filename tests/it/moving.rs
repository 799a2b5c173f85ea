//! `highwater export`, whose files real servers of Redis load, `highwater import
//! --follow-changes`, and what programs like RedisShake hand on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::dump::{all_shown, fill, import, imported, refused, shown, url};
use crate::split::SMALL;
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::parts;
use crate::support::process::{self, Outcome};
use crate::support::resp::{self, Reply};
use crate::support::server::{Highwater, RedisServer, binary};
use crate::support::{Stopping, eventually, temp};

const SOON: Duration = Duration::from_secs(60);
/// In the year 3021.
const FAR: u64 = 33_177_117_420_000;
const LIBRARY: &str = "FUNCTION LOAD \"#!lua name=lib\\nredis.register_function('f', function() return 1 end)\"";

// ---- export ----

fn export(args: &[&str]) -> Outcome {
    let mut command = Command::new(binary());
    command.arg("export").args(args).env("NO_COLOR", "1");
    process::try_run(command, b"", SOON).expect("highwater can be started")
}

/// Exports into a file that was not there. Its name, and its first bytes.
#[track_caller]
fn exported(args: &[&str], keep: &TempDir, name: &str) -> (String, String) {
    let path = keep.path().join(name).display().to_string();
    let outcome = export(&[args, &[&path[..]]].concat());
    assert!(outcome.success(), "{}", outcome.text());
    let told = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(told.starts_with("exported "), "{told}");
    let names: Vec<_> = fs::read_dir(keep.path()).expect("it is there").collect();
    let parts = names
        .iter()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "unfinished"));
    assert_eq!(parts.count(), 0, "{names:?}");
    let header = fs::read(&path).expect("the file is there")[..9].to_vec();
    (path, String::from_utf8(header).expect("text"))
}

/// What makes redis-server load a file of this name.
fn loads<'a>(dir: &'a str, name: &'a str) -> [&'a str; 4] {
    ["--dir", dir, "--dbfilename", name]
}

fn many_keys(client: &mut Client, count: usize) {
    for n in 0..count {
        client.write(format!("SET k{n} v{n}\r\n").as_bytes());
    }
    for _ in 0..count {
        assert_eq!(client.reply(), b"+OK\r\n");
    }
}

#[test]
fn what_is_exported_loads_in_redis_and_comes_back() {
    let node = Highwater::builder().args(&["--fsync", "no"]).args(SMALL).start();
    let mut from = node.client();
    fill(&mut from);
    from.check("SETRANGE large 3000000 x", ":3000001");
    from.check("SET brief v PX 1", "+OK");
    from.check(LIBRARY, "$3\r\nlib");
    from.check("SELECT 3", "+OK");
    many_keys(&mut from, 1500);
    from.check("SELECT 15", "+OK");
    from.check("SET elsewhere v", "+OK");
    let expected = all_shown(&mut from);
    assert!(expected.len() > 1520);
    let keep = temp::dir("exported");
    let dir = keep.path().display().to_string();
    let on_kafka = Highwater::on_kafka(kafka::shared(), &fresh_topic("exported"));
    for (name, node) in [("first.rdb", &node), ("second.rdb", &on_kafka)] {
        let (path, header) = exported(&[&url(node.port)], &keep, name);
        assert_eq!(header, "REDIS0010");
        let redis = RedisServer::start(&loads(&dir, name));
        assert_eq!(all_shown(&mut redis.client()), expected, "{name}");
        redis.client().check("FCALL f 0", ":1");
        // What the first node has comes to the second one.
        if name == "first.rdb" {
            imported(&import(&[&path, "--to", &url(on_kafka.port)]));
            assert_eq!(all_shown(&mut on_kafka.client()), expected);
            on_kafka.client().check("FCALL f 0", ":1");
        }
    }
    // One database alone.
    let source = format!("{}/15", url(node.port));
    exported(&[&source], &keep, "one.rdb");
    let redis = RedisServer::start(&loads(&dir, "one.rdb"));
    let mut client = redis.client();
    assert_eq!(client.text("INFO keyspace").matches("db").count(), 1);
    client.check("GET elsewhere", "$-1");
    client.check("SELECT 15", "+OK");
    client.check("GET elsewhere", "$1\r\nv");
}

/// Fields of hashes that expire are in files of version 12 alone, which Redis 8 loads.
#[test]
fn a_file_has_the_lowest_version_that_holds_its_values() {
    let redis = RedisServer::start_8(&[]);
    let mut from = redis.client();
    fill(&mut from);
    let keep = temp::dir("versions");
    let dir = keep.path().display().to_string();
    // Redis 8 has forms of Redis 7.2. Redis 7.0 reads them in others.
    let source = url(redis.port);
    let (_, header) = exported(&[&source], &keep, "newer.rdb");
    assert_eq!(header, "REDIS0011");
    let (_, header) = exported(&[&source, "--rdb-version", "10"], &keep, "older.rdb");
    assert_eq!(header, "REDIS0010");
    let older = RedisServer::start(&loads(&dir, "older.rdb"));
    let expected = all_shown(&mut from);
    assert_eq!(all_shown(&mut older.client()), expected);
    // The same from Highwater.
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    imported(&import(&[&source, "--to", &url(node.port)]));
    let mut through = node.client();
    through.check("HSET hash-expiring f v g w h x", ":3");
    let times = format!("HPEXPIREAT hash-expiring {FAR} FIELDS 2 f g");
    through.check(&times, "*2\r\n:1\r\n:1");
    let node = url(node.port);
    let old = keep.path().join("old.rdb").display().to_string();
    fs::write(&old, "precious").expect("a file");
    let outcome = export(&[&node, &old, "--rdb-version", "11"]);
    refused(&outcome, &["\"hash-expiring\"", "--rdb-version 12"]);
    assert_eq!(fs::read_to_string(&old).expect("a file"), "precious");
    let outcome = export(&[&node, "-"]);
    refused(&outcome, &["\"hash-expiring\"", "--rdb-version 12"]);
    let outcome = export(&[&node, "-", "--rdb-version", "12"]);
    assert!(
        outcome.success() && outcome.stdout.starts_with(b"REDIS0012"),
        "{}",
        outcome.text()
    );
    assert!(
        String::from_utf8_lossy(&outcome.stderr).contains("exported "),
        "{}",
        outcome.text()
    );
    fs::write(keep.path().join("output.rdb"), &outcome.stdout).expect("a file");
    let (_, header) = exported(&[&node], &keep, "newest.rdb");
    assert_eq!(header, "REDIS0012");
    for name in ["output.rdb", "newest.rdb"] {
        let loaded = RedisServer::start_8(&loads(&dir, name));
        let mut client = loaded.client();
        assert_eq!(all_shown(&mut client), all_shown(&mut through), "{name}");
        let times = format!("*3\r\n:{FAR}\r\n:{FAR}\r\n:-1");
        client.check("SELECT 0", "+OK");
        client.check("HPEXPIRETIME hash-expiring FIELDS 3 f g h", &times);
    }
    assert_eq!(fs::read_dir(keep.path()).expect("it is there").count(), 5);
}

/// Redis names keys twice when it makes its table smaller during a SCAN. And no value is there with
/// the expiry of another one.
#[test]
fn what_is_exported_while_clients_write_loads_too() {
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    // It looks often whether its table is too large.
    let redis = RedisServer::start(&["--hz", "500"]);
    let keep = temp::dir("busy");
    let dir = keep.path().display().to_string();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stopping = Stopping(&stop);
        for port in [node.port, redis.port] {
            let stop = &stop;
            many_keys(&mut Client::connect(port), MANY);
            expire_by_value(port, &AtomicBool::new(true));
            scope.spawn(move || shrink_and_grow(port, stop));
            scope.spawn(move || expire_by_value(port, stop));
        }
        for (place, port) in [node.port, redis.port, redis.port, redis.port].into_iter().enumerate() {
            let name = format!("{place}.rdb");
            exported(&[&url(port)], &keep, &name);
            let loaded = RedisServer::start(&loads(&dir, &name));
            let mut client = loaded.client();
            for key in 0..20 {
                let key = format!("hot{key}").into_bytes();
                let [_, expire_at, value] = &shown(&mut client, &key)[..] else {
                    panic!("a string has a type, an expiry and a value");
                };
                let number = value.trim_end_matches("\\r\\n").rsplit("\\n").next().expect("a value");
                assert_eq!(*expire_at, format!(":{number}\\r\\n"), "{value}");
            }
        }
    });
}

const MANY: usize = 8000;

/// Makes and deletes many keys, as long as it may.
fn shrink_and_grow(port: u16, stop: &AtomicBool) {
    let mut client = Client::connect(port);
    while !stop.load(Ordering::Acquire) {
        many_keys(&mut client, MANY);
        let most: Vec<String> = (0..MANY - 10).map(|n| format!("k{n}")).collect();
        client.line(&format!("DEL {}", most.join(" ")));
    }
}

/// Writes values that are the time when they expire.
fn expire_by_value(port: u16, stop: &AtomicBool) {
    let mut client = Client::connect(port);
    for n in 0.. {
        let at = FAR + n;
        client.check(&format!("SET hot{} {at} PXAT {at}", n % 20), "+OK");
        // All of them are there, however soon it is to stop.
        if n >= 20 && stop.load(Ordering::Acquire) {
            break;
        }
    }
}

#[test]
fn an_export_that_is_stopped_leaves_no_file() {
    // A server that answers two requests, and then nothing.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("an address").port();
    let keep = temp::dir("stopped");
    let mut command = Command::new(binary());
    let path = keep.path().join("dump.rdb");
    command.args(["export", &url(port)]).arg(&path).stderr(Stdio::piped());
    let mut child = process::spawn(command).expect("start highwater");
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut request = [0; 1024];
    for answer in [&b"+PONG\r\n"[..], b":-2\r\n"] {
        assert!(stream.read(&mut request).expect("a request") > 0);
        stream.write_all(answer).expect("it is taken");
    }
    assert!(stream.read(&mut request).expect("a request") > 0);
    let files = || fs::read_dir(keep.path()).expect("it is there").count();
    assert_eq!((files(), path.exists()), (1, false));
    process::signal(&child, libc::SIGTERM);
    let status = process::wait_until_exit(&mut child, SOON).expect("it ends");
    let mut told = String::new();
    child
        .stderr
        .take()
        .expect("it is piped")
        .read_to_string(&mut told)
        .expect("text");
    assert!(
        status.code() == Some(1) && told.contains("interrupted"),
        "{status}: {told}"
    );
    assert_eq!(files(), 0);
}

/// A write to a pipe that nobody reads holds up the program, but for its signals.
#[test]
fn an_export_that_nobody_reads_can_be_stopped() {
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    for n in 0..5 {
        node.client().check(&format!("SETRANGE large{n} 2000000 x"), ":2000001");
    }
    let mut command = Command::new(binary());
    command.args(["export", &url(node.port), "-"]).stdout(Stdio::piped());
    let mut child = process::spawn(command).expect("start highwater");
    let mut output = child.stdout.take().expect("it is piped");
    let mut header = [0; 9];
    output.read_exact(&mut header).expect("the output begins");
    assert_eq!(&header, b"REDIS0010");
    process::signal(&child, libc::SIGTERM);
    let status = process::wait_until_exit(&mut child, SOON).expect("it ends");
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
}

/// Each such key is named. The others are exported and imported.
#[test]
fn what_the_source_cannot_read_is_told() {
    let (kafka, topic) = (kafka::shared(), fresh_topic("unreadable"));
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    client.check("SET good v", "+OK");
    kafka.kcat(&["-P", "-t", &topic, "-K:", "-H", "redis-type=later"], b"odd:x\n");
    eventually("the record is there", SOON, || {
        client.line("GET odd").starts_with(b"-ERR the record of this key")
    });
    let keep = temp::dir("unreadable");
    let path = keep.path().join("dump.rdb").display().to_string();
    let outcome = export(&[&url(node.port), &path]);
    refused(&outcome, &["odd", "cannot read it", "cannot read 1 keys"]);
    let redis = RedisServer::start(&loads(&keep.path().display().to_string(), "dump.rdb"));
    let mut others = redis.client();
    others.check("DBSIZE", ":1");
    others.check("GET good", "$1\r\nv");
    others.check("FLUSHALL", "+OK");
    let outcome = import(&[&url(node.port), "--to", &url(redis.port)]);
    refused(&outcome, &["odd", "cannot read it", "1 of 2 keys"]);
    others.check("DBSIZE", ":1");
    others.check("GET good", "$1\r\nv");
}

#[test]
fn what_cannot_be_exported_is_told() {
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let source = url(node.port);
    refused(&export(&[]), &["redis://HOST:PORT"]);
    refused(&export(&[&source]), &["name a file"]);
    refused(&export(&["dump.rdb", &source]), &["redis://"]);
    refused(&export(&[&source, "/dev/null"]), &["something else than a file"]);
    refused(&export(&[&source, "/nowhere/dump.rdb"]), &["write /nowhere/dump.rdb"]);
    assert!(!Path::new("/nowhere").exists());
    // redis-cli asks a server for such a file.
    let sync = "-ERR SYNC is not supported: there are no replicas; `highwater export redis://HOST:PORT dump.rdb` \
                writes an RDB file";
    node.client().check("SYNC", sync);
    let mut cli = parts::redis_cli();
    cli.args(["-p", &node.port.to_string(), "--rdb", "-"]);
    let outcome = process::try_run(cli, b"", SOON).expect("run redis-cli");
    refused(&outcome, &["highwater export"]);
}

// ---- import with changes ----

/// Changes keys of every type at random, as long as it may.
fn change(port: u16, seed: u64, stop: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = Client::connect(port);
    while !stop.load(Ordering::Acquire) {
        if random.random_ratio(1, 50) {
            client.check(&format!("SELECT {}", [0, 3][random.random_range(0..2)]), "+OK");
        }
        let (n, m, value) = (
            random.random_range(0..100),
            random.random_range(0..100),
            random.random::<u16>(),
        );
        let line = match random.random_range(0..20) {
            0 => format!("SET s{n} {value}"),
            1 => format!("DEL {}{n}", ["s", "h", "l", "t", "z", "x"][random.random_range(0..6)]),
            2 => format!("HSET h{n} f{} {value}", m % 10),
            3 => format!("HDEL h{n} f{}", m % 10),
            4 => format!("RPUSH l{n} {value}"),
            5 => format!("LPOP l{n} 2"),
            6 => format!("SADD t{n} {}", m % 10),
            7 => format!("SREM t{n} {}", m % 10),
            8 => format!("ZADD z{n} {value} m{}", m % 10),
            9 => format!("XADD x{n} * f {value}"),
            10 => format!("PEXPIREAT s{n} {FAR}"),
            11 => format!("PERSIST s{n}"),
            12 => format!("RENAME s{n} s{m}"),
            13 => format!("SET brief{n} v PX 50"),
            14 => format!("DEL k{}", n * 20 + m % 20),
            15 => format!("XGROUP CREATE x{n} g 0"),
            16 => format!("XREADGROUP GROUP g c{} COUNT 2 STREAMS x{n} >", m % 3),
            17 => format!("XAUTOCLAIM x{n} g c{} 0 0 COUNT 1", m % 3),
            18 => match client.tree(&format!("XPENDING x{n} g - + 1")).items() {
                [entry] => format!("XACK x{n} g {}", text(&entry.items()[0])),
                _ => continue,
            },
            _ => format!("COPY h{n} h{m} REPLACE"),
        };
        client.line(&line);
    }
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(reply.bytes().expect("text")).into_owned()
}

/// All that a server shows, but for how many consumers a group has: not every server keeps those
/// that have nothing to confirm.
fn all_but_consumers(port: u16) -> BTreeMap<(u16, Vec<u8>), Vec<String>> {
    const COUNT: &str = "consumers\\r\\n:";
    let mut all = all_shown(&mut Client::connect(port));
    for part in all.values_mut().flatten().filter(|part| part.contains(COUNT)) {
        let mut parts = part.split(COUNT);
        let first = parts.next().unwrap_or_default().to_owned();
        *part = parts.fold(first, |text, part| {
            text + part.trim_start_matches(|c: char| c.is_ascii_digit())
        });
    }
    all
}

/// Imports while clients write to the source, until they have stopped. `meanwhile` runs in between.
fn import_what_changes(from: u16, to: u16, meanwhile: impl FnOnce()) -> Outcome {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut client = Client::connect(from);
    client.check("XADD confirmed 1-1 f v", "$3\r\n1-1");
    client.check("XGROUP CREATE confirmed g 0", "+OK");
    client.line("XREADGROUP GROUP g alice STREAMS confirmed >");
    client.check("SELECT 7", "+OK");
    client.check("SET flushed v", "+OK");
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let _stopping = Stopping(&stop);
        for writer in 0..2 {
            let stop = &stop;
            scope.spawn(move || change(from, seed.wrapping_add(writer), stop));
        }
        let importing = scope.spawn(move || import(&[&url(from), "--to", &url(to), "--follow-changes", "3"]));
        let mut target = Client::connect(to);
        let all = Client::connect(from).tree("DBSIZE").integer().expect("a number") / 2;
        eventually("most keys are copied", SOON, || {
            importing.is_finished() || target.tree("DBSIZE").integer() > Some(all)
        });
        meanwhile();
        // They go on while changes are copied.
        thread::sleep(Duration::from_millis(1500));
        // These have no events.
        client.check("FLUSHDB", "+OK");
        client.check("SELECT 0", "+OK");
        client.check("XACK confirmed g 1-1", ":1");
        stop.store(true, Ordering::Release);
        importing.join().expect("the import is run")
    });
    imported(&outcome);
    assert_eq!(all_but_consumers(to), all_but_consumers(from));
    outcome
}

#[test]
fn what_changes_during_an_import_is_copied_again() {
    let redis = RedisServer::start(&[]);
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut from = redis.client();
    fill(&mut from);
    many_keys(&mut from, 2000);
    from.check(LIBRARY, "$3\r\nlib");
    let (source, target) = (url(redis.port), url(node.port));
    let (source, follow) = (&source[..], ["--follow-changes", "1", "--to", &target]);
    refused(
        &import(&[&follow[..], &[source]].concat()),
        &["CONFIG SET notify-keyspace-events AE"],
    );
    for (other, words) in [
        (&["dump.rdb"][..], "a file does not change"),
        (&[source, "--into-existing"], "--into-existing"),
        (&[source, "--resume", "0:1"], "--resume"),
    ] {
        refused(&import(&[&follow[..], other].concat()), &["--follow-changes", words]);
    }
    refused(
        &import(&[source, "--follow-changes", "0", "--to", &target]),
        &["--follow-changes"],
    );
    from.check("CONFIG SET notify-keyspace-events AE", "+OK");
    // Whose events are lost, that is deleted too.
    let outcome = import_what_changes(redis.port, node.port, || {
        eventually("it listens", SOON, || from.line("PUBSUB NUMPAT") == b":1\r\n");
        let lines = [
            "MULTI",
            "CLIENT KILL TYPE pubsub",
            "DEL k1 k2 k3 k4 string list-small",
            "EXEC",
        ];
        let replies = from.pipeline(&lines);
        assert!(replies[3].starts_with(b"*2\r\n:1\r\n:"), "{replies:?}");
    });
    let told = imported(&outcome);
    assert!(
        told.contains("copied again") && told.contains("deleted again"),
        "{told}"
    );
    let lines = String::from_utf8_lossy(&outcome.stderr);
    assert!(lines.contains("events of the source were lost"), "{lines}");
    assert!(lines.contains("caught up with the source"), "{lines}");
    node.client().check("FCALL f 0", ":1");
}

#[test]
fn what_changes_during_a_way_out_is_copied_again() {
    let redis = RedisServer::start(&[]);
    let node = Highwater::builder()
        .args(&["--fsync", "no", "--notify-keyspace-events", "AE"])
        .args(SMALL)
        .start();
    let mut from = node.client();
    fill(&mut from);
    many_keys(&mut from, 2000);
    import_what_changes(node.port, redis.port, || {});
}

/// More changes while every key is copied than can be noted, were they not copied meanwhile.
#[test]
fn a_busy_source_is_imported() {
    const KEYS: usize = 20_000;
    // Longer names count as much as more keys.
    const LONG: usize = 300;
    let redis = RedisServer::start(&["--notify-keyspace-events", "AE"]);
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let (mut from, mut to) = (redis.client(), node.client());
    from.check("CONFIG SET client-output-buffer-limit \"pubsub 0 0 0\"", "+OK");
    many_keys(&mut from, KEYS);
    let names: Vec<String> = (0..LONG).map(|n| format!("{n}{}", "x".repeat(100_000))).collect();
    let mut round: u64 = 0;
    let outcome = thread::scope(|scope| {
        let importing = scope.spawn(|| import(&[&url(redis.port), "--to", &url(node.port), "--follow-changes", "1"]));
        let mut is_copied = || to.tree("DBSIZE").integer().expect("a number") >= KEYS as i64;
        while round < 20 && !importing.is_finished() && !is_copied() {
            round += 1;
            let value = round.to_string();
            for name in &names {
                from.write(&resp::command(&[b"SET", name.as_bytes(), value.as_bytes()]));
            }
            for _ in &names {
                assert_eq!(from.reply(), b"+OK\r\n");
            }
        }
        importing.join().expect("the import is run")
    });
    imported(&outcome);
    let lines = String::from_utf8_lossy(&outcome.stderr);
    assert!(lines.contains("they are copied first"), "{round} rounds: {lines}");
    assert!(!lines.contains("lost"), "{lines}");
    assert_eq!(to.tree("DBSIZE").integer(), Some((KEYS + LONG) as i64));
    for name in &names {
        assert_eq!(to.text(&format!("GET {name}")), round.to_string());
    }
}

// ---- programs that are replicas of Redis ----

/// What Redis sends to its replicas in other words: the outcome of commands that depend on chance,
/// on time or on what a client waits for, and those of scripts.
const REWRITTEN: &str = r#"
SET number 10
INCRBYFLOAT number 0.5
HSET fields f 1
HINCRBYFLOAT fields f 0.25
SET lasting v EX 100000
SETEX lasting2 100000 v
PSETEX brief 100000000 v
GETEX lasting PERSIST
GETEX lasting2 PX 200000000
EXPIRE lasting 100000
SET lasting newer KEEPTTL GET
GETDEL brief
GETSET number 7
SADD members a b c d
SPOP members
SPOP members 2
SADD last a
SPOP last 5
RPUSH queue a b c d e
LMOVE queue queue2 LEFT RIGHT
BLMOVE queue queue2 LEFT RIGHT 0
BLPOP queue 0
BRPOPLPUSH queue queue2 0
BLMPOP 0 1 queue LEFT
LMPOP 1 queue2 LEFT COUNT 1
SORT queue2 ALPHA DESC STORE sorted
GEOADD places 13.361389 38.115556 Palermo
GEOSEARCHSTORE near places FROMLONLAT 13 38 BYRADIUS 200 km
PFADD counted a b c
PFMERGE merged counted
SETBIT bits 7 1
BITOP NOT bits2 bits
BITFIELD bits INCRBY u8 0 1
ZADD scores 1 a 2 b 3 c 4 d 5 e 6 f
ZADD scores GT CH 5.5 a
ZPOPMIN scores
ZMPOP 1 scores MAX
BZPOPMIN scores 0
BZMPOP 0 1 scores MAX
ZINCRBY scores 1.5 d
ZRANGESTORE stored scores 0 -1
ZUNIONSTORE united 2 scores stored
XADD entries MAXLEN ~ 100 * f v
XGROUP CREATE entries g 0 MKSTREAM
XADD entries * f w
XREADGROUP GROUP g c COUNT 1 STREAMS entries >
XREADGROUP GROUP g c NOACK STREAMS entries >
XGROUP SETID entries g 0
XGROUP CREATECONSUMER entries g d
XGROUP DELCONSUMER entries g d
XTRIM entries MAXLEN 1
XSETID entries 9000000000000-0
EVAL "redis.call('incr', KEYS[1]) redis.call('publish', 'c', 'm') return redis.call('expire', KEYS[1], 100000)" 1 scripted
MSETNX one 1 two 2
COPY one three
MOVE three 5
RENAMENX one four
UNLINK two
PERSIST lasting2
PUBLISH c m
SPUBLISH c m
MULTI
SET together 1
INCR together
EXEC
SELECT 5
SET five v
SWAPDB 5 6
SET gone v
FLUSHDB
SELECT 0
"#;

/// A replica of Redis, as RedisShake is one (`sync_reader`).
struct Replica(BufReader<TcpStream>);

impl Replica {
    /// Puts what Redis has when this comes into a file. What changes then is what comes next.
    fn attach(port: u16, file: &Path) -> Replica {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to redis-server");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut replica = Replica(BufReader::new(stream));
        assert_eq!(replica.ask("REPLCONF listening-port 1"), "+OK");
        assert_eq!(replica.ask("REPLCONF capa psync2"), "+OK");
        let answer = replica.ask("PSYNC ? -1");
        assert!(answer.starts_with("+FULLRESYNC "), "{answer}");
        // Redis sends empty lines while it makes the file.
        let length = loop {
            match replica.line() {
                line if line.is_empty() => {}
                line => break length(&line, '$'),
            }
        };
        fs::write(file, replica.bytes(length)).expect("write a file");
        replica
    }

    fn ask(&mut self, line: &str) -> String {
        let sent = self.0.get_mut().write_all(&resp::command_line(line));
        sent.expect("redis-server takes a request");
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("redis-server sends a line");
        line.trim_end().to_owned()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).expect("redis-server sends bytes");
        bytes
    }

    /// The words of the next command.
    fn command(&mut self) -> Vec<Vec<u8>> {
        let count = length(&self.line(), '*');
        let word = |_| {
            let length = length(&self.line(), '$');
            let mut word = self.bytes(length + 2);
            word.truncate(length);
            word
        };
        (0..count).map(word).collect()
    }

    /// Sends to a server what comes, up to a command about this key. The server takes all of it.
    fn hand_on(&mut self, to: &mut Client, last: &[u8]) {
        let mut under_way = Vec::new();
        let mut is_over = false;
        while !is_over {
            let words = self.command();
            let own = [&b"PING"[..], b"REPLCONF"]
                .iter()
                .any(|own| words[0].eq_ignore_ascii_case(own));
            if own {
                continue;
            }
            to.write(&resp::command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            is_over = words.get(1).is_some_and(|key| key == last);
            under_way.push(words);
            if !is_over && under_way.len() < 500 && !self.0.buffer().is_empty() {
                continue;
            }
            for words in under_way.drain(..) {
                let reply = Reply::parse(&to.reply());
                let failed = reply.is_error() || reply.items().iter().any(Reply::is_error);
                assert!(!failed, "{}: {reply:?}", words.concat().escape_ascii());
            }
        }
    }
}

/// All that a server shows, but for what Redis does not tell its replicas of a group: how many
/// entries it has read.
fn all_but_progress(port: u16) -> BTreeMap<(u16, Vec<u8>), Vec<String>> {
    const READ: &str = "entries-read\\r\\n";
    let is_number = |c: char| c.is_ascii_digit() || ":$-".contains(c);
    let mut all = all_but_consumers(port);
    for part in all.values_mut().flatten().filter(|part| part.contains(READ)) {
        let mut parts = part.split(READ);
        let first = parts.next().unwrap_or_default().to_owned();
        *part = parts.fold(first, |text, part| {
            let (_, lag) = part.split_once("lag\\r\\n").expect("the lag comes next");
            text + lag.trim_start_matches(is_number)
        });
    }
    all
}

fn length(line: &str, kind: char) -> usize {
    let number = line.strip_prefix(kind).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("{line:?} is no {kind} with a number"))
}

/// RedisShake restores what Redis has, and then hands on what Redis sends to its replicas.
#[test]
fn what_redis_sends_to_its_replicas_can_be_handed_on() {
    let redis = RedisServer::start(&["--repl-diskless-sync", "no", "--repl-timeout", "3600"]);
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let (mut from, mut to) = (redis.client(), node.client());
    fill(&mut from);
    from.check("SELECT 3", "+OK");
    many_keys(&mut from, 2000);
    from.check("SELECT 0", "+OK");
    let keep = temp::dir("replica");
    let file = keep.path().join("dump.rdb");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stopping = Stopping(&stop);
        let changing = scope.spawn(|| change(redis.port, seed, &stop));
        let mut replica = Replica::attach(redis.port, &file);
        for line in REWRITTEN.lines().filter(|line| !line.is_empty()) {
            let reply = from.line(line);
            assert!(!reply.starts_with(b"-"), "{line}: {}", reply.escape_ascii());
        }
        from.line(LIBRARY);
        from.check("SELECT 0", "+OK");
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Release);
        changing.join().expect("the changes are made");
        from.check("SET last-of-all v", "+OK");
        imported(&import(&[&file.display().to_string(), "--to", &url(node.port)]));
        replica.hand_on(&mut to, b"last-of-all");
    });
    assert_eq!(all_but_progress(node.port), all_but_progress(redis.port));
    to.check("FCALL f 0", ":1");
}
