//! DUMP and RESTORE of every type, in every form, from and to real servers of Redis; and `highwater
//! import` of files and of running servers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use highwater::rdb;

use tempfile::TempDir;

use crate::split::SMALL;
use crate::support::certificates::Authority;
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::parts;
use crate::support::ports;
use crate::support::process::{self, Outcome};
use crate::support::resp::{self, Reply};
use crate::support::server::{Highwater, RedisServer, binary};
use crate::support::{eventually, temp};

const SOON: Duration = Duration::from_secs(60);

/// One key of each type and form. Settings of Redis that a form needs stand before it.
const KEYS: &str = r#"
SET string text
SET empty ""
SET int8 -100
SET int16 30000
SET int32 2000000000
SET int64 9000000000000000000
SETRANGE compressed 20000 x
SET binary "\x00\xff\x0d\x0a"
SADD intset16 1 2 -3
SADD intset32 1 70000
SADD intset64 1 -5000000000
SADD set-small a bb 3 "" "\x00\xff"
SADD set-large a01 a02 a03 a04 a05 a06 a07 a08 a09 a10 a11 a12 a13 a14 a15 a16 a17 a18 a19 a20
RPUSH list-small a 1 -1 127 128 -4096 40000 -9000000 3000000000 -9000000000000 "" "\x00"
RPUSH list-large a01 a02 a03 a04 a05 a06 a07 a08 a09 a10 a11 a12 a13 a14 a15 a16 a17 a18 a19 a20
HSET hash-small f v 1 2 "" empty name ""
HSET hash-large a 01 b 02 c 03 d 04 e 05 f 06 g 07 h 08 i 09 j 10 k 11 l 12 m 13 n 14 o 15 p 16
ZADD zset-small 1 a 1.5 b -inf c inf d -0.1 e 3e100 f 12345678901 g
ZADD zset-large 01 a 02 b 03 c 04 d 05 e 06 f 07 g 08 h 09 i 10 j 11 k 12 l 13 m 14 n 15 o 16 p
XADD stream 1-1 f v
XADD stream 1-2 f w
XADD stream 5-0 g 1 h 2
XADD stream 9000000000000-0 f x
XDEL stream 1-2
XGROUP CREATE stream group 0 ENTRIESREAD 2
XGROUP CREATE stream other 5-0
XREADGROUP GROUP group alice COUNT 1 STREAMS stream >
XREADGROUP GROUP group bob COUNT 1 STREAMS stream >
XGROUP CREATE empty-stream group $ MKSTREAM
XADD trimmed 1-1 f v
XADD trimmed 2-1 f v
XTRIM trimmed MAXLEN 0
SET expiring v PXAT 33177117420000
"#;

/// Forms by the settings of redis-server. Collections are small or large ones by them.
const SETTINGS: &[&[&str]] = &[
    &[],
    &[
        "--hash-max-listpack-entries",
        "4",
        "--zset-max-listpack-entries",
        "7",
        "--set-max-intset-entries",
        "1",
        "--list-max-listpack-size",
        "4",
        "--list-compress-depth",
        "1",
        "--stream-node-max-entries",
        "2",
    ],
];

pub fn fill(client: &mut Client) {
    for line in KEYS.lines().filter(|line| !line.is_empty()) {
        let reply = client.line(line);
        assert!(!reply.starts_with(b"-"), "{line}: {}", reply.escape_ascii());
    }
    let long = "long ".repeat(2000);
    for line in [
        format!("RPUSH list-large \"{long}\""),
        format!("HSET hash-large z \"{long}\""),
    ] {
        client.line(&line);
    }
    let fields: String = (0..300).map(|n| format!(" f{n} {}", n * n)).collect();
    client.line(&format!("HSET hash-300{fields}"));
    for n in 1..300 {
        client.line(&format!("XADD stream-300 {n}-1 field {} same same{n}", n * 1000));
    }
}

pub fn keys(client: &mut Client) -> Vec<Vec<u8>> {
    let keys = client.tree("KEYS *");
    let mut keys: Vec<Vec<u8>> = keys
        .items()
        .iter()
        .map(|key| key.bytes().expect("a key").to_vec())
        .collect();
    keys.sort();
    keys
}

