//! Streams: what is in the topic, what is there after restarts, what other producers can break, and
//! what two nodes make of one stream while one of them is killed again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use crate::collections::{header, shows};
use crate::hostile_producers::Hostile;
use crate::split::{ELEMENT, compacted, is_element, node};
use crate::support::attempt::{Attempts, Ended};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);

const ONE_TWO: &[u8] = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02";

/// The ids of entries in a reply of XRANGE.
fn ids(reply: &Reply) -> Vec<String> {
    let id = |entry: &Reply| {
        let id = entry.items()[0].bytes().expect("an id");
        String::from_utf8_lossy(id).into_owned()
    };
    reply.items().iter().map(id).collect()
}

fn all_ids(client: &mut Client, key: &str) -> Vec<String> {
    ids(&client.tree(&format!("XRANGE {key} - +")))
}

/// The ids, and the last one, survive whatever happens to the node.
fn check_rebuilt(client: &mut Client) {
    client.check("XRANGE s - +", "*1\r\n*2\r\n$3\r\n1-3\r\n*2\r\n$1\r\na\r\n$1\r\n3");
    client.check(
        "XPENDING s g",
        "*4\r\n:1\r\n$3\r\n1-2\r\n$3\r\n1-2\r\n*1\r\n*2\r\n$1\r\nc\r\n$1\r\n1",
    );
    client.check("XLEN empty", ":0");
    client.check("TYPE empty", "+stream");
    let too_low = "-ERR The ID specified in XADD is equal or smaller than the target stream top item";
    client.check("XADD empty 7-7 a 1", too_low);
    client.check("XADD s 1-4 a 1", too_low);
    client.check("DBSIZE", ":2");
}

#[test]
fn a_stream_is_the_same_after_a_restart_and_without_its_store() {
    let mut node = Highwater::builder().start();
    let mut client = node.client();
    client.check("XADD empty 7-6 a 1", "$3\r\n7-6");
    client.check("XADD empty MAXLEN 0 7-7 a 1", "$3\r\n7-7");
    for n in 1..5 {
        client.check(&format!("XADD s 1-{n} a {n}"), &format!("$3\r\n1-{n}"));
    }
    client.check("XGROUP CREATE s g 1-1", "+OK");
    client.line("XREADGROUP GROUP g c COUNT 1 STREAMS s >");
    client.check("XDEL s 1-1 1-2 1-4", ":3");
    check_rebuilt(&mut client);
    let digest = client.line("HIGHWATER DIGEST");
    node.kill9();
    node.restart();
    check_rebuilt(&mut node.client());
    assert_eq!(node.client().line("HIGHWATER DIGEST"), digest);
}

