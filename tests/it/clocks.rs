//! Nodes whose clocks are wrong: what they may do to keys that expire, and that they do no more than that.

use std::time::{Duration, Instant};

use crate::consistency::equal_digests;
use crate::support::client::Client;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::server::Highwater;
use crate::support::temp;

const SOON: Duration = Duration::from_secs(20);
/// Known to builds for tests only.
const WRONG_BY: &str = "HIGHWATER_TEST_CLOCK_WRONG_BY_MS";
const HOUR: i64 = 3_600_000;

fn node(kafka: &Kafka, topic: &str, wrong_by: i64) -> Highwater {
    let node = Highwater::builder().kafka(kafka, topic);
    let node = node.env(WRONG_BY, &wrong_by.to_string()).start();
    // A reply that is the node's time.
    let told = node.client().tree("LASTSAVE").integer().expect("seconds");
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let right = since.expect("later than 1970").as_secs() as i64;
    assert!(
        (told - right - wrong_by / 1_000).abs() < 60,
        "the clock is right: these tests need a build with debug assertions"
    );
    node
}

#[track_caller]
fn eventually(what: &str, client: &mut Client, line: &str, expected: &str) {
    let expected = format!("{expected}\r\n").into_bytes();
    crate::support::eventually(what, SOON, || client.line(line) == expected);
}

#[test]
fn a_wrong_clock_shifts_the_end_of_keys_that_expire_and_nothing_else() {
    let kafka = kafka::shared();
    let topic = fresh_topic("clocks");
    let nodes = [0, HOUR, -HOUR].map(|wrong_by| node(kafka, &topic, wrong_by));
    let [mut right, mut ahead, mut behind] = nodes.each_ref().map(Highwater::client);
    // Without an expiry, and with one that is further away than the clocks are apart.
    for (writer, name) in [(&mut right, "right"), (&mut ahead, "ahead"), (&mut behind, "behind")] {
        writer.check(&format!("SET lasting-{name} v"), "+OK");
        writer.check(&format!("SET long-{name} v PX {}", 3 * HOUR), "+OK");
    }
    // Sooner than the clocks are apart: over at once for whoever is ahead, and so deleted for all, long before its time.
    right.check(&format!("SET short v PX {}", HOUR / 2), "+OK");
    eventually("deleted early", &mut right, "GET short", "$-1");
    // So much for a lock that is held.
    right.check(&format!("SET lock holder NX PX {}", HOUR / 2), "+OK");
    eventually(
        "taken from its holder",
        &mut ahead,
        &format!("SET lock thief NX PX {}", 3 * HOUR),
        "+OK",
    );
    // Over at once for everybody but the node that is behind.
    behind.check(&format!("SET late v PX {}", HOUR / 2), "+OK");
    eventually("not shown", &mut right, "GET late", "$-1");
    eventually("deleted", &mut behind, "GET late", "$-1");
    // Lasts an hour longer for others, as long as the node that is ahead does not delete it in what it takes for time.
    ahead.check("SET brief v PX 300", "+OK");
    eventually("deleted by its own node", &mut right, "GET brief", "$-1");
    // A key that expires is replaced by one that does not, again and again: who takes the old one for expired never deletes the new one.
    for n in 0..200 {
        right.check(&format!("SET renewed-{n} old PX {}", HOUR / 2), "+OK");
        if n % 3 == 0 {
            std::thread::sleep(Duration::from_millis(15));
        }
        right.check(&format!("SET renewed-{n} new"), "+OK");
    }
    // The node that is ahead looks for expired keys within two seconds; one more that it deletes shows that it has looked.
    right.check(&format!("SET last v PX {}", HOUR / 2), "+OK");
    eventually("deleted early", &mut right, "GET last", "$-1");
    for client in [&mut right, &mut ahead, &mut behind] {
        for n in 0..200 {
            eventually("renewed", client, &format!("GET renewed-{n}"), "$3\r\nnew");
        }
        for name in ["right", "ahead", "behind"] {
            eventually("without an expiry", client, &format!("GET lasting-{name}"), "$1\r\nv");
            eventually("expires much later", client, &format!("GET long-{name}"), "$1\r\nv");
        }
    }
    equal_digests(&mut right, &mut ahead, "0");
    equal_digests(&mut right, &mut behind, "0");
}

