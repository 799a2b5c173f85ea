//! What a server tells of itself: counters, slow commands, connections. Compared with redis-server where that tells the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::support::client::Client;
use crate::support::resp::{self, Reply};
use crate::support::server::{Highwater, RedisServer};
use crate::support::{kafka, parts, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// Keys that a command found and did not find, by INFO.
fn lookups(client: &mut Client) -> [i64; 2] {
    let text = client.text("INFO stats");
    ["keyspace_hits:", "keyspace_misses:"].map(|field| {
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        value.and_then(|value| value.parse().ok()).expect("INFO has it")
    })
}

/// The commands, a transaction being several in one line, with what each adds to hits and misses.
fn counted(client: &mut Client, lines: &[&str]) -> Vec<String> {
    for line in ["SET k v", "SET k2 v", "SET c 1", "SET e v PX 1"] {
        client.check(line, "+OK");
    }
    std::thread::sleep(Duration::from_millis(20));
    let count = |line: &&str| {
        let before = lookups(client);
        let commands: Vec<&str> = line.split(" | ").collect();
        client.pipeline(&commands);
        let after = lookups(client);
        format!("{line}: {} hits, {} misses", after[0] - before[0], after[1] - before[1])
    };
    lines.iter().map(count).collect()
}

#[test]
fn keyspace_hits_and_misses_are_those_of_redis() {
    let lines: Vec<&str> = include_str!("observing/lookups.txt").lines().collect();
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let expected = counted(&mut redis.client(), &lines);
    assert_eq!(counted(&mut node.client(), &lines), expected);
}

/// The fields of an INFO line such as `cmdstat_get:calls=1,usec=2`.
fn fields(client: &mut Client, section: &str, line: &str) -> BTreeMap<String, f64> {
    let text = client.text(&format!("INFO {section}"));
    let line = text
        .lines()
        .find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
    let pairs = line.into_iter().flat_map(|line| line.split(','));
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').expect("NAME=VALUE");
        (name.to_owned(), value.parse().expect("a number"))
    };
    pairs.map(pair).collect()
}

/// An INCR is computed in microseconds and waits for the log: both are told, each where it belongs.
fn the_wait_for_the_log_is_seen(node: &Highwater) {
    let mut client = node.client();
    for setting in ["slowlog-log-slower-than 0", "latency-monitor-threshold 1"] {
        client.check(&format!("CONFIG SET {setting}"), "+OK");
    }
    client.check("CONFIG RESETSTAT", "+OK");
    client.check("SLOWLOG RESET", "+OK");
    let began = Instant::now();
    client.check("INCR counter", ":1");
    client.pipeline(&["MULTI", "INCR counter", "EXEC"]);
    let most = began.elapsed().as_micros() as f64;
    let (computed, waited) = (
        fields(&mut client, "commandstats", "cmdstat_incr"),
        fields(&mut client, "commandstats", "cmdwait_incr"),
    );
    assert_eq!((computed["calls"], waited["calls"]), (2.0, 2.0));
    assert!(
        computed["usec"] < waited["usec"] && waited["usec"] <= most,
        "{computed:?} {waited:?}"
    );
    let exec = fields(&mut client, "commandstats", "cmdwait_exec");
    assert!(exec["usec"] > fields(&mut client, "commandstats", "cmdstat_exec")["usec"]);
    // The slow log is told from the newest entry on; EXEC stands for its commands where it waited.
    let entries = client.tree("SLOWLOG GET -1");
    let slow = |name: &str| {
        let of_name = |entry: &&Reply| entry.items()[3].items()[0].bytes() == Some(name.as_bytes());
        let times = entries.items().iter().filter(of_name);
        times.filter_map(|entry| entry.items()[2].integer()).max()
    };
    assert!(
        slow("INCR").is_some_and(|time| time as f64 > computed["usec"]),
        "{entries:?}"
    );
    assert!(slow("EXEC").is_some(), "{entries:?}");
    let percentiles = fields(&mut client, "latencystats", "latency_percentiles_usec_incr");
    assert_eq!(percentiles.keys().collect::<Vec<_>>(), ["p50", "p99", "p99.9"]);
    assert!(percentiles["p99.9"] > computed["usec"] && percentiles["p99.9"] < most * 1.05);
    let histogram = client.tree("LATENCY HISTOGRAM incr");
    let of_incr = histogram.items()[1].items();
    assert_eq!(of_incr[1].integer(), Some(2));
    assert_eq!(
        of_incr[3].items().last().and_then(Reply::integer),
        Some(2),
        "{histogram:?}"
    );
}

