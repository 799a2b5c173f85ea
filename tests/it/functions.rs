//! Functions: libraries in the topic, on two nodes and after a rebuild; and libraries that mean
//! harm.

use std::thread;
use std::time::Duration;

use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, fresh_topic};
use crate::support::server::Highwater;

const PATIENCE: Duration = Duration::from_secs(60);

fn client(node: &Highwater) -> Client {
    let mut client = node.client();
    client.set_deadline(PATIENCE);
    client
}

/// A library with one function, which answers this.
fn library(name: &str, function: &str, answer: &str) -> String {
    format!("#!lua name={name}\nredis.register_function('{function}', function(keys, args) {answer} end)")
}

fn load(client: &mut Client, library: &str) -> String {
    let args: [&[u8]; 4] = [b"FUNCTION", b"LOAD", b"REPLACE", library.as_bytes()];
    String::from_utf8_lossy(&client.send(&args)).trim_end().to_owned()
}

/// A library that was loaded on one node can be called on all of them. It is there after FLUSHALL,
/// after a restart, and after a rebuild from the topic.
#[test]
fn libraries_live_in_the_topic() {
    let topic = fresh_topic("functions");
    let mut nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let (mut one, mut other) = (client(&nodes[0]), client(&nodes[1]));
    let count = "return redis.call('incrby', keys[1], args[1])";
    assert_eq!(load(&mut one, &library("lib", "count", count)), "$3\r\nlib");
    one.check("FCALL count 1 n 5", ":5");
    other.check_soon(
        "FCALL_RO count 1 n 0",
        "-ERR Can not execute a script with write flag using *_ro command.",
    );
    other.check_soon("FCALL count 1 m 1", ":1");
    // Changed on the other node, and deleted there.
    assert_eq!(load(&mut other, &library("lib", "count", "return 'new'")), "$3\r\nlib");
    other.check("FCALL count 0", "$3\r\nnew");
    one.check_soon("FCALL count 0", "$3\r\nnew");
    assert_eq!(load(&mut other, &library("gone", "lost", "return 1")), "$4\r\ngone");
    one.check_soon("FCALL lost 0", ":1");
    one.check("FUNCTION DELETE gone", "+OK");
    one.check("FCALL lost 0", "-ERR Function not found");
    other.check_soon("FCALL lost 0", "-ERR Function not found");
    one.check("FLUSHALL", "+OK");
    one.check("FCALL count 0", "$3\r\nnew");
    other.check_soon("EXISTS n m", ":0");
    other.check("FCALL count 0", "$3\r\nnew");
    // From the checkpoint, then from the topic alone.
    nodes[1].kill9();
    nodes[1].restart();
    client(&nodes[1]).check("FCALL count 0", "$3\r\nnew");
    assert!(nodes[1].terminate().success());
    nodes[1].restart();
    client(&nodes[1]).check("FCALL count 0", "$3\r\nnew");
    let fresh = Highwater::on_kafka(kafka::shared(), &topic);
    let mut fresh = client(&fresh);
    fresh.check("FCALL COUNT 0", "$3\r\nnew");
    fresh.check("FCALL lost 0", "-ERR Function not found");
    fresh.check("DBSIZE", ":0");
}

/// Two nodes change libraries at one time: what one of them was told is what all of them have.
#[test]
fn two_nodes_that_load_the_same_functions_agree() {
    let topic = fresh_topic("function-fights");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let loaded: Vec<Vec<bool>> = thread::scope(|scope| {
        let loading = ["a", "b"].iter().zip(&nodes).map(|(name, node)| {
            scope.spawn(move || {
                let mut client = client(node);
                (0..5)
                    .map(|number| {
                        let (name, function) = (format!("{name}{number}"), format!("f{number}"));
                        let reply = load(&mut client, &library(&name, &function, "return 1"));
                        let refused = format!("-ERR Function {function} already exists");
                        let is_loaded = reply == format!("$2\r\n{name}");
                        assert!(is_loaded || reply == refused, "{reply}");
                        is_loaded
                    })
                    .collect()
            })
        });
        let loading: Vec<_> = loading.collect();
        loading.into_iter().map(|node| node.join().expect("a node")).collect()
    });
    for (a, b) in loaded[0].iter().zip(&loaded[1]) {
        assert_ne!(a, b, "each function is in one library: {loaded:?}");
    }
    for node in &nodes {
        let expected = ":5\r\nfunctions_count\r\n:5";
        eventually("all libraries to be there", PATIENCE, || {
            let stats = String::from_utf8_lossy(&node.client().line("FUNCTION STATS")).replace("$15\r\n", "");
            stats.contains(expected)
        });
    }
}