/// Its clock is set ahead, and back behind the others', while it runs: what lasts is left alone, and nothing but an expiry rests on it.
#[test]
fn a_clock_that_jumps_while_a_node_runs_harms_no_key_that_lasts() {
    let kafka = kafka::shared();
    let topic = fresh_topic("jumps");
    let dir = temp::dir("clock");
    let file = dir.path().join("wrong-by");
    let set_clock = |wrong_by: i64| {
        let new = dir.path().join("new");
        std::fs::write(&new, wrong_by.to_string()).expect("write a file");
        std::fs::rename(&new, &file).expect("replace a file");
    };
    set_clock(0);
    let right = node(kafka, &topic, 0);
    // When it last looked at the log's end its clock may still have been ahead: started again, it cannot tell how long it was away.
    let jumping = Highwater::builder().kafka(kafka, &topic).allow("it is from the future");
    let mut jumping = jumping.env(WRONG_BY, &file.display().to_string()).start();
    let (mut client, mut jumper) = (right.client(), jumping.client());
    for (client, mode) in [(&mut client, "LINEARIZABLE"), (&mut jumper, "MAXLAG 3000")] {
        client.check(&format!("HIGHWATER CONSISTENCY {mode}"), "+OK");
    }
    client.check(&format!("SET long v PX {}", 3 * HOUR), "+OK");
    let before = jumper.tree("LASTSAVE").integer().expect("seconds");
    for (turn, wrong_by) in [HOUR, -HOUR, HOUR, 0].into_iter().enumerate() {
        client.check(&format!("SET short v PX {}", HOUR / 2), "+OK");
        set_clock(wrong_by);
        let told = jumper.tree("LASTSAVE").integer().expect("seconds");
        assert!(
            (told - before - wrong_by / 1_000).abs() < 60,
            "the clock did not jump: {told} after {before}"
        );
        if wrong_by > 0 {
            eventually("deleted early", &mut client, "GET short", "$-1");
        }
        for (client, name) in [(&mut client, "right"), (&mut jumper, "jumping")] {
            client.check(&format!("SET lasting-{name}-{turn} v"), "+OK");
            eventually("counted", client, &format!("INCRBY counter-{turn}-{name} 2"), ":2");
            eventually("read", client, "GET long", "$1\r\nv");
        }
        // What it gives a time to is over for the others so much later or sooner.
        let seen = if wrong_by < 0 { "$-1" } else { "$1\r\nv" };
        jumper.check(&format!("SET given v PX {}", HOUR / 2), "+OK");
        eventually("as its clock was", &mut client, "GET given", seen);
    }
    for client in [&mut client, &mut jumper] {
        for turn in 0..4 {
            eventually("lasting", client, &format!("GET lasting-right-{turn}"), "$1\r\nv");
            eventually("lasting", client, &format!("GET lasting-jumping-{turn}"), "$1\r\nv");
        }
    }
    equal_digests(&mut client, &mut jumper, "0");
    // Stopped and started again it has all of that too.
    assert!(jumping.terminate().success());
    jumping.restart();
    equal_digests(&mut client, &mut jumping.client(), "0");
}

/// A checkpoint from the future tells nothing of how long a node was away: deletes may have been missed.
#[test]
fn a_clock_that_was_set_back_while_a_node_was_away_revives_no_key() {
    let kafka = kafka::shared();
    let topic = kafka.quickly_compacted_topic("set-back", 1);
    let right = node(kafka, &topic, 0);
    let mut wrong = node(kafka, &topic, HOUR);
    let mut client = right.client();
    client.check("SET gone v", "+OK");
    client.check("SET kept v", "+OK");
    eventually("seen by the other", &mut wrong.client(), "GET gone", "$1\r\nv");
    assert!(wrong.terminate().success());
    client.check("DEL gone", ":1");
    // Other records must come, since the newest segment is not compacted.
    let deadline = Instant::now() + Duration::from_secs(60);
    while kafka
        .records(&topic, "read_committed")
        .iter()
        .any(|record| record.key.as_deref() == Some(b"gone"))
    {
        assert!(Instant::now() < deadline, "the tombstone does not vanish");
        client.check("SET filler v", "+OK");
        std::thread::sleep(Duration::from_millis(500));
    }
    wrong.allow("rebuilding the local store");
    wrong.restart_with_env(WRONG_BY, "0");
    let mut again = wrong.client();
    eventually("never deleted", &mut again, "GET kept", "$1\r\nv");
    again.check("GET gone", "$-1");
    equal_digests(&mut client, &mut again, "0");
}