/// Entries 1-1 to 600-1, of which a group was given two, and then only the last hundred.
fn trimmed(client: &mut Client) {
    let lines: Vec<String> = (1..=600).map(|n| format!("XADD s {n}-1 f {n}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(client.pipeline(&lines)[599], b"$5\r\n600-1\r\n");
    client.check("XGROUP CREATE s g 0", "+OK");
    client.line("XREADGROUP GROUP g c COUNT 2 STREAMS s >");
    client.check("XTRIM s MAXLEN 100", ":500");
    check_trimmed(client);
}

fn check_trimmed(client: &mut Client) {
    client.check_soon("XLEN s", ":100");
    assert_eq!(all_ids(client, "s")[0], "501-1");
    client.check("XRANGE s 500-1 500-1", "*0");
    let first = "*1\r\n*2\r\n$5\r\n501-1\r\n*2\r\n$1\r\nf\r\n$3\r\n501";
    client.check("XRANGE s - + COUNT 1", first);
    client.check("XREAD COUNT 1 STREAMS s 0", &format!("*1\r\n*2\r\n$1\r\ns\r\n{first}"));
    client.check("XTRIM s MAXLEN 100", ":0");
    client.check("XDEL s 500-1", ":0");
    client.check("XPENDING s g - + 10 c2", "*0");
    let gone = "*2\r\n$3\r\n1-1\r\n*-1\r\n*2\r\n$3\r\n2-1\r\n*-1";
    client.check(
        "XREADGROUP GROUP g c STREAMS s 0",
        &format!("*1\r\n*2\r\n$1\r\ns\r\n*2\r\n{gone}"),
    );
    client.check("EXISTS s", ":1");
}

#[test]
fn a_long_trim_is_the_same_after_a_restart_and_without_its_store() {
    let mut node = Highwater::builder().start();
    let mut client = node.client();
    trimmed(&mut client);
    let digest = client.line("HIGHWATER DIGEST");
    node.kill9();
    node.restart();
    check_trimmed(&mut node.client());
    assert_eq!(node.client().line("HIGHWATER DIGEST"), digest);
    node.terminate();
    std::fs::remove_dir_all(node.dir().join("store")).expect("the store can be removed");
    node.restart();
    let mut client = node.client();
    check_trimmed(&mut client);
    assert_eq!(client.line("HIGHWATER DIGEST"), digest);
    client.check("COPY s t", ":1");
    client.check("XLEN t", ":100");
    // All go, and ids begin again below those that were trimmed.
    client.check("XADD s MAXLEN 0 700-1 f v", "$5\r\n700-1");
    client.check("XLEN s", ":0");
    client.check("XTRIM t MINID 900", ":100");
    client.check("XSETID s 5-1", "+OK");
    client.check("XSETID t 5-1", "+OK");
    for key in ["s", "t"] {
        client.check(&format!("XADD {key} 5-2 f v"), "$3\r\n5-2");
        assert_eq!(all_ids(&mut client, key), ["5-2"]);
        client.check(&format!("XPENDING {key} g - + 10 c2"), "*0");
    }
}

#[test]
fn a_long_trim_is_one_record_and_orphans_get_tombstones() {
    let kafka = kafka::shared();
    let topic = fresh_topic("streams-trim");
    let (one, other) = (node(kafka, &topic), node(kafka, &topic));
    let mut client = one.client();
    trimmed(&mut client);
    let head = compacted(kafka, &topic)[&b"s"[..]].value.clone().expect("a head");
    assert_eq!(
        head[24..],
        [&b"\x11e\0\0\0\0\0\0\x01\xf5"[..], &1u64.to_be_bytes()].concat()
    );
    let mut others = other.client();
    check_trimmed(&mut others);
    others.check("XADD s 700-1 f v", "$5\r\n700-1");
    eventually("what was trimmed gets tombstones", SOON, || {
        let records = compacted(kafka, &topic).into_iter();
        let entries = records
            .filter(|(key, record)| is_element(key) && key[ELEMENT.len() + 2 + 12] == b'e' && record.value.is_some());
        entries.count() == 101
    });
    shows(&mut client, "XLEN s", ":101");
    let digest = client.line("HIGHWATER DIGEST");
    for node in [&other, &node(kafka, &topic)] {
        let mut client = node.client();
        shows(&mut client, "XLEN s", ":101");
        eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    }
}

/// A node that must not write bounds yet writes a tombstone for each entry.
#[test]
fn a_long_trim_without_bounds_gives_each_entry_a_tombstone() {
    let kafka = kafka::shared();
    let topic = fresh_topic("streams-no-bounds");
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--max-features", "stream,split"])
        .start();
    trimmed(&mut node.client());
    let records = compacted(kafka, &topic).into_iter();
    let gone = records.filter(|(key, record)| is_element(key) && record.value.is_none());
    assert_eq!(gone.count(), 500);
}

/// Memory can have a stream only from an entry on that has gone. Lower ids are found all the same.
#[test]
fn a_lower_last_id_is_no_risk_for_a_cold_stream() {
    let kafka = kafka::shared();
    let topic = fresh_topic("streams-lower");
    let (one, mut other) = (node(kafka, &topic), node(kafka, &topic));
    let mut client = one.client();
    for id in ["1-1", "9-1"] {
        client.check(&format!("XADD s {id} f v"), &format!("$3\r\n{id}"));
    }
    client.check("XGROUP CREATE s g 0", "+OK");
    client.check("SET added 1", "+OK");
    shows(&mut other.client(), "GET added", "$1\r\n1");
    other.restart();
    let mut cold = other.client();
    // It reads the newest entry alone.
    cold.check("XREAD BLOCK 1 STREAMS s $", "*-1");
    client.check("XDEL s 9-1", ":1");
    client.check("XSETID s 2-1", "+OK");
    client.check("XADD s 3-1 f v", "$3\r\n3-1");
    client.check("SET lowered 1", "+OK");
    shows(&mut cold, "GET lowered", "$1\r\n1");
    let too_low = "-ERR The ID specified in XADD is equal or smaller than the target stream top item";
    cold.check("XADD s 3-1 f w", too_low);
    assert_eq!(all_ids(&mut cold, "s"), ["1-1", "3-1"]);
    assert_eq!(cold.tree("XINFO GROUPS s").items().len(), 1);
}

/// After a restart a command that needs the end of a stream reads no more than that from the store.
#[test]
fn a_cold_stream_is_read_from_its_end() {
    const ENTRIES: usize = 3_000;
    // Memory has room for nothing.
    let mut node = Highwater::builder().args(&["--maxmemory", "1mb"]).start();
    let mut client = node.client();
    let lines: Vec<String> = (1..=ENTRIES)
        .map(|n| format!("XADD s {n}-1 f {}", "v".repeat(100)))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    client.pipeline(&lines);
    client.check("XGROUP CREATE s g 2990", "+OK");
    client.line("XREADGROUP GROUP g c COUNT 2 STREAMS s >");
    let reads = |node: &Highwater, line: &str, expected: &str| {
        let mut client = node.client();
        let count = |client: &mut Client| client.info("store_reads").and_then(|count| count.parse::<u64>().ok());
        let before = count(&mut client).expect("INFO has it");
        client.check(line, expected);
        count(&mut client).expect("INFO has it") - before
    };
    for (line, expected) in [
        (
            "XADD s 3000-1 f v",
            "-ERR The ID specified in XADD is equal or smaller than the target stream top item",
        ),
        ("XADD s 3000-2 f v", "$6\r\n3000-2"),
        ("XREAD STREAMS s 3000-2", "*-1"),
        ("XREAD BLOCK 1 STREAMS s $", "*-1"),
        ("XACK s g 2990-1 2991-1", ":2"),
    ] {
        node.restart();
        let reads = reads(&node, line, expected);
        assert!(reads <= 6, "{line}: {reads} reads");
    }
    node.restart();
    let reads = reads(&node, "XLEN s", ":3001");
    assert!(reads > 10, "what counts all reads all: {reads} reads");
    let newest = "*1\r\n*2\r\n$6\r\n3000-2\r\n*2\r\n$1\r\nf\r\n$1\r\nv";
    node.client().check("XREVRANGE s + - COUNT 1", newest);
    node.client().check("XADD s 3000-3 f v", "$6\r\n3000-3");
}

/// XDELEX, XACKDEL, and the option of XTRIM and XADD. No server that tests run has them, so what is
/// expected comes from the documentation of Redis 8.2.
#[test]
fn entries_are_removed_with_regard_to_groups() {
    let node = Highwater::builder().start();
    let mut client = node.client();
    let ints = |numbers: &[i64]| {
        let each: Vec<String> = numbers.iter().map(|number| format!(":{number}")).collect();
        format!("*{}\r\n{}", numbers.len(), each.join("\r\n"))
    };
    client.check("XDELEX none IDS 2 1-1 2", &ints(&[-1, -1]));
    client.check("XACKDEL none g IDS 1 1-1", &ints(&[-1]));
    for n in 1..=9 {
        client.check(&format!("XADD s {n}-1 f v"), &format!("$3\r\n{n}-1"));
    }
    for group in ["g", "h"] {
        client.check(&format!("XGROUP CREATE s {group} 0"), "+OK");
        client.line(&format!("XREADGROUP GROUP {group} c COUNT 7 STREAMS s >"));
    }
    let pending = |client: &mut Client, group: &str| {
        let reply = client.tree(&format!("XPENDING s {group} - + 20"));
        ids(&reply).join(" ")
    };
    client.check("XDELEX s ACKED IDS 2 1-1 9-1", &ints(&[2, 2]));
    client.check("XACK s g 1-1", ":1");
    client.check("XACKDEL s h ACKED IDS 3 1-1 2-1 9-1", &ints(&[1, 2, -1]));
    client.check("XACKDEL s h IDS 1 2-1", &ints(&[-1]));
    assert_eq!(all_ids(&mut client, "s").join(" "), "2-1 3-1 4-1 5-1 6-1 7-1 8-1 9-1");
    client.check("XDELEX s KEEPREF IDS 2 3-1 3-1", &ints(&[1, -1]));
    assert_eq!(pending(&mut client, "h"), "3-1 4-1 5-1 6-1 7-1");
    client.check("XDELEX s delref ids 3 3-1 4-1 0-1", &ints(&[-1, 1, -1]));
    assert_eq!(pending(&mut client, "h"), "5-1 6-1 7-1");
    assert_eq!(pending(&mut client, "g"), "2-1 5-1 6-1 7-1");
    client.check("XACKDEL s g IDS 1 5-1 DELREF", &ints(&[1]));
    assert_eq!(pending(&mut client, "h"), "6-1 7-1");
    client.check("XTRIM s MAXLEN 0 ACKED", ":0");
    client.check("XACK s g 2-1 7-1", ":2");
    client.check("XACK s h 7-1", ":1");
    client.check("XTRIM s MAXLEN 2 ACKED", ":2");
    assert_eq!(all_ids(&mut client, "s").join(" "), "6-1 8-1 9-1");
    client.check("XADD s DELREF MAXLEN 1 9-2 f v", "$3\r\n9-2");
    assert_eq!(pending(&mut client, "g") + &pending(&mut client, "h"), "");
    client.check("XADD s MINID 10-1 ACKED 10-1 f v", "$4\r\n10-1");
    assert_eq!(all_ids(&mut client, "s").join(" "), "9-2 10-1");
    client.check("XLEN s", ":2");
    // All that every group has handled goes, and the last id stays.
    for group in ["g", "h"] {
        client.line(&format!("XREADGROUP GROUP {group} c NOACK STREAMS s >"));
    }
    client.check("XDELEX s ACKED IDS 2 10-1 9-2", &ints(&[1, 1]));
    let too_low = "-ERR The ID specified in XADD is equal or smaller than the target stream top item";
    client.check("XADD s 10-1 f v", too_low);
    for wrong in [
        "XDELEX s KEEPREF ACKED IDS 1 1",
        "XDELEX s KEEPREF x IDS 1",
        "XTRIM s ACKED DELREF MAXLEN 1",
    ] {
        client.check(wrong, "-ERR syntax error");
    }
    client.check("XDELEX s IDS 0 1", "-ERR Number of IDs must be a positive integer");
    let unequal = "-ERR The `numids` parameter must match the number of arguments";
    client.check("XACKDEL s g IDS 3 1 2", unequal);
}

#[test]
fn a_stream_has_a_record_for_each_entry() {
    let kafka = kafka::shared();
    let topic = fresh_topic("streams");
    let one = node(kafka, &topic);
    let other = node(kafka, &topic);
    let mut client = one.client();
    client.check("XADD s 1-2 f v", "$3\r\n1-2");
    let before = kafka.records(&topic, "read_committed").len();
    client.check("XADD s 1-3 f w", "$3\r\n1-3");
    let added = kafka.records(&topic, "read_committed").len() - before;
    assert_eq!(added, 1, "XADD is one record");
    client.check("XGROUP CREATE s g 0", "+OK");
    client.line("XREADGROUP GROUP g c COUNT 1 STREAMS s >");
    let records = compacted(kafka, &topic);
    let head = &records[&b"s"[..]];
    assert_eq!(header(head, "redis-type"), Some(&b"stream"[..]));
    assert_eq!(head.value.as_deref(), Some(&b""[..]));
    let sub_key = |key: &[u8]| key[ELEMENT.len() + 2 + 12..].to_vec();
    let elements = records.iter().filter(|(key, _)| is_element(key));
    let elements: BTreeMap<Vec<u8>, Option<Vec<u8>>> = elements
        .map(|(key, record)| (sub_key(key), record.value.clone()))
        .collect();
    let value = |key: &[u8]| elements[key].clone().expect("a value");
    let entry = [b"e", ONE_TWO].concat();
    assert_eq!(value(&entry), b"\x01\0\0\0\0\0\0\0\0\x01\x92\xa1f\xa1v");
    assert_eq!(value(b"gg"), [b"\x01\0", ONE_TWO, b"\0\0\0\0\0\0\0\x01"].concat());
    let pending = value(&[b"p\0\0\0\x01g", ONE_TWO].concat());
    assert_eq!(
        (&pending[..2], &pending[10..]),
        (&b"\x01\0"[..], &b"\0\0\0\0\0\0\0\x01c"[..])
    );
    assert_eq!(elements.len(), 4);
    // A foreign producer's broken entry costs its own stream.
    client.check("XADD t 1-1 f v", "$3\r\n1-1");
    let key = records
        .keys()
        .find(|key| key.ends_with(&entry))
        .expect("the entry's record");
    let broken = [&key[..key.len() - 1], b"\x09"].concat();
    let hostile = Hostile::new(kafka, &topic);
    hostile.send(0, &broken, Some(b"\x01\0\0"), &[("redis-type", b"element")]);
    hostile.flush();
    let mut reader = other.client();
    let problem = b"-ERR an element of the collection at s cannot be read: it ends too early";
    eventually("the broken entry is read", SOON, || {
        reader.line("XRANGE s - +").starts_with(problem)
    });
    shows(&mut reader, "XLEN s", ":3");
    shows(&mut reader, "XLEN t", ":1");
    client.check("DEL s", ":1");
    client.check("XADD s 1-1 f v", "$3\r\n1-1");
    eventually("both nodes have the new stream", SOON, || {
        all_ids(&mut reader, "s") == ["1-1"]
    });
}

/// Two nodes add entries and two groups read them while the second node is killed again and again.
#[test]
fn every_entry_is_read_once_by_each_group_under_kill_9() {
    const EACH: usize = 120;
    let kafka = kafka::shared();
    let topic = fresh_topic("streams-two");
    let (one, mut other) = (node(kafka, &topic), node(kafka, &topic));
    let mut client = one.client();
    for group in ["g", "h"] {
        client.check(&format!("XGROUP CREATE s {group} 0 MKSTREAM"), "+OK");
    }
    let mut client = other.client();
    eventually("the other node has heard of both groups", SOON, || {
        client.tree("XINFO GROUPS s").items().len() == 2
    });
    let ports = [one.port, other.port];
    let producing = AtomicUsize::new(ports.len());
    let acknowledged: Mutex<BTreeSet<String>> = Mutex::default();
    let read: Mutex<BTreeMap<(&str, String), usize>> = Mutex::default();
    thread::scope(|scope| {
        for (name, port) in ports.into_iter().enumerate() {
            let (producing, acknowledged) = (&producing, &acknowledged);
            scope.spawn(move || {
                produce(port, name, EACH, acknowledged);
                producing.fetch_sub(1, SeqCst);
            });
            for group in ["g", "h"] {
                let read = &read;
                scope.spawn(move || consume(port, (group, name), producing, read));
            }
        }
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(700));
            other.restart();
        }
    });
    let acknowledged = acknowledged.into_inner().expect("no thread has panicked");
    let read = read.into_inner().expect("no thread has panicked");
    assert!(acknowledged.len() >= 2 * EACH);
    for node in [&one, &other] {
        let mut client = node.client();
        for group in ["g", "h"] {
            let seen = read.keys().filter(|(of, _)| *of == group).map(|(_, id)| id.clone());
            let seen: BTreeSet<String> = seen.collect();
            assert!(seen.is_superset(&acknowledged), "{group} has missed some");
            // An entry whose client was not answered may have come last.
            eventually("the stream has what was read, and nothing else", SOON, || {
                let there: BTreeSet<String> = all_ids(&mut client, "s").into_iter().collect();
                there == seen
            });
        }
    }
}

