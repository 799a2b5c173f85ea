//! Fields of hashes that have expired are removed in the background: on both logs, after a restart,
//! from hashes of other producers, and never against a newer record.

use std::thread;
use std::time::Duration;

use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, Kafka, SeenRecord, fresh_topic};
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);
const HASH: &[(&str, &[u8])] = &[("redis-type", b"hash")];

fn text(client: &mut Client, line: &str) -> String {
    String::from_utf8_lossy(&client.line(line)).into_owned()
}

/// Waits until the newest record of a key has so many bytes.
fn shrinks(client: &mut Client, key: &str, bytes: usize) {
    let size = format!("$4\r\nsize\r\n:{bytes}\r\n");
    eventually(&format!("{key} has {bytes} bytes"), SOON, || {
        text(client, &format!("HIGHWATER WHERE {key}")).contains(&size)
    });
}

fn records_of(kafka: &Kafka, topic: &str, key: &[u8]) -> Vec<SeenRecord> {
    let records = kafka.records(topic, "read_committed").into_iter();
    records.filter(|record| record.key.as_deref() == Some(key)).collect()
}

/// The value of a key's newest record; `None` is a tombstone.
fn newest(kafka: &Kafka, topic: &str, key: &[u8]) -> Option<Vec<u8>> {
    let newest = records_of(kafka, topic, key).pop().expect("the key has a record");
    newest.value
}

#[test]
fn expired_fields_are_removed_in_the_background_also_after_a_restart() {
    let mut node = Highwater::embedded();
    let mut client = node.client();
    client.check("HSET h a 1 b 2", ":2");
    client.check("PEXPIREAT h 33177117420000", ":1");
    client.check("HSET gone a 1 b 2", ":2");
    client.check("HSET later a 1", ":1");
    client.check("HEXPIRE later 10000 FIELDS 1 a", "*1\r\n:1");
    client.check("HPEXPIRE h 100 FIELDS 1 a", "*1\r\n:1");
    client.check("HPEXPIRE gone 100 FIELDS 2 a b", "*2\r\n:1\r\n:1");
    shrinks(&mut client, "h", 5);
    eventually("the key goes with its last field", SOON, || {
        client.line("DBSIZE") == b":2\r\n"
    });
    client.check("HGETALL h", "*2\r\n$1\r\nb\r\n$1\r\n2");
    client.check("PEXPIRETIME h", ":33177117420000");
    assert!(text(&mut client, "INFO stats").contains("\r\nexpired_keys:1\r\n"));
    // What expires while the node is down.
    client.check("HSET h a 1", ":1");
    client.check("HSET gone a 1", ":1");
    client.check("HPEXPIRE h 300 FIELDS 1 a", "*1\r\n:1");
    client.check("HPEXPIRE gone 300 FIELDS 1 a", "*1\r\n:1");
    assert!(node.terminate().success());
    thread::sleep(Duration::from_millis(400));
    node.restart();
    let mut client = node.client();
    shrinks(&mut client, "h", 5);
    eventually("the key goes with its last field", SOON, || {
        client.line("DBSIZE") == b":2\r\n"
    });
    client.check("HLEN later", ":1");
}

