//! Publish and subscribe where redis-server is no help: who is closed for being slow, what comes
//! in which order, and messages between nodes.

use std::time::{Duration, Instant};

use crate::hostile_clients::may_open_files;
use crate::support::client::Client;
use crate::support::foreign::Foreign;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::resp;
use crate::support::server::Highwater;
use crate::support::wait_for;

const LONG: Duration = Duration::from_secs(30);

/// A message as RESP2 has it.
fn message(channel: &str, payload: &str) -> String {
    format!(
        "*3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n",
        channel.len(),
        payload.len()
    )
}

#[track_caller]
fn hears(client: &mut Client, channel: &str, payload: &str) {
    assert_eq!(
        resp::show(&client.reply()),
        resp::show(message(channel, payload).as_bytes())
    );
}

fn listening(node: &Highwater, channel: &str) -> Client {
    let mut client = node.client();
    client.check(
        &format!("SUBSCRIBE {channel}"),
        &format!("*3\r\n$9\r\nsubscribe\r\n${}\r\n{channel}\r\n:1", channel.len()),
    );
    client
}

#[test]
fn a_slow_subscriber_is_closed_and_others_hear_everything() {
    let node = Highwater::builder()
        .args(&["--client-output-buffer-limit", "pubsub 1mb 0 0"])
        .allow("closing a client that is above client-output-buffer-limit")
        .start();
    let mut slow = listening(&node, "c");
    let mut quick = listening(&node, "c");
    let mut publisher = node.client();
    let payload = "x".repeat(64 << 10);
    // What the kernel takes of it is not known: publish until the slow one is gone.
    let mut published = 0;
    while publisher.text("CLIENT LIST TYPE pubsub").lines().count() == 2 {
        publisher.line(&format!("PUBLISH c {payload}"));
        hears(&mut quick, "c", &payload);
        published += 1;
        assert!(published < 2_000, "the slow subscriber is not closed");
    }
    assert_eq!(
        publisher.info("client_output_buffer_limit_disconnections").as_deref(),
        Some("1")
    );
    publisher.check("PUBLISH c end", ":1");
    hears(&mut quick, "c", "end");
    // What had been sent before may still come, then the end of the connection.
    wait_for("the slow subscriber to be closed", LONG, || {
        matches!(slow.try_reply(), Ok(None) | Err(_)).then_some(())
    });
}

#[test]
fn a_subscriber_above_the_soft_limit_is_closed_though_nobody_publishes_more() {
    let node = Highwater::builder()
        .args(&["--client-output-buffer-limit", "pubsub 0 1mb 1"])
        .allow("closing a client that is above client-output-buffer-limit")
        .start();
    let slow = listening(&node, "c");
    let mut publisher = node.client();
    let payload = "x".repeat(8 << 20);
    for _ in 0..2 {
        publisher.check(&format!("PUBLISH c {payload}"), ":1");
    }
    wait_for("the subscriber to be closed", LONG, || {
        publisher.text("CLIENT LIST TYPE pubsub").is_empty().then_some(())
    });
    assert_eq!(
        publisher.info("client_output_buffer_limit_disconnections").as_deref(),
        Some("1")
    );
    drop(slow);
}

#[test]
fn a_thousand_subscribers_and_ten_thousand_channels() {
    assert!(may_open_files(1_500), "too few files may be open");
    let node = Highwater::embedded();
    let mut all: Vec<Client> = (0..1_000).map(|_| listening(&node, "c")).collect();
    let mut many = node.client();
    let names: Vec<String> = (0..10_000).map(|n| format!("n{n}")).collect();
    many.write(&resp::command_line(&format!("SUBSCRIBE {}", names.join(" "))));
    names.iter().for_each(|_| drop(many.reply()));
    let mut publisher = node.client();
    assert_eq!(publisher.info("pubsub_channels").as_deref(), Some("10001"));
    publisher.check("PUBLISH c one", ":1000");
    publisher.check("PUBLISH c two", ":1000");
    for client in &mut all {
        hears(client, "c", "one");
        hears(client, "c", "two");
    }
    publisher.check("PUBLISH n7777 x", ":1");
    hears(&mut many, "n7777", "x");
    drop(many);
    wait_for("the channels to be gone", LONG, || {
        (publisher.info("pubsub_channels").as_deref() == Some("1")).then_some(())
    });
}

