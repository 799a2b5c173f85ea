//! Clients that wait for elements (BLPOP and its like): how a wait ends, and who gets an element,
//! on one node and on several. What one connection after the other can show is in
//! `side_by_side/blocking.txt`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::{self, Reply};
use crate::support::server::Highwater;
use crate::support::{Stopping, eventually, longer};

const SOON: Duration = Duration::from_secs(30);

/// Sends a command that is going to wait, and returns when it does.
fn block(node: &Highwater, line: &str) -> Client {
    let (mut client, mut other) = (node.client(), node.client());
    let before = blocked(&mut other);
    client.write(&resp::command_line(line));
    eventually("the client waits", SOON, || blocked(&mut other) > before);
    client
}

fn blocked(client: &mut Client) -> u32 {
    let blocked = client.info("blocked_clients").expect("INFO has blocked_clients");
    blocked.parse().expect("a number")
}

#[track_caller]
fn answers(client: &mut Client, expected: &str) {
    assert_eq!(
        resp::show(&client.reply()),
        resp::show(format!("{expected}\r\n").as_bytes())
    );
}

/// The reply of BLPOP on the list `l`.
fn popped(item: &str) -> String {
    format!("*2\r\n$1\r\nl\r\n${}\r\n{item}", item.len())
}

fn id_of(node: &Highwater, flags: &str) -> String {
    let list = node.client().text("CLIENT LIST");
    let line = list.lines().find(|line| line.contains(&format!(" flags={flags} ")));
    let line = line.unwrap_or_else(|| panic!("no client with flags {flags}: {list}"));
    let id = line.split(' ').next().and_then(|field| field.strip_prefix("id="));
    id.expect("a line begins with the id").to_owned()
}

#[test]
fn others_end_a_wait() {
    let node = Highwater::embedded();
    let mut other = node.client();
    for line in ["BLPOP l 0", "BLMOVE l to LEFT LEFT 0", "BZPOPMIN l 0", "WAIT 9 0"] {
        let timed_out = if line.starts_with("WAIT") { ":0" } else { "*-1" };
        for (how, reply) in [
            ("", timed_out),
            (" TIMEOUT", timed_out),
            (" ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK"),
        ] {
            if line.starts_with("WAIT") {
                // A timeout of 0 means no wait here.
                continue;
            }
            let mut client = block(&node, line);
            let id = id_of(&node, "b");
            other.check(&format!("CLIENT UNBLOCK {id}{how}"), ":1");
            answers(&mut client, reply);
            other.check(&format!("CLIENT UNBLOCK {id}{how}"), ":0");
            client.check("PING", "+PONG");
        }
    }
    let mut client = block(&node, "WAIT 9 60000");
    let id = id_of(&node, "b");
    other.check(&format!("CLIENT UNBLOCK {id} ERROR"), ":1");
    answers(&mut client, "-UNBLOCKED client unblocked via CLIENT UNBLOCK");
    let mut client = block(&node, "BLPOP l 0");
    let id = id_of(&node, "b");
    other.check(&format!("CLIENT KILL ID {id}"), ":1");
    assert!(client.is_closed());
    eventually("nobody waits", SOON, || blocked(&mut other) == 0);
    other.check("RPUSH l a", ":1");
    other.check("LRANGE l 0 -1", "*1\r\n$1\r\na");
}

#[test]
fn a_stream_or_group_that_goes_ends_the_wait() {
    let node = Highwater::embedded();
    let mut other = node.client();
    for change in ["DEL s", "SET s v", "FLUSHALL", "SWAPDB 0 1", "XGROUP DESTROY s g"] {
        other.check("FLUSHALL", "+OK");
        other.check("XADD s 1-1 f v", "$3\r\n1-1");
        other.check("XGROUP CREATE s g $", "+OK");
        let mut client = block(&node, "XREADGROUP GROUP g c BLOCK 0 STREAMS s >");
        other.line(change);
        let reply = resp::show(&client.reply());
        assert!(
            reply.starts_with('-') && reply.contains("no longer exists"),
            "{change}: {reply}"
        );
        client.check("PING", "+PONG");
    }
}

