//! Scripts: one atomic group each, on one node and between nodes; and scripts that mean harm.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp;
use crate::support::server::Highwater;
use crate::support::{Stopping, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const TIME: Duration = Duration::from_secs(3);

/// As redis-py's `Lock` releases and prolongs a lock: only its holder may.
const RELEASE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";
const EXTEND: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end";

fn client(node: &Highwater) -> Client {
    let mut client = node.client();
    client.set_deadline(PATIENCE);
    client
}

fn eval(client: &mut Client, script: &str, rest: &str) -> String {
    let mut args = vec![b"EVAL".to_vec(), script.as_bytes().to_vec()];
    args.extend(resp::split(rest));
    let slices: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    String::from_utf8_lossy(&client.send(&slices)).trim_end().to_owned()
}

// ---- scripts that mean harm ----

/// Each would run for ever, or take all memory.
const HOSTILE: &[(&str, &str)] = &[
    ("a loop", "while true do end"),
    (
        "a loop that catches errors",
        "while true do pcall(function() while true do end end) end",
    ),
    (
        "a loop whose handler loops",
        "while true do xpcall(function() while true do end end, function() while true do end end) end",
    ),
    ("a loop of commands", "while true do redis.call('incr', 'loop') end"),
    (
        "coroutines",
        "local function f() while true do pcall(function() while true do end end) end end \
         while true do coroutine.resume(coroutine.create(f)) end",
    ),
    (
        "a pattern",
        "return string.find(string.rep('a', 200), string.rep('a*', 50) .. 'b')",
    ),
    (
        "a replacement",
        "return string.gsub(string.rep('a', 100000), 'a*a*a*a*b', 'x')",
    ),
    (
        "a metatable",
        "local t = setmetatable({}, {__index = function() while true do end end}) \
         while true do pcall(function() return t.x end) end",
    ),
    (
        "concat",
        "local t = {} for i = 1, 1e5 do t[i] = 'abc' end while true do pcall(table.concat, t) end",
    ),
];

#[test]
fn a_hostile_script_can_be_killed_and_holds_up_nobody() {
    /// The longest that anybody else may wait, at best: the machine may be busy.
    const MOST: Duration = Duration::from_millis(500);
    let node = Highwater::builder().args(&["--busy-reply-threshold", "20"]).start();
    let mut other = client(&node);
    for (name, script) in HOSTILE {
        let reply = thread::scope(|scope| {
            let running = scope.spawn(|| eval(&mut client(&node), script, "0"));
            thread::sleep(Duration::from_millis(100));
            let waits: Vec<Duration> = (0..20)
                .map(|number| {
                    let asked = Instant::now();
                    other.check(&format!("SET other:{number} v"), "+OK");
                    let get = eval(
                        &mut other,
                        "return redis.call('get', KEYS[1])",
                        &format!("1 other:{number}"),
                    );
                    assert_eq!(get, "$1\r\nv");
                    asked.elapsed()
                })
                .collect();
            assert!(waits.iter().any(|wait| *wait < MOST), "{name}: others waited {waits:?}");
            // It may wait for its turn just now, or not have run for long enough.
            eventually("the script to be killed", PATIENCE, || {
                other.line("SCRIPT KILL");
                thread::sleep(Duration::from_millis(20));
                running.is_finished()
            });
            running.join().expect("the client")
        });
        assert!(reply.starts_with("-ERR Script killed by user"), "{name}: {reply}");
    }
    other.check("EXISTS loop", ":0");
    other.check("SCRIPT KILL", "-NOTBUSY No scripts in execution right now.");
    other.check("SCRIPT DEBUG YES", "-ERR there is no debugger for scripts");
}

/// Endless scripts have turns of their own. Other long commands go on, and further long scripts are
/// told why they do not.
#[test]
fn endless_scripts_leave_turns_to_other_long_commands() {
    /// More than there are turns.
    const SCRIPTS: usize = 20;
    let node = Highwater::builder().args(&["--busy-reply-threshold", "300"]).start();
    let mut other = client(&node);
    other.check("SET k v", "+OK");
    thread::scope(|scope| {
        let running: Vec<_> = (0..SCRIPTS)
            .map(|_| scope.spawn(|| eval(&mut client(&node), "while true do end", "0")))
            .collect();
        // All of them but those that run are told.
        eventually("some to be told that others are running", PATIENCE, || {
            running.iter().any(thread::ScopedJoinHandle::is_finished)
        });
        other.check("KEYS *", "*1\r\n$1\r\nk");
        other.check("SORT none BY nosort", "*0");
        assert_eq!(eval(&mut other, "return redis.call('get', KEYS[1])", "1 k"), "$1\r\nv");
        eventually("the scripts to be killed", PATIENCE, || {
            other.line("SCRIPT KILL");
            thread::sleep(Duration::from_millis(50));
            running.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        let replies: Vec<String> = running
            .into_iter()
            .map(|script| script.join().expect("a client"))
            .collect();
        let begin = |text: &str| replies.iter().filter(|reply| reply.starts_with(text)).count();
        let (busy, killed) = (begin("-BUSY "), begin("-ERR Script killed by user"));
        assert!(busy > 0 && killed > 0, "{replies:?}");
        assert_eq!(busy + killed, SCRIPTS, "{replies:?}");
    });
}

/// Each wants more memory than there is for a script.
const GREEDY: &[&str] = &[
    "return #string.rep('x', 2^30)",
    "while true do pcall(string.rep, 'x', 2^30) end",
    "local s = 'x' while true do s = s .. s end",
    "local function f() local s = 'x' while true do s = s .. s end end while true do pcall(f) end",
    "return #string.gsub(string.rep('a', 1e6), 'a', string.rep('b', 1e6))",
];

#[test]
fn a_script_gets_no_more_memory_than_it_may_have() {
    let node = Highwater::embedded();
    let mut client = client(&node);
    for script in GREEDY {
        let reply = eval(&mut client, &format!("redis.call('set', 'k', 1) {script}"), "1 k");
        assert!(reply.contains("wants more than 268435456 bytes"), "{script}: {reply}");
    }
    client.check("EXISTS k", ":0");
    let reply = eval(
        &mut client,
        "local s, t = string.rep('x', 1e6), {} for i = 1, 1e5 do t[i] = s end return t",
        "0",
    );
    assert_eq!(reply, "-ERR the reply of a script may have at most 268435456 bytes");
    let reply = eval(
        &mut client,
        "local s, t = {ok = string.rep('x', 1e6)}, {} for i = 1, 1e5 do t[i] = s end return t",
        "0",
    );
    assert_eq!(reply, "-ERR the reply of a script may have at most 268435456 bytes");
    let reply = eval(
        &mut client,
        "local s = string.rep('x', 1e6) while true do \
         local r = redis.pcall('publish', 'c', s) if type(r) == 'table' then return r.err end end",
        "0",
    );
    assert!(reply.contains("a script publishes at most"), "{reply}");
    let deep = eval(&mut client, "local function f() return 1 + f() end return f()", "0");
    assert!(deep.contains("stack overflow"), "{deep}");
    let nested = "local j = string.rep('[', 1000) .. string.rep(']', 1000) return #cjson.encode(cjson.decode(j))";
    assert_eq!(eval(&mut client, nested, "0"), ":2000");
}

#[test]
fn nothing_of_a_script_stays_for_the_next_one() {
    let node = Highwater::builder().args(&["--busy-reply-threshold", "20"]).start();
    let mut client = client(&node);
    for script in [
        "table.insert(_G, 1) return 1",
        "table.insert(redis, 1) return 1",
        "pcall(rawset, redis, 'call', 1) return 1",
        "cjson.encode_max_depth(1) return 1",
        "KEYS.left = 1 return 1",
        "coroutine.wrap(function() pcall(rawset, string, 'rep', 1) end)() return 1",
    ] {
        assert_eq!(eval(&mut client, script, "0"), ":1", "{script}");
    }
    // Also if it was stopped in the midst.
    thread::scope(|scope| {
        let stopped = scope.spawn(|| {
            let mut client = self::client(&node);
            eval(
                &mut client,
                "for i = 1, 1000 do table.insert(redis, 'left') end while true do end",
                "0",
            )
        });
        let mut other = self::client(&node);
        eventually("the script to be killed", PATIENCE, || {
            other.line("SCRIPT KILL");
            thread::sleep(Duration::from_millis(20));
            stopped.is_finished()
        });
    });
    let seen = "return {tostring(rawget(_G, 1)), tostring(rawget(redis, 1)), type(redis.call), \
                cjson.encode({{1}}), tostring(KEYS.left), string.rep('a', 2)}";
    let seen = eval(&mut client, seen, "0");
    let values: Vec<&str> = seen.lines().skip(2).step_by(2).collect();
    assert_eq!(values, ["nil", "nil", "function", "[[1]]", "nil", "aa"]);
}

// ---- scripts beside others ----

/// Another client writes the key that the script reads and writes, all the time: the script comes
/// to its end, and no write is lost.
#[test]
fn a_long_script_wins_against_short_writers() {
    const SCRIPT: &str = "local before = redis.call('get', KEYS[1]) \
         for i = 1, 3e6 do end \
         redis.call('set', KEYS[1], before + 1) return 'done'";
    const TIMES: usize = 3;
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut script = client(&node);
    script.check("SET n 0", "+OK");
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stopping = Stopping(&over);
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = client(&node);
                while !over.load(Ordering::Acquire) {
                    assert!(client.line("INCR n").starts_with(b":"));
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..TIMES {
            assert_eq!(eval(&mut script, SCRIPT, "1 n"), "$4\r\ndone");
        }
    });
    let all = written.load(Ordering::Relaxed) + TIMES as u64;
    assert!(all > TIMES as u64, "the writers wrote nothing");
    script.check("GET n", &format!("${}\r\n{all}", all.to_string().len()));
}

/// Scripts that compare two keys which a client always sets to one value, on this node and on
/// another one. None of them sees two values, whether it may write or not, and however long it
/// takes.
#[test]
fn what_a_script_reads_is_of_one_moment() {
    const SHORT: &str = "local a = redis.call('get', KEYS[1]) \
         local b, again = redis.call('get', ARGV[1]), redis.call('get', KEYS[1]) \
         if a == b and a == again then return 'same' end return {a, b, again}";
    let long = SHORT.replace("local b,", "for i = 1, 3e6 do end local b,");
    let topic = fresh_topic("script-moments");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let embedded = Highwater::builder().args(&["--fsync", "no"]).start();
    let over = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        let _stopping = Stopping(&over);
        for node in [&nodes[0], &embedded] {
            scope.spawn(|| {
                let mut client = client(node);
                let mut number = 0;
                while !over.load(Ordering::Acquire) {
                    number += 1;
                    client.check("MULTI", "+OK");
                    client.check(&format!("SET a {number}"), "+QUEUED");
                    client.check(&format!("SET b {number}"), "+QUEUED");
                    client.check("EXEC", "*2\r\n+OK\r\n+OK");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let readers: Vec<_> = nodes
            .iter()
            .chain([&embedded])
            .flat_map(|node| [(node, "EVAL"), (node, "EVAL_RO")])
            .map(|(node, command)| {
                let long = &long;
                scope.spawn(move || {
                    let mut client = client(node);
                    let (began, mut times) = (Instant::now(), 0);
                    while began.elapsed() < TIME {
                        let script = if times % 50 == 49 { long } else { SHORT };
                        let args = [command, script, "1", "a", "b"].map(str::as_bytes);
                        let reply = client.send(&args);
                        let reply = String::from_utf8_lossy(&reply);
                        assert_eq!(reply, "$4\r\nsame\r\n", "{command}");
                        times += 1;
                    }
                    times
                })
            })
            .collect();
        for reader in readers {
            let times = reader.join().expect("the reader");
            assert!(times > 1, "{times} scripts");
        }
    });
    assert!(written.load(Ordering::Relaxed) > 1, "nothing was written");
}

/// Scripts on two nodes count in keys that they do not declare.
#[test]
fn scripts_on_two_nodes_lose_nothing() {
    const SCRIPT: &str = "local a, b = redis.call('get', ARGV[1]) or 0, redis.call('get', 'b') or 0 \
         redis.call('mset', ARGV[1], a + 1, 'b', b + 1) return a == b and 1 or 0";
    let topic = fresh_topic("scripts");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let counted = AtomicU64::new(0);
    thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                let mut client = client(node);
                let began = Instant::now();
                while began.elapsed() < TIME {
                    let reply = eval(&mut client, SCRIPT, "0 a");
                    // Lost to the other node for too long: nothing was written.
                    if !reply.starts_with("-NOTWRITTEN") {
                        assert_eq!(reply, ":1");
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let all = counted.load(Ordering::Relaxed);
    println!("{all} scripts");
    assert!(all > 1);
    for node in &nodes {
        let expected = format!("*2\r\n${0}\r\n{all}\r\n${0}\r\n{all}\r\n", all.to_string().len());
        eventually("all scripts to be seen", PATIENCE, || {
            node.client().line("MGET a b") == expected.as_bytes()
        });
    }
}

/// Clients of two nodes take a lock in turn, prolong it and release it, by scripts.
#[test]
fn a_lock_that_scripts_release_has_one_holder() {
    let topic = fresh_topic("script-lock");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let (holders, held) = (AtomicI64::new(0), AtomicU64::new(0));
    let (holders, held) = (&holders, &held);
    thread::scope(|scope| {
        for (number, node) in nodes.iter().chain(&nodes).enumerate() {
            scope.spawn(move || {
                let mut client = client(node);
                let (began, mut times) = (Instant::now(), 0);
                while began.elapsed() < TIME {
                    times += 1;
                    let token = format!("{number}:{times}");
                    if client.line(&format!("SET lock {token} NX PX 60000")) != b"+OK\r\n" {
                        continue;
                    }
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                    held.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(eval(&mut client, RELEASE, "1 lock another"), ":0");
                    assert_eq!(eval(&mut client, EXTEND, &format!("1 lock {token} 50000")), ":1");
                    assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1, "two holders");
                    assert_eq!(eval(&mut client, RELEASE, &format!("1 lock {token}")), ":1");
                }
            });
        }
    });
    let held = held.load(Ordering::Relaxed);
    println!("held {held} times");
    assert!(held > 1);
}

// ---- messages ----

/// A message goes out when the log has what its script writes: who hears it can read that.
#[test]
fn a_script_sends_its_messages_when_its_writes_are_in_the_log() {
    let kafka = kafka::shared();
    let topic = fresh_topic("script-publish");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka, &topic));
    let (mut writer, mut reader, mut listener) = (client(&nodes[0]), client(&nodes[1]), client(&nodes[1]));
    listener.check("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1");
    let script = "redis.call('set', KEYS[1], ARGV[1]) \
                  redis.call('publish', 'news', ARGV[1]) \
                  return redis.call('publish', 'news', 'again')";
    for number in 10..40 {
        assert_eq!(eval(&mut writer, script, &format!("1 k {number}")), ":0");
        for text in [number.to_string(), "again".to_owned()] {
            let message = format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n${}\r\n{text}\r\n", text.len());
            assert_eq!(String::from_utf8_lossy(&listener.reply()), message);
            reader.check("GET k", &format!("$2\r\n{number}"));
        }
    }
    // On the listener's own node it is counted. In a transaction it is sent as well.
    reader.check("MULTI", "+OK");
    assert_eq!(eval(&mut reader, script, "1 k last"), "+QUEUED");
    reader.check("EXEC", "*1\r\n:1");
    assert!(listener.reply().ends_with(b"last\r\n"));
}

/// Messages of a transaction go out in the order in which its commands are executed.
#[test]
fn a_transaction_sends_its_messages_in_order() {
    let node = Highwater::embedded();
    let topic = fresh_topic("script-order");
    let kafka = Highwater::on_kafka(kafka::shared(), &topic);
    for node in [&node, &kafka] {
        let (mut writer, mut listener) = (client(node), client(node));
        listener.check("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1");
        writer.check("MULTI", "+OK");
        writer.check("PUBLISH news 1", "+QUEUED");
        let two = "redis.call('publish', 'news', 2) return redis.call('publish', 'news', 3)";
        assert_eq!(eval(&mut writer, two, "0"), "+QUEUED");
        writer.check("PUBLISH news 4", "+QUEUED");
        assert_eq!(
            eval(&mut writer, "return redis.call('publish', 'news', 5)", "0"),
            "+QUEUED"
        );
        writer.check("EXEC", "*4\r\n:1\r\n:1\r\n:1\r\n:1");
        for number in 1..=5 {
            let message = format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\n{number}\r\n");
            assert_eq!(String::from_utf8_lossy(&listener.reply()), message);
        }
    }
}

/// Nothing is sent of a script whose transaction is not executed.
#[test]
fn a_script_that_is_not_executed_sends_nothing() {
    let node = Highwater::embedded();
    let (mut one, mut other, mut listener) = (client(&node), client(&node), client(&node));
    listener.check("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1");
    let publish = "return redis.call('publish', 'news', ARGV[1])";
    one.check("WATCH k", "+OK");
    one.check("MULTI", "+OK");
    assert_eq!(eval(&mut one, publish, "0 lost"), "+QUEUED");
    other.check("SET k changed", "+OK");
    one.check("EXEC", "*-1");
    assert_eq!(eval(&mut one, publish, "0 sent"), ":1");
    assert!(listener.reply().ends_with(b"sent\r\n"));
}

/// The topic of messages takes no record of this size. What the script wrote is in the log, so the
/// reply does not say that nothing was written.
#[test]
fn a_script_whose_message_is_refused_does_not_say_that_it_wrote_nothing() {
    let kafka = kafka::shared();
    let topic = fresh_topic("script-message");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = client(&node);
    let script = "redis.call('incr', KEYS[1]) \
                  return redis.call('publish', 'news', string.rep('x', 17 * 1024 * 1024))";
    let reply = eval(&mut client, script, "1 n");
    assert!(reply.starts_with("-UNCERTAIN what the script wrote"), "{reply}");
    client.check("GET n", "$1\r\n1");
}