#[test]
fn the_wait_for_the_embedded_log_is_seen() {
    the_wait_for_the_log_is_seen(&Highwater::embedded());
}

#[test]
fn the_wait_for_kafka_is_seen() {
    let node = Highwater::on_kafka(kafka::shared(), &kafka::fresh_topic("seen"));
    the_wait_for_the_log_is_seen(&node);
    // A Kafka transaction takes longer than a millisecond. Nothing more is noted.
    let mut client = node.client();
    client.check("CONFIG SET latency-monitor-threshold 0", "+OK");
    let events = client.tree("LATENCY LATEST");
    let [event, ..] = events.items() else {
        panic!("LATENCY saw nothing");
    };
    let name = String::from_utf8_lossy(event.items()[0].bytes().expect("a name")).into_owned();
    let history = client.tree(&format!("LATENCY HISTORY {name}"));
    let numbers = |entry: &Reply| [0, 1].map(|at| entry.items()[at].integer().expect("a number"));
    let samples: Vec<[i64; 2]> = history.items().iter().map(numbers).collect();
    let times = || samples.iter().map(|[_, time]| *time);
    let (most, least) = (times().max().expect("a sample"), times().min().expect("a sample"));
    let seconds = UNIX_EPOCH.elapsed().expect("after 1970").as_secs() as i64;
    assert!(
        samples.iter().all(|[at, _]| (seconds - 600..=seconds).contains(at)),
        "{samples:?}"
    );
    assert!(
        least >= 1 && event.items()[3].integer() >= Some(most),
        "{samples:?} {event:?}"
    );
    let graph = client.text(&format!("LATENCY GRAPH {name}"));
    let first = format!("{name} - high {most} ms, low {least} ms (all time high ");
    assert!(graph.starts_with(&first), "{graph}, not {first}");
    client.check(&format!("LATENCY RESET {name}"), ":1");
    client.check(&format!("LATENCY HISTORY {name}"), "*0");
}

/// Fields of another connection as CLIENT LIST shows them.
fn shown(client: &mut Client, id: i64) -> [String; 2] {
    let line = client.text(&format!("CLIENT LIST ID {id}"));
    ["flags=", "cmd="].map(|field| {
        let value = line.split(' ').find_map(|word| word.strip_prefix(field));
        value.expect("CLIENT LIST has it").to_owned()
    })
}

/// What the line of another connection looks like after each of these.
fn connections(port: u16) -> Vec<String> {
    let (mut one, mut other) = (Client::connect(port), Client::connect(port));
    let id = Reply::parse(&other.line("CLIENT ID")).integer().expect("an id");
    let mut seen = Vec::new();
    one.line("SET k v");
    for line in [
        "PING",
        "GET",
        "NOSUCH",
        "PING",
        "CLIENT",
        "CLIENT NOSUCH",
        "CLIENT KILL",
        "WATCH k",
        "WATCH k2",
        "1> SET k w",
        "MULTI",
        "GET",
        "DISCARD",
        "WATCH k",
        "1> SET k x",
        "UNWATCH",
        "WATCH k",
        "1> SET k y",
        "RESET",
        "CLIENT NO-EVICT ON",
        "AUTH a b",
    ] {
        match line.strip_prefix("1> ") {
            Some(line) => one.line(line),
            None => other.line(line),
        };
        seen.push(format!("{line}: {:?}", shown(&mut one, id)));
    }
    // Held by a pause, and by WAIT.
    other.line("CLIENT NO-EVICT OFF");
    one.line("CLIENT PAUSE 60000 WRITE");
    other.write(&resp::command_line("SET k z"));
    let blocked = |one: &mut Client| one.info("blocked_clients").is_some_and(|count| count == "1");
    wait_for("the writer is held", SOON, || blocked(&mut one).then_some(()));
    seen.push(format!("paused: {:?}", shown(&mut one, id)));
    one.line("CLIENT UNPAUSE");
    other.reply();
    seen.push(format!("unpaused: {:?}", shown(&mut one, id)));
    other.write(&resp::command_line("WAIT 5 200"));
    wait_for("WAIT waits", SOON, || blocked(&mut one).then_some(()));
    seen.push(format!("waiting: {:?}", shown(&mut one, id)));
    other.reply();
    seen.push(format!("nobody waits: {:?}", shown(&mut one, id)));
    seen
}