/// All that a client can see of a key, in an order that is the same on every server.
pub fn shown(client: &mut Client, key: &[u8]) -> Vec<String> {
    let of = client.send(&[b"TYPE", key]);
    let commands: &[&[&[u8]]] = match &of[..] {
        b"+string\r\n" => &[&[b"GET", key]],
        b"+list\r\n" => &[&[b"LRANGE", key, b"0", b"-1"]],
        b"+set\r\n" => &[&[b"SMEMBERS", key]],
        b"+zset\r\n" => &[&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"]],
        b"+hash\r\n" => &[&[b"HGETALL", key]],
        b"+stream\r\n" => &[&[b"XRANGE", key, b"-", b"+"], &[b"XINFO", b"GROUPS", key]],
        other => panic!("{}: {}", key.escape_ascii(), other.escape_ascii()),
    };
    let mut shown = vec![of, client.send(&[b"PEXPIRETIME", key])];
    for command in commands {
        let reply = client.send(command);
        shown.push(match command[0] {
            b"HGETALL" => sorted(&Reply::parse(&reply), 2),
            // Versions of Redis show the same number in other ways.
            b"ZRANGE" => scores(&Reply::parse(&reply)),
            b"SMEMBERS" => sorted(&Reply::parse(&reply), 1),
            _ => reply,
        });
    }
    if shown[0] == b"+stream\r\n" {
        let info = Reply::parse(&client.send(&[b"XINFO", b"STREAM", key]));
        for (name, value) in info
            .items()
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[name, value]| (name, value))
        {
            // Of the others, some are about Redis's memory.
            if matches!(
                name.bytes(),
                Some(b"length" | b"last-generated-id" | b"max-deleted-entry-id" | b"entries-added")
            ) {
                shown.push(format!("{name:?} {value:?}").into_bytes());
            }
        }
        let groups = Reply::parse(&client.send(&[b"XINFO", b"GROUPS", key]));
        for group in groups.items() {
            let name = group.items()[1].bytes().expect("a name").to_vec();
            let pending = Reply::parse(&client.send(&[b"XPENDING", key, &name, b"-", b"+", b"100"]));
            for entry in pending.items() {
                // Without how long it is idle.
                let [id, consumer, _, count] = entry.items() else {
                    panic!("{entry:?}");
                };
                shown.push(format!("{id:?} {consumer:?} {count:?}").into_bytes());
            }
        }
    }
    shown.iter().map(|part| part.escape_ascii().to_string()).collect()
}

/// Elements of so many parts, in the order of the first.
pub fn sorted(reply: &Reply, parts: usize) -> Vec<u8> {
    let elements = reply.items().chunks(parts);
    let mut elements: Vec<String> = elements.map(|element| format!("{element:?}")).collect();
    elements.sort();
    elements.join(" ").into_bytes()
}

/// Members and scores.
pub fn scores(reply: &Reply) -> Vec<u8> {
    let (pairs, _) = reply.items().as_chunks::<2>();
    let show = |[member, score]: &[Reply; 2]| {
        let score = score
            .bytes()
            .and_then(|score| str::from_utf8(score).ok()?.parse::<f64>().ok());
        format!("{member:?} {score:?}")
    };
    pairs.iter().map(show).collect::<Vec<_>>().join(" ").into_bytes()
}

#[track_caller]
fn dump(client: &mut Client, key: &[u8]) -> Vec<u8> {
    let reply = Reply::parse(&client.send(&[b"DUMP", key]));
    reply
        .bytes()
        .unwrap_or_else(|| panic!("{}: {reply:?}", key.escape_ascii()))
        .to_vec()
}

#[track_caller]
fn restore(client: &mut Client, key: &[u8], expire_at: &[u8], payload: &[u8]) {
    let reply = client.send(&[b"RESTORE", key, expire_at, payload, b"REPLACE", b"ABSTTL"]);
    assert_eq!(reply, b"+OK\r\n", "{}: {}", key.escape_ascii(), reply.escape_ascii());
}

/// When a key expires, as RESTORE takes it.
fn expiry(client: &mut Client, key: &[u8]) -> Vec<u8> {
    match Reply::parse(&client.send(&[b"PEXPIRETIME", key])).integer() {
        Some(at @ 1..) => at.to_string().into_bytes(),
        _ => b"0".to_vec(),
    }
}

