//! Client-side caching and keyspace events where redis-server is no help: what overtakes what, who
//! is closed for being slow, and what others write to the topic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::foreign::Foreign;
use crate::support::kafka::{self, fresh_topic};
use crate::support::server::Highwater;
use crate::support::wait_for;

const LONG: Duration = Duration::from_secs(30);

fn invalidation(key: &str) -> String {
    format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len())
}

fn tracking(node: &Highwater, how: &str) -> Client {
    let mut client = node.client();
    client.line("HELLO 3");
    client.check(&format!("CLIENT TRACKING on {how}"), "+OK");
    client
}

#[track_caller]
fn hears(client: &mut Client, push: &str) {
    assert_eq!(String::from_utf8_lossy(&client.reply()), push);
}

/// A cache that follows what it reads in order has the newest value in the end.
#[test]
fn an_invalidation_comes_after_the_reply_that_it_invalidates() {
    const TIMES: usize = 2_000;
    let node = Highwater::embedded();
    let mut reader = tracking(&node, "NOLOOP");
    let over = AtomicBool::new(false);
    let mut cached = None;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = node.client();
            let mut n = 0;
            while !over.load(Ordering::Relaxed) {
                writer.check(&format!("SET k {n:08}"), "+OK");
                n += 1;
            }
        });
        for _ in 0..TIMES {
            // The reply to GET is held back until SET is in the log.
            reader.write(b"SET a 1\r\nGET k\r\n");
            let mut replies = 0;
            while replies < 2 {
                take(&reader.reply(), &mut cached, &mut replies);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let newest = node.client().text("GET k");
    wait_for("the last invalidation, or the newest value", LONG, || {
        if cached.as_deref().is_none_or(|value| value == newest) {
            return Some(());
        }
        reader.write(b"PING\r\n");
        let mut replies = 0;
        while replies < 1 {
            take(&reader.reply(), &mut cached, &mut replies);
        }
        None
    });
}

/// Puts a value into the cache, or takes it out as a push says.
fn take(raw: &[u8], cached: &mut Option<String>, replies: &mut usize) {
    let raw = String::from_utf8_lossy(raw);
    if raw.starts_with('>') {
        assert_eq!(raw, invalidation("k"));
        *cached = None;
        return;
    }
    *replies += 1;
    if let Some(value) = raw.strip_prefix("$8\r\n") {
        *cached = Some(value.trim_end().to_owned());
    }
}

#[test]
fn a_slow_client_that_tracks_is_closed_and_others_hear_everything() {
    let node = Highwater::builder()
        .args(&["--client-output-buffer-limit", "pubsub 1mb 0 0"])
        .allow("closing a client that is above client-output-buffer-limit")
        .start();
    let slow = tracking(&node, "BCAST PREFIX k");
    let mut quick = tracking(&node, "BCAST PREFIX k");
    let mut writer = node.client();
    // What the kernel takes of it is not known: write until the slow one is gone.
    let name = "k".repeat(64 << 10);
    for n in 0..5_000 {
        if writer.info("tracking_clients").as_deref() == Some("1") {
            break;
        }
        writer.check(&format!("SET {name}{n} v"), "+OK");
        hears(&mut quick, &invalidation(&format!("{name}{n}")));
    }
    assert_eq!(writer.info("tracking_clients").as_deref(), Some("1"));
    drop(slow);
}

#[test]
fn a_key_that_many_track_is_invalidated_for_all_of_them() {
    let node = Highwater::embedded();
    let mut readers: Vec<Client> = (0..200).map(|_| tracking(&node, "")).collect();
    for reader in &mut readers {
        reader.check("GET k", "_");
    }
    let mut writer = node.client();
    assert_eq!(writer.info("tracking_total_items").as_deref(), Some("200"));
    writer.check("SET k v", "+OK");
    for reader in &mut readers {
        hears(reader, &invalidation("k"));
    }
    assert_eq!(writer.info("tracking_total_keys").as_deref(), Some("0"));
    drop(readers);
    let gone = || (writer.info("tracking_clients").as_deref() == Some("0")).then_some(());
    wait_for("the connections to be gone", LONG, gone);
}

/// What this node tells in events is bounded by a queue, which keeps their order.
#[test]
fn events_for_many_listeners_come_in_order() {
    let node = Highwater::embedded();
    let mut listeners: Vec<Client> = (0..200).map(|_| node.client()).collect();
    for listener in &mut listeners {
        listener.line("SUBSCRIBE __keyspace@0__:k");
    }
    let mut writer = node.client();
    writer.check("CONFIG SET notify-keyspace-events KA", "+OK");
    for _ in 0..20 {
        writer.check("SET k 1", "+OK");
        writer.check("INCR k", ":2");
        writer.check("DEL k", ":1");
    }
    for listener in &mut listeners {
        for name in ["set", "incrby", "del"].iter().cycle().take(60) {
            let event = listener.reply();
            assert!(String::from_utf8_lossy(&event).ends_with(&format!("\r\n{name}\r\n")));
        }
    }
}

#[test]
fn who_monitors_may_be_idle() {
    let node = Highwater::embedded();
    let mut monitor = node.client();
    monitor.check("MONITOR", "+OK");
    node.client().check("CONFIG SET timeout 1", "+OK");
    // The second one ends when the monitor has been idle for longer.
    for _ in 0..2 {
        assert!(node.client().is_closed());
    }
    node.client().check("PING", "+PONG");
    let line = monitor.reply();
    assert!(String::from_utf8_lossy(&line).contains("PING"));
}

#[test]
fn what_others_write_to_the_topic_is_told_on_every_node() {
    let topic = fresh_topic("tracking");
    let (one, other) = (
        Highwater::on_kafka(kafka::shared(), &topic),
        Highwater::on_kafka(kafka::shared(), &topic),
    );
    let mut readers = [tracking(&one, ""), tracking(&other, "BCAST")];
    let mut listeners = [one.client(), other.client()];
    for listener in &mut listeners {
        listener.check("CONFIG SET notify-keyspace-events EA", "+OK");
        listener.line("PSUBSCRIBE __keyevent@0__:*");
    }
    let event = |name: &str, key: &str| {
        let channel = format!("__keyevent@0__:{name}");
        format!(
            "*4\r\n$8\r\npmessage\r\n$16\r\n__keyevent@0__:*\r\n${}\r\n{channel}\r\n${}\r\n{key}\r\n",
            channel.len(),
            key.len()
        )
    };
    let foreign = Foreign::new(kafka::shared(), &topic);
    readers[0].check("GET k", "_");
    foreign.write("k", Some("v"));
    for (reader, listener) in readers.iter_mut().zip(&mut listeners) {
        hears(reader, &invalidation("k"));
        hears(listener, &event("set", "k"));
    }
    readers[0].check("GET k", "$1\r\nv");
    foreign.write("k", None);
    for (reader, listener) in readers.iter_mut().zip(&mut listeners) {
        hears(reader, &invalidation("k"));
        hears(listener, &event("del", "k"));
    }
    // A command of the other node: its own event there, its outcome here.
    readers[0].check("GET n", "_");
    other.client().check("INCR n", ":1");
    for (reader, listener) in readers.iter_mut().zip(&mut listeners) {
        hears(reader, &invalidation("n"));
        let name = listener.reply();
        let name = String::from_utf8_lossy(&name);
        assert!(name.contains(":set\r\n") || name.contains(":incrby\r\n"), "{name}");
    }
}
