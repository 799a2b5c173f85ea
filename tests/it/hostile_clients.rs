//! Clients that mean harm or do not care: they must cost bounded memory, and nothing to others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use socket2::SockRef;

use crate::support::client::Client;
use crate::support::resp::{self, command_line};
use crate::support::server::Highwater;
use crate::support::{longer, wait_for};

const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
/// No bystander waits for longer, also where the disk and the processors are busy with others: each
/// of its writes waits for an fsync.
const KEPT_WAITING: Duration = Duration::from_secs(10);
/// Its reads wait for no disk.
const KEPT_READING: Duration = Duration::from_secs(2);
const CLOSED: &str = "above client-output-buffer-limit";

/// A client that behaves well all the while: its replies are checked, and it remembers the longest
/// that it waited for one.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Waited>,
}

#[derive(Debug, Default)]
struct Waited {
    writing: Duration,
    reading: Duration,
}

impl Bystander {
    fn start(node: &Highwater) -> Bystander {
        let (port, stop) = (node.port, Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut client = Client::connect(port);
            let mut longest = Waited::default();
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let began = Instant::now();
                client.check(&format!("SET bystander {n}"), "+OK");
                longest.writing = longest.writing.max(began.elapsed());
                let began = Instant::now();
                client.check("GET bystander", &format!("${}\r\n{n}", n.to_string().len()));
                client.check("PING", "+PONG");
                longest.reading = longest.reading.max(began.elapsed());
                thread::sleep(Duration::from_millis(2));
            }
            longest
        });
        Bystander { stop, thread }
    }

    /// It was never kept waiting for long, and with a read not for as long as this.
    #[track_caller]
    fn was_served_within(self, reading: Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the bystander was answered rightly");
        println!("the bystander waited for {longest:?} at most");
        let is_in_time = longest.writing < KEPT_WAITING && longest.reading < reading;
        assert!(is_in_time, "the bystander waited for {longest:?}");
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
    let before = node.memory();
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
    let grown = node.memory().saturating_sub(before);
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
    bystander.was_served_within(KEPT_READING);
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
    bystander.was_served_within(KEPT_READING);
}

/// A number that INFO gives.
fn info(client: &mut Client, field: &str) -> u64 {
    let value = client.info(field).unwrap_or_else(|| panic!("INFO has {field}"));
    value.parse().unwrap_or_else(|_| panic!("{field}: {value}"))
}

#[test]
fn slow_senders_cost_little() {
    const SENDERS: usize = 1_000;
    let node = Highwater::embedded();
    let before = node.memory();
    let bystander = Bystander::start(&node);
    let halves: [&[u8]; 8] = [
        b"*",
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1",
        b"*2147483647\r\n$536870912\r\n",
        b"*1\r\n$536870912\r\nabc",
        b"SET k \"never clo",
        b"*100000\r\n$1\r\na\r\n",
        b"\"",
        b"*2\r\n$4\r\nECHO\r\n$3\r\nab",
    ];
    let mut senders: Vec<Client> = (0..SENDERS)
        .map(|n| {
            let mut sender = node.client();
            sender.write(halves[n % halves.len()]);
            sender
        })
        .collect();
    let mut slow = node.client();
    for byte in command_line("SET slow and-steady") {
        slow.write(&[byte]);
        // Those that come in the midst of a command answer nothing.
        for sender in senders.iter_mut().skip(4).step_by(200) {
            sender.write(b"x");
        }
    }
    assert_eq!(slow.reply(), b"+OK\r\n");
    let grown = node.memory().saturating_sub(before);
    println!("{SENDERS} senders cost {} KiB each", grown / 1024 / SENDERS as u64);
    assert!(grown < 64 * MIB, "{grown} bytes");
    slow.check("PING", "+PONG");
    drop(senders);
    bystander.was_served_within(KEPT_READING);
}