#[test]
fn a_client_that_has_gone_takes_nothing() {
    let node = Highwater::embedded();
    let mut other = node.client();
    let mut lost = 0;
    for round in 0..20 {
        let gone = block(&node, "BLPOP l 0");
        let mut next = block(&node, "BLPOP l 0");
        drop(gone);
        // It may be that the server has not heard of it when the item comes. On a busy machine the
        // kernel itself may not have: then the item goes where nobody is, as in Redis.
        other.check("RPUSH l a", ":1");
        next.set_deadline(Duration::from_secs(10));
        let mut reply = next.try_reply();
        if !matches!(reply, Ok(Some(_))) {
            lost += 1;
            other.check("RPUSH l a", ":1");
            reply = next.try_reply();
        }
        let reply = reply.expect("a reply").expect("it is open");
        assert_eq!(
            resp::show(&reply),
            resp::show(format!("{}\r\n", popped("a")).as_bytes())
        );
        other.check("EXISTS l", ":0");
        drop(next);
        eventually(&format!("nobody waits in round {round}"), SOON, || {
            blocked(&mut other) == 0
        });
    }
    assert!(lost < 3, "{lost} of 20 items went to clients that had gone");
}

#[test]
fn what_is_there_is_answered_also_to_a_client_that_sends_no_more() {
    let node = Highwater::embedded();
    node.client().check("RPUSH l a", ":1");
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).expect("connect");
    stream.write_all(b"BLPOP l 0\r\n").expect("send");
    stream.shutdown(Shutdown::Write).expect("send no more");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    assert_eq!(reply, "*2\r\n$1\r\nl\r\n$1\r\na\r\n");
}

#[test]
fn much_sent_behind_a_command_that_waits_is_executed_after_it() {
    let node = Highwater::embedded();
    let mut client = block(&node, "BLPOP l 0");
    let value = "v".repeat(100_000);
    let sent = 40;
    for number in 0..sent {
        client.write(&resp::command_line(&format!("SET k{number} {value}")));
    }
    let mut other = node.client();
    other.check("DBSIZE", ":0");
    other.check("RPUSH l a", ":1");
    answers(&mut client, &popped("a"));
    for _ in 0..sent {
        answers(&mut client, "+OK");
    }
    other.check("DBSIZE", &format!(":{sent}"));
    // A client is missed, however much it has sent.
    let mut gone = block(&node, "BLPOP l 0");
    for _ in 0..15 {
        gone.write(&resp::command_line(&format!("SET k {value}")));
    }
    drop(gone);
    eventually("nobody waits", SOON, || blocked(&mut other) == 0);
    other.check("RPUSH l a", ":1");
    other.check("LLEN l", ":1");
}

#[test]
fn a_node_that_stops_waits_for_nobody_that_waits() {
    let mut node = Highwater::embedded();
    let mut client = block(&node, "BLPOP l 0");
    let asked = Instant::now();
    assert!(node.terminate().success());
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "it waits for a client that waits"
    );
    assert!(client.is_closed());
}

#[test]
fn many_clients_wait_in_little_memory_and_are_served_in_their_order() {
    const CLIENTS: usize = 500;
    let node = Highwater::embedded();
    let mut other = node.client();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| node.client()).collect();
    let before = node.memory();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write(&resp::command_line("BLPOP l other another 0"));
        // One after the other, so that their order is known.
        eventually("the client waits", SOON, || blocked(&mut other) == number as u32 + 1);
    }
    let each = node.memory().saturating_sub(before) / CLIENTS as u64;
    assert!(each < 64 << 10, "{each} bytes for each client");
    let items: Vec<String> = (0..CLIENTS).map(|number| format!("{number}")).collect();
    for items in items.chunks(7) {
        other.line(&format!("RPUSH l {}", items.join(" ")));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        answers(client, &popped(&number.to_string()));
    }
    other.check("EXISTS l", ":0");
    assert_eq!(blocked(&mut other), 0);
}

// ---- several nodes ----

