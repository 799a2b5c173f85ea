//! Brokers that die and a network that fails beneath a node under load: what is answered is true, and it goes on by itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::kafka::{Kafka, fresh_topic};
use crate::support::proxy::{ADD_PARTITIONS_TO_TXN, END_TXN, FETCH, INIT_PRODUCER_ID, Lost, PRODUCE};
use crate::support::server::Highwater;
use crate::support::{Stopping, wait_for};

const SOON: Duration = Duration::from_secs(25);
const CLIENTS: usize = 4;
/// A write is answered within the write timeout (5 s), a second more where the outcome of a commit has to be found out, and what a
/// busy machine adds.
const ANSWERED: Duration = Duration::from_millis(7_500);
/// What loses against another writer, which may be one that Kafka has not ended yet, and is computed again takes a write timeout more.
const COMPUTED_AGAIN: Duration = Duration::from_millis(11_500);

/// What one client was answered.
#[derive(Default)]
struct Answers {
    written: Vec<String>,
    not_written: Vec<String>,
    uncertain: Vec<String>,
    increments: u64,
    uncertain_increments: u64,
    /// The answers to SET and to INCR that took longest.
    slowest: [(Duration, String); 2],
}

impl Answers {
    fn note(&mut self, kind: usize, begun: Instant, reply: &str) {
        let slowest = &mut self.slowest[kind];
        if begun.elapsed() > slowest.0 {
            *slowest = (begun.elapsed(), reply.to_owned());
        }
    }
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
            let stopping = Stopping(&load.stop);
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
            answers.note(0, begun, &reply);
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
            answers.note(1, begun, &reply);
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

/// A node that has read all from the log must show what was acknowledged, and nothing that was not written.
fn check(node: &Highwater, answers: &[Answers]) {
    let mut client = node.client();
    let sum = |of: fn(&Answers) -> usize| answers.iter().map(of).sum::<usize>();
    let slowest = [0, 1].map(|kind| answers.iter().map(|answers| &answers.slowest[kind]).max());
    let increments: u64 = answers.iter().map(|answers| answers.increments).sum();
    let uncertain: u64 = answers.iter().map(|answers| answers.uncertain_increments).sum();
    println!(
        "SET: {} written, {} not, {} uncertain; INCR: {increments} counted, {uncertain} uncertain; slowest answer {slowest:?}",
        sum(|a| a.written.len()),
        sum(|a| a.not_written.len()),
        sum(|a| a.uncertain.len()),
    );
    for (slowest, bound) in slowest.into_iter().flatten().zip([ANSWERED, COMPUTED_AGAIN]) {
        assert!(slowest.0 < bound, "an answer took {slowest:?}");
    }
    for answers in answers {
        check_keys(&mut client, &answers.written, &answers.not_written);
    }
    let counter: u64 = client.text("GET counter").parse().expect("a number");
    let possible = increments..=increments + uncertain;
    assert!(possible.contains(&counter), "{counter} is not in {possible:?}");
}

/// Keys that were each written once, with the value `v`.
pub fn check_keys(client: &mut Client, written: &[String], not_written: &[String]) {
    for key in written {
        client.check(&format!("GET {key}"), "$1\r\nv");
    }
    for key in not_written {
        client.check(&format!("GET {key}"), "$-1");
    }
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
    // Besides the leader one more broker has it for certain.
    client.check("WAIT 1 0", ":1");
    let answers = Load::run(node.port, |load| {
        load.wait_for_more(200);
        let killed = Instant::now();
        cluster.leader(&topic).kill();
        load.wait_for_more(10);
        println!("writes went on {:?} after the leader was killed", killed.elapsed());
        load.wait_for_more(200);
    });
    // Which asks the log's new leader for its end.
    client.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    client.check("GET first", "$1\r\n1");
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

#[test]
fn a_broker_that_is_killed_and_comes_back_makes_no_answer_wrong() {
    let kafka = Kafka::start();
    let topic = fresh_topic("restarted");
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    node.client().check("SET first 1", "+OK");
    let answers = Load::run(node.port, |load| {
        for _ in 0..2 {
            load.wait_for_more(200);
            kafka.restart();
        }
        load.wait_for_more(200);
    });
    check(&node, &answers);
    check(&Highwater::on_kafka(&kafka, &topic), &answers);
}

fn ask(client: &mut Client, line: &str) -> String {
    String::from_utf8_lossy(&client.line(line)).trim_end().to_owned()
}

/// Increments until that works so many times in a row: with two, each of the producers that take turns works. Of those before it
/// `open` may count or not. Returns the counter.
fn increment(client: &mut Client, mut counter: u64, mut open: u64, times: u32) -> u64 {
    let mut in_row = 0;
    wait_for("increments to work again", SOON, || {
        let reply = ask(client, "INCR counter");
        if let Some(number) = reply.strip_prefix(':') {
            let number = number.parse().expect("a number");
            let possible = counter + 1..=counter + 1 + open;
            assert!(possible.contains(&number), "{number} is not in {possible:?}");
            (counter, open) = (number, 0);
            in_row += 1;
        } else {
            // On a machine that is busy with other things.
            open += u64::from(reply.starts_with("-UNCERTAIN "));
            in_row = 0;
        }
        (in_row == times).then_some(counter)
    })
}

/// Each step of a write, lost once or for as long as the write may take: its request, or the answer to what the broker has done.
#[test]
fn whichever_request_or_answer_is_lost_what_is_answered_is_true() {
    const ALL: u64 = u64::MAX;
    let (kafka, proxy) = Kafka::start_behind_proxy();
    let topic = fresh_topic("lost");
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN");
    let node = node.args(&["--write-timeout", "2s"]).start();
    let mut client = node.client();
    let mut counter = increment(&mut client, 0, 0, 2);
    let steps = [ADD_PARTITIONS_TO_TXN, PRODUCE, END_TXN];
    let ways = [
        (Lost::Request, 1),
        (Lost::Answer, 1),
        (Lost::Request, ALL),
        (Lost::Answer, ALL),
    ];
    for (step, (lost, times)) in steps.iter().flat_map(|step| ways.map(|way| (*step, way))) {
        let case = format!("requests of kind {step}, {lost:?} lost {times} times");
        // Where no answer to the commit ever comes, only looking into the log can tell.
        let written = times == 1 || (step, lost) == (END_TXN, Lost::Answer);
        // A machine that is busy with other things may not get to that in time.
        for attempt in 1.. {
            proxy.lose(&[step], lost, times);
            let begun = Instant::now();
            let reply = ask(&mut client, "INCR counter");
            println!("{case}, after {:?}: {reply}", begun.elapsed());
            assert!(proxy.lose_no_more() >= 1, "nothing was lost: {case}");
            counter += u64::from(written);
            let late = reply.starts_with("-UNCERTAIN ") && times == ALL && step == END_TXN && attempt < 5;
            if written && !late {
                assert_eq!(reply, format!(":{counter}"), "{case}");
            } else if !late {
                assert!(reply.starts_with("-NOTWRITTEN "), "{case}: {reply}");
            }
            counter = increment(&mut client, counter, 0, 2);
            if !late {
                break;
            }
        }
    }
    // And how it ended cannot be found out.
    for (lost, committed) in [(Lost::Request, 0), (Lost::Answer, 1)] {
        proxy.lose(&[END_TXN, INIT_PRODUCER_ID], lost, ALL);
        let reply = ask(&mut client, "INCR counter");
        assert!(proxy.lose_no_more() >= 2, "nothing was lost");
        assert!(reply.starts_with("-UNCERTAIN "), "{lost:?}: {reply}");
        counter = increment(&mut client, counter + committed, 0, 2);
    }
    for (n, (lost, times)) in ways.into_iter().enumerate() {
        proxy.lose(&[PRODUCE], lost, times);
        let reply = ask(&mut client, &format!("SET plain-{n} v"));
        assert!(proxy.lose_no_more() >= 1, "nothing was lost");
        println!("a plain write, {lost:?} lost {times} times: {reply}");
        match times {
            1 => assert_eq!(reply, "+OK"),
            _ => assert!(reply.starts_with("-UNCERTAIN "), "{lost:?}: {reply}"),
        }
    }
    counter = increment(&mut client, counter, 0, 2);
    let records = kafka.records(&topic, "read_committed");
    let of = |key: &str| -> Vec<String> {
        let found = records
            .iter()
            .filter(|record| record.key.as_deref() == Some(key.as_bytes()));
        let value = |value: &Option<Vec<u8>>| String::from_utf8_lossy(value.as_deref().expect("a value")).into_owned();
        found.map(|record| value(&record.value)).collect()
    };
    assert_eq!(of("counter"), (1..=counter).map(|n| n.to_string()).collect::<Vec<_>>());
    for n in [0, 1, 3] {
        assert_eq!(of(&format!("plain-{n}")), ["v"], "once, whatever was sent again");
    }
}

#[test]
fn a_node_that_stops_at_any_step_of_a_transaction_holds_the_others_up_for_a_bounded_time() {
    let (kafka, proxy) = Kafka::start_behind_proxy();
    let topic = fresh_topic("steps");
    let start = |bootstrap: &str| {
        let args = [
            "--bootstrap-servers",
            bootstrap,
            "--topic",
            &topic,
            "--write-timeout",
            "2s",
        ];
        Highwater::builder().args(&args).allow("WARN").start()
    };
    let (stopping, other) = (start(&kafka.bootstrap), start(&proxy.around));
    let mut client = other.client();
    let mut counter = increment(&mut client, 0, 0, 2);
    for (step, lost) in [
        (ADD_PARTITIONS_TO_TXN, Lost::Request),
        (PRODUCE, Lost::Request),
        (END_TXN, Lost::Request),
        (END_TXN, Lost::Answer),
    ] {
        let mut its_client = stopping.client();
        wait_for("the node to write", SOON, || {
            (ask(&mut its_client, "INCR own").starts_with(':')).then_some(())
        });
        proxy.lose(&[step], lost, u64::MAX);
        let reply = thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&mut its_client, "INCR counter"));
            wait_for("the node to come to this step", SOON, || {
                (proxy.lost() > 0).then_some(())
            });
            stopping.freeze();
            let since = Instant::now();
            // Its commit has come through if only the answer was lost.
            let committed = u64::from(lost == Lost::Answer);
            counter = increment(&mut client, counter + committed, 0, 1);
            assert!(
                since.elapsed() < Duration::from_secs(15),
                "held up for {:?}",
                since.elapsed()
            );
            println!(
                "stopped at {step}, {lost:?}: the other node was held up for {:?}",
                since.elapsed()
            );
            proxy.lose_no_more();
            stopping.thaw();
            asked.join().expect("no panic")
        });
        let context = format!("{step}, {lost:?}: {reply}, the counter was {counter}");
        match (reply.strip_prefix(':'), lost) {
            (Some(_), Lost::Answer) => {}
            // Computed anew.
            (Some(number), _) => {
                counter += 1;
                assert_eq!(number, counter.to_string(), "{context}");
            }
            (None, Lost::Request) if reply.starts_with("-NOTWRITTEN ") => {}
            (None, _) => assert!(reply.starts_with("-UNCERTAIN "), "{context}"),
        }
        let open = u64::from(reply.starts_with("-UNCERTAIN ") && lost == Lost::Request);
        counter = increment(&mut client, counter, open, 1);
    }
    increment(&mut client, counter, 0, 2);
}