#[test]
fn what_is_too_much_is_refused_at_its_header() {
    let node = Highwater::builder()
        .args(&["--requirepass", "secret", "--client-query-buffer-limit", "1mb"])
        .start();
    let before = node.memory();
    let refused = |login: Option<&str>, bytes: &[u8], expected: &str| {
        let mut client = node.client();
        if let Some(login) = login {
            client.check(login, "+OK");
        }
        // The server closes at the first byte that is wrong. What it says can get lost when more is on its way.
        let _ = client.try_write(bytes);
        match client.try_reply() {
            Ok(Some(reply)) => {
                let reply = String::from_utf8_lossy(&reply).into_owned();
                assert_eq!(reply, format!("-ERR Protocol error: {expected}\r\n"));
                assert!(client.is_closed(), "{expected}");
            }
            _ => assert!(bytes.len() > 1_000, "{expected}"),
        }
    };
    let stranger = |bytes: &[u8], expected: &str| refused(None, bytes, expected);
    stranger(b"*11\r\n", "unauthenticated multibulk length");
    stranger(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n", "unauthenticated bulk length");
    stranger(b"*2\r\n$4\r\nAUTH\r\n$536870913\r\n", "invalid bulk length");
    stranger(&[b'a'; 70_000], "too big inline request");
    node.client().check("GET key", "-NOAUTH Authentication required.");
    let known = |bytes: &[u8], expected: &str| refused(Some("AUTH secret"), bytes, expected);
    known(b"*2147483648\r\n", "invalid multibulk length");
    known(b"*-9223372036854775809\r\n", "invalid multibulk length");
    known(b"*1\r\n*1\r\n", "expected '$', got '*'");
    known(&b"*1\r\n".repeat(100_000), "expected '$', got '*'");
    known(b"*1\r\n$536870913\r\n", "invalid bulk length");
    known(b"*1\r\n$2000000\r\n", "request exceeds client-query-buffer-limit");
    known(&vec![b'a'; 2 << 20], "too big inline request");
    let many = [&b"*1000000\r\n"[..], &b"$1\r\na\r\n".repeat(200_000)].concat();
    known(&many, "request exceeds client-query-buffer-limit");
    let mut friend = node.client();
    friend.check("AUTH secret", "+OK");
    wait_for("both requests that are too large to be counted", SOON, || {
        (info(&mut friend, "client_query_buffer_limit_disconnections") == 2).then_some(())
    });
    assert!(node.memory().saturating_sub(before) < 32 * MIB);
}

#[test]
fn an_idle_connection_keeps_no_room_for_what_it_once_sent() {
    let node = Highwater::builder().args(&["--maxmemory", "64mb"]).start();
    let large = vec![b'v'; 10_000_000];
    let before = node.memory();
    let idle: Vec<Client> = (0..40)
        .map(|n| {
            let mut client = node.client();
            assert_eq!(client.send(&[b"ECHO", &large]).len(), large.len() + 13);
            if n % 2 == 0 {
                // Not quite nothing is left behind.
                client.write(b"*1\r\n$4\r\nPI");
            } else {
                client.check("PING", "+PONG");
            }
            client
        })
        .collect();
    let grown = || node.memory().saturating_sub(before);
    wait_for("the memory of large requests to be given back", SOON, || {
        (grown() < 80 * MIB).then_some(())
    });
    println!("{} idle connections keep {} MiB", idle.len(), grown() / MIB);
}

#[test]
fn maxclients_is_kept_and_said() {
    let node = Highwater::builder().args(&["--maxclients", "50"]).start();
    let mut first = node.client();
    let mut others: Vec<Client> = (1..50).map(|_| node.client()).collect();
    for other in &mut others {
        other.check("PING", "+PONG");
    }
    for _ in 0..200 {
        let mut refused = node.client();
        assert_eq!(refused.reply(), b"-ERR max number of clients reached\r\n");
        assert!(refused.is_closed());
    }
    assert_eq!(info(&mut first, "rejected_connections"), 200);
    assert_eq!(info(&mut first, "connected_clients"), 50);
    others.pop();
    wait_for("the place of the one that left", SOON, || {
        let mut next = node.client();
        (next.line("PING") == b"+PONG\r\n").then_some(())
    });
}

/// What CLIENT LIST says of the connection with this name.
fn client_field(observer: &mut Client, name: &str, field: &str) -> u64 {
    let list = observer.text("CLIENT LIST");
    let line = list.lines().find(|line| line.contains(&format!(" name={name} ")));
    let mut words = line.expect("it is connected").split(' ');
    let value = words.find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn a_request_that_comes_while_replies_wait_is_served_when_they_are_read() {
    let node = Highwater::embedded();
    let value = set_value(&node, "value", 200_000);
    let (mut client, mut observer) = (node.client(), node.client());
    client.check("CLIENT SETNAME slow", "+OK");
    let mut sent = 0;
    while client_field(&mut observer, "slow", "omem") == 0 {
        client.write(&command_line("GET value"));
        sent += 1;
        // One at a time, so that it is the end of a burst that cannot be sent.
        wait_for("GET to be served", SOON, || {
            let stats = observer.info("cmdstat_get")?;
            stats.starts_with(&format!("calls={sent},")).then_some(())
        });
    }
    client.write(&command_line("PING"));
    wait_for("PING to be read", SOON, || {
        (client_field(&mut observer, "slow", "qbuf") > 0).then_some(())
    });
    for _ in 0..sent {
        assert!(client.reply().ends_with(&[&value[..], b"\r\n"].concat()));
    }
    assert_eq!(client.reply(), b"+PONG\r\n");
}

#[test]
fn idle_clients_are_closed_whether_they_do_not_send_or_do_not_read() {
    let node = Highwater::builder().args(&["--timeout", "1"]).start();
    set_value(&node, "value", 1_000_000);
    let mut idle = node.client();
    let mut half = node.client();
    half.write(b"*1\r\n$4\r\nPI");
    let mut deaf = node.client();
    deaf.write(&mget("value", 1_000));
    let mut busy = node.client();
    wait_for("the idle ones to be closed", SOON, || {
        let left = info(&mut busy, "connected_clients");
        (left == 1).then_some(())
    });
    assert!(idle.is_closed() && half.is_closed());
    busy.check("PING", "+PONG");
}

#[test]
fn names_of_connections_are_bounded_and_counted() {
    let node = Highwater::embedded();
    let (mut client, mut observer) = (node.client(), node.client());
    let (longest, longer) = ("n".repeat(1_024), "n".repeat(1_025));
    client.check("CLIENT SETNAME short", "+OK");
    let before = client_field(&mut observer, "short", "tot-mem");
    for command in [
        "CLIENT SETNAME",
        "CLIENT SETINFO LIB-NAME",
        "CLIENT SETINFO LIB-VER",
        "HELLO 2 SETNAME",
    ] {
        let refused = client.line(&format!("{command} {longer}"));
        let refused = String::from_utf8_lossy(&refused);
        assert!(
            refused.contains("cannot be longer than 1024 bytes"),
            "{command}: {refused}"
        );
    }
    client.check(&format!("CLIENT SETINFO LIB-NAME {longest}"), "+OK");
    client.check(&format!("CLIENT SETINFO LIB-VER {longest}"), "+OK");
    assert_eq!(client_field(&mut observer, "short", "tot-mem"), before + 2 * 1_024);
}

#[test]
fn multi_and_watch_are_bounded() {
    let node = Highwater::builder().args(&["--maxmemory", "64mb"]).start();
    let before = node.memory();
    let bystander = Bystander::start(&node);
    let mut endless = node.client();
    endless.check("MULTI", "+OK");
    // 400 MB.
    let value = vec![b'v'; 1_000_000];
    let mut refused = 0;
    for _ in 0..400 {
        let reply = endless.send(&[b"SET", b"key", &value]);
        if reply != b"+QUEUED\r\n" {
            assert!(reply.starts_with(b"-ERR MULTI takes at most"), "{}", resp::show(&reply));
            refused += 1;
        }
    }
    assert_eq!(refused, 1, "said once; EXEC says it again");
    let kept = node.memory().saturating_sub(before);
    println!("what EXEC will refuse keeps {} MiB", kept / MIB);
    endless.check("EXEC", "-EXECABORT Transaction discarded because of previous errors.");
    endless.check("EXISTS key", ":0");
    // Many small ones.
    endless.write(&command_line("MULTI"));
    endless.write(&command_line("PING").repeat(2_000_000));
    endless.write(&command_line("DISCARD"));
    for _ in 0..2_000_002 {
        endless.reply();
    }
    endless.check("PING", "+PONG");
    // Names of a million keys, and a few giant ones.
    let names: Vec<String> = (0..1_000_000).map(|n| format!("watched:{n}")).collect();
    let mut args = vec![&b"WATCH"[..]];
    args.extend(names.iter().map(|name| name.as_bytes()));
    for args in [args, vec![b"WATCH", &vec![b'k'; 70_000_000]]] {
        let reply = node.client().send(&args);
        assert!(
            reply.starts_with(b"-ERR a connection can watch at most"),
            "{}",
            resp::show(&reply)
        );
    }
    bystander.was_served_within(KEPT_READING);
    println!("{} MiB in the end", node.memory() / MIB);
    assert!(
        node.memory().saturating_sub(before) < 600 * MIB,
        "{} MiB",
        node.memory() / MIB
    );
}

#[test]
fn those_that_hold_most_are_closed_when_all_together_hold_too_much() {
    let node = Highwater::builder()
        .args(&["--maxmemory-clients", "100mb"])
        .allow("connections held more than maxmemory-clients")
        .start();
    let mut modest = node.client();
    modest.check("MULTI", "+OK");
    modest.check("SET key value", "+QUEUED");
    let value = vec![b'v'; 1_000_000];
    let mut greedy: Vec<Client> = (0..4).map(|_| node.client()).collect();
    for client in &mut greedy {
        client.check("MULTI", "+OK");
    }
    let mut closed = false;
    for _ in 0..100 {
        for client in &mut greedy {
            let sent = client.try_write(&resp::command(&[b"SET", b"key", &value]));
            closed |= sent.is_err() || !matches!(client.try_reply(), Ok(Some(_)));
        }
        if closed {
            break;
        }
    }
    assert!(closed, "nobody was closed");
    let mut observer = node.client();
    assert!((1..=4).contains(&info(&mut observer, "evicted_clients")));
    modest.check("EXEC", "*1\r\n+OK");
}

#[test]
fn hostile_patterns_hold_up_nobody_else() {
    let node = Highwater::embedded();
    let mut client = node.client();
    for n in 0..300 {
        let key = format!("{}{n}", "a".repeat(10_000));
        assert_eq!(client.send(&[b"SET", key.as_bytes(), b"v"]), b"+OK\r\n");
    }
    let bystander = Bystander::start(&node);
    let short = format!("{}b", "*a".repeat(30));
    let nasty = format!("*{}b", "a".repeat(5_000));
    let attackers: Vec<_> = (0..6)
        .map(|n| {
            let (mut client, short, nasty) = (node.client(), short.clone(), nasty.clone());
            client.set_deadline(Duration::from_secs(100));
            thread::spawn(move || {
                assert_eq!(client.send(&[b"KEYS", short.as_bytes()]), b"*0\r\n");
                let reply = match n % 2 {
                    0 => client.send(&[b"KEYS", nasty.as_bytes()]),
                    _ => client.send(&[b"SCAN", b"0", b"COUNT", b"100000", b"MATCH", nasty.as_bytes()]),
                };
                assert!(reply.starts_with(b"-ERR it takes too long"), "{}", resp::show(&reply));
            })
        })
        .collect();
    for attacker in attackers {
        attacker.join().expect("an attacker");
    }
    bystander.was_served_within(KEPT_READING);
}

#[test]
fn comers_and_goers_leave_nothing_behind() {
    let node = Highwater::embedded();
    let bystander = Bystander::start(&node);
    let visit = |n: usize| {
        let mut client = node.client();
        // Some say nothing, some leave in the midst of a command or of a reply.
        let bytes: &[u8] = match n % 5 {
            0 => b"",
            1 => b"*2\r\n$3\r\nGET\r\n$5\r\nva",
            2 => b"KEYS *\r\nINFO\r\nCOMMAND\r\n",
            3 => b"SET k v\r\nMULTI\r\nSET k w\r\n",
            _ => b"WATCH k l m\r\nGET k\r\n",
        };
        client.write(bytes);
    };
    // As many at a time as later: memory that the allocator keeps for them is no matter.
    (0..5_000).for_each(visit);
    let before = node.memory();
    (0..10_000).for_each(visit);
    let mut client = node.client();
    wait_for("all to be gone", SOON, || {
        (info(&mut client, "connected_clients") == 2).then_some(())
    });
    // The allocator gives back what has been free for ten seconds, a part of it each time that it looks.
    let given_back = || {
        let now = node.memory();
        println!("{} KiB of memory, {} KiB before", now >> 10, before >> 10);
        std::thread::sleep(Duration::from_secs(1));
        (now < before + 32 * MIB).then_some(())
    };
    wait_for("their memory to be given back", SOON * 3, given_back);
    client.check("CLIENT KILL ID 999999999", ":0");
    let id = client.tree("CLIENT ID").integer().expect("a number");
    client.check(&format!("CLIENT KILL ID {id} SKIPME no"), ":1");
    assert!(client.is_closed());
    bystander.was_served_within(KEPT_READING);
}

#[test]
fn thousands_of_connections_are_served() {
    const CONNECTIONS: usize = 3_000;
    assert!(
        may_open_files(CONNECTIONS as u64 + 500),
        "this machine allows too few open files (ulimit -Hn)"
    );
    let node = Highwater::embedded();
    let before = node.memory();
    let bystander = Bystander::start(&node);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| node.client()).collect();
    for round in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.write(&command_line(&format!("SET own:{n} {round}")));
        }
        for client in &mut clients {
            assert_eq!(client.reply(), b"+OK\r\n");
        }
    }
    for (n, client) in clients.iter_mut().enumerate() {
        client.check(&format!("GET own:{n}"), "$1\r\n2");
    }
    let each = node.memory().saturating_sub(before) / CONNECTIONS as u64;
    println!("{each} bytes for each connection");
    assert!(each < 64 << 10, "{each}");
    bystander.was_served_within(KEPT_READING);
}

