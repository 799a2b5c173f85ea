//! The socket of one connection, what waits in either direction, and the bounds of that. It knows
//! no command.
//!
//! A client that sends without reading its replies must cost little and must not be locked out:
//! some clients send a whole pipeline before they read the first reply. So while replies cannot be
//! sent, no further command is computed, but requests are still read, up to [`READ_AHEAD`] bytes of
//! them. Where `client-output-buffer-limit` bounds the waiting replies, commands are computed up to
//! that bound. Above it the connection is closed, as Redis does.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::stream::Stream;
use crate::command::Shared;
use crate::command::clients::Client;
use crate::config::checks::OutputLimit;
use crate::resp::Version;

/// Bytes of requests that are read while replies wait to be sent, or a command for elements.
const READ_AHEAD: usize = 64 << 20;
/// Once so many are read, how often it is looked whether the client is still there.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Least room for the next read.
const LEAST_ROOM: usize = 16 << 10;
/// Capacity of the buffers for reading and for writing that an idle connection keeps.
const KEPT: usize = 64 << 10;
/// Once so many bytes wait in the output, further pushes wait in their queue.
const PUSHED: usize = 64 << 10;

/// What has happened on a connection.
#[derive(Clone, Copy)]
enum Progress {
    /// So many bytes were sent.
    Sent(usize),
    /// So many bytes were read. None: the client will send no more.
    Read(usize),
    /// Something is to be pushed.
    Pushed,
    /// The setting `timeout` has changed.
    NewTimeout,
    /// The connection has to end.
    Ended,
}

/// What ends a wait for a connection's progress besides an error of the socket.
#[derive(Clone, Copy)]
enum Ends {
    Nothing,
    /// The client is killed, the setting `timeout` is not this one any more or, with `stop`, the
    /// server stops.
    With {
        stop: bool,
        timeout: Option<Duration>,
    },
    /// The socket is closed, which each poll looks at first.
    WhenClosed,
}

pub struct Wire {
    stream: Stream,
    client: Arc<Client>,
    shared: Arc<Shared>,
    /// What was read and has not been taken yet.
    input: BytesMut,
    /// Bytes that were taken from `input`. Some of them will be put back.
    taken: usize,
    /// Whether something was read since [`Wire::take`].
    news: bool,
    /// The client will send no more.
    ended: bool,
    /// Replies that wait to be sent.
    pub output: BytesMut,
    /// Memory of the part of a reply that is not in `output` yet.
    pub owed: usize,
    limit: OutputLimit,
    /// Since when more replies wait than the soft limit allows; `None` if they do not.
    above_soft: Option<Instant>,
}

impl Wire {
    pub fn new(stream: Stream, client: Arc<Client>, shared: Arc<Shared>) -> Self {
        Wire {
            stream,
            client,
            shared,
            input: BytesMut::new(),
            taken: 0,
            news: false,
            ended: false,
            output: BytesMut::new(),
            owed: 0,
            limit: OutputLimit::default(),
            above_soft: None,
        }
    }

    /// Takes what was read, for the caller to work on. The limits that are set now are in force
    /// until the next call.
    pub fn take(&mut self) -> BytesMut {
        let limits = self.shared.config.output_limits();
        self.limit = match self.client.pushes.listens() {
            true => limits.pubsub,
            false => limits.normal,
        };
        self.taken = self.input.len();
        self.news = false;
        self.client.input_bytes.store(self.taken, Ordering::Relaxed);
        std::mem::take(&mut self.input)
    }

    /// Puts back the part of [`Wire::take`] that was not served.
    pub fn put_back(&mut self, rest: BytesMut) {
        self.taken = 0;
        let mut rest = modest(rest);
        if self.input.is_empty() || !rest.is_empty() {
            rest.extend_from_slice(&self.input);
            self.input = rest;
        }
    }