/// Every key of `from` comes to `through` and back again to `to`, and is the same everywhere.
fn both_ways(from: &mut Client, through: &mut Client, to: &mut Client) {
    let keys = keys(from);
    assert!(keys.len() >= 20, "{keys:?}");
    for key in keys {
        let expected = shown(from, &key);
        let at = expiry(from, &key);
        restore(through, &key, &at, &dump(from, &key));
        assert_eq!(shown(through, &key), expected, "{}", key.escape_ascii());
        restore(to, &key, &at, &dump(through, &key));
        assert_eq!(shown(to, &key), expected, "back: {}", key.escape_ascii());
        // What was restored can be changed.
        if expected[0].starts_with("+stream") {
            let reply = through.send(&[b"XADD", &key, b"*", b"f", b"v"]);
            assert!(reply.starts_with(b"$"), "{}", reply.escape_ascii());
        }
    }
}

#[test]
fn values_go_to_redis_and_back() {
    for (place, settings) in SETTINGS.iter().enumerate() {
        let (redis, back) = (RedisServer::start(settings), RedisServer::start(&[]));
        let node = Highwater::builder()
            .args(&["--fsync", "no"])
            .args(&SMALL[..2 * place])
            .start();
        let mut from = redis.client();
        fill(&mut from);
        both_ways(&mut from, &mut node.client(), &mut back.client());
    }
}

#[test]
fn values_go_to_redis_8_and_back() {
    let settings: Vec<&str> = [SETTINGS[1], &["--set-max-listpack-entries", "8"]].concat();
    for (place, settings) in [&[][..], &settings].into_iter().enumerate() {
        let (redis, back) = (RedisServer::start_8(settings), RedisServer::start_8(&[]));
        let node = Highwater::builder()
            .args(&["--fsync", "no"])
            .args(&SMALL[..2 * place])
            .start();
        let (mut from, mut through, mut to) = (redis.client(), node.client(), back.client());
        fill(&mut from);
        for key in ["hash-small", "hash-large"] {
            from.check(&format!("HSET expiring-{key} f v g w h x"), ":3");
            let times = "33177117420000 FIELDS 2 f g";
            from.check(&format!("HPEXPIREAT expiring-{key} {times}"), "*2\r\n:1\r\n:1");
        }
        let fields: String = (0..600).map(|n| format!(" f{n} v{n}")).collect();
        from.line(&format!("HSET expiring-hash-large{fields}"));
        both_ways(&mut from, &mut through, &mut to);
        for client in [&mut from, &mut through, &mut to] {
            for key in ["hash-small", "hash-large"] {
                let times = "*3\r\n:33177117420000\r\n:33177117420000\r\n:-1";
                client.check(&format!("HPEXPIRETIME expiring-{key} FIELDS 3 f g h"), times);
            }
        }
    }
}

#[test]
fn values_are_restored_into_a_topic() {
    let kafka = kafka::shared();
    let topic = fresh_topic("restored");
    let nodes = [0, 1].map(|_| Highwater::builder().kafka(kafka, &topic).args(SMALL).start());
    let redis = RedisServer::start(&[]);
    let mut from = redis.client();
    fill(&mut from);
    let [mut one, mut other] = [nodes[0].client(), nodes[1].client()];
    for key in keys(&mut from) {
        let at = expiry(&mut from, &key);
        restore(&mut one, &key, &at, &dump(&mut from, &key));
    }
    for key in keys(&mut from) {
        eventually("the other node has the key", SOON, || {
            other.send(&[b"EXISTS", &key]) == b":1\r\n"
        });
        assert_eq!(
            shown(&mut other, &key),
            shown(&mut from, &key),
            "{}",
            key.escape_ascii()
        );
    }
}