/// Two connections publish at once: all subscribers hear the same order.
#[test]
fn all_hear_one_order() {
    const EACH: usize = 500;
    let node = Highwater::embedded();
    let mut subscribers: Vec<Client> = (0..4).map(|_| listening(&node, "c")).collect();
    std::thread::scope(|scope| {
        for publisher in ["a", "b"] {
            let mut client = node.client();
            scope.spawn(move || {
                let lines: Vec<String> = (0..EACH).map(|n| format!("PUBLISH c {publisher}{n}")).collect();
                client.pipeline(&lines.iter().map(String::as_str).collect::<Vec<_>>());
            });
        }
    });
    let mut heard = subscribers
        .iter_mut()
        .map(|client| (0..2 * EACH).map(|_| client.reply()).collect::<Vec<_>>());
    let first = heard.next().expect("a subscriber");
    assert!(heard.all(|other| other == first));
}

#[test]
fn who_hears_of_a_write_can_read_it_on_another_node() {
    let topic = fresh_topic("pubsub");
    let one = Highwater::on_kafka(kafka::shared(), &topic);
    let other = Highwater::on_kafka(kafka::shared(), &topic);
    let mut subscriber = listening(&other, "written");
    let (mut writer, mut reader) = (one.client(), other.client());
    for n in 0..200 {
        let value = n.to_string();
        match n % 3 {
            0 => {
                let replies = writer.pipeline(&[&format!("SET k {n}"), "PUBLISH written k"]);
                assert_eq!(replies, [b"+OK\r\n".to_vec(), b":0\r\n".to_vec()]);
            }
            1 => {
                writer.check(&format!("SET k {n}"), "+OK");
                writer.check("PUBLISH written k", ":0");
            }
            _ => {
                let replies = writer.pipeline(&["MULTI", "PUBLISH written k", &format!("SET k {n}"), "EXEC"]);
                assert_eq!(resp::show(&replies[3]), "*2\\r\\n:0\\r\\n+OK\\r\\n");
            }
        }
        hears(&mut subscriber, "written", "k");
        reader.check("GET k", &format!("${}\r\n{value}", value.len()));
    }
    assert_eq!(reader.info("pubsub_early").as_deref(), Some("0"));
}

#[test]
fn a_subscriber_hears_the_first_message_of_a_topic_that_did_not_exist() {
    let topic = fresh_topic("pubsub");
    let one = Highwater::on_kafka(kafka::shared(), &topic);
    let other = Highwater::on_kafka(kafka::shared(), &topic);
    let mut subscriber = listening(&other, "c");
    assert!(!kafka::shared().topic_exists(&format!("{topic}.pubsub")));
    one.client().check("PUBLISH c first", ":0");
    let published = Instant::now();
    hears(&mut subscriber, "c", "first");
    let took = published.elapsed();
    assert!(took < Duration::from_secs(5), "the first message took {took:?}");
    println!("the first message came {took:?} after its reply");
    let setting = |name| kafka::shared().topic_config(&format!("{topic}.pubsub"), name);
    assert_eq!(setting("cleanup.policy").as_deref(), Some("delete"));
    assert_eq!(setting("retention.ms").as_deref(), Some("600000"));
}

/// Messages of two nodes and of another program come in one order on both nodes.
#[test]
fn all_nodes_hear_one_order() {
    const EACH: usize = 100;
    let topic = fresh_topic("pubsub");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let mut subscribers: Vec<Client> = nodes.iter().map(|node| listening(node, "c")).collect();
    nodes[0].client().check("PUBLISH c begin", ":1");
    let foreign = Foreign::new(kafka::shared(), &format!("{topic}.pubsub"));
    std::thread::scope(|scope| {
        for (node, name) in nodes.iter().zip(["a", "b"]) {
            scope.spawn(move || {
                let mut client = node.client();
                for n in 0..EACH {
                    client.check(&format!("PUBLISH c {name}{n}"), ":1");
                }
            });
        }
        (0..EACH).for_each(|n| foreign.write("c", Some(&format!("f{n}"))));
    });
    let heard: Vec<Vec<Vec<u8>>> = subscribers
        .iter_mut()
        .map(|client| (0..=3 * EACH).map(|_| client.reply()).collect())
        .collect();
    assert_eq!(heard[0], heard[1]);
    for name in ["a", "b", "f"] {
        let sent: Vec<Vec<u8>> = (0..EACH).map(|n| message("c", &format!("{name}{n}")).into()).collect();
        let own: Vec<&Vec<u8>> = heard[0].iter().filter(|raw| sent.contains(raw)).collect();
        assert!(own.into_iter().eq(&sent), "messages of {name}");
    }
}

#[test]
fn subscribers_stay_through_a_restart_of_the_broker() {
    let kafka = Kafka::start();
    let topic = fresh_topic("pubsub");
    let node = || Highwater::builder().kafka(&kafka, &topic).allow("").start();
    let (one, other) = (node(), node());
    let mut subscriber = listening(&other, "c");
    let mut publisher = one.client();
    publisher.check("PUBLISH c before", ":0");
    hears(&mut subscriber, "c", "before");
    kafka.restart();
    publisher.check_soon("PUBLISH c after", ":0");
    // Those before it that answered UNCERTAIN may have come too.
    hears(&mut subscriber, "c", "after");
}