    /// Whether more was read since [`Wire::take`]: sending may read ahead.
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// Reads more, after what is there, with room for so many bytes. Returns false at the end of
    /// the connection.
    pub async fn read(&mut self, room: impl FnOnce(usize) -> usize) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.input.reserve(room(self.input.len()));
        let before = self.input.len();
        self.client.input_bytes.store(before, Ordering::Relaxed);
        while self.input.len() == before && !self.ended {
            self.check_soft_limit()?;
            self.take_pushes();
            if !self.exchange(true, true).await? {
                return Ok(false);
            }
        }
        Ok(self.input.len() > before)
    }

    /// Waits until the client has gone: its side of the connection is closed. Meanwhile it reads
    /// ahead, and sends pushes. Each poll looks at the socket itself, as what the socket has may
    /// not be known yet.
    pub async fn gone(&mut self) {
        while !self.ended {
            let takes_pushes = !self.client.has_taken.load(Ordering::Relaxed);
            if takes_pushes {
                self.take_pushes();
            }
            if self.send().is_err() {
                self.ended = true;
                break;
            }
            if self.taken + self.input.len() >= READ_AHEAD {
                tokio::time::sleep(LOOK_EVERY).await;
                self.ended = self.stream.is_read_closed().await;
                continue;
            }
            self.input.reserve(LEAST_ROOM);
            match self.progress(true, takes_pushes, Ends::WhenClosed).await {
                Ok(progress) => self.note(progress),
                Err(_) => self.ended = true,
            }
        }
    }

    /// Sends what waits, except for what the limits allow to wait while the connection goes on.
    #[inline]
    pub async fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        if self.output.is_empty() {
            self.above_soft = None;
            return Ok(());
        }
        let bearable = self.limit.hard.max(self.limit.soft);
        self.flush_to(usize::try_from(bearable).unwrap_or(usize::MAX)).await
    }

    /// Sends all that waits.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.send()?;
        self.flush_to(0).await
    }

    /// Ends the connection in good order, as far as the client waits for that.
    pub async fn close(mut self) {
        self.stream.close().await;
    }

    #[cold]
    async fn flush_to(&mut self, bearable: usize) -> io::Result<()> {
        while self.output.len() > bearable {
            self.check_soft_limit()?;
            let may_read = !self.ended && self.taken + self.input.len() < READ_AHEAD;
            if may_read {
                self.input.reserve(LEAST_ROOM);
            }
            if !self.exchange(may_read, false).await? {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        self.check_soft_limit()
    }

    /// Fails if so many bytes more would exceed the hard limit.
    #[inline]
    pub fn check_hard_limit(&mut self, more: usize) -> io::Result<()> {
        let hard = self.limit.hard;
        if hard > 0 && (self.output.len() + more) as u64 > hard {
            return Err(self.above_limit());
        }
        Ok(())
    }

    fn check_soft_limit(&mut self) -> io::Result<()> {
        if self.limit.soft == 0 || self.output.len() as u64 <= self.limit.soft {
            self.above_soft = None;
            return Ok(());
        }
        let since = *self.above_soft.get_or_insert_with(Instant::now);
        if since.elapsed() >= Duration::from_secs(self.limit.soft_seconds) {
            return Err(self.above_limit());
        }
        Ok(())
    }

    /// Drops the replies that wait: none of them is sent.
    fn above_limit(&mut self) -> io::Error {
        self.output = BytesMut::new();
        self.shared.stats.above_output_limit(self.client.id);
        io::Error::other("above client-output-buffer-limit")
    }

    /// Puts pushes into the output, as far as it has room. No reply may be held back that was
    /// computed before.
    #[inline]
    pub fn take_pushes(&mut self) {
        if !self.client.pushes.is_empty() {
            let version = match self.client.resp3.load(Ordering::Relaxed) {
                true => Version::Resp3,
                false => Version::Resp2,
            };
            self.put_pushes(PUSHED, version);
        }
    }

    /// Puts all pushes that wait into the output.
    #[cold]
    pub fn take_all_pushes(&mut self, version: Version) {
        self.put_pushes(usize::MAX, version);
    }

    #[cold]
    fn put_pushes(&mut self, enough: usize, version: Version) {
        self.client.pushes.take(&mut self.output, enough, version);
    }

    /// Waits for what a command does, and sends pushes meanwhile. The reply of every command before
    /// it is in the output.
    pub async fn during<T>(&mut self, doing: impl Future<Output = T>) -> io::Result<T> {
        let mut doing = std::pin::pin!(doing);
        loop {
            self.take_pushes();
            self.send()?;
            tokio::select! {
                biased;
                done = &mut doing => return Ok(done),
                progress = self.progress(false, true, Ends::Nothing) => self.note(progress?),
            }
        }
    }

    /// Sends what can be sent at once.
    #[inline]
    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(sent) => self.sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[inline]
    fn sent(&mut self, sent: usize) {
        let traffic = self.shared.stats.traffic.own();
        traffic.output_bytes.fetch_add(sent as u64, Ordering::Relaxed);
        if sent < self.output.len() {
            self.output.advance(sent);
        } else if self.output.capacity() > KEPT {
            self.output = BytesMut::new();
        } else {
            self.output.clear();
        }
    }

    /// Waits until something was read or sent. Returns false if the connection has to end instead.
    /// `idle`: nothing is under way, so the stop of the server ends the connection too.
    async fn exchange(&mut self, may_read: bool, idle: bool) -> io::Result<bool> {
        self.note_output();
        let since = Instant::now();
        loop {
            let timeout = self.shared.config.timeout();
            let patience = self.patience(timeout, since);
            let progress = self.progress(may_read, idle, Ends::With { stop: idle, timeout });
            let progress = match patience {
                None => progress.await?,
                Some(patience) => match tokio::time::timeout(patience, progress).await {
                    Ok(progress) => progress?,
                    Err(_) => return self.check_soft_limit().map(|()| false),
                },
            };
            self.note(progress);
            match progress {
                Progress::NewTimeout => continue,
                Progress::Sent(_) => self.note_output(),
                Progress::Read(_) | Progress::Pushed | Progress::Ended => {}
            }
            return Ok(!matches!(progress, Progress::Sent(0) | Progress::Ended));
        }
    }

    /// Waits until something was sent or read, or is to be pushed, or until the connection has to
    /// end.
    async fn progress(&mut self, may_read: bool, takes_pushes: bool, ends: Ends) -> io::Result<Progress> {
        let takes_pushes = takes_pushes && self.output.len() < PUSHED;
        poll_fn(|context| {
            if matches!(ends, Ends::WhenClosed) && is_closed(&self.stream.socket()) {
                return Poll::Ready(Ok(Progress::Read(0)));
            }
            if !self.output.is_empty()
                && let Poll::Ready(sent) = Pin::new(&mut self.stream).poll_write(context, &self.output)
            {
                return Poll::Ready(sent.map(Progress::Sent));
            }
            if may_read && let Poll::Ready(read) = pin!(self.stream.read_buf(&mut self.input)).poll(context) {
                return Poll::Ready(read.map(Progress::Read));
            }
            // Who kills the client, changes the timeout, stops the server or pushes wakes the task.
            if let Ends::With { stop, timeout } = ends {
                if self.client.is_killed() || stop && self.shared.shutdown.is_asked() {
                    return Poll::Ready(Ok(Progress::Ended));
                }
                if self.shared.config.timeout() != timeout {
                    return Poll::Ready(Ok(Progress::NewTimeout));
                }
            }
            match takes_pushes && !self.client.pushes.is_empty() {
                true => Poll::Ready(Ok(Progress::Pushed)),
                false => Poll::Pending,
            }
        })
        .await
    }

    #[inline]
    fn note(&mut self, progress: Progress) {
        match progress {
            Progress::Sent(sent) => self.sent(sent),
            Progress::Read(read) => self.read_more(read),
            Progress::Pushed | Progress::NewTimeout | Progress::Ended => {}
        }
    }

    #[inline]
    fn read_more(&mut self, read: usize) {
        self.ended = read == 0;
        self.news |= read > 0;
        let traffic = self.shared.stats.traffic.own();
        traffic.input_bytes.fetch_add(read as u64, Ordering::Relaxed);
        let waiting = self.taken + self.input.len();
        self.client.input_bytes.store(waiting, Ordering::Relaxed);
    }

    fn note_output(&self) {
        let waiting = self.output.len() + if self.output.is_empty() { 0 } else { self.owed };
        self.client.output_bytes.store(waiting, Ordering::Relaxed);
    }

    /// How much longer the client may be idle, as it has been `since`: neither send nor accept what
    /// waits for it.
    fn patience(&self, timeout: Option<Duration>, since: Instant) -> Option<Duration> {
        let soft = self
            .above_soft
            .map(|since| Duration::from_secs(self.limit.soft_seconds).saturating_sub(since.elapsed()));
        // As in Redis, a client that listens or monitors may be idle for as long as it likes.
        let is_told = self.client.pushes.listens() || self.client.monitors.load(Ordering::Relaxed);
        let idle = timeout.filter(|_| !is_told);
        let idle = idle.map(|idle| idle.saturating_sub(since.elapsed()));
        match (idle, soft) {
            (Some(idle), Some(soft)) => Some(idle.min(soft)),
            (idle, soft) => idle.or(soft),
        }
    }
}

/// Whether the other side has closed the connection, and nothing is left to read.
fn is_closed(socket: &SockRef<'_>) -> bool {
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Ok(read) => read == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

/// The same bytes, without the capacity that a large request before them needed.
fn modest(mut rest: BytesMut) -> BytesMut {
    // Bytes that a buffer was advanced by do not count in its capacity, but their memory is kept.
    match KEPT.checked_sub(rest.len()) {
        Some(room) if rest.try_reclaim(room + 1) => BytesMut::from(&rest[..]),
        _ => rest,
    }
}
