//! SORT reads keys that it does not declare. It sees them as they are at one moment, whatever
//! others write meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::Stopping;
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const TIME: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
const KEYS: usize = 50;

/// Writes all keys at once, again and again, each time with one value for all of them. Returns how
/// often.
fn write_all(node: &Highwater, over: &AtomicBool) -> usize {
    let mut client = node.client();
    client.set_deadline(PATIENCE);
    let mut times = 0;
    while !over.load(Ordering::Acquire) {
        let pairs: String = (0..KEYS).map(|key| format!(" w{key} {times}")).collect();
        client.check(&format!("MSET{pairs}"), "+OK");
        times += 1;
    }
    times
}

fn all_are_equal(line: &str, reply: &Reply) {
    let items = reply.items();
    assert_eq!(items.len(), KEYS, "{line}: {reply:?}");
    assert!(items.iter().all(|item| item == &items[0]), "{line}: {reply:?}");
}

fn sort_beside(client: &mut Client, stores: bool) {
    client.set_deadline(PATIENCE);
    for line in ["SORT_RO l BY nosort GET w*", "SORT l BY nosort GET w*"] {
        all_are_equal(line, &client.tree(line));
    }
    if stores {
        client.check("SORT l BY nosort GET w* STORE out", &format!(":{KEYS}"));
        all_are_equal("STORE", &client.tree("LRANGE out 0 -1"));
    }
    for line in ["SORT_RO l BY nosort GET w*", "SORT l BY nosort GET w*"] {
        client.check("MULTI", "+OK");
        client.check(line, "+QUEUED");
        all_are_equal(line, &client.tree("EXEC").items()[0]);
    }
}

/// One node sorts what the other writes; they may be the same.
fn sort_beside_a_writer(sorting: &Highwater, writing: &Highwater) {
    // What rests on keys that another node changes all the time is hardly ever written.
    let stores = std::ptr::eq(sorting, writing);
    let items: String = (0..KEYS).map(|key| format!(" {key}")).collect();
    let mut client = sorting.client();
    client.check(&format!("RPUSH l{items}"), &format!(":{KEYS}"));
    let over = AtomicBool::new(false);
    let (sorted, written) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_all(writing, &over));
        let stopping = Stopping(&over);
        crate::support::eventually("the first values", PATIENCE, || client.line("EXISTS w0") == b":1\r\n");
        let (began, mut times) = (Instant::now(), 0);
        while began.elapsed() < TIME {
            sort_beside(&mut client, stores);
            times += 1;
        }
        drop(stopping);
        (times, writer.join().expect("the writer"))
    });
    println!("sorted {sorted} times, written {written} times");
    assert!(sorted > 1 && written > 1);
}

#[test]
fn what_sort_reads_is_of_one_moment() {
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    sort_beside_a_writer(&node, &node);
}

#[test]
fn what_sort_reads_is_of_one_moment_on_kafka() {
    let topic = fresh_topic("sort");
    let sorting = Highwater::on_kafka(kafka::shared(), &topic);
    sort_beside_a_writer(&sorting, &sorting);
}

#[test]
fn what_sort_reads_is_of_one_moment_on_another_node() {
    let topic = fresh_topic("sort-far");
    let sorting = Highwater::on_kafka(kafka::shared(), &topic);
    let writing = Highwater::on_kafka(kafka::shared(), &topic);
    sort_beside_a_writer(&sorting, &writing);
}
