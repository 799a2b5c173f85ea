//! The load generator: one thread, an epoll loop over all connections. What is due on a connection goes out with one
//! write; replies are checked where they lie in the read buffer.
//!
//! Closed loop: each connection sends a pipeline, waits for all its replies, and sends the next. The figure is throughput.
//! Open loop: requests are due at a fixed rate, whether or not the server has answered earlier ones, and a latency counts
//! from the moment the request was due: a server that stands still for a second pays for every request of that second.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::time::{ClockId, clock_gettime};

use crate::keys::{Keys, Range, Spread};
use crate::wire::{self, LRANGE_ITEMS, MGET_KEYS, Reply, Requests, SMALL_FIELDS, ZRANGE_MEMBERS};

/// A server that answers nothing for so long is broken.
const STALL: Duration = Duration::from_secs(60);
/// How far an open loop may fall behind before the rate counts as out of reach.
const OPEN_BACKLOG_SECONDS: u64 = 10;
const READ: usize = 256 << 10;
/// An open loop sleeps so long at least, if nothing comes: to wake up for each request would take more from a server on the same cores
/// than the request does. The wait is part of the latencies, which count from when a request was due.
const TICK: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Get,
    Set,
    Mget,
    Incr,
    /// Of a hundred commands so many GETs, the rest SETs.
    Mixed(u64),
    /// A hash of ten fields for each key: sets all of them.
    FillSmall,
    HsetSmall,
    HgetSmall,
    Hgetall,
    /// One large hash, with a field for each key.
    Hset,
    Hget,
    /// One set. The members are new ones.
    Sadd,
    /// One sorted set, with a member for each key. Its score changes.
    Zadd,
    /// A hundred members of it.
    Zrange,
    /// One list. The items are new ones.
    Lpush,
    /// A hundred items of it.
    Lrange,
    /// Another list: appends an item for each key.
    FillQueue,
    /// Of two commands on it one appends an item, the other takes the first one.
    Queue,
    /// One stream. The entries are new ones.
    Xadd,
    /// The first ten entries of it.
    Xread,
    /// Another stream: adds an entry, has the group deliver one, acknowledges it.
    Jobs,
    /// A script that gets a key and sets it.
    EvalGetSet,
    /// A script that takes a token from the bucket of a key, which is a hash.
    EvalBucket,
}

impl Work {
    /// What fills a server for it.
    pub fn fill(self) -> Option<Work> {
        match self {
            Work::Get | Work::Set | Work::Mget | Work::Mixed(_) | Work::EvalGetSet => Some(Work::Set),
            Work::Incr | Work::Jobs | Work::EvalBucket => None,
            Work::FillSmall | Work::HsetSmall | Work::HgetSmall | Work::Hgetall => Some(Work::FillSmall),
            Work::Hset | Work::Hget => Some(Work::Hset),
            Work::Sadd => Some(Work::Sadd),
            Work::Zadd | Work::Zrange => Some(Work::Zadd),
            Work::Lpush | Work::Lrange => Some(Work::Lpush),
            Work::FillQueue | Work::Queue => Some(Work::FillQueue),
            Work::Xadd | Work::Xread => Some(Work::Xadd),
        }
    }

    /// A command that comes before it, once for each server.
    pub fn preparation(self) -> Option<&'static str> {
        (self == Work::Jobs).then_some("XGROUP CREATE jobs workers $ MKSTREAM")
    }

    pub fn writes(self) -> bool {
        !matches!(
            self,
            Work::Get
                | Work::Mget
                | Work::HgetSmall
                | Work::Hgetall
                | Work::Hget
                | Work::Zrange
                | Work::Lrange
                | Work::Xread
        )
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    Closed { pipeline: usize },
    Open { per_second: u64 },
}

#[derive(Clone, Copy, Debug)]
pub enum Until {
    Time(Duration),
    Requests(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub port: u16,
    pub clients: usize,
    pub work: Work,
    pub range: Range,
    pub spread: Spread,
    pub value_bytes: usize,
    pub pace: Pace,
    pub until: Until,
    pub seed: u64,
}

pub struct Outcome {
    pub requests: u64,
    pub time: Duration,
    pub client_cpu: Duration,
    /// Nanoseconds.
    pub latency: Histogram<u64>,
    /// Replies in each second.
    pub each_second: Vec<u64>,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64()
    }