fn produce(port: u16, name: usize, count: usize, acknowledged: &Mutex<BTreeSet<String>>) {
    let (mut node, mut last) = (Attempts::on(port), (0, 0));
    let mut done = 0;
    while done < count {
        if let Ended::Answered(reply) = node.line(&format!("XADD s * {name} {done}")) {
            let reply = Reply::parse(&reply);
            let id = String::from_utf8_lossy(reply.bytes().expect("an id")).into_owned();
            let (ms, seq) = id.split_once('-').expect("two parts");
            let next: (u64, u64) = (ms.parse().expect("a time"), seq.parse().expect("a number"));
            assert!(next > last, "{id} is not after {last:?}");
            last = next;
            assert!(
                acknowledged.lock().expect("no panic").insert(id),
                "an id was used twice"
            );
            done += 1;
        }
    }
}

/// Reads until nothing is added any more and nothing is left. What it has not acknowledged when its
/// node is killed, it reads once more.
fn consume<'g>(
    port: u16,
    (group, name): (&'g str, usize),
    producing: &AtomicUsize,
    read: &Mutex<BTreeMap<(&'g str, String), usize>>,
) {
    let mut node = Attempts::on(port);
    let mut again = true;
    loop {
        let is_over = producing.load(SeqCst) == 0;
        let from = if again { "0" } else { ">" };
        let line = format!("XREADGROUP GROUP {group} c{name} COUNT 10 STREAMS s {from}");
        let Ended::Answered(reply) = node.line(&line) else {
            again = true;
            continue;
        };
        let reply = Reply::parse(&reply);
        let found = match reply.items() {
            [] => Vec::new(),
            [of_stream, ..] => ids(&of_stream.items()[1]),
        };
        if found.is_empty() {
            match again {
                true => again = false,
                false if is_over => return,
                false => thread::sleep(Duration::from_millis(20)),
            }
            continue;
        }
        for id in &found {
            let known = read.lock().expect("no panic").insert((group, id.clone()), name);
            assert!(known.is_none_or(|known| known == name), "{id} went to two consumers");
        }
        if !matches!(
            node.line(&format!("XACK s {group} {}", found.join(" "))),
            Ended::Answered(_)
        ) {
            again = true;
        }
    }
}