#[test]
fn a_push_through_one_node_serves_who_waits_on_another() {
    let kafka = kafka::shared();
    let topic = fresh_topic("waiting");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let mut other = nodes[0].client();
    other.check("SET string v", "+OK");
    // In their order, and each item once.
    let mut clients: Vec<Client> = (0..3).map(|_| block(&nodes[1], "BLPOP l 0")).collect();
    for item in ["a", "b", "c"] {
        other.line(&format!("RPUSH l {item}"));
    }
    for (client, item) in clients.iter_mut().zip(["a", "b", "c"]) {
        answers(client, &popped(item));
    }
    // A write of another type needs a node that knows that the key is gone.
    let mut client = block(&nodes[1], "BZPOPMIN none l 0");
    other.check_soon("EXISTS l", ":0");
    other.check("ZADD l 1 m", ":1");
    answers(&mut client, "*3\r\n$1\r\nl\r\n$1\r\nm\r\n$1\r\n1");
    let mut client = block(&nodes[1], "BLMOVE l to LEFT RIGHT 0");
    let mut next = block(&nodes[0], "BLPOP to 0");
    other.check_soon("EXISTS l", ":0");
    other.check("RPUSH l x", ":1");
    answers(&mut client, "$1\r\nx");
    answers(&mut next, "*2\r\n$2\r\nto\r\n$1\r\nx");
    // One waits on each node: exactly one is served, the other one waits on.
    let mut both: Vec<Client> = nodes.iter().map(|node| block(node, "BLPOP l 0")).collect();
    other.line("RPUSH l first");
    eventually("one is served", SOON, || {
        nodes.iter().map(|node| blocked(&mut node.client())).sum::<u32>() == 1
    });
    other.line("RPUSH l second");
    let mut items: Vec<String> = both.iter_mut().map(item_of).collect();
    items.sort();
    assert_eq!(items, ["first", "second"]);
}

/// The item of the next reply of BLPOP.
fn item_of(client: &mut Client) -> String {
    let reply = Reply::parse(&client.reply());
    let item = reply.items().get(1).and_then(Reply::bytes).map(<[u8]>::to_vec);
    String::from_utf8(item.unwrap_or_else(|| panic!("no item: {reply:?}"))).expect("an item is text")
}

#[test]
fn a_list_of_another_producer_serves_who_waits() {
    let kafka = kafka::shared();
    let topic = fresh_topic("waiting-foreign");
    let node = Highwater::on_kafka(kafka, &topic);
    node.client().check("SET string v", "+OK");
    let mut clients: Vec<Client> = (0..3).map(|_| block(&node, "BLPOP l 0")).collect();
    let hostile = Hostile::new(kafka, &topic);
    hostile.send(0, b"l", Some(b"no list"), &[]);
    hostile.send(0, b"l", Some(b"\xc1"), &[("redis-type", b"list")]);
    hostile.send(0, b"l", Some(b"\x92\xa1a\xa1b"), &[("redis-type", b"list")]);
    // While writes are paused nobody takes anything.
    let paused = Instant::now();
    node.client().check("CLIENT PAUSE 1000 WRITE", "+OK");
    hostile.flush();
    answers(&mut clients[0], &popped("a"));
    assert!(paused.elapsed() >= Duration::from_millis(990), "{:?}", paused.elapsed());
    answers(&mut clients[1], &popped("b"));
    node.client().check("EXISTS l", ":0");
    node.client().check("RPUSH l c", ":1");
    answers(&mut clients[2], &popped("c"));
}

/// What clients have taken, and how often each item.
#[derive(Default)]
struct TakenItems {
    times: Mutex<BTreeMap<String, u32>>,
}

impl TakenItems {
    fn note(&self, item: String) {
        *self.times.lock().expect("no thread panics").entry(item).or_default() += 1;
    }

    fn len(&self) -> usize {
        self.times.lock().expect("no thread panics").len()
    }

    fn check_that_none_came_twice(&self) {
        let times = self.times.lock().expect("no thread panics");
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "taken more than once: {twice:?}");
    }
}