    /// In microseconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        self.latency.value_at_percentile(percent) as f64 / 1e3
    }
}

/// A request that is not answered yet.
struct Asked {
    /// When it was sent (closed) or due (open), in nanoseconds since the start.
    at: u64,
    key: u64,
    read: bool,
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    /// Waits for room in the socket.
    blocked: bool,
    /// Begin of a reply whose rest has not come.
    rest: Vec<u8>,
    asked: VecDeque<Asked>,
    /// Jobs that were delivered here and are not acknowledged yet.
    delivered: Vec<Vec<u8>>,
}

/// A plan with its connections open.
pub struct Load {
    plan: Plan,
    connections: Vec<Connection>,
    epoll: OwnedFd,
    keys: Keys,
    requests: Requests,
    sent: u64,
    outcome: Outcome,
    start: Instant,
}

impl Load {
    pub fn connect(plan: Plan) -> Result<Load> {
        ensure!(plan.clients > 0 && plan.range.count > 0, "a load has clients and keys");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?;
        let mut connections = Vec::with_capacity(plan.clients);
        for number in 0..plan.clients {
            let stream = TcpStream::connect(("127.0.0.1", plan.port)).context("connect a client")?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
            connections.push(Connection {
                stream,
                out: Vec::new(),
                written: 0,
                blocked: false,
                rest: Vec::new(),
                asked: VecDeque::new(),
                delivered: Vec::new(),
            });
        }
        Ok(Load {
            plan,
            connections,
            epoll,
            keys: Keys::new(plan.range, plan.spread, plan.seed),
            requests: Requests::new(plan.value_bytes),
            sent: 0,
            outcome: Outcome {
                requests: 0,
                time: Duration::ZERO,
                client_cpu: Duration::ZERO,
                latency: Histogram::new(3).expect("three digits are allowed"),
                each_second: Vec::new(),
            },
            start: Instant::now(),
        })
    }

    /// Runs the plan. Any wrong reply ends it with an error.
    pub fn run(mut self) -> Result<Outcome> {
        let cpu = thread_cpu();
        self.start = Instant::now();
        match self.plan.pace {
            Pace::Closed { .. } => self.closed()?,
            Pace::Open { per_second } => self.open(per_second)?,
        }
        self.outcome.time = self.start.elapsed();
        self.outcome.client_cpu = thread_cpu() - cpu;
        Ok(self.outcome)
    }

    fn closed(&mut self) -> Result<()> {
        let Pace::Closed { pipeline } = self.plan.pace else {
            unreachable!("called for the closed loop");
        };
        let mut busy = 0;
        for number in 0..self.connections.len() {
            busy += usize::from(self.send_pipeline(number, pipeline)?);
        }
        let mut events = Vec::with_capacity(self.connections.len());
        let mut buffer = vec![0; READ];
        while busy > 0 {
            self.wait(&mut events, STALL)?;
            ensure!(!events.is_empty(), "no reply within {STALL:?}");
            for (number, writable) in events.drain(..) {
                if writable {
                    self.flush(number)?;
                }
                if self.receive(number, &mut buffer)? && !self.send_pipeline(number, pipeline)? {
                    busy -= 1;
                }
            }
        }
        Ok(())
    }

    /// Whether there was anything left to send.
    fn send_pipeline(&mut self, number: usize, pipeline: usize) -> Result<bool> {
        let count = match self.plan.until {
            Until::Time(time) if self.start.elapsed() >= time => 0,
            Until::Time(_) => pipeline as u64,
            Until::Requests(total) => (total - self.sent).min(pipeline as u64),
        };
        let at = self.now();
        for _ in 0..count {
            self.ask(number, at);
        }
        self.flush(number)?;
        Ok(count > 0)
    }

