//! Clients that mean harm or do not care: they must cost bounded memory, and nothing to others.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::resp::{self, command_line};
use crate::support::server::Highwater;
use crate::support::wait_for;

const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const CLOSED: &str = "above client-output-buffer-limit";

/// Bytes of memory that the server has.
fn memory(node: &Highwater) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the server runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a process has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// A client that behaves well all the while: its replies are checked, and it remembers the longest that it waited for one.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Bystander {
    fn start(node: &Highwater) -> Bystander {
        let (port, stop) = (node.port, Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut client = Client::connect(port);
            let mut longest = Duration::ZERO;
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let began = Instant::now();
                client.check(&format!("SET bystander {n}"), "+OK");
                client.check("GET bystander", &format!("${}\r\n{n}", n.to_string().len()));
                longest = longest.max(began.elapsed());
                thread::sleep(Duration::from_millis(2));
            }
            longest
        });
        Bystander { stop, thread }
    }

    /// It was never kept waiting for as long as this.
    #[track_caller]
    fn was_served_within(self, most: Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the bystander was answered rightly");
        println!("the bystander waited for {longest:?} at most");
        assert!(longest < most, "the bystander waited for {longest:?}");
    }
}

fn set_value(node: &Highwater, key: &str, length: usize) -> Vec<u8> {
    let value: Vec<u8> = (0..length).map(|at| b'a' + (at % 23) as u8).collect();
    let reply = node.client().send(&[b"SET", key.as_bytes(), &value]);
    assert_eq!(resp::show(&reply), "+OK\\r\\n");
    value
}

fn disconnections(node: &Highwater) -> u64 {
    let count = node.client().info("client_output_buffer_limit_disconnections");
    count.and_then(|count| count.parse().ok()).expect("INFO counts them")
}

/// A value named many times in one command.
fn mget(key: &str, times: usize) -> Vec<u8> {
    let mut args = vec![&b"MGET"[..]];
    args.resize(times + 1, key.as_bytes());
    resp::command(&args)
}

#[test]
fn who_does_not_read_is_closed_at_the_hard_limit() {
    let node = Highwater::builder()
        .args(&["--client-output-buffer-limit", "normal 1mb 0 0"])
        .allow(CLOSED)
        .start();
    let value = set_value(&node, "value", 300_000);
    // Much more than the limit, but it is read.
    let mut reader = node.client();
    for _ in 0..200 {
        assert!(reader.line("GET value").ends_with(&[&value[..], b"\r\n"].concat()));
    }
    assert_eq!(disconnections(&node), 0);
    let mut idler = node.client();
    idler.check("CLIENT SETNAME idler", "+OK");
    idler.write(&command_line("GET value").repeat(200));
    wait_for("the one that does not read to be closed", SOON, || {
        (disconnections(&node) == 1).then_some(())
    });
    assert!(!reader.text("CLIENT LIST").contains("name=idler"));
    // One reply above the limit: none of it is sent.
    let mut greedy = node.client();
    greedy.write(&mget("value", 4));
    assert!(greedy.is_closed());
    // As in Redis, a transaction that answers too much is carried out nevertheless.
    let mut transaction = node.client();
    transaction.write(&command_line("MULTI"));
    transaction.write(&command_line("SET inside 1"));
    transaction.write(&mget("value", 4));
    transaction.write(&command_line("SET behind 1"));
    transaction.write(&command_line("EXEC"));
    while let Ok(Some(_)) = transaction.try_reply() {}
    reader.check("MGET inside behind", "*2\r\n$1\r\n1\r\n$1\r\n1");
    assert_eq!(disconnections(&node), 3);
    assert_eq!(node.log().matches(CLOSED).count(), 1, "one line for many");
    // No limit from here on.
    reader.check("CONFIG SET client-output-buffer-limit \"normal 0 0 0\"", "+OK");
    let mut later = node.client();
    later.write(&mget("value", 4));
    assert_eq!(later.reply().len(), 4 + 4 * (9 + value.len() + 2));
}