#[test]
fn subscribers_are_closed_when_the_topic_is_deleted() {
    let topic = fresh_topic("pubsub");
    let node = Highwater::builder()
        .kafka(kafka::shared(), &topic)
        .allow("messages may be lost")
        .allow("librdkafka")
        .start();
    let mut subscriber = listening(&node, "c");
    let mut publisher = node.client();
    publisher.check("PUBLISH c one", ":1");
    hears(&mut subscriber, "c", "one");
    kafka::shared().delete_topic(&format!("{topic}.pubsub"));
    assert!(subscriber.is_closed());
    let mut subscriber = listening(&node, "c");
    publisher.check_soon("PUBLISH c two", ":1");
    hears(&mut subscriber, "c", "two");
    assert_eq!(publisher.info("pubsub_gaps").as_deref(), Some("1"));
}

#[test]
fn messages_stay_on_their_node_if_that_is_wanted() {
    let topic = fresh_topic("pubsub");
    let node = || {
        let builder = Highwater::builder().kafka(kafka::shared(), &topic);
        builder.args(&["--pubsub", "node"]).start()
    };
    let (one, other) = (node(), node());
    let (mut here, mut there) = (listening(&one, "c"), listening(&other, "c"));
    one.client().check("PUBLISH c x", ":1");
    hears(&mut here, "c", "x");
    assert!(!kafka::shared().topic_exists(&format!("{topic}.pubsub")));
    there.check("PING", "*2\r\n$4\r\npong\r\n$0\r\n");
}

#[test]
fn a_message_of_a_transaction_that_is_not_executed_is_not_sent() {
    let topic = fresh_topic("pubsub");
    let node = Highwater::on_kafka(kafka::shared(), &topic);
    let mut subscriber = listening(&node, "c");
    let (mut client, mut other) = (node.client(), node.client());
    client.check("WATCH k", "+OK");
    other.check("SET k other", "+OK");
    client.check("MULTI", "+OK");
    client.check("PUBLISH c never", "+QUEUED");
    client.check("EXEC", "*-1");
    client.check("MULTI", "+OK");
    client.check("PUBLISH c alone", "+QUEUED");
    client.check("SPUBLISH c nobody", "+QUEUED");
    client.check("EXEC", "*2\r\n:1\r\n:0");
    hears(&mut subscriber, "c", "alone");
}

/// A RESP3 connection reads and writes while others publish: its replies come whole and in order,
/// and so do the messages between them.
#[test]
fn messages_come_between_replies() {
    const MESSAGES: usize = 300;
    let topic = fresh_topic("pubsub");
    let node = Highwater::on_kafka(kafka::shared(), &topic);
    let mut client = node.client();
    client.line("HELLO 3");
    client.check("SUBSCRIBE c", ">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1");
    let (mut heard, mut replies, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let mut publisher = node.client();
        scope.spawn(move || {
            let lines: Vec<String> = (0..MESSAGES).map(|n| format!("PUBLISH c {n}")).collect();
            for some in lines.chunks(10) {
                publisher.pipeline(&some.iter().map(String::as_str).collect::<Vec<_>>());
            }
        });
        let mut round = 0;
        while heard.len() < MESSAGES {
            let lines = [
                format!("SET k {round}"),
                "GET k".into(),
                format!("INCRBY n {round}"),
                "PUBLISH nobody x".into(),
            ];
            let all: Vec<u8> = lines.iter().flat_map(|line| resp::command_line(line)).collect();
            client.write(&all);
            let value = round.to_string();
            expected.push(b"+OK\r\n".to_vec());
            expected.push(format!("${}\r\n{value}\r\n", value.len()).into_bytes());
            expected.push(format!(":{}\r\n", (0..=round).sum::<usize>()).into_bytes());
            expected.push(b":0\r\n".to_vec());
            while replies.len() < expected.len() {
                let reply = client.reply();
                let to = if reply.starts_with(b">") {
                    &mut heard
                } else {
                    &mut replies
                };
                to.push(reply);
            }
            round += 1;
            assert!(round < 5_000, "messages are missing: {} came", heard.len());
        }
    });
    assert_eq!(replies, expected);
    let sent: Vec<Vec<u8>> = (0..MESSAGES)
        .map(|n| message("c", &n.to_string()).replacen('*', ">", 1).into())
        .collect();
    assert_eq!(heard, sent);
}