    fn open(&mut self, per_second: u64) -> Result<()> {
        // By default the kernel may wake a thread 50 µs late.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("set the timer slack")?;
        let total = match self.plan.until {
            Until::Time(time) => (time.as_secs_f64() * per_second as f64) as u64,
            Until::Requests(total) => total,
        };
        let due_at = |request: u64| (u128::from(request) * 1_000_000_000 / u128::from(per_second)) as u64;
        let mut events = Vec::with_capacity(self.connections.len());
        let mut buffer = vec![0; READ];
        let clients = self.connections.len();
        while self.outcome.requests < total {
            let (now, first) = (self.now(), self.sent);
            while self.sent < total && due_at(self.sent) <= now {
                self.ask((self.sent % clients as u64) as usize, due_at(self.sent));
            }
            for number in 0..(self.sent - first).min(clients as u64) {
                self.flush(((first + number) % clients as u64) as usize)?;
            }
            ensure!(
                self.sent - self.outcome.requests < OPEN_BACKLOG_SECONDS * per_second,
                "the server does not keep up with {per_second} requests per second"
            );
            let wait = match self.sent < total {
                true => Duration::from_nanos(due_at(self.sent).saturating_sub(self.now())).max(TICK),
                false => STALL,
            };
            self.wait(&mut events, wait)?;
            ensure!(!events.is_empty() || self.sent < total, "no reply within {STALL:?}");
            for (number, writable) in events.drain(..) {
                if writable {
                    self.flush(number)?;
                }
                self.receive(number, &mut buffer)?;
            }
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The connections that have something to read, and whether they have room to write.
    fn wait(&self, ready: &mut Vec<(usize, bool)>, timeout: Duration) -> Result<()> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        const NONE: epoll::Event = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [NONE; 256];
        let count = match epoll::wait(&self.epoll, &mut events[..], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => 0,
            other => other.context("wait for replies")?,
        };
        for event in &events[..count] {
            let (number, flags) = (event.data.u64() as usize, event.flags);
            ready.push((number, flags.contains(epoll::EventFlags::OUT)));
        }
        Ok(())
    }

    fn ask(&mut self, number: usize, at: u64) {
        let connection = &mut self.connections[number];
        let key = self.keys.next();
        let mut read = false;
        match self.plan.work {
            Work::Get => self.requests.get(key, &mut connection.out),
            Work::Set => self.requests.set(key, &mut connection.out),
            Work::Incr => self.requests.incr(key, &mut connection.out),
            Work::Mget => {
                let mut keys = [key; MGET_KEYS];
                keys[1..].fill_with(|| self.keys.next());
                self.requests.mget(keys, &mut connection.out);
            }
            Work::FillSmall => self.requests.fill_small(key, &mut connection.out),
            Work::HsetSmall => self.requests.hset_small(key, &mut connection.out),
            Work::HgetSmall => self.requests.hget_small(key, &mut connection.out),
            Work::Hgetall => self.requests.hgetall(key, &mut connection.out),
            Work::Hset => self.requests.hset(key, &mut connection.out),
            Work::Hget => self.requests.hget(key, &mut connection.out),
            Work::Sadd => self.requests.sadd(self.keys.any(), &mut connection.out),
            Work::Zadd => self.requests.zadd(self.keys.any(), key, &mut connection.out),
            Work::Zrange => {
                let last = (self.plan.range.count.saturating_sub(ZRANGE_MEMBERS as u64)).max(1);
                self.requests.zrange(key % last, &mut connection.out);
            }
            Work::Lpush => self.requests.push(b"LPUSH", b"list", key, &mut connection.out),
            Work::Lrange => {
                let last = (self.plan.range.count.saturating_sub(LRANGE_ITEMS as u64)).max(1);
                self.requests.lrange(key % last, &mut connection.out);
            }
            Work::FillQueue => self.requests.push(b"RPUSH", b"queue", key, &mut connection.out),
            Work::Queue => {
                read = self.keys.percent() < 50;
                match read {
                    true => self.requests.lpop(&mut connection.out),
                    false => self.requests.push(b"RPUSH", b"queue", key, &mut connection.out),
                }
            }
            Work::Xadd => self.requests.xadd(b"stream", key, &mut connection.out),
            Work::Xread => self.requests.xread(&mut connection.out),
            Work::Jobs => {
                let acknowledged = connection.delivered.pop();
                read = acknowledged.is_none() && self.keys.percent() < 50;
                match acknowledged {
                    Some(id) => self.requests.xack(&id, &mut connection.out),
                    None if read => self.requests.xreadgroup(&mut connection.out),
                    None => self.requests.xadd(b"jobs", key, &mut connection.out),
                }
            }
            Work::EvalGetSet => self.requests.eval_get_set(key, &mut connection.out),
            Work::EvalBucket => self.requests.eval_bucket(key, &mut connection.out),
            Work::Mixed(reads) => {
                read = self.keys.percent() < reads;
                match read {
                    true => self.requests.get(key, &mut connection.out),
                    false => self.requests.set(key, &mut connection.out),
                }
            }
        }
        connection.asked.push_back(Asked { at, key, read });
        self.sent += 1;
    }

    fn flush(&mut self, number: usize) -> Result<()> {
        let connection = &mut self.connections[number];
        while connection.written < connection.out.len() {
            match connection.stream.write(&connection.out[connection.written..]) {
                Ok(count) => connection.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("send to the server"),
            }
        }
        let blocked = connection.written < connection.out.len();
        if !blocked {
            connection.out.clear();
            connection.written = 0;
        }
        if blocked != connection.blocked {
            connection.blocked = blocked;
            let flags = match blocked {
                true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
                false => epoll::EventFlags::IN,
            };
            let data = epoll::EventData::new_u64(number as u64);
            epoll::modify(&self.epoll, &connection.stream, data, flags)?;
        }
        Ok(())
    }

    /// Takes what has come. Whether replies have come and none is missing any more.
    fn receive(&mut self, number: usize, buffer: &mut Vec<u8>) -> Result<bool> {
        let connection = &mut self.connections[number];
        let had = connection.rest.len();
        if buffer.len() < had + READ {
            buffer.resize(had + READ, 0);
        }
        buffer[..had].copy_from_slice(&connection.rest);
        let count = match connection.stream.read(&mut buffer[had..]) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(false),
            Err(error) => return Err(error).context("read replies"),
        };
        connection.rest.clear();
        let now = self.start.elapsed().as_nanos() as u64;
        let (mut from, end, mut replies) = (0, had + count, 0);
        while from < end {
            let Ok(next) = wire::reply(&buffer[from..end]) else {
                bail!("not a reply: {}", buffer[from..end.min(from + 80)].escape_ascii());
            };
            let Some((reply, length)) = next else {
                break;
            };
            let asked = connection.asked.pop_front().context("a reply that nobody asked for")?;
            check(&self.plan, &asked, &reply)?;
            if let (Work::Jobs, Reply::Bulks(None)) = (self.plan.work, &reply) {
                let id = wire::first_entry(&buffer[from..from + length]).context("a delivered job has an id")?;
                connection.delivered.push(id.to_vec());
            }
            self.outcome.latency.record(now.saturating_sub(asked.at).max(1))?;
            from += length;
            replies += 1;
        }
        connection.rest.extend_from_slice(&buffer[from..end]);
        self.outcome.requests += replies;
        let second = (now / 1_000_000_000) as usize;
        if self.outcome.each_second.len() <= second {
            self.outcome.each_second.resize(second + 1, 0);
        }
        self.outcome.each_second[second] += replies;
        Ok(replies > 0 && connection.asked.is_empty())
    }
}