#[test]
fn a_topic_that_is_read_only_takes_no_library() {
    let (kafka, topic) = (kafka::shared(), fresh_topic("function-shown"));
    let writer = Highwater::on_kafka(kafka, &topic);
    assert_eq!(
        load(&mut client(&writer), &library("lib", "f", "return 1")),
        "$3\r\nlib"
    );
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--database", &format!("0={topic},readonly")])
        .start();
    let mut client = client(&node);
    client.check_soon("FCALL f 0", ":1");
    let reply = load(&mut client, &library("lib", "f", "return 2"));
    assert!(reply.starts_with("-READONLY database 0"), "{reply}");
    let reply = client.line("FUNCTION FLUSH");
    assert!(reply.starts_with(b"-READONLY database 0"), "{reply:?}");
    client.check("FCALL f 0", ":1");
}

/// The embedded log has libraries as well, with what becomes of them.
#[test]
fn libraries_survive_a_restart() {
    let mut node = Highwater::embedded();
    let mut first = client(&node);
    assert_eq!(load(&mut first, &library("lib", "f", "return 'kept'")), "$3\r\nlib");
    assert_eq!(load(&mut first, &library("gone", "g", "return 1")), "$4\r\ngone");
    first.check("FLUSHALL", "+OK");
    first.check("FUNCTION DELETE gone", "+OK");
    node.kill9();
    node.restart();
    let mut second = client(&node);
    second.check("FCALL f 0", "$4\r\nkept");
    second.check("FCALL g 0", "-ERR Function not found");
    second.check("FUNCTION FLUSH", "+OK");
    assert!(node.terminate().success());
    node.restart();
    client(&node).check("FCALL f 0", "-ERR Function not found");
}

/// EXEC finds what it has written itself, and what comes next in a pipeline finds the function.
#[test]
fn a_transaction_sees_its_own_functions_and_keys() {
    let node = Highwater::embedded();
    let mut client = client(&node);
    let load = r##"FUNCTION LOAD "#!lua name=lib\nredis.register_function('f', function() return 7 end)""##;
    for round in 0..20 {
        client.check("FUNCTION FLUSH", "+OK");
        client.check("DEL a", if round == 0 { ":0" } else { ":1" });
        let sets = [
            "SET b 1", "SET c 1", "SET d 1", "SET e 1", "SET f 1", "SET g 1", "SET h 1",
        ];
        let begin = ["MULTI", "SET a 5"].into_iter().chain(sets);
        let lines: Vec<&str> = begin.chain([load, "INCR a", "EXEC", "FCALL f 0"]).collect();
        let replies = client.pipeline(&lines);
        let [.., exec, called] = &replies[..] else {
            panic!("there are replies");
        };
        assert!(exec.ends_with(b"$3\r\nlib\r\n:6\r\n"), "{}", exec.escape_ascii());
        assert_eq!(called.escape_ascii().to_string(), ":7\\r\\n");
    }
}

/// A command removes nothing but what it names, also if this node cannot load what others wrote.
#[test]
fn a_library_that_cannot_be_loaded_is_kept() {
    let (kafka, topic) = (kafka::shared(), fresh_topic("left-out-functions"));
    let left_out = "a library of functions is left out";
    let node = Highwater::builder().allow(left_out).kafka(kafka, &topic).start();
    let mut client = client(&node);
    assert_eq!(load(&mut client, &library("lib", "f", "return 1")), "$3\r\nlib");
    let hostile = Hostile::new(kafka, &topic);
    let header: &[(&str, &[u8])] = &[("redis-control", b"function")];
    let other = "#!lua name=other\nredis.register_function('f', function() return 2 end)";
    hostile.send(0, b"\0highwater:function:other", Some(other.as_bytes()), header);
    hostile.flush();
    let names = |client: &mut Client| String::from_utf8_lossy(&client.line("FUNCTION LIST")).into_owned();
    eventually("the foreign library", PATIENCE, || names(&mut client).contains("other"));
    client.check("FCALL f 0", ":1");
    assert_eq!(load(&mut client, &library("third", "g", "return 3")), "$5\r\nthird");
    assert!(names(&mut client).contains("other"));
    let again = library("other", "h", "return 4");
    let reply = client.send(&[b"FUNCTION", b"LOAD", again.as_bytes()]);
    assert_eq!(reply, b"-ERR Library 'other' already exists\r\n");
    // Once nothing is in its way, it is loaded.
    client.check("FUNCTION DELETE lib", "+OK");
    client.check("FCALL f 0", ":2");
    client.check(
        "FUNCTION RESTORE \"\\x0a\\x00]\\x9b\\x5c@\\x0f\\x7f\\xa2\\xda\" FLUSH",
        "+OK",
    );
    client.check("FUNCTION LIST", "*0");
}

