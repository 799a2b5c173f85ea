//! Redis's own test suite, version 7.0.15, in its external mode: what redis-server passes here,
//! Highwater must pass, but for the tests that `tests/redis-suite-skips.txt` lists with a reason.
//! Of version 8.0 there is the unit on fields that expire.
//!
//! Each unit is run against redis-server first. That gives the expected names without a list of
//! them to keep, and shows that the suite itself works on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::support::server::{Highwater, RedisServer};
use crate::support::{kafka, parts, ports, process, temp};

/// What one unit may take: the longest takes 10 s with redis-server, and minutes on Kafka, where it
/// waits for each of its writes.
const UNIT: Duration = Duration::from_secs(600);

/// The suite is older than sets that are listpacks.
const AS_REDIS_7_0: &[&str] = &["--set-max-listpack-entries", "0"];

/// One module per unit with a test per log, so that units run in parallel and fail by name.
macro_rules! units {
    ($($name:ident: $unit:literal, $redis_passes:literal, $at_least:literal;)*) => {$(
        mod $name {
            #[test]
            fn embedded() {
                super::on_embedded($unit, $redis_passes, $at_least);
            }

            #[test]
            fn on_kafka() {
                super::on_kafka($unit, $redis_passes, $at_least);
            }
        }
    )*

    #[test]
    fn self_check_redis_passes_its_own_suite() {
        $(
            let run = run_on_redis($unit, $redis_passes);
            println!("{}: {} passed, {} not for an external server", $unit, count(&run.passed), run.ignored);
        )*
        let others = [HASH_FIELD_EXPIRE, SCRIPTING, FUNCTIONS, TRACKING, STREAM, STREAM_GROUPS, ACL, ACL_V2, AUTH];
        self_check_of_the_skip_list(&[&[$($unit),*][..], &others, OF_THE_NODE].concat());
    }
    };
}

// The unit, how many tests redis-server passes at least, and how many Highwater must pass
// whatever the skip list says.
units! {
    protocol: "unit/protocol", 19, 19;
    // 1 of its tests needs an encoding that depends on how a value was written.
    string: "unit/type/string", 72, 71;
    incr: "unit/type/incr", 23, 23;
    hash: "unit/type/hash", 72, 0;
    // 3 look too early. All tests of unit/type/list-2 are slow ones.
    list: "unit/type/list", 220, 214;
    list_3: "unit/type/list-3", 9, 9;
    set: "unit/type/set", 94, 0;
    // 2 take minutes on Kafka.
    zset: "unit/type/zset", 270, 268;
    sort: "unit/sort", 48, 48;
    geo: "unit/geo", 59, 59;
    // 1 looks for the count that Redis keeps in the string, 2 take minutes on Kafka.
    hyperloglog: "unit/hyperloglog", 20, 17;
    quit: "unit/quit", 3, 3;
    bitops: "unit/bitops", 45, 0;
    bitfield: "unit/bitfield", 16, 0;
    keyspace: "unit/keyspace", 52, 0;
    expire: "unit/expire", 56, 0;
    scan: "unit/scan", 17, 0;
    multi: "unit/multi", 35, 0;
    // The other tests are about MIGRATE, or about what redis-server keeps for eviction.
    dump: "unit/dump", 8, 8;
    // 1 needs streams, 2 do not wait for UNSUBSCRIBE.
    pubsub: "unit/pubsub", 29, 26;
    other: "unit/other", 12, 0;
    introspection: "unit/introspection", 27, 0;
}

fn on_embedded(unit: &'static str, redis_passes: usize, at_least: usize) {
    on_embedded_with(&[], unit, redis_passes, at_least);
}

fn on_embedded_with(args: &[&str], unit: &'static str, redis_passes: usize, at_least: usize) {
    let expected = run_on_redis(unit, redis_passes);
    // As redis-server by default. With `always` the disk takes most of the time of a unit.
    let highwater = Highwater::builder()
        .args(AS_REDIS_7_0)
        .args(&["--fsync", "everysec"])
        .args(args)
        .allow("")
        .start();
    let skips = skips(unit, false);
    judge(unit, &expected, &run(unit, highwater.port, &skips), at_least, &skips);
}

/// While this runs, the test of the embedded log has redis-server run the unit.
fn on_kafka(unit: &'static str, redis_passes: usize, at_least: usize) {
    let topic = kafka::fresh_topic("suite");
    let highwater = Highwater::builder()
        .kafka(kafka::shared(), &topic)
        .args(AS_REDIS_7_0)
        .allow("")
        .start();
    let skips = skips(unit, true);
    let run = run(unit, highwater.port, &skips);
    judge(unit, &run_on_redis(unit, redis_passes), &run, at_least, &skips);
}

