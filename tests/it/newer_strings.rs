//! Commands on strings that came after Redis 8.0, and so are in no redis-server that the tests
//! have. `newer_strings.txt` has their replies.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp;
use crate::support::server::Highwater;
use crate::support::{Stopping, eventually};

const TABLE: &str = include_str!("newer_strings.txt");

fn check_table(client: &mut Client, is_resp3: bool) {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        if line.starts_with("== ") {
            client.check("FLUSHALL", "+OK");
            continue;
        }
        let (command, replies) = line.split_once(" -> ").expect("COMMAND -> REPLY");
        let reply = match replies.split_once(" | ") {
            Some((_, in_resp3)) if is_resp3 => in_resp3,
            Some((in_resp2, _)) => in_resp2,
            None => replies,
        };
        let expected = [&resp::unescape(reply)[..], b"\r\n"].concat();
        let got = client.line(command);
        assert_eq!(resp::show(&got), resp::show(&expected), "reply to {command}");
    }
}

#[test]
fn replies_are_those_that_are_documented() {
    let node = Highwater::embedded();
    let mut client = node.client();
    check_table(&mut client, false);
    client.line("HELLO 3");
    check_table(&mut client, true);
}

/// Redis's test of INCREX has these events.
#[test]
fn events_tell_what_changed() {
    let node = Highwater::embedded();
    let (mut client, mut listener) = (node.client(), node.client());
    client.check("CONFIG SET notify-keyspace-events KEA", "+OK");
    listener.line("PSUBSCRIBE __keyevent@0__:*");
    for (command, events) in [
        ("INCREX k BYINT 5", &["incrby"][..]),
        ("INCREX k BYFLOAT 0.5", &["incrbyfloat"]),
        ("INCREX k BYFLOAT 0.5 PERSIST", &["incrbyfloat"]),
        ("INCREX k EX 1000 ENX", &["incrby", "expire"]),
        ("INCREX k EX 1000 ENX", &["incrby"]),
        ("INCREX k EX 1000", &["incrby", "expire"]),
        ("INCREX k PERSIST", &["incrby", "persist"]),
        ("INCREX k UBOUND 0", &[]),
        ("INCREX k EXAT 1", &["del"]),
        ("MSETEX 1 k v NX EX 1000", &["set", "expire"]),
        ("MSETEX 1 k ex", &["set"]),
        ("SET k px IFEQ v", &[]),
        ("SET k px IFEQ ex", &["set"]),
        ("DELEX k IFEQ v", &[]),
        ("DELEX k IFEQ px", &["del"]),
        ("SETNX k v", &["set"]),
        ("DELIFEQ k v", &["del"]),
    ] {
        client.line(command);
        for event in events {
            let message = resp::show(&listener.reply());
            let wanted = format!("__keyevent@0__:{event}\\r\\n$1\\r\\nk\\r\\n");
            assert!(message.ends_with(&wanted), "{command}: {message}, not {event}");
        }
    }
}

/// A lock that is taken by SET NX or SET IFEQ and given back by DELEX or SET IFEQ, on two nodes. A
/// client that is told that it has the lock has it alone until it gives it back.
#[test]
fn a_lock_has_one_holder_over_all_nodes() {
    const TIMES: usize = 8;
    const DEADLINE: Duration = Duration::from_secs(60);
    let topic = fresh_topic("compared");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let (over, holders, times) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let fight = |mut client: Client, token: usize| {
        let take = [format!("SET lock {token} NX"), format!("SET lock {token} IFEQ free")];
        let give_back = [
            format!("DELEX lock IFEQ {token}"),
            format!("SET lock free IFEQ {token}"),
        ];
        for n in 0.. {
            if over.load(Ordering::Acquire) {
                break;
            }
            if client.line(&take[n % 2]) != b"+OK\r\n" {
                continue;
            }
            let others = holders.fetch_add(1, Ordering::AcqRel);
            assert_eq!(others, 0, "the lock has two holders");
            times.fetch_add(1, Ordering::AcqRel);
            holders.fetch_sub(1, Ordering::AcqRel);
            let expected = [":1", "+OK"][n / 2 % 2];
            client.check(&give_back[n / 2 % 2], expected);
        }
    };
    std::thread::scope(|scope| {
        let stopping = Stopping(&over);
        let clients: Vec<_> = (0..4)
            .map(|token| {
                let (client, fight) = (nodes[token % 2].client(), &fight);
                scope.spawn(move || fight(client, token))
            })
            .collect();
        eventually("the lock to be held by several", DEADLINE, || {
            times.load(Ordering::Acquire) >= TIMES
        });
        drop(stopping);
        clients.into_iter().for_each(|client| client.join().expect("a client"));
    });
}

/// Several clients on two nodes delete the same key on the same condition at the same time.
#[test]
fn the_loser_of_a_conditional_deletion_learns_it() {
    let topic = fresh_topic("deleted");
    let nodes = [(); 2].map(|()| Highwater::on_kafka(kafka::shared(), &topic));
    let mut clients = [0, 1, 0, 1].map(|node: usize| nodes[node].client());
    for round in 0..50 {
        clients[0].check(&format!("SET k {round}"), "+OK");
        clients[1].check_soon("GET k", &format!("${}\r\n{round}", round.to_string().len()));
        let line = [format!("DELEX k IFEQ {round}"), format!("DELIFEQ k {round}")];
        let replies: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let asked = clients.iter_mut().zip([0, 0, 1, 1]);
            let asked: Vec<_> = asked
                .map(|(client, n)| {
                    scope.spawn({
                        let line = &line[n];
                        move || client.line(line)
                    })
                })
                .collect();
            let replies = asked.into_iter().map(|asked| asked.join().expect("a client"));
            replies.collect()
        });
        let winners = replies.iter().filter(|reply| *reply == b":1\r\n").count();
        let losers = replies.iter().filter(|reply| *reply == b":0\r\n").count();
        assert_eq!((winners, losers), (1, 3), "round {round}: {replies:?}");
    }
}