/// Raises this process's limit if it has to.
pub fn may_open_files(wanted: u64) -> bool {
    // SAFETY: plain data that the calls fill or read.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 || limit.rlim_max < wanted {
            return false;
        }
        limit.rlim_cur = limit.rlim_cur.max(wanted);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
    }
}

#[test]
fn commands_that_make_much_of_little_are_refused() {
    let node = Highwater::builder().args(&["--maxmemory", "64mb"]).start();
    let bystander = Bystander::start(&node);
    let mut client = node.client();
    // 12 GB.
    client.write(&command_line("MULTI"));
    for n in 0..800 {
        client.write(&command_line(&format!("SETRANGE amplified:{n} 15000000 x")));
    }
    client.write(&command_line("EXEC"));
    for _ in 0..801 {
        client.reply();
    }
    let reply = client.reply();
    assert!(
        reply.starts_with(b"-ERR a transaction can write at most"),
        "{}",
        resp::show(&reply[..reply.len().min(99)])
    );
    client.check("EXISTS amplified:0 amplified:1", ":0");
    println!("{} MiB behind the transaction", node.memory() / MIB);
    assert!(node.memory() < 1_000 * MIB);
    // 30 MB of very small values, each of which is a record.
    let keys: Vec<String> = (0..1_100_000).map(|n| n.to_string()).collect();
    let pairs = keys.iter().flat_map(|key| [key.as_bytes(), b"v"]);
    let reply = client.send(&std::iter::once(&b"MSET"[..]).chain(pairs).collect::<Vec<_>>());
    assert!(reply.starts_with(b"-ERR a transaction can write at most"));
    client.check("EXISTS 0 1", ":0");
    println!("{} MiB at most", node.peak_memory() / MIB);
    assert!(node.peak_memory() < 1_500 * MIB);
    // As a pipeline it waits for itself, and leaves others their room in the log's queue.
    for n in 0..30 {
        client.write(&command_line(&format!("SETRANGE amplified:{n} 15000000 x")));
    }
    for n in 0..30 {
        assert_eq!(resp::show(&client.reply()), ":15000001\\r\\n", "{n}");
    }
    bystander.was_served_within(KEPT_WAITING);
}