/// Units about what a node keeps for itself, so that the log makes no difference.
macro_rules! units_of_the_node {
    ($($name:ident: $unit:literal, $redis_passes:literal, $at_least:literal;)*) => {
        $(mod $name {
            #[test]
            fn embedded() {
                super::on_embedded($unit, $redis_passes, $at_least);
            }
        })*

        const OF_THE_NODE: &[&str] = &[$($unit),*];
    };
}

units_of_the_node! {
    info_command: "unit/info-command", 3, 3;
    introspection_2: "unit/introspection-2", 43, 41;
    latency_monitor: "unit/latency-monitor", 13, 11;
    // 1 does not wait for SUNSUBSCRIBE.
    pubsubshard: "unit/pubsubshard", 9, 8;
    // 4 look at once for what they have just done.
    slowlog: "unit/slowlog", 9, 5;
}

/// Client-side caching. 1 test needs keys that are evicted.
mod tracking {
    #[test]
    fn embedded() {
        super::on_embedded(super::TRACKING, 51, 49);
    }
}

const TRACKING: &str = "unit/tracking";

/// Users. They are kept in the node, so the log makes no difference. What needs a server with
/// settings of its own is not for an external one.
mod acl {
    #[test]
    fn embedded() {
        super::on_embedded_with(super::DEBUGGING, super::ACL, 72, 70);
    }
}

mod acl_v2 {
    #[test]
    fn embedded() {
        super::on_embedded(super::ACL_V2, 27, 25);
    }
}

mod auth {
    #[test]
    fn embedded() {
        super::on_embedded(super::AUTH, 7, 7);
    }
}

/// For the test of users who may use single subcommands of DEBUG.
const DEBUGGING: &[&str] = &["--enable-debug-command", "yes"];
const ACL: &str = "unit/acl";
const ACL_V2: &str = "unit/acl-v2";
const AUTH: &str = "unit/auth";

/// Scripts. On Kafka ten thousand of them, one after the other, take too long.
mod scripting {
    #[test]
    fn embedded() {
        super::on_embedded(super::SCRIPTING, 106, 88);
    }
}

const SCRIPTING: &str = "unit/scripting";

/// Functions.
mod functions {
    #[test]
    fn embedded() {
        super::on_embedded(super::FUNCTIONS, 75, 60);
    }
}

const FUNCTIONS: &str = "unit/functions";

/// Streams. On Kafka their thousands of writes, one after the other, take too long.
mod stream {
    #[test]
    fn embedded() {
        super::on_embedded(super::STREAM, 50, 40);
    }
}

mod stream_groups {
    #[test]
    fn embedded() {
        super::on_embedded(super::STREAM_GROUPS, 30, 25);
    }
}

const STREAM: &str = "unit/type/stream";
const STREAM_GROUPS: &str = "unit/type/stream-cgroups";

/// The unit of Redis 8.0 on fields that expire. On Kafka its times of a few milliseconds would have
/// passed before a write is acknowledged.
mod hash_field_expire {
    #[test]
    fn embedded() {
        super::of_redis_8(super::HASH_FIELD_EXPIRE, 130);
    }
}

const HASH_FIELD_EXPIRE: &str = "unit/type/hash-field-expire";

/// What the suite says is not to be run at all is not run on redis-server either.
fn of_redis_8(unit: &str, at_least: usize) {
    let skips = skips(unit, false);
    let redis = RedisServer::start_8(DEBUGGING);
    let mut expected = Run::default();
    let problems = at_best(|| {
        expected = run_of(Suite::Redis8, unit, redis.port, &skips);
        match expected.failed.is_empty() && expected.aborted.is_none() {
            true => Vec::new(),
            false => vec![expected.output.clone()],
        }
    });
    assert!(
        problems.is_empty(),
        "redis-server does not pass its own {unit}:\n{}",
        problems.join("\n")
    );
    let highwater = Highwater::builder()
        .args(DEBUGGING)
        .args(&["--fsync", "no"])
        .allow("")
        .start();
    let problems = at_best(|| {
        let run = run_of(Suite::Redis8, unit, highwater.port, &skips);
        problems_of(unit, &expected, &run, at_least, &skips)
    });
    assert!(problems.is_empty(), "{unit}:\n{}", problems.join("\n"));
}

