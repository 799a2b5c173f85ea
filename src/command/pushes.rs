//! What is pushed to a connection: one bounded queue for each.
//!
//! The connection's task alone moves pushes from here into its output, and only between replies:
//! never inside a reply, and never before a reply that was computed earlier and is held back. So
//! what a client reads is in one order. Others only add to the queue, and wake the task.
//!
//! A push is encoded once for all connections that get it. What differs between RESP2 and RESP3 is
//! added on the way out ([`Push`]), in the version of that moment.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::config::checks::OutputLimit;
use crate::resp::Version;

/// What a waiting push takes besides its bytes.
const OVERHEAD: usize = 64;

/// What is pushed.
#[derive(Clone, Debug)]
pub enum Push {
    /// A message of a channel, without its first byte: that of an array or of a push.
    Message(Bytes),
    /// Keys that have changed, encoded as an array; `None`: all keys. In RESP2 only a connection
    /// that listens to channels gets them, and only those of a connection that redirects to it.
    Changed { keys: Option<Bytes>, redirected: bool },
    /// A push of RESP3, without its first byte. Nothing in RESP2.
    Resp3(Bytes),
    /// The same in both versions.
    Plain(Bytes),
}

/// What a connection listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Channel,
    Pattern,
    /// A channel of the shard (SSUBSCRIBE).
    Shard,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Channel, Kind::Pattern, Kind::Shard];
}

/// The pushes that wait for one connection, and how many channels and patterns it listens to.
#[derive(Default)]
pub struct Pushes {
    queue: Mutex<Queue>,
    /// Bytes that wait; 0 if nothing waits. Changed under the lock only.
    bytes: AtomicUsize,
    /// Per [`Kind`].
    listens: [AtomicUsize; 3],
    /// Bytes of the names of these.
    pub names: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Push>,
    /// Since when more waits than the soft limit allows.
    above_soft: Option<Instant>,
    /// The connection is being closed: nothing more is taken in.
    closed: bool,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is the only one that waits: the connection must be woken.
    First,
    Behind,
    /// The connection is above the limit. Its pushes are dropped, and it must be closed.
    AboveLimit,
    /// The connection is being closed.
    Closed,
}

impl Pushes {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Bytes that wait.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// How many pushes wait.
    pub fn len(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    /// How many channels or patterns of this kind the connection listens to.
    pub fn listens_to(&self, kind: Kind) -> usize {
        self.listens[kind as usize].load(Ordering::Relaxed)
    }

    /// Whether the connection listens to anything.
    pub fn listens(&self) -> bool {
        self.listens.iter().any(|count| count.load(Ordering::Relaxed) > 0)
    }

    pub(super) fn set_listens_to(&self, kind: Kind, count: usize) {
        self.listens[kind as usize].store(count, Ordering::Relaxed);
    }

    /// Adds a push. `output`: bytes of replies that wait for the client already.
    pub fn add(&self, push: &Push, output: usize, limit: &OutputLimit) -> Added {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Added::Closed;
        }
        let before = self.bytes.load(Ordering::Relaxed);
        let bytes = before + push.len() + OVERHEAD;
        if queue.is_above(bytes + output, limit) {
            self.drop_all(&mut queue);
            return Added::AboveLimit;
        }
        queue.waiting.push_back(push.clone());
        self.bytes.store(bytes, Ordering::Release);
        if before == 0 { Added::First } else { Added::Behind }
    }

    /// Whether the limit has been exceeded for too long by now. Then nothing waits any more, and
    /// the connection must be closed.
    pub fn is_overdue(&self, output: usize, limit: &OutputLimit) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut queue = self.queue.lock();
        let bytes = self.bytes.load(Ordering::Relaxed) + output;
        let overdue = !queue.closed && queue.is_above(bytes, limit);
        if overdue {
            self.drop_all(&mut queue);
        }
        overdue
    }

    /// The connection is about to end: nothing more is taken in.
    pub fn close(&self) {
        self.queue.lock().closed = true;
    }

    /// Whether nothing more is taken in.
    pub fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    fn drop_all(&self, queue: &mut Queue) {
        queue.closed = true;
        queue.waiting = VecDeque::new();
        self.bytes.store(0, Ordering::Release);
    }

    /// Moves pushes to `out` while that has fewer than `enough` bytes.
    pub fn take(&self, out: &mut BytesMut, enough: usize, version: Version) {
        let mut queue = self.queue.lock();
        let mut left = self.bytes.load(Ordering::Relaxed);
        while out.len() < enough
            && let Some(push) = queue.waiting.pop_front()
        {
            push.put(out, version, self.listens());
            left -= push.len() + OVERHEAD;
        }
        if queue.waiting.is_empty() {
            queue.above_soft = None;
            // A burst must not keep its memory.
            queue.waiting.shrink_to(64);
        }
        self.bytes.store(left, Ordering::Release);
    }
}

impl Push {
    /// Its bytes, nearly.
    fn len(&self) -> usize {
        match self {
            Push::Changed { keys, .. } => keys.as_ref().map_or(0, Bytes::len),
            Push::Message(bytes) | Push::Resp3(bytes) | Push::Plain(bytes) => bytes.len(),
        }
    }

