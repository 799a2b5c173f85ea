//! Brokers that die and a network that fails beneath a node under load: what is answered is true, and it goes on by itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::kafka::{Kafka, fresh_topic};
use crate::support::server::Highwater;
use crate::support::wait_for;

const SOON: Duration = Duration::from_secs(25);
const CLIENTS: usize = 4;
/// A write is answered within the write timeout (5 s), a second more where the outcome of a commit has to be found out, and what a
/// busy machine adds.
const ANSWERED: Duration = Duration::from_millis(7_500);

/// What one client was answered.
#[derive(Default)]
struct Answers {
    written: Vec<String>,
    not_written: Vec<String>,
    uncertain: Vec<String>,
    increments: u64,
    uncertain_increments: u64,
    slowest: Duration,
}

/// Clients that write keys of their own, each once, and increment one counter.
struct Load {
    stop: AtomicBool,
    /// Acknowledged SETs and INCRs.
    sets: AtomicU64,
    increments: AtomicU64,
}

impl Load {
    /// Runs clients while `disturb` does its worst, and returns what they were answered.
    fn run(port: u16, disturb: impl FnOnce(&Load)) -> Vec<Answers> {
        let load = Load {
            stop: AtomicBool::new(false),
            sets: AtomicU64::new(0),
            increments: AtomicU64::new(0),
        };
        thread::scope(|scope| {
            let load = &load;
            let clients: Vec<_> = (0..CLIENTS)
                .map(|n| scope.spawn(move || load.client(port, n)))
                .collect();
            let stopping = Stopping(load);
            disturb(load);
            drop(stopping);
            clients
                .into_iter()
                .map(|client| client.join().expect("a client"))
                .collect()
        })
    }

    fn client(&self, port: u16, number: usize) -> Answers {
        let mut client = Client::connect(port);
        client.set_deadline(ANSWERED * 2);
        let mut answers = Answers::default();
        for turn in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("key-{number}-{turn}");
            let begun = Instant::now();
            let reply = String::from_utf8_lossy(&client.line(&format!("SET {key} v"))).into_owned();
            answers.slowest = answers.slowest.max(begun.elapsed());
            match reply.split(' ').next() {
                Some("+OK\r\n") => {
                    self.sets.fetch_add(1, Ordering::Relaxed);
                    answers.written.push(key);
                }
                Some("-NOTWRITTEN") => answers.not_written.push(key),
                Some("-UNCERTAIN") => answers.uncertain.push(key),
                _ => panic!("SET {key}: {reply}"),
            }
            let begun = Instant::now();
            let reply = String::from_utf8_lossy(&client.line("INCR counter")).into_owned();
            answers.slowest = answers.slowest.max(begun.elapsed());
            if reply.starts_with(':') {
                self.increments.fetch_add(1, Ordering::Relaxed);
                answers.increments += 1;
            } else if reply.starts_with("-UNCERTAIN ") {
                answers.uncertain_increments += 1;
            } else {
                assert!(reply.starts_with("-NOTWRITTEN "), "INCR: {reply}");
            }
        }
        answers
    }

    /// Waits for so many more acknowledgements of each kind.
    fn wait_for_more(&self, count: u64) {
        let now = || [&self.sets, &self.increments].map(|counter| counter.load(Ordering::Relaxed));
        let goal = now().map(|before| before + count);
        wait_for("writes to be acknowledged", SOON, || {
            now().iter().zip(&goal).all(|(now, goal)| now >= goal).then_some(())
        });
    }
}

/// Also when the test panics.
struct Stopping<'a>(&'a Load);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// A node that has read all from the log must show what was acknowledged, and nothing that was not written.
fn check(node: &Highwater, answers: &[Answers]) {
    let mut client = node.client();
    let sum = |of: fn(&Answers) -> usize| answers.iter().map(of).sum::<usize>();
    let slowest = answers.iter().map(|answers| answers.slowest).max().unwrap_or_default();
    let increments: u64 = answers.iter().map(|answers| answers.increments).sum();
    let uncertain: u64 = answers.iter().map(|answers| answers.uncertain_increments).sum();
    println!(
        "SET: {} written, {} not, {} uncertain; INCR: {increments} counted, {uncertain} uncertain; slowest answer {slowest:?}",
        sum(|a| a.written.len()),
        sum(|a| a.not_written.len()),
        sum(|a| a.uncertain.len()),
    );
    assert!(slowest < ANSWERED, "an answer took {slowest:?}");
    for answers in answers {
        for key in &answers.written {
            client.check(&format!("GET {key}"), "$1\r\nv");
        }
        for key in &answers.not_written {
            client.check(&format!("GET {key}"), "$-1");
        }
    }
    let counter: u64 = client.text("GET counter").parse().expect("a number");
    let possible = increments..=increments + uncertain;
    assert!(possible.contains(&counter), "{counter} is not in {possible:?}");
}

#[test]
fn a_leader_that_is_killed_under_load_costs_no_acknowledged_write() {
    let cluster = Kafka::cluster(3);
    let topic = fresh_topic("led");
    let on_cluster = || {
        let args = [
            "--bootstrap-servers",
            &cluster.bootstrap,
            "--topic",
            &topic,
            "--replication-factor",
            "3",
        ];
        Highwater::builder().args(&args).allow("WARN")
    };
    let node = on_cluster().start();
    let mut client = node.client();
    client.check("SET first 1", "+OK");
    assert_eq!(
        cluster.brokers[0]
            .topic_config(&topic, "min.insync.replicas")
            .as_deref(),
        Some("2")
    );
    let answers = Load::run(node.port, |load| {
        load.wait_for_more(200);
        let killed = Instant::now();
        cluster.leader(&topic).kill();
        load.wait_for_more(10);
        println!("writes went on {:?} after the leader was killed", killed.elapsed());
        load.wait_for_more(200);
    });
    check(&node, &answers);
    check(&on_cluster().start(), &answers);
}

#[test]
fn a_network_that_delays_holds_back_and_resets_makes_no_answer_wrong() {
    let (kafka, proxy) = Kafka::start_behind_proxy();
    let topic = fresh_topic("network");
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    node.client().check("SET first 1", "+OK");
    let answers = Load::run(node.port, |load| {
        load.wait_for_more(100);
        for way in [&proxy.to_server, &proxy.to_client] {
            way.delay(Duration::from_millis(100));
            load.wait_for_more(5);
            way.delay(Duration::ZERO);
        }
        for _ in 0..5 {
            proxy.reset();
            load.wait_for_more(20);
        }
        for way in [&proxy.to_server, &proxy.to_client] {
            way.hold(true);
            let held = Instant::now();
            let mut client = node.client();
            let reply = String::from_utf8_lossy(&client.line("SET held v")).into_owned();
            assert!(
                reply.starts_with("-UNCERTAIN ") || reply.starts_with("-NOTWRITTEN "),
                "{reply}"
            );
            assert!(held.elapsed() < ANSWERED, "{:?}", held.elapsed());
            client.check("GET first", "$1\r\n1");
            way.hold(false);
            load.wait_for_more(20);
        }
    });
    check(&node, &answers);
    check(&Highwater::on_kafka(&kafka, &topic), &answers);
}
