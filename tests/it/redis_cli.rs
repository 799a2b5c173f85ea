//! redis-cli 7.0.15 in each of its modes. A mode that ends must print the same with redis-server.
//! A mode that never ends is stopped, and what it has printed is looked at.
//! `--intrinsic-latency` talks to no server.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::process::Outcome;
use crate::support::server::{Highwater, RedisServer};
use crate::support::{Stopping, parts, process, resp, temp};

const SOON: Duration = Duration::from_secs(20);
/// For a mode that never ends.
const A_WHILE: Duration = Duration::from_millis(1_500);
/// For `--stat`, which shows its rows when some fifty of them are there.
const LONGER: Duration = Duration::from_secs(5);

fn cli(port: u16, args: &[&str], stdin: &[u8], time: Duration) -> Outcome {
    let port = port.to_string();
    let mut cli = parts::redis_cli();
    cli.args(["-p", &port]).env("TERM", "dumb");
    cli.args(args.iter().map(|arg| arg.replace("PORT", &port)));
    process::try_run(cli, stdin, time).expect("start redis-cli")
}

/// All that a mode prints, and how it ends.
fn printed(port: u16, args: &[&str], stdin: &[u8]) -> String {
    let outcome = cli(port, args, stdin, SOON);
    assert!(outcome.status.is_some(), "{args:?} does not end: {}", outcome.text());
    outcome.text().replace(&port.to_string(), "PORT")
}

/// Gives a server some keys of each type.
const KEYS: &[&str] = &[
    "SET s some-text",
    "SET s:2 \"two\\r\\nlines \\x00\\xff\"",
    "SET n 42 EX 10000",
    "RPUSH l one two three",
    "HSET h field value",
    "SADD set 1 2 3",
    "ZADD z 1 a 2.5 b",
    "XADD x 1-1 f v",
];

/// Modes without input that end.
const PLAIN: &[&str] = &[
    "--scan",
    "--scan --pattern s*",
    "--bigkeys",
    "--hotkeys",
    "--no-raw GET s:2",
    "--raw GET s:2",
    "--no-raw LRANGE l 0 -1",
    "--no-raw XRANGE x - +",
    "--csv LRANGE l 0 -1",
    "--csv ZRANGE z 0 -1 WITHSCORES",
    "--csv GET s:2",
    "--json HGETALL h",
    "--json ZRANGE z 0 -1 WITHSCORES",
    "--json XRANGE x - +",
    "--json LRANGE l 0 -1",
    "--quoted-json GET s:2",
    "--quoted-input GET \"s\"",
    "-3 --no-raw HGETALL h",
    "-3 --no-raw ZSCORE z b",
    "-n 3 SET k3 v",
    "-n 3 --no-raw GET k3",
    "-n 99 GET k",
    "-u redis://127.0.0.1:PORT/3 GET k3",
    "-r 3 -i 0.01 INCR counter",
    "-e NOSUCH",
    "-e GET l",
    "--no-auth-warning -a wrong PING",
    "--cluster check 127.0.0.1:PORT",
    "--cluster info 127.0.0.1:PORT",
    "-c GET s",
    "CLUSTER NODES",
    "MODULE LIST",
    "LATENCY LATEST",
];