/// What a client might send, with mistakes. Nothing here may concern others.
const PARTS: &[&str] = &[
    "*1\r\n$4\r\nPING\r\n",
    "*2\r\n$3\r\nGET\r\n$6\r\nfuzzed\r\n",
    "*3\r\n$3\r\nSET\r\n$6\r\nfuzzed\r\n$5\r\nvalue\r\n",
    "*2\r\n$4\r\nINCR\r\n$6\r\nfuzzed\r\n",
    "*1\r\n$5\r\nMULTI\r\n",
    "*1\r\n$4\r\nEXEC\r\n",
    "*2\r\n$5\r\nWATCH\r\n$6\r\nfuzzed\r\n",
    "*3\r\n$6\r\nAPPEND\r\n$6\r\nfuzzed\r\n$1\r\nx\r\n",
    "*4\r\n$8\r\nSETRANGE\r\n$6\r\nfuzzed\r\n$5\r\n99999\r\n$1\r\nx\r\n",
    "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
    "*4\r\n$4\r\nSCAN\r\n$1\r\n0\r\n$5\r\nMATCH\r\n$6\r\n*[a-*?\\\r\n",
    "*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n",
    "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n",
    "*3\r\n$4\r\nEVAL\r\n$1\r\n1\r\n$1\r\n0\r\n",
    "*9999\r\n$1\r\n",
    "*1\r\n$536870912\r\n",
    "*-1\r\n\r\n",
    "INFO\r\n",
    "GET \"fuz\\x7aed\"\r\n",
    "ECHO 'unbalanced\r\n",
    "\0\r\n",
];