/// Payloads with which people and fuzzers have brought down redis-server: its own suite has them.
#[test]
fn corrupted_payloads_are_refused_and_harm_nobody() {
    let suite = parts::redis_8_source().join("tests/integration/corrupt-dump.tcl");
    let text = fs::read_to_string(suite).expect("read the suite");
    let payloads = text
        .split('"')
        .filter(|part| part.starts_with("\\x") || part.starts_with("\\0"));
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut client = node.client();
    let (mut tried, mut refused) = (0, 0);
    for payload in payloads.map(resp::unescape).filter(|payload| payload.len() > 10) {
        // Redis was told not to look at the checksum of some of them.
        let (content, trailer) = payload.split_at(payload.len() - 10);
        let version = u16::from_le_bytes([trailer[0], trailer[1]]);
        let payload = rdb::finish(bytes::BytesMut::from(content), version.min(12));
        let reply = client.send(&[b"RESTORE", b"key", b"0", &payload, b"REPLACE"]);
        tried += 1;
        match reply.starts_with(b"-ERR Bad data format") || reply.starts_with(b"-ERR the payload holds") {
            true => refused += 1,
            false => {
                assert_eq!(reply, b"+OK\r\n", "{}", payload.escape_ascii());
                shown(&mut client, b"key");
            }
        }
    }
    println!("{refused} of {tried} are refused");
    assert!(tried > 40 && refused > tried / 2, "{refused} of {tried} are refused");
    client.check("PING", "+PONG");
}

// ---- import ----

pub fn import(args: &[&str]) -> Outcome {
    let mut command = Command::new(binary());
    command.arg("import").args(args).env("NO_COLOR", "1");
    process::try_run(command, b"", SOON).expect("highwater can be started")
}

pub fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

#[track_caller]
pub fn imported(outcome: &Outcome) -> String {
    assert!(outcome.success(), "{}", outcome.text());
    let told = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(told.starts_with("imported "), "{}", outcome.text());
    told
}