#[test]
fn expired_fields_of_other_producers_are_removed_once() {
    let kafka = kafka::shared();
    let topic = fresh_topic("fields");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let mut client = nodes[0].client();
    client.check("SET string v", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    // Of an hour after the epoch, and one that does not expire.
    hostile.send(
        0,
        b"partly",
        Some(b"\x82\xa1a\x92\xa11\xce\x00\x36\xee\x80\xa1b\xa12"),
        HASH,
    );
    hostile.send(0, b"wholly", Some(b"\x81\xa1a\x92\xa11\xce\x00\x36\xee\x80"), HASH);
    hostile.flush();
    let left = Some(b"\x81\xa1b\xa12".to_vec());
    eventually("the field goes", SOON, || newest(kafka, &topic, b"partly") == left);
    eventually("the key goes", SOON, || newest(kafka, &topic, b"wholly").is_none());
    // Both nodes have looked, and more than once: this field is removed after that.
    client.check("HSET last a 1 b 2", ":2");
    client.check("HPEXPIRE last 2500 FIELDS 1 a", "*1\r\n:1");
    eventually("the last one goes", SOON, || newest(kafka, &topic, b"last") == left);
    for key in [b"partly", b"wholly"] {
        assert_eq!(
            records_of(kafka, &topic, key).len(),
            2,
            "written once, removed from once"
        );
    }
    let fresh = Highwater::on_kafka(kafka, &topic);
    for node in [&nodes[0], &nodes[1], &fresh] {
        let mut client = node.client();
        eventually("the removals are applied", SOON, || client.line("DBSIZE") == b":3\r\n");
        client.check("HGETALL partly", "*2\r\n$1\r\nb\r\n$1\r\n2");
        client.check("EXISTS wholly", ":0");
    }
}

#[test]
fn a_node_that_may_not_write_hashes_removes_no_fields_but_keys() {
    let kafka = kafka::shared();
    let topic = fresh_topic("fields-held-back");
    let careful = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--max-features", "none"])
        .start();
    let mut client = careful.client();
    client.check("SET string v", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    let value = b"\x82\xa1a\x92\xa11\xce\x00\x36\xee\x80\xa1b\xa12";
    hostile.send(0, b"h", Some(value), HASH);
    hostile.flush();
    eventually("the hash arrives", SOON, || client.line("HLEN h") == b":1\r\n");
    client.check("SET brief v PX 2500", "+OK");
    eventually("an expired key goes", SOON, || {
        newest(kafka, &topic, b"brief").is_none()
    });
    assert_eq!(newest(kafka, &topic, b"h").as_deref(), Some(&value[..]));
    client.check("CONFIG SET max-features all", "+OK");
    eventually("the field goes", SOON, || {
        newest(kafka, &topic, b"h").as_deref() == Some(&b"\x81\xa1b\xa12"[..])
    });
}

#[test]
fn a_field_that_is_persisted_on_another_node_stays() {
    const KEYS: usize = 12;
    const FOR: u64 = 400;
    let kafka = kafka::shared();
    let topic = fresh_topic("fields-persisted");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let [mut one, mut other] = [nodes[0].client(), nodes[1].client()];
    one.set_deadline(SOON);
    other.set_deadline(SOON);
    let mut persisted = Vec::new();
    for n in 0..KEYS {
        one.check(&format!("HSET h{n} a 1 b 2"), ":2");
        eventually("the other node has it", SOON, || {
            other.line(&format!("HLEN h{n}")) == b":2\r\n"
        });
        one.check(&format!("HPEXPIRE h{n} {FOR} FIELDS 1 a"), "*1\r\n:1");
        // From well before the field expires to well after it.
        thread::sleep(Duration::from_millis(FOR - 30 + n as u64 * 5));
        let reply = text(&mut other, &format!("HPERSIST h{n} FIELDS 1 a"));
        assert!(["*1\r\n:1\r\n", "*1\r\n:-2\r\n"].contains(&reply.as_str()), "{reply}");
        persisted.push(reply == "*1\r\n:1\r\n");
    }
    // Both nodes have looked at all of them: this field is removed after that.
    one.check("HSET last a 1 b 2", ":2");
    one.check("HPEXPIRE last 2500 FIELDS 1 a", "*1\r\n:1");
    eventually("the last one goes", SOON, || {
        newest(kafka, &topic, b"last").as_deref() == Some(&b"\x81\xa1b\xa12"[..])
    });
    for (n, persisted) in persisted.iter().enumerate() {
        let left = match persisted {
            true => &b"\x82\xa1a\xa11\xa1b\xa12"[..],
            false => b"\x81\xa1b\xa12",
        };
        let key = format!("h{n}");
        eventually("each has its end", SOON, || {
            newest(kafka, &topic, key.as_bytes()).as_deref() == Some(left)
        });
        let fields = if *persisted { ":2\r\n" } else { ":1\r\n" };
        for client in [&mut one, &mut other] {
            eventually("both nodes show it", SOON, || {
                text(client, &format!("HLEN {key}")) == fields
            });
        }
    }
}
