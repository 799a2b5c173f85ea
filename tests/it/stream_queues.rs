//! Streams as queues between two nodes on Kafka: who waits on one node hears of an entry that is
//! added through the other, each entry goes to one consumer of a group, and producers and consumers
//! do not hinder each other.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::collections::shows;
use crate::split::node;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::{Reply, command_line};
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);

fn two_nodes(topic: &str) -> [Highwater; 2] {
    let kafka = kafka::shared();
    let topic = fresh_topic(topic);
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    nodes[0].client().check("XGROUP CREATE s g 0 MKSTREAM", "+OK");
    let mut client = nodes[1].client();
    eventually("the other node has heard of the group", SOON, || {
        client.tree("XINFO GROUPS s").items().len() == 1
    });
    nodes
}

/// The ids of the entries of the one stream in a reply of XREADGROUP.
fn given(reply: &Reply) -> Vec<String> {
    let [stream] = reply.items() else {
        return Vec::new();
    };
    let id = |entry: &Reply| {
        let id = entry.items()[0].bytes().expect("an id");
        String::from_utf8_lossy(id).into_owned()
    };
    stream.items()[1].items().iter().map(id).collect()
}

fn conflicts(nodes: &[Highwater]) -> u64 {
    let of = |node: &Highwater| node.client().info("writes_conflicted");
    let counts = nodes
        .iter()
        .map(|node| of(node).and_then(|count| count.parse::<u64>().ok()));
    counts.map(|count| count.expect("INFO has it")).sum()
}

#[test]
fn an_entry_wakes_those_who_wait_on_another_node() {
    let [one, other] = two_nodes("queue-wakes");
    let mut client = one.client();
    client.check("XADD s 1-1 f v", "$3\r\n1-1");
    shows(&mut other.client(), "XLEN s", ":1");
    let [mut reader, mut consumer] = [other.client(), other.client()];
    let fields = "*2\r\n$1\r\nf\r\n$1\r\nv\r\n";
    let entry = |id: &str| format!("*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n{id}\r\n{fields}");
    let first = consumer.line("XREADGROUP GROUP g c COUNT 1 STREAMS s >");
    assert_eq!(String::from_utf8_lossy(&first), entry("1-1"));
    reader.write(&command_line("XREAD BLOCK 0 STREAMS s $"));
    consumer.write(&command_line("XREADGROUP GROUP g c BLOCK 0 STREAMS s >"));
    let mut observer = other.client();
    eventually("both wait", SOON, || {
        observer.info("blocked_clients").is_some_and(|count| count == "2")
    });
    client.check("XADD s 1-2 f v", "$3\r\n1-2");
    for waiting in [&mut reader, &mut consumer] {
        assert_eq!(String::from_utf8_lossy(&waiting.reply()), entry("1-2"));
    }
    let pending = "*4\r\n:2\r\n$3\r\n1-1\r\n$3\r\n1-2\r\n*1\r\n*2\r\n$1\r\nc\r\n$1\r\n2";
    shows(&mut client, "XPENDING s g", pending);
}

/// Who waits for ids that are far ahead has not seen the newest entry. XADD sees it all the same.
#[test]
fn who_waits_for_later_ids_gives_no_id_twice() {
    let kafka = kafka::shared();
    let topic = fresh_topic("queue-ahead");
    let (one, other) = (node(kafka, &topic), node(kafka, &topic));
    let mut reader = one.client();
    reader.write(&command_line("XREAD BLOCK 0 STREAMS s 5-0"));
    let mut client = one.client();
    eventually("it waits", SOON, || {
        client.info("blocked_clients").is_some_and(|count| count == "1")
    });
    other.client().check("XADD s 1-1 f v", "$3\r\n1-1");
    // Unlike XLEN it does not read all entries.
    shows(&mut client, "EXISTS s", ":1");
    let too_low = "-ERR The ID specified in XADD is equal or smaller than the target stream top item";
    client.check("XADD s 1-1 f w", too_low);
    client.check("XADD s 6-1 f v", "$3\r\n6-1");
    let entry = "*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n6-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n";
    assert_eq!(String::from_utf8_lossy(&reader.reply()), entry);
}

/// Adds entries one after the other.
fn add(client: &mut Client, count: usize) {
    for n in 0..count {
        let reply = client.line(&format!("XADD s * n {n}"));
        assert_eq!(reply[0], b'$', "{}", reply.escape_ascii());
    }
}

/// Takes and acknowledges entries until `done` says that there are enough.
fn consume(client: &mut Client, name: &str, mut done: impl FnMut(&[String]) -> bool) {
    loop {
        let of = format!("GROUP g {name} COUNT 10 BLOCK 100");
        let ids = given(&client.tree(&format!("XREADGROUP {of} STREAMS s >")));
        if !ids.is_empty() {
            let reply = client.line(&format!("XACK s g {}", ids.join(" ")));
            assert_eq!(reply, format!(":{}\r\n", ids.len()).into_bytes());
        }
        if done(&ids) {
            return;
        }
    }
}

#[test]
fn a_producer_and_a_consumer_on_two_nodes_do_not_hinder_each_other() {
    const ENTRIES: usize = 200;
    let nodes = two_nodes("queue-conflicts");
    thread::scope(|scope| {
        scope.spawn(|| add(&mut nodes[0].client(), ENTRIES));
        scope.spawn(|| {
            let mut left = ENTRIES;
            consume(&mut nodes[1].client(), "c", |ids| {
                left -= ids.len();
                left == 0
            });
        });
    });
    let conflicts = conflicts(&nodes);
    assert!(conflicts < ENTRIES as u64 / 20, "{conflicts} conflicts");
}

#[test]
fn each_entry_goes_to_one_consumer_on_two_nodes() {
    const ENTRIES: usize = 100;
    let nodes = two_nodes("queue-once");
    let taken = std::sync::Mutex::<BTreeSet<String>>::default();
    thread::scope(|scope| {
        for (name, node) in ["a", "b"].into_iter().zip(&nodes) {
            let taken = &taken;
            scope.spawn(move || {
                consume(&mut node.client(), name, |ids| {
                    let mut taken = taken.lock().expect("no panic");
                    for id in ids {
                        assert!(taken.insert(id.clone()), "{id} went to two consumers");
                    }
                    taken.len() == ENTRIES
                });
            });
            scope.spawn(|| add(&mut node.client(), ENTRIES / 2));
        }
    });
    for node in &nodes {
        shows(&mut node.client(), "XPENDING s g", "*4\r\n:0\r\n$-1\r\n$-1\r\n*-1");
    }
}

/// A group that was destroyed through one node has no consumers left in the memory of the other.
#[test]
fn a_group_that_is_made_again_has_no_old_consumers() {
    let [one, other] = two_nodes("queue-again");
    let mut waiting = other.client();
    waiting.check("XREADGROUP GROUP g old STREAMS s >", "*-1");
    let consumers = |client: &mut Client| client.tree("XINFO CONSUMERS s g").items().len();
    assert_eq!(consumers(&mut waiting), 1);
    let mut client = one.client();
    client.check("XGROUP DESTROY s g", ":1");
    client.check("XGROUP CREATE s g 5", "+OK");
    eventually("the other node has heard of both", SOON, || {
        let reply = waiting.tree("XINFO GROUPS s");
        reply
            .items()
            .first()
            .is_some_and(|group| group.items()[7].bytes() == Some(b"5-0"))
    });
    assert_eq!(consumers(&mut waiting), 0);
}