/// The problems of the first run without any, or of the third. Fields live for 5 to 20 ms in some of these tests, so on
/// a busy machine a test may fail by chance. What is wrong fails in all three.
fn at_best(mut run: impl FnMut() -> Vec<String>) -> Vec<String> {
    let mut problems = run();
    for _ in 0..2 {
        if problems.is_empty() {
            break;
        }
        problems = run();
    }
    problems
}

/// What redis-server passes of a unit. Tests of both logs ask for it; it is run once.
fn run_on_redis(unit: &'static str, at_least: usize) -> Arc<Run> {
    static RUNS: Mutex<BTreeMap<&str, Arc<OnceLock<Arc<Run>>>>> = Mutex::new(BTreeMap::new());
    let mut runs = RUNS.lock().expect("no other test failed while it looked");
    let cell = Arc::clone(runs.entry(unit).or_default());
    drop(runs);
    Arc::clone(cell.get_or_init(|| Arc::new(run_anew_on_redis(unit, at_least))))
}

fn run_anew_on_redis(unit: &str, at_least: usize) -> Run {
    let redis = RedisServer::start(DEBUGGING);
    let run = run(unit, redis.port, &[]);
    let passed = count(&run.passed);
    let good = run.failed.is_empty() && run.aborted.is_none() && passed >= at_least;
    assert!(
        good,
        "redis-server passed {passed} of its own {at_least} in {unit}:\n{}",
        run.output
    );
    run
}

// ---- the skip list ----

#[derive(Debug, Clone, PartialEq, Eq)]
struct Skip {
    unit: String,
    test: String,
    /// Whether the suite may run it at all.
    run: bool,
    on_kafka_only: bool,
}

fn skips(unit: &str, on_kafka: bool) -> Vec<Skip> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis-suite-skips.txt");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let all = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    all.map(read_skip)
        .filter(|skip| unit.is_empty() || skip.unit == unit)
        .filter(|skip| on_kafka || !skip.on_kafka_only)
        .collect()
}

fn read_skip(line: &str) -> Skip {
    let parts: Vec<&str> = line.split(" | ").map(str::trim).collect();
    match parts[..] {
        [
            how @ ("skip" | "skip on kafka" | "fails" | "fails on kafka"),
            unit,
            test,
            reason,
        ] if !reason.is_empty() => Skip {
            unit: unit.to_owned(),
            test: test.to_owned(),
            run: how.starts_with("fails"),
            on_kafka_only: how.ends_with(" on kafka"),
        },
        _ => panic!("redis-suite-skips.txt: not `fails|skip[ on kafka] | unit | test | reason`: {line}"),
    }
}

fn self_check_of_the_skip_list(units: &[&str]) {
    for skip in skips("", true) {
        assert!(
            units.contains(&skip.unit.as_str()),
            "redis-suite-skips.txt: no unit {}",
            skip.unit
        );
    }
}

// ---- running a unit ----

/// Names of tests with how often each came: some names come twice in a unit.
type Names = BTreeMap<String, usize>;

#[derive(Default)]
struct Run {
    passed: Names,
    /// The name and what the suite said about it.
    failed: Vec<(String, String)>,
    /// Tests that the suite leaves out by their tags.
    ignored: usize,
    /// Why the unit did not come to its end.
    aborted: Option<String>,
    output: String,
}

/// A version of the suite.
#[derive(Clone, Copy)]
enum Suite {
    Redis7,
    Redis8,
}

impl Suite {
    fn source(self) -> PathBuf {
        match self {
            Suite::Redis7 => parts::redis_source(),
            Suite::Redis8 => parts::redis_8_source(),
        }
    }

