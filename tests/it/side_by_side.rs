//! The same command lines through Debian's redis-server and through Highwater: the replies must
//! be equal byte for byte, in RESP2 and again in RESP3.
//!
//! The tables are `side_by_side/*.txt`, one per family of commands:
//! ```text
//! # a comment
//! oracle 8.0     first line: the reference is redis-server 8.0 instead of 7.0
//! == name        a new section: empty databases, new connections
//! SET k "a\x00"  a command, written as in redis-cli; the replies must be equal
//! ~ TIME         equal in shape only: types, error code, number or not
//! % KEYS *       equal but for the order of maps, sets and flat lists
//! 2> GET k       on the second connection; may stand before the marks above
//! silent LINE    sends without waiting for a reply: the next command shows that none came
//! raw 2 "PI\r\n" sends these bytes as they are, and reads two replies (a closed connection is one)
//! wait 20        lets 20 milliseconds pass
//! TTL k          may differ by two seconds, for time passes
//! ```
//! A line under a command judges it otherwise:
//! ```text
//! !7.2 +OK       what Redis 7.2 answers where 7.0 does not (the last line end left out)
//! !7.2/3 _       the same in RESP3, where that differs
//! ?? reason      a known difference; the replies must then really differ
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::resp::{self, Reply};
use crate::support::server::{Highwater, RedisServer};

mod lives;
mod random;

mod tables {
    use super::{against_itself, against_redis, against_redis_with};

    #[test]
    fn connection() {
        against_redis("connection");
    }

    #[test]
    fn strings() {
        against_redis("strings");
    }

    #[test]
    fn bits() {
        against_redis("bits");
    }

    #[test]
    fn hashes() {
        against_redis("hashes");
    }

    #[test]
    fn lists() {
        against_redis("lists");
    }

    #[test]
    fn blocking() {
        against_redis("blocking");
    }

    /// Each list of more than one item is split.
    #[test]
    fn split_lists() {
        against_redis_with("lists", &["--max-packed-elements", "1"]);
    }

    /// As for [`split_lists`].
    #[test]
    fn split_blocking() {
        against_redis_with("blocking", &["--max-packed-elements", "1"]);
    }

    #[test]
    fn hash_expiry() {
        against_redis("hash_expiry");
    }

    #[test]
    fn sets() {
        against_redis("sets");
    }

    #[test]
    fn sorted_sets() {
        against_redis("sorted_sets");
    }

    /// Each sorted set of more than one member is split.
    #[test]
    fn split_sorted_sets() {
        against_redis_with("sorted_sets", &["--max-packed-elements", "1"]);
    }

    #[test]
    fn streams() {
        against_redis("streams");
    }

    #[test]
    fn stream_groups() {
        against_redis("stream_groups");
    }

    #[test]
    fn sort() {
        against_redis("sort");
    }

    #[test]
    fn geo() {
        against_redis("geo");
    }

    /// As for [`split_sorted_sets`].
    #[test]
    fn split_geo() {
        against_redis_with("geo", &["--max-packed-elements", "1"]);
    }

    #[test]
    fn hyperloglog() {
        against_redis("hyperloglog");
    }

    #[test]
    fn keys() {
        against_redis("keys");
    }

    #[test]
    fn expiry() {
        against_redis("expiry");
    }

    #[test]
    fn transactions() {
        against_redis("transactions");
    }

    #[test]
    fn acl() {
        against_redis("acl");
    }

    #[test]
    fn pubsub() {
        against_redis("pubsub");
    }

    #[test]
    fn tracking() {
        against_redis("tracking");
    }

    #[test]
    fn notifications() {
        against_redis("notifications");
    }

    #[test]
    fn scripts() {
        against_redis("scripts");
    }

    #[test]
    fn functions() {
        against_redis("functions");
    }

    #[test]
    fn server() {
        against_redis("server");
    }

    #[test]
    fn cluster() {
        against_redis("cluster");
    }