/// Each would run for ever while it is loaded, or take all memory, or change what others find.
#[test]
fn a_hostile_library_is_refused() {
    let node = Highwater::embedded();
    let mut client = client(&node);
    for (code, error) in [
        ("while true do end", "FUNCTION LOAD timeout"),
        ("local s = 'x' while true do s = s .. s end", "memory"),
        (
            "local t = {} while true do t[#t + 1] = {} end",
            "FUNCTION LOAD timeout|memory",
        ),
        ("local function f() return 1 + f() end f()", "stack overflow"),
        ("redis.log = 1", "Attempt to modify a readonly table"),
        ("x = 1", "Attempt to modify a readonly table"),
        ("\u{1b}Lua", "Error compiling function"),
    ] {
        let reply = load(&mut client, &format!("#!lua name=bad\n{code}"));
        assert!(reply.starts_with("-ERR Error "), "{code}: {reply}");
        assert!(error.split('|').any(|error| reply.contains(error)), "{code}: {reply}");
    }
    client.check("FUNCTION LIST", "*0");
    // What a function changes is not seen by scripts.
    let change = "local t = getmetatable(_G) pcall(rawset, redis, 'call', 1) table.insert(redis, 1) return 1";
    assert_eq!(load(&mut client, &library("lib", "f", change)), "$3\r\nlib");
    client.check("FCALL f 0", ":1");
    let seen = client.send(&[b"EVAL", b"return {type(redis.call), tostring(rawget(redis, 1))}", b"0"]);
    assert_eq!(seen, b"*2\r\n$8\r\nfunction\r\n$3\r\nnil\r\n");
    let large =
        format!("#!lua name=large\n--{}\n", "x".repeat(9 << 20)) + "redis.register_function('g', function() end)";
    let reply = load(&mut client, &large);
    assert!(
        reply.starts_with("-ERR libraries of functions may have at most"),
        "{reply}"
    );
}

#[test]
fn an_endless_function_can_be_killed_and_writes_nothing() {
    let node = Highwater::builder().args(&["--busy-reply-threshold", "20"]).start();
    let mut other = client(&node);
    let endless = "redis.call('set', keys[1], 1) while true do end";
    assert_eq!(load(&mut other, &library("lib", "f", endless)), "$3\r\nlib");
    let reply = thread::scope(|scope| {
        let running = scope.spawn(|| client(&node).line("FCALL f 1 k"));
        eventually("the function to run", PATIENCE, || {
            let stats = String::from_utf8_lossy(&other.line("FUNCTION STATS")).into_owned();
            stats.contains("command\r\n*4\r\n$5\r\nFCALL\r\n$1\r\nf\r\n$1\r\n1\r\n$1\r\nk\r\n")
        });
        other.check("SET another v", "+OK");
        eventually("only FUNCTION KILL to stop it", PATIENCE, || {
            let reply = other.line("SCRIPT KILL");
            reply == b"-BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.\r\n"
        });
        assert!(!running.is_finished());
        eventually("the function to be killed", PATIENCE, || {
            other.line("FUNCTION KILL");
            thread::sleep(Duration::from_millis(20));
            running.is_finished()
        });
        running.join().expect("the client")
    });
    let reply = String::from_utf8_lossy(&reply);
    assert!(
        reply.starts_with("-ERR Script killed by user with FUNCTION KILL."),
        "{reply}"
    );
    other.check("EXISTS k", ":0");
    other.check("FUNCTION KILL", "-NOTBUSY No scripts in execution right now.");
}