    fn put(&self, out: &mut BytesMut, version: Version, listens: bool) {
        let is_resp3 = version == Version::Resp3;
        let first = if is_resp3 { b'>' } else { b'*' };
        out.reserve(self.len() + 64);
        match self {
            Push::Message(bytes) => {
                out.put_u8(first);
                out.put_slice(bytes);
            }
            Push::Resp3(bytes) if is_resp3 => {
                out.put_u8(first);
                out.put_slice(bytes);
            }
            Push::Changed { keys, .. } if is_resp3 => {
                out.put_slice(b">2\r\n$10\r\ninvalidate\r\n");
                out.put_slice(keys.as_deref().unwrap_or(b"_\r\n"));
            }
            Push::Changed { keys, redirected: true } if listens => {
                out.put_slice(b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n");
                out.put_slice(keys.as_deref().unwrap_or(b"$-1\r\n"));
            }
            Push::Changed { .. } | Push::Resp3(_) => {}
            Push::Plain(bytes) => out.put_slice(bytes),
        }
    }
}

impl Queue {
    fn is_above(&mut self, bytes: usize, limit: &OutputLimit) -> bool {
        let bytes = bytes as u64;
        if limit.hard > 0 && bytes > limit.hard {
            return true;
        }
        if limit.soft == 0 || bytes <= limit.soft {
            self.above_soft = None;
            return false;
        }
        let since = *self.above_soft.get_or_insert_with(Instant::now);
        since.elapsed() >= Duration::from_secs(limit.soft_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: OutputLimit = OutputLimit {
        hard: 0,
        soft: 0,
        soft_seconds: 0,
    };

    fn push(text: &'static str) -> Push {
        Push::Message(Bytes::from_static(text.as_bytes()))
    }

    fn taken(pushes: &Pushes, enough: usize, version: Version) -> BytesMut {
        let mut out = BytesMut::new();
        pushes.take(&mut out, enough, version);
        out
    }

    #[test]
    fn pushes_come_out_in_their_order_and_in_the_version_of_that_moment() {
        let pushes = Pushes::default();
        assert_eq!(pushes.add(&push("1\r\n:1\r\n"), 0, &FREE), Added::First);
        assert_eq!(pushes.add(&push("1\r\n:2\r\n"), 0, &FREE), Added::Behind);
        assert_eq!(pushes.add(&push("1\r\n:3\r\n"), 0, &FREE), Added::Behind);
        assert_eq!(taken(&pushes, 9, Version::Resp3), ">1\r\n:1\r\n>1\r\n:2\r\n");
        assert!(!pushes.is_empty());
        assert_eq!(taken(&pushes, 9, Version::Resp2), "*1\r\n:3\r\n");
        assert!(pushes.is_empty());
        assert_eq!(pushes.add(&push("x"), 0, &FREE), Added::First);
    }

    #[test]
    fn changed_keys_have_the_form_of_the_version() {
        let keys = Some(Bytes::from_static(b"*1\r\n$1\r\nk\r\n"));
        let all = [(keys.clone(), false), (keys, true), (None, true)]
            .map(|(keys, redirected)| Push::Changed { keys, redirected });
        let pushes = Pushes::default();
        let add = || {
            all.iter()
                .for_each(|push| assert_ne!(pushes.add(push, 0, &FREE), Added::Closed))
        };
        add();
        let one = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";
        let resp3 = format!("{one}{one}>2\r\n$10\r\ninvalidate\r\n_\r\n");
        assert_eq!(taken(&pushes, usize::MAX, Version::Resp3), resp3);
        add();
        assert_eq!(taken(&pushes, usize::MAX, Version::Resp2), "", "it listens to nothing");
        pushes.set_listens_to(Kind::Channel, 1);
        add();
        let of_channel = "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n";
        let resp2 = format!("{of_channel}*1\r\n$1\r\nk\r\n{of_channel}$-1\r\n");
        assert_eq!(taken(&pushes, usize::MAX, Version::Resp2), resp2);
        assert!(pushes.is_empty());
    }

    #[test]
    fn a_queue_above_the_hard_limit_is_dropped_and_stays_closed() {
        let pushes = Pushes::default();
        let limit = OutputLimit { hard: 200, ..FREE };
        assert_eq!(pushes.add(&push("12345678"), 0, &limit), Added::First);
        // What the client has not read of its replies counts too.
        assert_eq!(pushes.add(&push("12345678"), 100, &limit), Added::AboveLimit);
        assert!(pushes.is_empty());
        assert_eq!(pushes.add(&push("1"), 0, &limit), Added::Closed);
    }

    #[test]
    fn the_soft_limit_may_be_exceeded_for_its_seconds() {
        let soft = |soft_seconds| OutputLimit {
            hard: 0,
            soft: 100,
            soft_seconds,
        };
        let pushes = Pushes::default();
        assert_eq!(pushes.add(&push("1"), 0, &soft(1_000)), Added::First);
        assert_eq!(pushes.add(&push("2"), 0, &soft(1_000)), Added::Behind);
        assert!(!pushes.is_overdue(0, &soft(1_000)));
        assert!(pushes.is_overdue(0, &soft(0)));
        assert_eq!(pushes.add(&push("3"), 0, &soft(0)), Added::Closed);
    }
}