    /// redis-server beside redis-server: a difference here is a fault of a table, of this
    /// harness, or of both.
    #[test]
    fn self_check_every_table_with_redis_alone() {
        for family in [
            "connection",
            "strings",
            "bits",
            "hashes",
            "hash_expiry",
            "lists",
            "blocking",
            "sets",
            "sorted_sets",
            "streams",
            "stream_groups",
            "sort",
            "geo",
            "hyperloglog",
            "keys",
            "expiry",
            "transactions",
            "pubsub",
            "scripts",
            "functions",
            "server",
            "cluster",
        ] {
            against_itself(family);
        }
    }
}

fn against_redis(family: &str) {
    against_redis_with(family, &[]);
}

/// `args`: settings of the node.
fn against_redis_with(family: &str, args: &[&str]) {
    let Table { oracle, steps } = read_table(family);
    let redis = oracle.start(DEBUGGING);
    // Whether it logs a warning for one of these lines is not the question here.
    let highwater = Highwater::builder().args(DEBUGGING).args(args).allow("").start();
    let problems: Vec<String> = [2, 3]
        .into_iter()
        .flat_map(|protocol| compare(&steps, redis.port, highwater.port, protocol, judge))
        .collect();
    // Before the verdict, so that the replies and not the server's log are what is printed.
    drop(highwater);
    report(family, &steps, &problems);
}

fn against_itself(family: &str) {
    let Table { oracle, steps } = read_table(family);
    let (one, other) = (oracle.start(DEBUGGING), oracle.start(DEBUGGING));
    let problems: Vec<String> = [2, 3]
        .into_iter()
        .flat_map(|protocol| compare(&steps, one.port, other.port, protocol, judge_reference))
        .collect();
    report(family, &steps, &problems);
}

const DEBUGGING: &[&str] = &["--enable-debug-command", "yes"];

fn report(family: &str, steps: &[Step], problems: &[String]) {
    let commands = steps
        .iter()
        .filter(|step| matches!(step.action, Action::Command { .. }))
        .count();
    let count = problems.len();
    let all = problems.join("\n");
    assert!(
        problems.is_empty(),
        "{family}: {count} of {commands} commands in two protocols differ:\n{all}"
    );
    println!("{family}: {commands} commands, equal in RESP2 and RESP3");
}

// ---- the table ----

struct Table {
    oracle: Oracle,
    steps: Vec<Step>,
}

/// Which redis-server is the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Oracle {
    Redis7,
    Redis8,
}

