//! Each thread and task of the register (`highwater::supervise`) dies in a node under load: what its death means is what happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use highwater::supervise::{self, Death, ROLES, Role};
use tempfile::TempDir;

use crate::support::client::Client;
use crate::support::kafka::{self, Kafka};
use crate::support::resp::command_line;
use crate::support::server::{self, Builder, Highwater};
use crate::support::{Stopping, eventually, parts, ports, process, temp, wait_for};

const SOON: Duration = Duration::from_secs(30);
/// Nodes at a time.
const AT_ONCE: usize = 6;

/// Only on Kafka.
const OF_KAFKA: &[&Role] = &[
    &supervise::KAFKA_REPORTS,
    &supervise::KAFKA_WATCH,
    &supervise::TRANSACTIONS,
    &supervise::TRANSACTIONS_TAIL,
    &supervise::CREATE_DATABASE,
    &supervise::LOG_ENDS,
    &supervise::PUBSUB_READER,
];
/// Looked at on both logs; all others on the embedded one.
const OF_EITHER: &[&Role] = &[&supervise::APPLIER, &supervise::STORE_WRITER, &supervise::CONNECTION];
/// Those at the start and the end of a node.
const OF_START_AND_END: &[&Role] = &[
    &supervise::OPEN,
    &supervise::START,
    &supervise::STOP,
    &supervise::PROGRESS,
    &supervise::PRELOAD,
];
/// Helpers of a rare moment, whose panic is caught and told like that of any other thread (`supervise::tests`).
const RARE: &[&Role] = &[
    &supervise::STORE_CLOSER,
    &supervise::TRANSACTION_END,
    &supervise::PRODUCER_END,
    &supervise::PUBSUB_TOPIC,
    &supervise::ENDING,
];

fn is_in(roles: &[&Role], role: &Role) -> bool {
    roles.iter().any(|other| other.name == role.name)
}

/// A node, and the file that says which fault is to happen in it.
struct Faulty {
    node: Highwater,
    fault: PathBuf,
    grpc: u16,
    _dir: TempDir,
}

impl Faulty {
    fn start(builder: Builder) -> Faulty {
        Faulty::prepared(builder).started()
    }

    fn prepared(builder: Builder) -> Prepared {
        let dir = temp::dir("fault");
        let (fault, grpc) = (dir.path().join("fault"), ports::free());
        let builder = builder
            .args(&["--grpc-port", &grpc.to_string(), "--segment-bytes", "64kb"])
            .args(&["--maxclients", "100"])
            .env("HIGHWATER_TEST_FAULT", &fault.to_string_lossy())
            // The deaths themselves are told.
            .allow("");
        Prepared {
            builder,
            fault,
            grpc,
            dir,
        }
    }

    /// Makes it happen, and waits until it has begun.
    fn inject(&self, fault: &str, role: &Role) {
        fs::write(&self.fault, format!("{fault} {}", role.name)).expect("a file");
        if role.name == "signals" {
            self.node.signal(libc::SIGHUP);
        }
        if role.name == "grpc-request" {
            let mut client = Command::new(parts::python());
            client
                .arg(parts::clients_dir().join("python/grpc_client.py"))
                .arg(self.grpc.to_string())
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/kvs2.proto"));
            let outcome = process::try_run(client, b"", SOON).expect("it starts");
            assert!(!outcome.success(), "a request that panics has no answer");
        }
        eventually(role.name, SOON, || !self.fault.exists());
    }

    /// Whether `highwater --ping` finds that it serves.
    fn is_pinged(&self) -> bool {
        let mut ping = Command::new(server::binary());
        ping.args(["--ping", "--port", &self.node.port.to_string()]);
        process::try_run(ping, b"", SOON).expect("it starts").success()
    }
}

struct Prepared {
    builder: Builder,
    fault: PathBuf,
    grpc: u16,
    dir: TempDir,
}

impl Prepared {
    fn started(self) -> Faulty {
        Faulty {
            node: self.builder.start(),
            fault: self.fault,
            grpc: self.grpc,
            _dir: self.dir,
        }
    }
}