/// All modes that end, each with its input.
fn modes(script: &str) -> Vec<(Vec<&str>, Vec<u8>)> {
    let commands = |lines: &[&str]| -> Vec<u8> { lines.iter().flat_map(|line| resp::command_line(line)).collect() };
    let many: Vec<String> = (0..1_000).map(|n| format!("SET pipe:{} {n}", n % 10)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let plain = PLAIN.iter().map(|line| (line.split(' ').collect(), Vec::new()));
    let mut modes: Vec<(Vec<&str>, Vec<u8>)> = plain.collect();
    modes.extend([
        (vec!["-x", "SET", "input"], b"from\nstdin".to_vec()),
        (vec!["-X", "TAG", "SET", "TAG", "value"], b"key".to_vec()),
        (vec!["--eval", script, "s", "n", ",", "x"], Vec::new()),
        (vec!["--eval", script, ",", "x"], Vec::new()),
        (vec!["--pipe"], commands(&many)),
        (vec!["--pipe"], commands(&["SET p 1", "LPUSH p 1", "GET p"])),
        (
            vec!["--no-raw"],
            b"SET a 1\nGET a\nMULTI\nINCR a\nGET nokey\nEXEC\nDISCARD\nSELECT 2\nGET a\nLPUSH \"unbalanced\n".to_vec(),
        ),
    ]);
    modes
}

/// What is the same on both servers of what was printed: `--scan` and `--bigkeys` go through the
/// keys in the server's order.
fn comparable(args: &[&str], printed: String) -> String {
    let text = match args[0] {
        "--scan" => &printed[..],
        "--bigkeys" => printed.split("summary").nth(1).expect("it sums up"),
        _ => return printed,
    };
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn modes_that_end_print_what_they_print_with_redis() {
    let dir = temp::dir("cli");
    let script = dir.path().join("script.lua");
    fs::write(&script, "return {#KEYS, ARGV[1], redis.call('GET', KEYS[1] or 's')}").expect("write a script");
    let script = script.display().to_string();
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let ports = [redis.port, node.port];
    for port in ports {
        let mut client = Client::connect(port);
        KEYS.iter().for_each(|line| drop(client.line(line)));
    }
    let mut differences = Vec::new();
    for (args, stdin) in modes(&script) {
        let [expected, got] = thread::scope(|scope| {
            let of = |port| {
                let (args, stdin) = (&args, &stdin);
                scope.spawn(move || comparable(args, printed(port, args, stdin)))
            };
            ports.map(of).map(|run| run.join().expect("redis-cli was run"))
        });
        if expected != got {
            differences.push(format!("{args:?}\n--- redis\n{expected}\n--- highwater\n{got}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// What a mode is that needs replication, or a debugger of scripts.
#[test]
fn modes_that_cannot_be_say_so() {
    let node = Highwater::embedded();
    node.client().check("SET s the-value", "+OK");
    let dir = temp::dir("cli");
    let file = |name: &str| dir.path().join(name).display().to_string();
    for mode in ["--rdb", "--functions-rdb"] {
        let told = printed(node.port, &[mode, &file("dump.rdb")], b"");
        assert!(told.starts_with("exit status: 1"), "{told}");
        assert!(
            told.contains("SYNC with master failed: -ERR SYNC is not supported") && told.contains("highwater export"),
            "{told}"
        );
        assert!(!told.contains("REPLCONF capa error"), "{told}");
    }
    let script = file("script.lua");
    fs::write(&script, "return redis.call('GET', KEYS[1])").expect("write a script");
    // redis-cli does not show that the server refuses to debug; the script runs to its end.
    let told = printed(node.port, &["--ldb", "--eval", &script, "s"], b"");
    assert!(told.contains("the-value"), "{told}");
    let told = printed(node.port, &["SCRIPT", "DEBUG", "YES"], b"");
    assert!(told.contains("there is no debugger for scripts"), "{told}");
    let told = printed(node.port, &["--memkeys"], b"");
    assert!(
        told.starts_with("exit status: 0") && told.contains("Biggest string found '\"s\"' has "),
        "{told}"
    );
}

/// What a mode has printed until it is stopped. It must print no error, and must not end before.
fn until_stopped(port: u16, args: &[&str], time: Duration) -> String {
    let outcome = cli(port, args, b"", time);
    assert!(
        outcome.status.is_none() && outcome.stderr.is_empty(),
        "{args:?}: {}",
        outcome.text()
    );
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

/// The rows of `--stat`: a field that INFO lacks would be a very small number.
fn is_a_row(line: &str, keys: &str) -> bool {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let numbers = [0, 2, 3, 4, 6].map(|at| columns.get(at).and_then(|column| column.parse::<u64>().ok()));
    columns.first() == Some(&keys) && numbers.iter().all(Option::is_some) && columns.len() == 7
}

/// Modes that never end, each with some of what it prints.
const ENDLESS: &[(&[&str], &[&str])] = &[
    (
        &["--no-raw", "-i", "0.2", "--latency-history"],
        &[" samples)", "seconds range"],
    ),
    (&["-i", "0.2", "--latency-dist"], &["\x1b[48;5;"]),
    (&["MONITOR"], &["OK\n", " \"PUBLISH\" \"channel\" \"hello\"\n"]),
    (
        &["--no-raw", "SUBSCRIBE", "channel"],
        &[
            "1) \"subscribe\"\n2) \"channel\"\n3) (integer) 1\n",
            "1) \"message\"\n2) \"channel\"\n3) \"hello\"\n",
        ],
    ),
    (
        &["-3", "--csv", "PSUBSCRIBE", "chan*"],
        &["\"pmessage\",\"chan*\",\"channel\",\"hello\"\n"],
    ),
];

#[test]
fn modes_that_never_end_go_on() {
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let port = node.port;
    let mut client = node.client();
    client.check("MSET a 1 b 2", "+OK");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = node.client();
            while !stop.load(Ordering::Relaxed) {
                client.line("PUBLISH channel hello");
                thread::sleep(Duration::from_millis(20));
            }
        });
        let _stopping = Stopping(&stop);
        let stat = scope.spawn(move || until_stopped(port, &["-i", "0.01", "--stat"], LONGER));
        let run = |(args, parts)| (scope.spawn(move || until_stopped(port, args, A_WHILE)), parts);
        let running: Vec<_> = ENDLESS.iter().copied().map(run).collect();
        for (run, parts) in running {
            let told = run.join().expect("redis-cli was run");
            assert!(parts.iter().all(|part: &&str| told.contains(part)), "{told}");
        }
        let stat = stat.join().expect("redis-cli was run");
        // What stood in its buffer when it was stopped is lost.
        let whole = stat.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut rows = whole.lines().filter(|line| !line.starts_with(['-', 'k'])).peekable();
        assert!(rows.peek().is_some(), "no row: {stat}");
        assert!(rows.all(|line| is_a_row(line, "2")), "{stat}");
    });
    // Without a terminal it ends after its interval.
    let latency = printed(port, &["-i", "0.2", "--latency"], b"");
    let figures = latency.lines().last().unwrap_or_default().split(' ');
    let figures: Vec<f64> = figures.filter_map(|figure| figure.parse().ok()).collect();
    assert_eq!(figures.len(), 4, "{latency}");
    // It prints once a second; the keys that it writes are there before.
    until_stopped(port, &["--lru-test", "100000"], A_WHILE);
    let keys = client.text("INFO keyspace");
    let count = keys.split("db0:keys=").nth(1).and_then(|rest| rest.split(',').next());
    let count: Option<u64> = count.and_then(|count| count.parse().ok());
    assert!(count.is_some_and(|count| count > 100), "{keys}");
}