#[test]
fn client_list_shows_connections_as_redis_does() {
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    assert_eq!(connections(node.port), connections(redis.port));
}

/// Of each command: how often it was called, refused and answered with an error.
#[test]
fn commandstats_count_what_redis_counts() {
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let counted = |client: &mut Client| {
        client.check("CONFIG RESETSTAT", "+OK");
        for line in [
            "CLIENT",
            "CLIENT NOSUCH",
            "CLIENT KILL",
            "CONFIG",
            "OBJECT",
            "ACL",
            "GET",
            "GET a",
            "SET a",
            "SET a b",
            "INCR a",
            "NOSUCH",
            "DEBUG SLEEP 0",
            "COMMAND",
            "COMMAND NOSUCH",
            "CLIENT REPLY",
            "OBJECT FREQ a",
        ] {
            client.line(line);
        }
        client.pipeline(&[
            "MULTI", "GET a", "INCR a", "CLIENT", "EXEC", "MULTI", "GET a", "INCR a", "EXEC",
        ]);
        let text = client.text("INFO commandstats");
        let stat = |line: &str| {
            let (name, counts) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let counts: Vec<&str> = counts.split(',').filter(|count| !count.starts_with("usec")).collect();
            Some(format!("{name} {counts:?}"))
        };
        let mut stats: Vec<String> = text.lines().filter_map(stat).collect();
        stats.sort();
        stats
    };
    assert_eq!(counted(&mut node.client()), counted(&mut redis.client()));
}

/// A map reply as one.
fn map(reply: &Reply) -> BTreeMap<String, Reply> {
    let pairs = reply.items().chunks(2);
    let text = |reply: &Reply| String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned();
    pairs.map(|pair| (text(&pair[0]), pair[1].clone())).collect()
}

/// What a test can compare of COMMAND DOCS: words for people are our own.
fn facts(docs: &BTreeMap<String, Reply>) -> Vec<(String, Option<Reply>)> {
    let versions = docs.get("history").map(|history| {
        let versions = history.items().iter().map(|change| change.items()[0].clone());
        Reply::Aggregate {
            kind: b'*',
            items: versions.collect(),
        }
    });
    let same = ["since", "group", "doc_flags", "deprecated_since", "arguments"];
    let of_name = |name: &str| (name.to_owned(), docs.get(name).cloned());
    let mut facts: Vec<_> = same.into_iter().map(of_name).collect();
    facts.push(("versions of history".to_owned(), versions));
    facts
}

/// Of these commands Redis 7.2, or from XADD on Redis 8.2 or 8.4, tells something else than 7.0.
const NEWER: &[&str] = &[
    "client|pause",
    "xinfo|consumers",
    "zrank",
    "zrevrank",
    "xadd",
    "xtrim",
    "bitop",
    "set",
];