impl Oracle {
    fn start(self, args: &[&str]) -> RedisServer {
        match self {
            Oracle::Redis7 => RedisServer::start(args),
            Oracle::Redis8 => RedisServer::start_8(args),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Step {
    line: usize,
    text: String,
    action: Action,
    verdict: Verdict,
}

#[derive(Debug, PartialEq)]
enum Action {
    Section,
    Wait(Duration),
    Command {
        connection: u8,
        bytes: Vec<u8>,
        replies: usize,
        compare: Compare,
    },
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum Compare {
    Bytes,
    Shape,
    Unordered,
    /// Whole seconds that are left.
    Seconds,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Same,
    /// Written expectations for RESP2 and RESP3.
    Written([String; 2]),
    Differs,
}

fn read_table(family: &str) -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/side_by_side/{family}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let (oracle, text) = match text.strip_prefix("oracle 8.0\n") {
        // An empty line keeps the numbers of the lines right.
        Some(rest) => (Oracle::Redis8, format!("\n{rest}")),
        None => (Oracle::Redis7, text),
    };
    let steps = parse_table(&text);
    Table { oracle, steps }
}

fn parse_table(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("!7.2") || line.starts_with("??") {
            let step = steps
                .last_mut()
                .unwrap_or_else(|| panic!("line {line_number}: no command above"));
            judge_otherwise(step, line);
            continue;
        }
        steps.push(Step {
            line: line_number,
            text: line.to_owned(),
            action: parse_action(line),
            verdict: Verdict::Same,
        });
    }
    steps
}

fn judge_otherwise(step: &mut Step, line: &str) {
    if let Some(reply) = line.strip_prefix("!7.2/3 ") {
        let Verdict::Written([_, in_resp3]) = &mut step.verdict else {
            panic!("{line}: needs !7.2 above")
        };
        *in_resp3 = reply.to_owned();
    } else if let Some(reply) = line.strip_prefix("!7.2 ") {
        step.verdict = Verdict::Written([reply.to_owned(), reply.to_owned()]);
    } else {
        assert!(line.len() > 3, "a difference without a reason under {}", step.text);
        step.verdict = Verdict::Differs;
    }
}

fn parse_action(line: &str) -> Action {
    if line.starts_with("== ") {
        return Action::Section;
    }
    if let Some(time) = line.strip_prefix("wait ") {
        return Action::Wait(Duration::from_millis(time.parse().expect("wait takes milliseconds")));
    }
    let (connection, rest) = match line.split_once("> ") {
        Some((number, rest)) if number.len() == 1 && number.as_bytes()[0].is_ascii_digit() => {
            (number.as_bytes()[0] - b'0', rest)
        }
        _ => (1, line),
    };
    let (compare, rest) = match rest.split_once(' ') {
        Some(("~", rest)) => (Compare::Shape, rest),
        Some(("%", rest)) => (Compare::Unordered, rest),
        Some((command, _)) if command.eq_ignore_ascii_case("ttl") => (Compare::Seconds, rest),
        _ => (Compare::Bytes, rest),
    };
    let (bytes, replies) = if let Some(rest) = rest.strip_prefix("raw ") {
        let (count, quoted) = rest.split_once(' ').expect("raw takes a number and bytes");
        let quoted = quoted
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .expect("raw takes quoted bytes");
        (resp::unescape(quoted), count.parse().expect("raw takes a number"))
    } else if let Some(rest) = rest.strip_prefix("silent ") {
        (resp::command_line(rest), 0)
    } else {
        (resp::command_line(rest), 1)
    };
    Action::Command {
        connection,
        bytes,
        replies,
        compare,
    }
}

// ---- running it ----

type Judge = fn(&Step, Compare, usize, &[u8], &[u8]) -> Option<String>;

fn compare(steps: &[Step], reference: u16, tested: u16, protocol: usize, judge: Judge) -> Vec<String> {
    let mut reference = Peer::new(reference, protocol);
    let mut tested = Peer::new(tested, protocol);
    let mut problems = Vec::new();
    let mut section = "";
    // For whoever writes a table: what does redis-server say to all this?
    let show_all = std::env::var_os("SIDE_BY_SIDE_SHOW").is_some();
    for step in steps {
        match &step.action {
            Action::Section => {
                section = &step.text;
                let (expected, got) = (reference.begin_section(), tested.begin_section());
                assert_eq!(
                    resp::show(&expected),
                    "+OK\\r\\n",
                    "{section}: FLUSHALL on redis-server"
                );
                if got != expected {
                    problems.push(format!("RESP{protocol} {section}: cannot begin: {}", resp::show(&got)));
                }
            }
            Action::Wait(time) => std::thread::sleep(*time),
            Action::Command {
                connection,
                bytes,
                replies,
                compare,
            } => {
                let expected = reference.ask(*connection, bytes, *replies);
                let got = tested.ask(*connection, bytes, *replies);
                if show_all {
                    println!("RESP{protocol} {section}: {}\n    {}", step.text, resp::show(&expected));
                }
                if let Some(problem) = judge(step, *compare, protocol, &expected, &got) {
                    problems.push(format!(
                        "RESP{protocol} {section}, line {}: {}\n{problem}",
                        step.line, step.text
                    ));
                }
            }
        }
    }
    problems
}

fn judge(step: &Step, compare: Compare, protocol: usize, expected: &[u8], got: &[u8]) -> Option<String> {
    let (expected_shown, got_shown) = (brief(expected), brief(got));
    match &step.verdict {
        Verdict::Same if same(compare, expected, got) => None,
        Verdict::Same => Some(format!("    redis      {expected_shown}\n    highwater  {got_shown}")),
        Verdict::Differs if same(compare, expected, got) => Some(format!(
            "    both answer {got_shown}: the difference is gone, take its mark out of the table"
        )),
        Verdict::Differs => None,
        Verdict::Written(replies) => {
            let written = resp::unescape(&format!("{}\\r\\n", replies[protocol - 2]));
            let shown = resp::show(&written);
            (got != written).then(|| format!("    written    {shown}\n    highwater  {got_shown}"))
        }
    }
}

/// With redis-server on both sides all replies are the same; and an expectation that is written
/// for 7.2 must be something that 7.0 does not answer.
fn judge_reference(step: &Step, compare: Compare, protocol: usize, one: &[u8], other: &[u8]) -> Option<String> {
    if let Verdict::Written(replies) = &step.verdict
        && one == resp::unescape(&format!("{}\\r\\n", replies[protocol - 2]))
    {
        return Some(format!(
            "    redis 7.0 answers {} as well: no need to write it",
            resp::show(one)
        ));
    }
    let (one_shown, other_shown) = (brief(one), brief(other));
    (!same(compare, one, other)).then(|| format!("    one    {one_shown}\n    other  {other_shown}"))
}

/// A reply for the report: enough to see what is wrong.
fn brief(reply: &[u8]) -> String {
    const SHOWN: usize = 500;
    match reply.len() {
        length if length > SHOWN => format!("{}… ({length} bytes)", resp::show(&reply[..SHOWN])),
        _ => resp::show(reply),
    }
}

fn same(compare: Compare, one: &[u8], other: &[u8]) -> bool {
    if one == other {
        return true;
    }
    let whole = |raw: &[u8]| matches!(resp::measure(raw), Ok(Some(length)) if length == raw.len());
    match compare {
        Compare::Bytes => false,
        _ if !whole(one) || !whole(other) => false,
        Compare::Shape => Reply::parse(one).shape() == Reply::parse(other).shape(),
        Compare::Seconds => match (Reply::parse(one).integer(), Reply::parse(other).integer()) {
            (Some(one), Some(other)) => one > 0 && other > 0 && one.abs_diff(other) <= 2,
            _ => false,
        },
        Compare::Unordered => Reply::parse(one).unordered() == Reply::parse(other).unordered(),
    }
}

/// One of the two servers, with the connections of the current section.
struct Peer {
    port: u16,
    protocol: usize,
    connections: BTreeMap<u8, Client>,
}

impl Peer {
    fn new(port: u16, protocol: usize) -> Peer {
        Peer {
            port,
            protocol,
            connections: BTreeMap::new(),
        }
    }

    fn begin_section(&mut self) -> Vec<u8> {
        self.connections.clear();
        Client::connect(self.port).line("FLUSHALL")
    }

    /// Sends, and returns so many replies one after the other. What is no reply is told in words,
    /// which then differ from the other server's bytes, or do not.
    fn ask(&mut self, connection: u8, bytes: &[u8], replies: usize) -> Vec<u8> {
        let (port, protocol) = (self.port, self.protocol);
        let client = self
            .connections
            .entry(connection)
            .or_insert_with(|| connect(port, protocol));
        let mut all = Vec::new();
        // A server that has closed the connection is found out by the read.
        let _ = client.try_write(bytes);
        for _ in 0..replies {
            let end = match client.try_reply() {
                Ok(Some(reply)) => {
                    all.extend(reply);
                    continue;
                }
                Ok(None) => "(closed)".to_owned(),
                Err(error) => format!("(no reply: {error})"),
            };
            all.extend(end.into_bytes());
            self.connections.remove(&connection);
            break;
        }
        all
    }
}

fn connect(port: u16, protocol: usize) -> Client {
    let mut client = Client::connect(port);
    client.set_deadline(Duration::from_secs(5));
    if protocol == 3 {
        let reply = client.line("HELLO 3");
        // A section on passwords says itself when it wants HELLO 3.
        let ready = reply.starts_with(b"%") || reply.starts_with(b"-NOAUTH");
        assert!(ready, "reply to HELLO 3: {}", resp::show(&reply));
    }
    client
}

// ---- the comparison itself ----

#[test]
fn self_check_differences_are_seen() {
    let step = |text: &str| parse_table(text).remove(0);
    let judged = |text: &str, redis: &str, highwater: &str| {
        let step = step(text);
        let Action::Command { compare, .. } = step.action else {
            panic!("a command")
        };
        judge(&step, compare, 2, redis.as_bytes(), highwater.as_bytes()).is_none()
    };
    assert!(judged("GET k", "+a\r\n", "+a\r\n"));
    assert!(!judged("GET k", "+a\r\n", "$1\r\na\r\n"));
    assert!(!judged("GET k", "$-1\r\n", "(closed)"));

    assert!(judged("TTL k", ":12\r\n", ":13\r\n"));
    assert!(!judged("TTL k", ":12\r\n", ":15\r\n"));
    assert!(!judged("TTL k", ":1\r\n", ":-1\r\n"));
    assert!(!judged("TTL k", ":-2\r\n", ":-1\r\n"));
    assert!(judged("~ PTTL k", ":12\r\n", ":93\r\n"));
    assert!(!judged("~ PTTL k", ":12\r\n", "$2\r\n12\r\n"));
    assert!(!judged("~ PTTL k", "-ERR a\r\n", "-WRONGTYPE a\r\n"));
    assert!(judged("~ KEYS *", "*1\r\n$1\r\na\r\n", "*2\r\n$1\r\na\r\n$1\r\nb\r\n"));
    assert!(!judged("~ KEYS *", "*1\r\n$1\r\na\r\n", "*1\r\n:1\r\n"));

    assert!(judged(
        "% KEYS *",
        "*2\r\n$1\r\nb\r\n$1\r\na\r\n",
        "*2\r\n$1\r\na\r\n$1\r\nb\r\n"
    ));
    assert!(!judged("% KEYS *", "*2\r\n$1\r\nb\r\n$1\r\na\r\n", "*1\r\n$1\r\na\r\n"));
    assert!(!judged(
        "KEYS *",
        "*2\r\n$1\r\nb\r\n$1\r\na\r\n",
        "*2\r\n$1\r\na\r\n$1\r\nb\r\n"
    ));

    assert!(judged("GET k\n!7.2 +OK", "-ERR x\r\n", "+OK\r\n"));
    assert!(!judged("GET k\n!7.2 +OK", "-ERR x\r\n", "-ERR x\r\n"));
    assert!(judged("GET k\n?? we know better", "+a\r\n", "+b\r\n"));
    assert!(!judged("GET k\n?? we know better", "+a\r\n", "+a\r\n"));
}

#[test]
fn self_check_tables_are_read_as_written() {
    let steps = parse_table("# c\n== s\n2> ~ GET \"a b\"\nraw 2 \"PI\\r\\n\"\nsilent CLIENT REPLY OFF\nwait 5\n");
    let command = |connection, bytes: &[u8], replies, compare| Action::Command {
        connection,
        bytes: bytes.to_vec(),
        replies,
        compare,
    };
    let actions: Vec<&Action> = steps.iter().map(|step| &step.action).collect();
    assert_eq!(*actions[0], Action::Section);
    assert_eq!(
        *actions[1],
        command(2, b"*2\r\n$3\r\nGET\r\n$3\r\na b\r\n", 1, Compare::Shape)
    );
    assert_eq!(*actions[2], command(1, b"PI\r\n", 2, Compare::Bytes));
    assert_eq!(
        *actions[3],
        command(
            1,
            b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n",
            0,
            Compare::Bytes
        )
    );
    assert_eq!(*actions[4], Action::Wait(Duration::from_millis(5)));
}