#[test]
fn who_stays_above_the_soft_limit_is_closed_after_its_time() {
    let node = Highwater::builder()
        .args(&["--client-output-buffer-limit", "normal 0 500kb 2"])
        .allow(CLOSED)
        .start();
    set_value(&node, "value", 100_000);
    let began = Instant::now();
    let mut idler = node.client();
    idler.write(&command_line("GET value").repeat(500));
    // As much, but it is read in time.
    let mut slow = node.client();
    slow.write(&command_line("GET value").repeat(500));
    for n in 0..500 {
        assert!(slow.reply().len() > 100_000, "{n}");
        if n % 250 == 0 {
            thread::sleep(Duration::from_secs(1));
        }
    }
    wait_for("the one that does not read to be closed", SOON, || {
        (disconnections(&node) == 1).then_some(())
    });
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    slow.check("PING", "+PONG");
}

#[test]
fn slow_readers_cost_little_and_nothing_to_others() {
    const READERS: usize = 300;
    const TIMES: usize = 2_000;
    let node = Highwater::embedded();
    let value = set_value(&node, "value", 1_000_000);
    let before = memory(&node);
    let bystander = Bystander::start(&node);
    // 2 GB for each: in one reply, in a transaction, or in a pipeline.
    let mut readers: Vec<Client> = (0..READERS)
        .map(|n| {
            let mut reader = node.client();
            reader.write(&match n % 3 {
                0 => mget("value", TIMES),
                1 => [command_line("MULTI"), mget("value", TIMES), command_line("EXEC")].concat(),
                _ => command_line("GET value").repeat(TIMES),
            });
            reader
        })
        .collect();
    wait_for("all to have begun", SOON, || {
        let list = node.client().text("CLIENT LIST");
        let waiting = list.lines().filter(|line| !line.contains(" omem=0 ")).count();
        (waiting == READERS).then_some(())
    });
    let grown = memory(&node).saturating_sub(before);
    println!("{READERS} readers cost {} MiB", grown / MIB);
    assert!(grown < 2 * READERS as u64 * MIB, "{grown} bytes");
    // Those that do read get what they asked for.
    for _ in 0..TIMES {
        assert!(
            readers[2]
                .reply()
                .ends_with(&[&value[..1_000], &value[1_000..], b"\r\n"].concat())
        );
    }
    readers[2].check("PING", "+PONG");
    drop(readers);
    bystander.was_served_within(Duration::from_secs(2));
}

#[test]
fn a_giant_pipeline_is_answered_though_nothing_is_read_before_its_end() {
    const COMMANDS: usize = 100_000;
    let node = Highwater::embedded();
    set_value(&node, "value", 200);
    let bystander = Bystander::start(&node);
    let mut client = node.client();
    let mut all = Vec::new();
    for n in 0..COMMANDS {
        all.extend(match n % 5 {
            0 => command_line(&format!("SET k{n} {n}")),
            1 => command_line("GET value"),
            2 => command_line("NOSUCHCOMMAND with arguments"),
            3 => command_line("GET"),
            _ => b"ECHO inline\r\n".to_vec(),
        });
    }
    // Several times what sockets hold, in requests and in replies.
    for _ in 0..6 {
        client.write(&all);
    }
    for n in 0..6 * COMMANDS {
        let reply = client.reply();
        let right = match n % COMMANDS % 5 {
            0 => reply == b"+OK\r\n",
            1 => reply.starts_with(b"$200\r\n"),
            2 => reply.starts_with(b"-ERR unknown command 'NOSUCHCOMMAND'"),
            3 => reply.starts_with(b"-ERR wrong number of arguments for 'get' command"),
            _ => reply == b"$6\r\ninline\r\n",
        };
        assert!(right, "{n}: {}", resp::show(&reply));
    }
    client.check("DBSIZE", &format!(":{}", COMMANDS / 5 + 2));
    bystander.was_served_within(Duration::from_secs(2));
}