fn check(plan: &Plan, asked: &Asked, reply: &Reply) -> Result<()> {
    let value = |value: &[u8]| value.len() == plan.value_bytes && wire::belongs(value, asked.key);
    let right = match (plan.work, reply) {
        (Work::Get, Reply::Bulk(bytes)) => value(bytes),
        (Work::Mixed(_), Reply::Bulk(bytes)) => asked.read && value(bytes),
        (Work::Set, Reply::Status(status)) => *status == b"OK",
        (Work::Mixed(_), Reply::Status(status)) => !asked.read && *status == b"OK",
        (Work::Incr, Reply::Int(number)) => *number > 0,
        (Work::FillSmall | Work::HsetSmall | Work::Hset | Work::Sadd | Work::Zadd, Reply::Int(number)) => *number >= 0,
        (Work::HgetSmall | Work::Hget, Reply::Bulk(bytes)) => value(bytes),
        (Work::Hgetall, Reply::Bulks(Some((count, _)))) => *count == 2 * SMALL_FIELDS,
        (Work::Zrange, Reply::Bulks(Some((count, _)))) => *count as u64 == plan.range.count.min(ZRANGE_MEMBERS as u64),
        (Work::Lpush | Work::FillQueue, Reply::Int(number)) => *number > 0,
        (Work::Queue, Reply::Int(number)) => !asked.read && *number > 0,
        (Work::Queue, Reply::Bulk(bytes)) => asked.read && bytes.len() == plan.value_bytes,
        (Work::Queue | Work::Jobs, Reply::Null) => asked.read,
        (Work::Lrange, Reply::Bulks(Some((count, _)))) => *count as u64 == plan.range.count.min(LRANGE_ITEMS as u64),
        (Work::Xadd, Reply::Bulk(id)) => id.contains(&b'-'),
        // Arrays within arrays.
        (Work::Xread, Reply::Bulks(None)) => true,
        (Work::Jobs, Reply::Bulks(None)) => asked.read,
        (Work::Jobs, Reply::Bulk(id)) => !asked.read && id.contains(&b'-'),
        (Work::Jobs, Reply::Int(acknowledged)) => *acknowledged == 1,
        (Work::EvalGetSet, Reply::Bulk(bytes)) => value(bytes),
        (Work::EvalBucket, Reply::Int(allowed)) => matches!(allowed, 0 | 1),
        (Work::Mget, Reply::Bulks(Some((count, first)))) => *count == MGET_KEYS && value(first),
        _ => false,
    };
    ensure!(right, "wrong reply to {:?} of key {}: {reply:?}", plan.work, asked.key);
    Ok(())
}