#[track_caller]
pub fn refused(outcome: &Outcome, words: &[&str]) {
    let text = outcome.text();
    assert!(!outcome.success(), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

/// All that a server shows, by database and key.
pub fn all_shown(client: &mut Client) -> BTreeMap<(u16, Vec<u8>), Vec<String>> {
    let mut all = BTreeMap::new();
    for database in 0..16 {
        client.check(&format!("SELECT {database}"), "+OK");
        for key in keys(client) {
            let shown = shown(client, &key);
            all.insert((database, key), shown);
        }
    }
    all
}

/// The RDB files of Redis's own test suite.
fn assets() -> Vec<PathBuf> {
    let files = fs::read_dir(parts::redis_8_source().join("tests/assets")).expect("the suite has assets");
    let paths = files.map(|file| file.expect("a file").path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "rdb"))
        .collect();
    files.sort();
    files
}

/// A redis-server that has loaded a file.
fn loaded(path: &Path, keep: &TempDir) -> RedisServer {
    fs::copy(path, keep.path().join("asset.rdb")).expect("copy a file");
    let dir = keep.path().display().to_string();
    RedisServer::start_8(&["--dir", &dir, "--dbfilename", "asset.rdb"])
}

#[test]
fn files_of_old_servers_are_imported() {
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut client = node.client();
    let mut seen = 0;
    for path in assets() {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        // redis-server ends when it looks at this one.
        if name == "corrupt_ziplist.rdb" {
            continue;
        }
        println!("{name}");
        let keep = temp::dir("asset");
        let redis = loaded(&path, &keep);
        imported(&import(&[&path.display().to_string(), "--to", &url(node.port)]));
        assert_eq!(all_shown(&mut client), all_shown(&mut redis.client()), "{name}");
        client.check("FLUSHALL", "+OK");
        client.check("FUNCTION FLUSH", "+OK");
        seen += 1;
    }
    assert!(seen >= 6, "{seen} files");
}

/// The place in a file after so many keys, as `--resume` takes it.
fn place_after(bytes: &[u8], keys: usize) -> String {
    let (string, memory) = (1 << 20, 1 << 30);
    let mut file = rdb::File::open(bytes, rdb::Limits { string, memory }).expect("it has a header");
    let mut passed = 0;
    while passed < keys {
        if let Some(rdb::Found::Key { .. }) = file.next_found().expect("it can be read") {
            passed += 1;
        }
    }
    format!("{}:{}", file.database(), file.position())
}

#[test]
fn a_file_is_imported_also_from_a_place_on() {
    let keep = temp::dir("saved");
    let dir = keep.path().display().to_string();
    let redis = RedisServer::start(&["--dir", &dir, "--dbfilename", "saved.rdb"]);
    let mut from = redis.client();
    fill(&mut from);
    from.check("SELECT 3", "+OK");
    from.check("SET elsewhere v", "+OK");
    from.check("SET gone v PX 1", "+OK");
    from.check(
        "FUNCTION LOAD \"#!lua name=lib\\nredis.register_function('f', function() return 1 end)\"",
        "$3\r\nlib",
    );
    from.check("SAVE", "+OK");
    let path = keep.path().join("saved.rdb").display().to_string();
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut to = node.client();
    let told = imported(&import(&[&path, "--to", &url(node.port)]));
    assert!(
        told.contains("1 libraries") && told.contains("values compared"),
        "{told}"
    );
    assert_eq!(all_shown(&mut to), all_shown(&mut from));
    to.check("FCALL f 0", ":1");
    // What is there is not overwritten unasked.
    refused(&import(&[&path, "--to", &url(node.port)]), &["--into-existing"]);
    imported(&import(&[&path, "--to", &url(node.port), "--into-existing"]));
    let bytes = fs::read(&path).expect("read the file");
    to.check("FLUSHALL", "+OK");
    let place = place_after(&bytes, 10);
    imported(&import(&[&path, "--to", &url(node.port), "--resume", &place]));
    let (all, rest) = (all_shown(&mut from), all_shown(&mut to));
    assert_eq!(rest.len(), all.len() - 10, "after {place}");
    assert!(rest.iter().all(|(key, shown)| all.get(key) == Some(shown)), "{rest:?}");
    // A damaged file is noticed, and a file that ends too early.
    let damaged = keep.path().join("damaged.rdb").display().to_string();
    let mut changed = bytes.clone();
    let at = changed.windows(4).position(|bytes| bytes == b"text").expect("a value");
    changed[at] = b'T';
    fs::write(&damaged, &changed).expect("write a file");
    refused(
        &import(&[&damaged, "--to", &url(node.port), "--into-existing"]),
        &["checksum"],
    );
    fs::write(&damaged, &bytes[..bytes.len() / 2]).expect("write a file");
    refused(
        &import(&[&damaged, "--to", &url(node.port), "--into-existing"]),
        &["database"],
    );
    fs::write(&damaged, b"REDIS0011 and more").expect("write a file");
    refused(
        &import(&[&damaged, "--to", &url(node.port), "--into-existing"]),
        &["read"],
    );
    fs::write(&damaged, b"something else").expect("write a file");
    refused(
        &import(&[&damaged, "--to", &url(node.port), "--into-existing"]),
        &["no RDB file"],
    );
}

#[test]
fn a_running_redis_is_imported() {
    let redis = RedisServer::start(&["--requirepass", "secret"]);
    let mut from = redis.client();
    from.check("AUTH secret", "+OK");
    fill(&mut from);
    from.check("SELECT 3", "+OK");
    for n in 0..3000 {
        from.write(format!("SET k{n} v{n}\r\n").as_bytes());
    }
    for _ in 0..3000 {
        assert_eq!(from.reply(), b"+OK\r\n");
    }
    from.check(
        "FUNCTION LOAD \"#!lua name=lib\\nredis.register_function('f', function() return 1 end)\"",
        "$3\r\nlib",
    );
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut to = node.client();
    let source = format!("redis://:secret@127.0.0.1:{}", redis.port);
    refused(&import(&[&url(redis.port), "--to", &url(node.port)]), &["NOAUTH"]);
    let told = imported(&import(&[&source, "--to", &url(node.port)]));
    assert!(
        told.contains("1 libraries") && told.contains("values compared"),
        "{told}"
    );
    assert_eq!(all_shown(&mut to), all_shown(&mut from));
    to.check("FCALL f 0", ":1");
    // One database, from a place on: a cursor of SCAN.
    to.check("FLUSHALL", "+OK");
    let only = format!("{source}/3");
    imported(&import(&[&only, "--to", &url(node.port)]));
    to.check("SELECT 0", "+OK");
    to.check("DBSIZE", ":0");
    to.check("SELECT 3", "+OK");
    to.check("DBSIZE", ":3000");
    to.check("FLUSHALL", "+OK");
    from.check("SELECT 3", "+OK");
    let page = from.tree("SCAN 0 COUNT 1000");
    let cursor = String::from_utf8_lossy(page.items()[0].bytes().expect("a cursor")).into_owned();
    let left = 3000 - page.items()[1].items().len();
    let place = format!("3:{cursor}");
    // What comes before that place is missing at this target: the comparison finds that.
    let outcome = import(&[&source, "--to", &url(node.port), "--resume", &place]);
    refused(&outcome, &["hold something else at the target"]);
    let copied = to.tree("DBSIZE").integer().expect("a number") as usize;
    assert!((left..3000).contains(&copied), "{copied} of {left} that were left");
}

/// Over TLS, from a server that has no PEXPIRETIME, as those before Redis 7.0.
#[test]
fn a_redis_is_imported_over_tls() {
    let (authority, port) = (Authority::new("import"), ports::free());
    let pair = authority.issue("server");
    let own = authority.issue("client");
    let [certificate, key, trusted, own_certificate, own_key] = [
        &pair.certificate,
        &pair.key,
        &authority.file(),
        &own.certificate,
        &own.key,
    ]
    .map(|file| file.display().to_string());
    let mut args = vec![
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &trusted,
    ];
    let tls_port = port.to_string();
    args.extend([
        "--tls-auth-clients",
        "yes",
        "--tls-port",
        &tls_port,
        "--rename-command",
        "PEXPIRETIME",
        "",
    ]);
    let redis = RedisServer::start(&args);
    let mut from = redis.client();
    from.check("SET brief v PX 100000", "+OK");
    from.check("SET lasting v", "+OK");
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut to = node.client();
    let (source, target) = (format!("rediss://127.0.0.1:{port}"), url(node.port));
    let of_authority = ["--cacert", &trusted];
    let of_client = ["--cert", &own_certificate, "--key", &own_key];
    refused(
        &import(&[&source, "--to", &target]),
        &["reach 127.0.0.1", "certificate verify failed"],
    );
    let arguments = |more: &[&[&str]]| {
        let both = [&source[..], "--to", &target];
        import(&[&both[..], &of_authority, &more.concat()].concat())
    };
    refused(&arguments(&[]), &["127.0.0.1"]);
    refused(&arguments(&[&["--cert", &own_certificate]]), &["--key"]);
    refused(
        &arguments(&[&["--cert", &own_certificate, "--key", &key]]),
        &["mismatch"],
    );
    imported(&arguments(&[&of_client]));
    to.check("PTTL lasting", ":-1");
    let asked = to.tree("PTTL brief").integer().expect("a number");
    let left = from.tree("PTTL brief").integer().expect("a number");
    assert!((left..left + 20_000).contains(&asked), "{asked} {left}");
    let unchecked = [&source[..], "--to", &target, "--insecure", "--into-existing"];
    imported(&import(&[&unchecked[..], &of_client].concat()));
}

#[test]
fn what_the_target_refuses_is_told() {
    let redis = RedisServer::start(&[]);
    let mut from = redis.client();
    from.check("SETRANGE large 17000000 x", ":17000001");
    from.check("SET small v", "+OK");
    let kafka = kafka::shared();
    let node = Highwater::on_kafka(kafka, &fresh_topic("import-refused"));
    let outcome = import(&[&url(redis.port), "--to", &url(node.port)]);
    refused(&outcome, &["1 of 2 keys were refused", "large"]);
    node.client().check("GET small", "$1\r\nv");
    // It does not matter once it is deleted.
    from.check("CONFIG SET notify-keyspace-events AE", "+OK");
    let node = Highwater::on_kafka(kafka, &fresh_topic("import-refused-once"));
    let mut client = node.client();
    thread::scope(|scope| {
        let importing = scope.spawn(|| import(&[&url(redis.port), "--to", &url(node.port), "--follow-changes", "3"]));
        eventually("it is refused", SOON, || {
            client.text("INFO errorstats").contains("errorstat_ERR")
        });
        from.check("DEL large", ":1");
        let outcome = importing.join().expect("the import is run");
        imported(&outcome);
        let lines = String::from_utf8_lossy(&outcome.stderr);
        assert!(lines.contains("large"), "{lines}");
    });
    client.check("GET small", "$1\r\nv");
}
