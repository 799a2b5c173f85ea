//! How long after its OK on one node a write is visible on another. It sets a key on the first
//! node, and reads the key on the second node until it is new. Or it pushes an item on the first
//! node, for which a client waits on the second.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::wire::{self, Reply};

const PAUSE: Duration = Duration::from_millis(3);
const PATIENCE: Duration = Duration::from_secs(10);

/// Probes until told to stop; nanoseconds from the OK to the first read that shows the value.
pub fn run(first: u16, second: u16, done: &AtomicBool) -> Result<Histogram<u64>> {
    let mut seen = Histogram::new(3).expect("three digits are allowed");
    let (mut writer, mut reader) = (Client::connect(first)?, Client::connect(second)?);
    let mut number = 0u64;
    while !done.load(Ordering::Relaxed) || number == 0 {
        number += 1;
        let value = number.to_string();
        writer.send(&format!("SET visible-probe {value}\r\n"))?;
        writer.expect(|reply| matches!(reply, Reply::Status(b"OK")).then_some(()))?;
        let ok = Instant::now();
        loop {
            reader.send("GET visible-probe\r\n")?;
            let new = reader.expect(|reply| match reply {
                Reply::Bulk(bytes) => Some(*bytes == value.as_bytes()),
                Reply::Null => Some(false),
                _ => None,
            })?;
            if new {
                break;
            }
            ensure!(ok.elapsed() < PATIENCE, "not visible after {PATIENCE:?}");
        }
        seen.record(ok.elapsed().as_nanos() as u64)?;
        std::thread::sleep(PAUSE);
    }
    Ok(seen)
}

/// Pushes items on the first node, one at a time, for a client that blocks on the second. Returns
/// the nanoseconds from the OK to the item. An item that comes before the OK counts as one.
pub fn hand_over(first: u16, second: u16, time: Duration) -> Result<Histogram<u64>> {
    let mut seen = Histogram::new(3).expect("three digits are allowed");
    let (mut producer, mut consumer) = (Client::connect(first)?, Client::connect(second)?);
    let end = Instant::now() + time;
    let mut number = 0u64;
    while Instant::now() < end || number == 0 {
        number += 1;
        consumer.send("BLPOP hand-over 10\r\n")?;
        // It waits by then.
        std::thread::sleep(PAUSE);
        std::thread::scope(|scope| -> Result<()> {
            let waiting = scope.spawn(|| {
                let item = consumer.expect(|reply| matches!(reply, Reply::Bulks(Some((2, _)))).then_some(()));
                item.map(|()| Instant::now())
            });
            producer.send(&format!("RPUSH hand-over {number}\r\n"))?;
            producer.expect(|reply| matches!(reply, Reply::Int(_)).then_some(()))?;
            let ok = Instant::now();
            let came = waiting.join().expect("a consumer does not panic")?;
            seen.record((came.saturating_duration_since(ok).as_nanos() as u64).max(1))?;
            Ok(())
        })?;
    }
    Ok(seen)
}

/// One blocking connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(port: u16) -> Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port)).context("connect a prober")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client {
            stream,
            buffer: Vec::new(),
        })
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(line.as_bytes()).context("send a probe")
    }

    /// What `judge` makes of the next reply; `None` is a wrong reply.
    fn expect<T>(&mut self, judge: impl Fn(&Reply) -> Option<T>) -> Result<T> {
        self.buffer.clear();
        loop {
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).context("read a probe's reply")?;
            ensure!(count > 0, "the server closed a connection");
            self.buffer.extend_from_slice(&chunk[..count]);
            let Ok(next) = wire::reply(&self.buffer) else {
                bail!("not a reply: {}", self.buffer.escape_ascii());
            };
            if let Some((reply, _)) = next {
                return judge(&reply).with_context(|| format!("wrong reply to a probe: {reply:?}"));
            }
        }
    }
}