fn embedded() -> Builder {
    Highwater::builder().args(&["--fsync", "everysec"])
}

fn on_kafka(kafka: &Kafka) -> Builder {
    Highwater::builder().kafka(kafka, &kafka::fresh_topic("deaths"))
}

/// A thread without progress counts as dead after so long already; what it does for a write takes not longer than that.
fn stalls_after(builder: Builder, milliseconds: &str) -> Builder {
    let builder = builder.args(&["--write-timeout", "1s"]);
    builder.env("HIGHWATER_TEST_STALLED_MS", milliseconds)
}

/// One client's commands, which give all of the node something to do, until one is answered that this node cannot go on or `over`;
/// that answer. A connection that is closed is opened again.
fn load(port: u16, grpc: u16, over: &AtomicBool) -> Option<String> {
    let value = "v".repeat(2_000);
    let mut client = None;
    let mut reached = Instant::now();
    // Of its own, so that no message comes between its replies.
    let channel: u64 = rand::random();
    for n in 0.. {
        if over.load(Ordering::Relaxed) || reached.elapsed() > SOON {
            break;
        }
        let lines = [
            format!("SET k{} {value}", n % 50),
            format!("INCR n{}", n % 5),
            format!("MSET a{n} 1 b{n} 2"),
            format!("SET soon{n} v PX 1"),
            "HIGHWATER CONSISTENCY LINEARIZABLE".to_owned(),
            format!("GET k{}", n % 50),
            "HIGHWATER CONSISTENCY DEFAULT".to_owned(),
            format!("SELECT {}", 1 + n % 3),
            "SET k v".to_owned(),
            "SELECT 0".to_owned(),
            format!("SUBSCRIBE {channel}"),
            format!("UNSUBSCRIBE {channel}"),
            format!("PUBLISH {channel} m"),
            if n % 20 == 0 { "HIGHWATER DIGEST" } else { "PING" }.to_owned(),
            if n % 10 == 0 { "FLUSHDB" } else { "PING" }.to_owned(),
        ];
        for line in lines {
            let open = client.take().or_else(|| Client::try_connect(port).ok());
            let Some(mut open) = open else { break };
            if open.try_write(&command_line(&line)).is_err() {
                break;
            }
            match open.try_reply() {
                Ok(Some(reply)) if String::from_utf8_lossy(&reply).contains("this node cannot go on") => {
                    return Some(String::from_utf8_lossy(&reply).into_owned());
                }
                Ok(Some(_)) => (client, reached) = (Some(open), Instant::now()),
                Ok(None) => break,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => panic!("{line} is never answered"),
                Err(_) => break,
            }
        }
        // What listens is asked to look.
        for port in [port, grpc] {
            drop(std::net::TcpStream::connect(("127.0.0.1", port)));
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

/// What is to be seen of a node that has failed, until it ends.
fn check_failed(faulty: &mut Faulty, role: &Role) {
    let name = role.name;
    let mut client = Client::connect(faulty.node.port);
    eventually("the failure", SOON, || client.line("PING").starts_with(b"-"));
    for line in ["GET k1", "SET k v", "PING", "DBSIZE"] {
        let reply = String::from_utf8_lossy(&client.line(line)).into_owned();
        assert!(
            reply.starts_with("-ERR this node cannot go on"),
            "{name}: {line}: {reply}"
        );
    }
    let info = |client: &mut Client, field| client.info(field).unwrap_or_default();
    assert_eq!(info(&mut client, "log_status"), "failed", "{name}");
    assert_eq!(info(&mut client, "aof_last_write_status"), "err", "{name}");
    assert!(info(&mut client, "log_failure").contains("cannot go on"), "{name}");
    assert!(!faulty.is_pinged(), "{name}: --ping");
}

/// This dies under load.
fn dies(mut faulty: Faulty, fault: &str, role: &Role) {
    let (port, grpc, name) = (faulty.node.port, faulty.grpc, role.name);
    let over = AtomicBool::new(false);
    let fails = role.death == Death::NodeFails || fault == "stall";
    thread::scope(|scope| {
        let _stopping = Stopping(&over);
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| load(port, grpc, &over))).collect();
        thread::sleep(Duration::from_millis(300));
        faulty.inject(fault, role);
        if !fails {
            if role.death == Death::StartsAgain {
                faulty.inject(fault, role);
            }
            return;
        }
        // Nobody can connect to a listener that is dead, or is answered by one whose process ends with it.
        if is_in(&[&supervise::LISTENER], role) {
            return;
        }
        check_failed(&mut faulty, role);
        for client in clients {
            let answer = client.join().expect("every command is answered");
            assert!(answer.is_some(), "{name}: no client was told why");
        }
    });
    if fails {
        assert_eq!(faulty.node.wait_until_exit(SOON).code(), Some(1), "{name}");
        assert!(faulty.node.log().contains("highwater: cannot go on: "), "{name}");
        return;
    }
    // Nothing is left of the clients, and the node serves.
    let mut client = Client::connect(port);
    eventually("no other client is counted", SOON, || {
        client.info("connected_clients").as_deref() == Some("1")
    });
    client.check("SET k v", "+OK");
    client.check("INCR counter", ":1");
    client.check("GET k", "$1\r\nv");
    assert!(faulty.is_pinged(), "{name}: --ping");
    // The fault counts as injected before its panic is told, which comes with a backtrace.
    eventually("the panic to be told", SOON, || faulty.node.log().contains("panicked"));
    assert!(faulty.node.terminate().success(), "{name}");
}

/// Some at a time; what each panics with is told by its name.
fn each(roles: Vec<&'static Role>, body: impl Fn(&'static Role) + Sync) {
    let left = Mutex::new(roles);
    let next = || left.lock().expect("nobody panics").pop();
    let work = || {
        while let Some(role) = next() {
            println!("{}", role.name);
            body(role);
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn each_thread_and_task_of_a_node_on_the_embedded_log_may_die() {
    let elsewhere = |role: &&&Role| {
        [OF_KAFKA, OF_START_AND_END, RARE]
            .iter()
            .any(|roles| is_in(roles, role))
    };
    let roles: Vec<&Role> = ROLES.iter().filter(|role| !elsewhere(role)).copied().collect();
    assert!(roles.len() > 12);
    each(roles, |role| dies(Faulty::start(embedded()), "panic", role));
}

#[test]
fn each_thread_and_task_that_a_node_has_on_kafka_may_die() {
    let kafka = kafka::shared();
    let roles = [OF_KAFKA, OF_EITHER].concat();
    each(roles, |role| dies(Faulty::start(on_kafka(kafka)), "panic", role));
}

#[test]
fn a_thread_that_stalls_with_work_to_do_counts_as_dead() {
    let kafka = kafka::shared();
    let of_kafka = [
        &supervise::KAFKA_REPORTS,
        &supervise::KAFKA_WATCH,
        &supervise::TRANSACTIONS,
        &supervise::TRANSACTIONS_TAIL,
    ];
    let here = [
        &supervise::APPLIER,
        &supervise::STORE_WRITER,
        &supervise::LOG_WRITER,
        &supervise::LOG_FSYNC,
        &supervise::LOG_COMPACTION,
    ];
    each([&of_kafka[..], &here].concat(), |role| {
        let builder = match is_in(OF_KAFKA, role) {
            true => on_kafka(kafka),
            false => embedded(),
        };
        let faulty = Faulty::start(stalls_after(builder, "1500"));
        dies(faulty, "stall", role);
    });
}

#[test]
fn what_dies_at_the_start_or_the_end_of_a_node_ends_it_or_costs_nothing() {
    let write = |prepared: &Prepared, role: &Role| fs::write(&prepared.fault, format!("panic {}", role.name));
    each(vec![&supervise::OPEN, &supervise::START], |role| {
        let prepared = Faulty::prepared(embedded());
        write(&prepared, role).expect("a file");
        let mut node = prepared.builder.start_without_waiting();
        assert_eq!(node.wait_until_exit(SOON).code(), Some(1), "{}", role.name);
        assert!(node.log().contains("panicked: injected"), "{}", role.name);
    });
    let prepared = Faulty::prepared(embedded());
    write(&prepared, &supervise::PROGRESS).expect("a file");
    let mut faulty = prepared.started();
    faulty.node.client().check("SET k v", "+OK");
    assert!(faulty.node.terminate().success());
    fs::write(&faulty.fault, "panic preload").expect("a file");
    faulty.node.restart();
    eventually("the preload panics", SOON, || !faulty.fault.exists());
    faulty.node.client().check("GET k", "$1\r\nv");
    fs::write(&faulty.fault, "panic stop").expect("a file");
    assert_eq!(faulty.node.terminate().code(), Some(1));
    faulty.node.restart();
    faulty.node.client().check("GET k", "$1\r\nv");
}

/// Neither a broker that is away nor a value that takes long is a death, and after a pause of the whole process nothing is.
#[test]
fn what_waits_is_not_dead() {
    let kafka = Kafka::start();
    let stalled = |builder: Builder| Faulty::start(stalls_after(builder, "4000"));
    let (faulty, alone) = (stalled(on_kafka(&kafka)), stalled(embedded()));
    let (mut client, mut beside) = (faulty.node.client(), alone.node.client());
    wait_for("a first transaction", SOON, || {
        (client.line("MSET a 1 b 2") == b"+OK\r\n").then_some(())
    });
    kafka.freeze();
    alone.node.freeze();
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        for line in ["SET k v", "INCR n"] {
            let reply = String::from_utf8_lossy(&client.line(line)).into_owned();
            assert!(
                reply.starts_with("-UNCERTAIN") || reply.starts_with("-NOTWRITTEN"),
                "{line}: {reply}"
            );
        }
    }
    kafka.thaw();
    alone.node.thaw();
    wait_for("a write after the outage", SOON, || {
        (client.line("SET k v") == b"+OK\r\n").then_some(())
    });
    beside.check("SET k v", "+OK");
    let large = vec![b'v'; 100 << 20];
    assert_eq!(beside.send(&[b"SET", b"large", &large]), b"+OK\r\n");
    for node in [&faulty, &alone] {
        let log = node.node.log();
        assert!(!log.contains("made no progress"), "{log}");
    }
}

/// The log takes no more after an fsync that failed: all say so.
#[test]
fn a_failed_fsync_is_told_by_all_and_the_next_start_finds_out_what_is_there() {
    for fsync in ["always", "everysec"] {
        let mut faulty = Faulty::start(Highwater::builder().args(&["--fsync", fsync]));
        let mut client = faulty.node.client();
        client.check("SET before v", "+OK");
        fs::write(&faulty.fault, "fail fsync").expect("a file");
        let reply = wait_for("the failed fsync", SOON, || {
            let reply = String::from_utf8_lossy(&client.line("SET k v")).into_owned();
            reply.starts_with('-').then_some(reply)
        });
        assert!(reply.contains("cannot fsync"), "{fsync}: {reply}");
        check_failed(&mut faulty, &supervise::LOG_FSYNC);
        assert_eq!(faulty.node.wait_until_exit(SOON).code(), Some(1), "{fsync}");
        faulty.node.restart();
        let mut client = faulty.node.client();
        client.check("GET before", "$1\r\nv");
        client.check("SET k v", "+OK");
    }
}

/// The connection alone, also where it was about to hand its write to the log.
#[test]
fn a_panic_in_a_command_costs_its_connection_alone() {
    let kafka = kafka::shared();
    for builder in [embedded(), on_kafka(kafka)] {
        let mut faulty = Faulty::start(builder);
        let mut others = faulty.node.client();
        others.check("SET k before", "+OK");
        for line in ["SET k v", "INCR n", "MSET k v l v"] {
            let mut client = faulty.node.client();
            fs::write(&faulty.fault, "panic commit").expect("a file");
            client.write(&command_line(line));
            assert!(client.is_closed(), "{line}");
            others.check("GET k", "$6\r\nbefore");
            others.check("MSET k before l 1", "+OK");
            others.check("INCR l", ":2");
            others.check("GET n", "$-1");
        }
        eventually("their slots are free", SOON, || {
            others.info("connected_clients").as_deref() == Some("1")
        });
        assert!(faulty.node.terminate().success());
    }
}
