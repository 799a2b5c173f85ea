//! The row of PUBLISH: one client publishes to a channel with many subscribers. One thread reads
//! what all subscribers get, and checks each message.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{Timespec, epoll};

use crate::bench::{Bench, Figures};
use crate::machine;
use crate::rows::{Column, column};
use crate::servers::Kind;
use crate::special::wanted;
use crate::wire::{self, Reply};

const SUBSCRIBERS: [usize; 3] = [1, 100, 1_000];
const PIPELINE: usize = 16;
const MESSAGE_BYTES: usize = 64;
/// No message and no reply for so long: the server is broken.
const STALL: Duration = Duration::from_secs(60);
const CHANNEL: &str = "news";

pub const COLUMNS: &[Column] = &[
    column("per_second", "delivered per second", 0),
    column("published", "published per second", 0),
    column("server_cpu", "server CPU µs each", 2),
];

pub fn measure(bench: &mut Bench) -> Result<()> {
    for subscribers in SUBSCRIBERS {
        for kind in wanted(bench, &[Kind::Redis, Kind::Embedded, Kind::OnKafka]) {
            let time = bench.options.time();
            let (port, pid) = {
                let server = bench.server(kind)?;
                (server.port, server.pid())
            };
            let mut audience = Audience::connect(port, subscribers)?;
            // Connections and the topic of messages are there, and warm.
            audience.publish_for(port, time / 8)?;
            bench.settle(&[]);
            let before = machine::cpu(pid)?;
            let start = Instant::now();
            let published = audience.publish_for(port, time)?;
            let took = start.elapsed().as_secs_f64();
            let cpu = machine::cpu(pid)?.saturating_sub(before).as_secs_f64() * 1e6;
            let delivered = (published * subscribers as u64) as f64;
            let figures = Figures::from([
                ("per_second", delivered / took),
                ("published", published as f64 / took),
                ("server_cpu", cpu / delivered),
            ]);
            bench.note(&format!("{subscribers} subscribers"), kind.name(), figures)?;
        }
    }
    Ok(())
}

/// A subscriber, and what has come of a message that is not whole.
struct Subscriber {
    stream: TcpStream,
    rest: Vec<u8>,
}

/// All subscribers of the channel.
struct Audience {
    subscribers: Vec<Subscriber>,
    epoll: OwnedFd,
}

impl Audience {
    fn connect(port: u16, count: usize) -> Result<Audience> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?;
        let mut audience = Audience {
            subscribers: Vec::with_capacity(count),
            epoll,
        };
        for number in 0..count {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect a subscriber")?;
            stream.write_all(format!("SUBSCRIBE {CHANNEL}\r\n").as_bytes())?;
            stream.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&audience.epoll, &stream, data, epoll::EventFlags::IN)?;
            let rest = Vec::new();
            audience.subscribers.push(Subscriber { stream, rest });
        }
        // The reply to SUBSCRIBE has three parts too.
        audience.receive(count)?;
        Ok(audience)
    }

    /// Publishes for so long: how many messages every subscriber has got.
    fn publish_for(&mut self, port: u16, time: Duration) -> Result<u64> {
        let mut publisher = TcpStream::connect(("127.0.0.1", port)).context("connect a publisher")?;
        publisher.set_read_timeout(Some(STALL))?;
        let message = String::from_utf8(wire::filler(MESSAGE_BYTES)).context("a message is text")?;
        let burst = format!("PUBLISH {CHANNEL} {message}\r\n").repeat(PIPELINE);
        let (end, mut published) = (Instant::now() + time, 0);
        while Instant::now() < end || published == 0 {
            publisher.write_all(burst.as_bytes()).context("publish")?;
            self.receive(PIPELINE * self.subscribers.len())?;
            read_replies(&mut publisher, self.subscribers.len())?;
            published += PIPELINE as u64;
        }
        Ok(published)
    }

    /// Takes so many messages, and fails at any other one.
    fn receive(&mut self, count: usize) -> Result<()> {
        let mut missing = count;
        let mut buffer = vec![0; 64 << 10];
        const NONE: epoll::Event = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let timeout = Timespec {
            tv_sec: STALL.as_secs() as i64,
            tv_nsec: 0,
        };
        while missing > 0 {
            let mut events = [NONE; 256];
            let ready = epoll::wait(&self.epoll, &mut events[..], Some(&timeout)).context("wait for messages")?;
            ensure!(ready > 0, "{missing} messages did not come within {STALL:?}");
            for event in &events[..ready] {
                let subscriber = &mut self.subscribers[event.data.u64() as usize];
                let came = subscriber.read(&mut buffer)?;
                missing = missing.checked_sub(came).context("more messages than were published")?;
            }
        }
        Ok(())
    }
}

impl Subscriber {
    /// How many messages have come.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) => bail!("the server closed a subscriber's connection"),
            Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(0),
            Err(error) => return Err(error).context("read messages"),
        }
        let (mut from, mut messages) = (0, 0);
        loop {
            let rest = &self.rest[from..];
            let Ok(next) = wire::reply(rest) else {
                bail!("not a message: {}", rest[..rest.len().min(80)].escape_ascii());
            };
            let Some((message, length)) = next else {
                break;
            };
            let is_message = matches!(message, Reply::Bulks(Some((3, b"message"))));
            // SUBSCRIBE is answered with a number among its parts.
            let is_subscribed = matches!(message, Reply::Bulks(None));
            ensure!(is_message || is_subscribed, "not a message: {message:?}");
            (from, messages) = (from + length, messages + 1);
        }
        self.rest.drain(..from);
        Ok(messages)
    }
}

/// Reads the replies to a burst of PUBLISH: how many subscribers each had.
fn read_replies(publisher: &mut TcpStream, subscribers: usize) -> Result<()> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let expected = format!(":{subscribers}\r\n").repeat(PIPELINE);
    while text.len() < expected.len() {
        let count = publisher.read(&mut chunk).context("read the replies to PUBLISH")?;
        ensure!(count > 0, "the server closed the publisher's connection");
        text.extend_from_slice(&chunk[..count]);
    }
    ensure!(
        text == expected.as_bytes(),
        "wrong replies to PUBLISH: {}",
        text.escape_ascii()
    );
    Ok(())
}