/// Connects, sends some pieces of a pipeline with mistakes, and leaves: politely, at once, or with a reset.
fn fuzz_once(port: u16, random: &mut StdRng) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        panic!("the server takes connections");
    };
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(1..30) {
        bytes.extend_from_slice(PARTS[random.random_range(0..PARTS.len())].as_bytes());
    }
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 => bytes[at] = random.random(),
            1 => bytes.insert(at, b"\r\n*$0\0"[random.random_range(0..6)]),
            2 => drop(bytes.drain(at..(at + 5).min(bytes.len()))),
            _ => bytes.splice(at..at, [random.random(); 20]).for_each(drop),
        }
        if bytes.is_empty() {
            return;
        }
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(random.random_range(1..=rest.len().min(200)));
        // The server may have closed already: that is its right.
        if stream.write_all(piece).is_err() {
            return;
        }
        rest = later;
    }
    match random.random_range(0..3) {
        0 => {
            // Until the server closes, or for a moment: half of a command is never answered.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
            let _ = stream.read(&mut [0; 4_096]);
        }
        1 => {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        _ => {}
    }
}

#[test]
fn fuzzed_connections_do_no_harm() {
    let time = Duration::from_secs(8) * longer();
    let node = Highwater::embedded();
    let bystander = Bystander::start(&node);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let fuzz = |time: Duration| {
        let fuzzers: Vec<_> = (0..4)
            .map(|n| {
                let (port, end) = (node.port, Instant::now() + time);
                thread::spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed.wrapping_add(n));
                    let mut connections = 0;
                    while Instant::now() < end {
                        fuzz_once(port, &mut random);
                        connections += 1;
                    }
                    connections
                })
            })
            .collect();
        fuzzers.into_iter().map(|f| f.join().expect("a fuzzer")).sum::<u64>()
    };
    // The first part warms up: caches and counters are as large as they get.
    fuzz(time / 2);
    let before = node.memory();
    let connections = fuzz(time);
    let grown = node.memory().saturating_sub(before);
    println!("{connections} connections, {} MiB more", grown / MIB);
    assert!(grown < 64 * MIB, "{grown} bytes");
    let mut client = node.client();
    wait_for("all to be gone", SOON, || {
        (info(&mut client, "connected_clients") == 2).then_some(())
    });
    bystander.was_served_within(KEPT_READING);
}