/// The connections that the log is read on answer nothing any more, and stay open. Counters rest on what comes before them in the log.
#[test]
fn counters_count_though_the_connections_that_read_the_log_have_gone_silent() {
    let (kafka, proxy) = Kafka::start_behind_proxy();
    let node = Highwater::builder().kafka(&kafka, &fresh_topic("silent")).allow("WARN");
    let node = node.start();
    let mut client = node.client();
    let counter = increment(&mut client, 0, 0, 2);
    proxy.hold(FETCH, 0);
    // The applier's and the lane's.
    wait_for("two Fetch requests", SOON, || (proxy.held() >= 2).then_some(()));
    proxy.strand();
    // One command finds out.
    increment(&mut client, counter, 0, 2);
    proxy.let_go();
}

/// Clients that send much more than a node may hold while Kafka takes nothing.
#[test]
fn what_is_sent_while_the_broker_takes_nothing_is_refused_in_bounded_memory() {
    const MIB: u64 = 1 << 20;
    let (kafka, proxy) = Kafka::start_behind_proxy();
    let node = Highwater::builder().kafka(&kafka, &fresh_topic("held")).allow("WARN");
    let node = node.args(&["--write-timeout", "2s", "--maxmemory", "64mb"]).start();
    node.client().check_soon("SET first 1", "+OK");
    let before = node.memory();
    proxy.to_server.hold(true);
    let begun = Instant::now();
    // 600 MB of SETs and 100 MB of MSETs, by clients that do not wait for their answers.
    let clients: Vec<_> = (0..234)
        .map(|n| {
            let mut client = node.client();
            client.set_deadline(Duration::from_secs(60));
            thread::spawn(move || {
                let write = match n % 7 {
                    0 => (0..10).fold("MSET".to_owned(), |all, m| {
                        format!("{all} several-{n}-{m} {}", "v".repeat(100_000))
                    }),
                    _ => format!("SET key-{n} {}", "v".repeat(1_000_000)),
                };
                for reply in client.pipeline(&[write.as_str(); 3]) {
                    let reply = String::from_utf8_lossy(&reply);
                    let told = reply.starts_with("-NOTWRITTEN ") || reply.starts_with("-UNCERTAIN ");
                    assert!(told, "{reply}");
                }
            })
        })
        .collect();
    let mut most = 0;
    wait_for("all to be answered", Duration::from_secs(90), || {
        most = node.memory().max(most);
        clients.iter().all(thread::JoinHandle::is_finished).then_some(())
    });
    println!(
        "{} MiB more at most, all answered after {:?}",
        (most - before) / MIB,
        begun.elapsed()
    );
    clients.into_iter().for_each(|client| client.join().expect("a client"));
    assert!(most - before < 700 * MIB, "{} MiB", (most - before) / MIB);
    proxy.to_server.hold(false);
    let mut client = node.client();
    wait_for("writes to work again", SOON, || {
        (ask(&mut client, "SET again 1") == "+OK").then_some(())
    });
    increment(&mut client, 0, 0, 2);
    client.check("GET first", "$1\r\n1");
}