    /// Tests that need what no server reached from outside can give, or that take minutes.
    fn tags(self) -> &'static str {
        match self {
            Suite::Redis7 => "-slow -needs:debug -needs:repl -needs:save -needs:config-maxmemory",
            Suite::Redis8 => "-slow -needs:repl -needs:save -needs:config-maxmemory",
        }
    }

    /// Lets a copy of the suite run on any server that has the commands of its tests.
    fn adapt(self, copy: &Path) {
        let replace = |file: &str, from: &str, to: &str| {
            let path = copy.join("tests").join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
            assert!(text.contains(from), "{file} of the suite is another one: {from}");
            fs::write(&path, text.replacen(from, to, 1)).expect("write a copied file");
        };
        let replace_all = |file: &str, from: &str, to: &str| {
            let path = copy.join("tests").join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
            fs::write(&path, text.replace(from, to)).expect("write a copied file");
        };
        match self {
            // Each test would be run again as a function, which takes as long again.
            Suite::Redis7 => {
                replace("unit/scripting.tcl", "foreach is_eval {0 1} {", "foreach is_eval {1} {");
                // Nothing in these parts needs a server that the suite starts.
                for unit in ["acl", "acl-v2"] {
                    let file = format!("unit/{unit}.tcl");
                    replace(&file, "{tags {\"acl external:skip\"}}", "{tags {\"acl\"}}");
                    // The words of Redis 7.2 fit too.
                    replace_all(&file, "*NOPERM*channels*", "*NOPERM*channel*");
                    replace_all(&file, "*NOPERM*keys*", "*NOPERM*key*");
                    replace_all(&file, "assert_equal \"This user has", "assert_match \"*ser*has");
                }
                let auth = "unit/auth.tcl";
                replace(auth, "{tags {\"auth external:skip\"}} {", "{tags {\"auth\"}} {");
                replace(
                    auth,
                    "{tags {\"auth external:skip\"} overrides {requirepass foobar}} {",
                    "{tags {\"auth\"} overrides {requirepass foobar}} {\nr reset",
                );
                // Its first part needs no server of its own.
                let shards = "unit/pubsubshard.tcl";
                replace(
                    shards,
                    "{tags {\"pubsubshard external:skip\"}}",
                    "{tags {\"pubsubshard\"}}",
                );
                // Lets redis-server forget connections, without a test that an external one runs.
                replace("unit/dump.tcl", "after 15000", "after 1");
            }
            Suite::Redis8 => {
                // Its first part needs nothing but DEBUG SET-ACTIVE-EXPIRE of a server from outside.
                let unit = format!("{HASH_FIELD_EXPIRE}.tcl");
                replace(&unit, "{\"external:skip needs:debug\"}", "{\"needs:debug\"}");
            }
        }
    }
}

fn run(unit: &str, port: u16, skips: &[Skip]) -> Run {
    run_of(Suite::Redis7, unit, port, skips)
}

fn run_of(suite: Suite, unit: &str, port: u16, skips: &[Skip]) -> Run {
    // A copy, because the suite cleans up in its own folder when it starts.
    let copy = temp::dir("redis-suite");
    let mut copying = Command::new("cp");
    copying.arg("-r").arg(suite.source().join("tests")).arg(copy.path());
    process::run("copy the suite", copying, b"", UNIT);
    suite.adapt(copy.path());
    let skip_file = copy.path().join("skips");
    let not_run = skips.iter().filter(|skip| !skip.run).map(|skip| skip.test.as_str());
    fs::write(&skip_file, not_run.collect::<Vec<_>>().join("\n")).expect("write the suite's skip file");

    let mut tests = Command::new("tclsh");
    tests
        .arg("tests/test_helper.tcl")
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        // The port that the suite's two processes talk over is one of the 32 below.
        .args(["--baseport", &(ports::free() + 32).to_string()])
        .args(["--durable", "--tags", suite.tags(), "--single", unit, "--skipfile"])
        .arg(&skip_file)
        .current_dir(copy.path())
        // Without colours.
        .env("TERM", "dumb");
    let outcome = process::try_run(tests, b"", UNIT).expect("start tclsh (Debian package tcl)");
    let mut run = read_output(&String::from_utf8_lossy(&outcome.stdout), unit);
    run.output = outcome.text();
    if outcome.status.is_none() {
        run.aborted = Some(format!("still running after {UNIT:?}"));
    }
    run
}

/// Reads what the suite prints: a line per test, with further lines under a failure.
fn read_output(text: &str, unit: &str) -> Run {
    let mut run = Run {
        aborted: Some("did not reach its end".to_owned()),
        ..Run::default()
    };
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((status, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("]: ")) else {
            continue;
        };
        let mut further = String::new();
        if matches!(status, "err" | "exception") {
            while let Some(next) = lines.next_if(|next| !next.starts_with('[')) {
                further.push_str(next);
                further.push('\n');
            }
        }
        match status {
            "ok" => {
                let name = rest.rsplit_once(" (").map_or(rest, |(name, _time)| name);
                *run.passed.entry(name.to_owned()).or_default() += 1;
            }
            "err" => {
                let name = rest.split(&format!(" in tests/{unit}")).next().unwrap_or(rest);
                run.failed.push((name.to_owned(), further));
            }
            "ignore" => run.ignored += 1,
            "exception" => {
                run.aborted = Some(format!("{rest}\n{further}"));
                return run;
            }
            status if status.ends_with("done") => run.aborted = None,
            _ => {}
        }
    }
    run
}