#[test]
fn command_docs_tells_what_redis_tells() {
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let all = |mut client: Client| {
        client.line("HELLO 3");
        let mut docs = map(&client.tree("COMMAND DOCS"));
        let of_subcommands: Vec<_> = docs
            .values()
            .filter_map(|docs| map(docs).remove("subcommands"))
            .collect();
        docs.extend(of_subcommands.iter().flat_map(map));
        docs
    };
    let (expected, told) = (all(redis.client()), all(node.client()));
    assert!(told.len() > 140, "{}", told.len());
    let differences: Vec<String> = told
        .iter()
        // Redis 7.2 has corrected since when the first is there, and newer ones have more of the
        // others.
        .filter(|(name, _)| !NEWER.contains(&name.as_str()))
        .filter_map(|(name, docs)| Some((name, facts(&map(docs)), facts(&map(expected.get(name)?)))))
        .flat_map(|(name, told, expected)| {
            let differ = told
                .into_iter()
                .zip(expected)
                .filter(|(told, expected)| told != expected);
            differ.map(move |(told, expected)| format!("{name}: {told:?}\n    redis {expected:?}"))
        })
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Also of a write that is under way when it is asked.
#[test]
fn debug_object_tells_of_the_record() {
    let node = Highwater::builder().args(&["--enable-debug-command", "yes"]).start();
    let mut client = node.client();
    let replies = client.pipeline(&[
        "RPUSH l a b c",
        "SET k some-text",
        "DEBUG OBJECT k",
        "HIGHWATER WHERE k",
    ]);
    let record = map(&Reply::parse(&replies[3]));
    let offset = record["offset"].integer().expect("a number");
    let told = resp::show(&replies[2]);
    let expected = format!("+Value at:{offset:#x} refcount:1 encoding:embstr serializedlength:10 lru:");
    assert!(offset > 0 && told.starts_with(&expected), "{told}, not {expected}");
    let idle = told
        .rsplit_once(" lru_seconds_idle:")
        .map(|(_, idle)| idle.trim_end_matches("\\r\\n"));
    assert!(
        idle.is_some_and(|idle| idle.parse().is_ok_and(|idle: u32| idle < 60)),
        "{told}"
    );
    client.check("DEBUG OBJECT nokey", "-ERR no such key");
    client.check("MULTI", "+OK");
    client.check("DEBUG OBJECT k", "-ERR Command not allowed inside a transaction");
}

/// The facts of COMMAND, by name, also those of subcommands.
fn infos(reply: &Reply, into: &mut BTreeMap<String, Vec<Reply>>) {
    for command in reply.items() {
        let (subcommands, facts) = command.items().split_last().expect("ten facts");
        let name = String::from_utf8_lossy(facts[0].bytes().unwrap_or_default()).into_owned();
        into.insert(name, facts.iter().cloned().map(Reply::unordered).collect());
        infos(subcommands, into);
    }
}

/// Of these commands something else is told than Redis 7.0 tells.
const OTHER_FACTS: &[&str] = &[
    // As Redis 7.2: scripts may call them, or what is read is in the category.
    "blmove",
    "blpop",
    "brpop",
    "brpoplpush",
    "bzpopmax",
    "bzpopmin",
    "evalsha_ro",
    "wait",
    "zrank",
    "zrevrank",
    // The key specifications have no notes, or notes in words of our own; of two more as above.
    "bitfield",
    "eval",
    "eval_ro",
    "fcall",
    "fcall_ro",
    "getex",
    "pfcount",
    "set",
    "sort",
    "sort_ro",
    "xadd",
];

/// Arity, flags, keys, categories, tips with the policies for clusters, and key specifications.
#[test]
fn command_tells_what_redis_tells() {
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let all = |mut client: Client| {
        client.line("HELLO 3");
        let mut all = BTreeMap::new();
        infos(&client.tree("COMMAND"), &mut all);
        all
    };
    let (expected, told) = (all(redis.client()), all(node.client()));
    assert!(told.len() > 300, "{}", told.len());
    let differ = |name: &String| {
        let (told, expected) = (&told[name], expected.get(name)?);
        let differences = told.iter().zip(expected).filter(|(told, expected)| told != expected);
        let differences: Vec<String> = differences
            .map(|(told, expected)| format!("{name}: {told:?}\n    redis {expected:?}"))
            .collect();
        (differences.is_empty() == OTHER_FACTS.contains(&name.as_str())).then(|| format!("{name}: {differences:?}"))
    };
    let differences: Vec<String> = told.keys().filter_map(differ).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // What Redis has and this node lacks.
    let lacking: Vec<&String> = expected.keys().filter(|name| !told.contains_key(*name)).collect();
    assert_eq!(lacking, ["migrate"]);
}

#[test]
fn redis_cli_helps_with_the_syntax() {
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let help = |port: u16, words: &[&str]| {
        let mut command = parts::redis_cli();
        command.args(["-p", &port.to_string(), "help"]).args(words);
        let output = command.output().expect("run redis-cli");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let syntax = text.lines().find(|line| !line.trim().is_empty());
        syntax.unwrap_or_default().to_owned()
    };
    for words in [
        &["getex"][..],
        &["expire"],
        &["bitfield"],
        &["client", "kill"],
        &["mget"],
        &["lcs"],
        &["scan"],
    ] {
        let syntax = help(node.port, words);
        assert!(syntax.split(' ').count() > words.len() + 2, "{syntax}");
        assert_eq!(syntax, help(redis.port, words));
    }
}