/// CPU time of this thread.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const GET_BYTES: usize = 36;
    const STALL_TIME: Duration = Duration::from_millis(300);

    /// Answers GETs on one connection with a value of `number + off` for key `number`, and stands still once, before the
    /// tenth reply.
    fn toy_server(off: u64, stall: bool) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            for request in 0.. {
                let mut get = [0; GET_BYTES];
                if stream.read_exact(&mut get).is_err() {
                    return;
                }
                if stall && request == 10 {
                    thread::sleep(STALL_TIME);
                }
                let number: u64 = String::from_utf8_lossy(&get[22..34]).parse().expect("digits");
                let reply = format!("$16\r\n{:012}abcd\r\n", number + off);
                if stream.write_all(reply.as_bytes()).is_err() {
                    return;
                }
            }
        });
        port
    }

    fn plan(port: u16, pace: Pace, requests: u64) -> Plan {
        Plan {
            port,
            clients: 1,
            work: Work::Get,
            range: Range { first: 0, count: 1_000 },
            spread: Spread::Uniform,
            value_bytes: 16,
            pace,
            until: Until::Requests(requests),
            seed: 1,
        }
    }

    #[test]
    fn an_open_loop_counts_the_wait_of_every_request_that_was_due() {
        let open = Pace::Open { per_second: 1_000 };
        let load = Load::connect(plan(toy_server(0, true), open, 600)).expect("connects");
        let outcome = load.run().expect("runs");
        assert_eq!(outcome.requests, 600);
        let long = outcome.latency.count_between(100_000_000, u64::MAX);
        // Due in the first 200 of the 300 ms; all the others if the machine is slow.
        assert!(long >= 190, "{long} requests waited for more than 100 ms");
        let closed = Pace::Closed { pipeline: 1 };
        let load = Load::connect(plan(toy_server(0, true), closed, 600)).expect("connects");
        let stalled = load
            .run()
            .expect("runs")
            .latency
            .count_between(STALL_TIME.as_nanos() as u64 * 9 / 10, u64::MAX);
        assert!(stalled >= 1, "a closed loop sends one request into the stall");
    }

    #[test]
    fn pipelines_are_answered_whole() {
        let closed = Pace::Closed { pipeline: 64 };
        let load = Load::connect(plan(toy_server(0, false), closed, 1_000)).expect("connects");
        assert_eq!(load.run().expect("runs").requests, 1_000);
    }

    #[test]
    fn the_value_of_another_key_is_an_error() {
        let closed = Pace::Closed { pipeline: 1 };
        let load = Load::connect(plan(toy_server(1, false), closed, 10)).expect("connects");
        let error = load.run().err().expect("fails").to_string();
        assert!(error.contains("wrong reply"), "{error}");
    }
}