/// Takes items until it is over. An item whose reply did not come may be lost; returns how many
/// replies did not come.
fn take_items(port: u16, taken: &TakenItems, over: &AtomicBool) -> usize {
    let mut unanswered = 0;
    while !over.load(Ordering::Acquire) {
        let Ok(mut client) = Client::try_connect(port) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        while !over.load(Ordering::Acquire) {
            if client.try_write(&resp::command_line("BLPOP l 0.5")).is_err() {
                break;
            }
            match client.try_reply().map(|reply| reply.map(|reply| Reply::parse(&reply))) {
                Ok(Some(reply)) => {
                    // Else nothing came in time, or the node is loading.
                    if let [_, item] = reply.items() {
                        let item = item.bytes().expect("an item").to_vec();
                        taken.note(String::from_utf8(item).expect("an item is text"));
                    }
                }
                Ok(None) | Err(_) => {
                    unanswered += 1;
                    break;
                }
            }
        }
    }
    unanswered
}

#[test]
fn twenty_clients_of_three_nodes_take_each_item_once() {
    const ITEMS: usize = 200;
    let kafka = kafka::shared();
    let topic = fresh_topic("waiting-many");
    let nodes: Vec<Highwater> = (0..3).map(|_| Highwater::on_kafka(kafka, &topic)).collect();
    nodes[0].client().check("SET string v", "+OK");
    let (taken, over) = (TakenItems::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let stopping = Stopping(&over);
        for number in 0..20 {
            let (port, taken, over) = (nodes[number % 3].port, &taken, &over);
            scope.spawn(move || take_items(port, taken, over));
        }
        let mut pushers: Vec<Client> = nodes.iter().map(Highwater::client).collect();
        for item in 0..ITEMS * longer() as usize {
            let reply = pushers[item % 3].line(&format!("RPUSH l {item}"));
            assert_eq!(reply[0], b':', "{}", resp::show(&reply));
        }
        eventually("every item is taken", SOON * longer(), || {
            taken.len() == ITEMS * longer() as usize
        });
        drop(stopping);
    });
    taken.check_that_none_came_twice();
    nodes[0].client().check_soon("EXISTS l", ":0");
}

#[test]
fn a_client_waits_for_so_many_keys_and_no_more() {
    let node = Highwater::embedded();
    let mut client = node.client();
    let keys: Vec<String> = (0..10_001).map(|key| format!("k{key}")).collect();
    client.check(
        &format!("BLPOP {} 1", keys.join(" ")),
        "-ERR a command that waits takes at most 10000 keys",
    );
    client.check("RPUSH k9999 v", ":1");
    client.check(
        &format!("BLPOP {} 1", keys[..10_000].join(" ")),
        "*2\r\n$5\r\nk9999\r\n$1\r\nv",
    );
}

#[test]
fn no_item_comes_twice_when_a_node_is_killed() {
    const ITEMS: usize = 300;
    let kafka = kafka::shared();
    let topic = fresh_topic("waiting-killed");
    let staying = Highwater::on_kafka(kafka, &topic);
    let mut killed = Highwater::on_kafka(kafka, &topic);
    let mut other = staying.client();
    other.check("SET string v", "+OK");
    let (taken, over) = (TakenItems::default(), AtomicBool::new(false));
    let unanswered: usize = thread::scope(|scope| {
        let stopping = Stopping(&over);
        let ports = [staying.port, killed.port].into_iter().cycle().take(6);
        let takers: Vec<_> = ports
            .map(|port| {
                let (taken, over) = (&taken, &over);
                scope.spawn(move || take_items(port, taken, over))
            })
            .collect();
        for item in 0..ITEMS {
            let reply = other.line(&format!("RPUSH l {item}"));
            assert_eq!(reply[0], b':', "{}", resp::show(&reply));
            if item % 100 == 50 {
                killed.kill9();
                killed.restart();
            }
        }
        eventually("the list is empty", SOON, || other.line("EXISTS l") == b":0\r\n");
        drop(stopping);
        takers.into_iter().map(|taker| taker.join().expect("a taker")).sum()
    });
    taken.check_that_none_came_twice();
    // What was taken for a client of the killed node whose reply did not come is lost, as in Redis.
    let missing = ITEMS - taken.len();
    assert!(
        missing <= unanswered,
        "{missing} items are missing, {unanswered} replies"
    );
}