// ---- judging it ----

fn judge(unit: &str, expected: &Run, run: &Run, at_least: usize, skips: &[Skip]) {
    let problems = problems_of(unit, expected, run, at_least, skips);
    assert!(problems.is_empty(), "{unit}:\n{}", problems.join("\n"));
}

fn problems_of(unit: &str, expected: &Run, run: &Run, at_least: usize, skips: &[Skip]) -> Vec<String> {
    let passed = count(&run.passed);
    println!(
        "{unit}: {passed} of {} passed, {} in the skip list",
        count(&expected.passed),
        skips.len()
    );
    let mut problems = missing(expected, run, skips);
    problems.extend(stale(run, skips));
    if let Some(why) = &run.aborted {
        problems.push(format!("the unit was aborted: {why}"));
    }
    if passed < at_least {
        problems.push(format!("{passed} passed, at least {at_least} must"));
    }
    problems
}

/// The tests that redis-server passes, Highwater does not, and the skip list does not excuse.
fn missing(expected: &Run, run: &Run, skips: &[Skip]) -> Vec<String> {
    let excused = |name: &str| skips.iter().any(|skip| skip.test == name);
    let wanted = expected.passed.iter().filter(|(name, _)| !excused(name));
    let missing = wanted.filter(|(name, times)| run.passed.get(*name).unwrap_or(&0) < times);
    let told = |name: &str| -> String {
        let about = run
            .failed
            .iter()
            .filter(|(failed, _)| failed == name)
            .map(|(_, text)| text.as_str());
        about.collect::<Vec<_>>().join("")
    };
    let mut problems: Vec<String> = missing
        .map(|(name, _)| format!("not passed: {name}\n{}", told(name)))
        .collect();
    // What fails outside of a test has no name of its own.
    let outside = run
        .failed
        .iter()
        .filter(|(name, _)| !expected.passed.contains_key(name));
    problems.extend(outside.map(|(name, text)| format!("failed: {name}\n{text}")));
    problems
}

/// Entries of the skip list that passed: an excuse that is no longer needed.
fn stale(run: &Run, skips: &[Skip]) -> Vec<String> {
    let failed = |name: &str| run.failed.iter().any(|(failed, _)| failed == name);
    let passed = skips
        .iter()
        .filter(|skip| run.passed.contains_key(&skip.test) && !failed(&skip.test));
    passed
        .map(|skip| format!("passed, so take it out of redis-suite-skips.txt: {}", skip.test))
        .collect()
}

fn count(names: &Names) -> usize {
    names.values().sum()
}

#[test]
fn self_check_output_of_the_suite_is_understood() {
    let text = "Starting test server at port 1\n[ready]: 12\nTesting unit/quit\n\
        [ok]: SET (with) brackets (3 ms)\n[ok]: twice (0 ms)\n[ok]: twice (0 ms)\n\
        [err]: bad one in tests/unit/quit.tcl\nExpected 1 to equal 2\n    while executing\n\
        [ignore]: other: Tag: needs:debug denied\n[skip]: left out\n";
    let run = read_output(text, "unit/quit");
    assert_eq!(
        run.passed,
        [("SET (with) brackets".to_owned(), 1), ("twice".to_owned(), 2)].into()
    );
    assert_eq!(run.failed.len(), 1);
    assert_eq!(run.failed[0].0, "bad one");
    assert!(run.failed[0].1.starts_with("Expected 1"), "{:?}", run.failed);
    assert_eq!(run.ignored, 1);
    assert!(run.aborted.is_some());

    let done = read_output(&format!("{text}[1/1 done]: unit/quit (0 seconds)\n"), "unit/quit");
    assert_eq!(done.aborted, None);
    let died = read_output(
        &format!("{text}[exception]: Executing test client: I/O error\n  more\n"),
        "unit/quit",
    );
    assert_eq!(
        died.aborted.as_deref(),
        Some("Executing test client: I/O error\n  more\n")
    );

    let skips = [
        read_skip("fails | unit/quit | bad one | reason"),
        read_skip("fails | unit/quit | twice | reason"),
    ];
    let expected = Run {
        passed: ["bad one", "twice", "gone"].map(|name| (name.to_owned(), 1)).into(),
        ..Run::default()
    };
    assert_eq!(missing(&expected, &done, &[]).len(), 2, "bad one and gone");
    assert_eq!(missing(&expected, &done, &skips), ["not passed: gone\n"]);
    assert_eq!(stale(&done, &skips).len(), 1, "twice");
}
