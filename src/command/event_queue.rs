//! Keyspace events that a task of its own delivers ([`EventQueue`]).
//!
//! The thread that makes a change delivers its events, so that they are in the queues of those who
//! listen before the writer has its reply. If that would take long, or if earlier events wait, the
//! events come here. So the events of one thread keep their order. What is above the bound is
//! dropped and counted: events are not kept for anybody.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::database::notices::Notice;

/// Bytes of events that may wait.
const MOST_WAITING: usize = 64 << 20;

#[derive(Default)]
pub struct EventQueue {
    waiting: Mutex<Waiting>,
    pub(super) has_waiting: Notify,
    /// Events that were dropped, as too many waited.
    pub dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Notice>,
    bytes: usize,
    /// The task delivers events that it has taken out.
    is_delivering: bool,
}

impl EventQueue {
    /// Whether no earlier event is still to be delivered.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.events.is_empty() && !waiting.is_delivering
    }

    /// Leaves events to the task.
    pub(super) fn put_off(&self, events: impl IntoIterator<Item = Notice>) {
        let mut waiting = self.waiting.lock();
        for event in events {
            let bytes = waiting.bytes + bytes(&event);
            if bytes > MOST_WAITING {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            waiting.bytes = bytes;
            waiting.events.push_back(event);
        }
        drop(waiting);
        self.has_waiting.notify_one();
    }

    /// The next events to be delivered, in order. The ones before are delivered now.
    pub(super) fn take(&self, most: usize) -> Vec<Notice> {
        let mut waiting = self.waiting.lock();
        let some = waiting.events.len().min(most);
        let taken: Vec<Notice> = waiting.events.drain(..some).collect();
        waiting.bytes -= taken.iter().map(bytes).sum::<usize>();
        waiting.is_delivering = !taken.is_empty();
        taken
    }
}

fn bytes(event: &Notice) -> usize {
    size_of::<Notice>() + event.key.len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn event(name: &'static str, length: usize) -> Notice {
        Notice {
            database: 0,
            key: Bytes::from(vec![0; length]),
            class: 0,
            name,
        }
    }

    #[test]
    fn events_keep_their_order_until_all_are_delivered() {
        let queue = EventQueue::default();
        assert!(queue.is_idle());
        queue.put_off([event("set", 1), event("del", 1)]);
        assert_eq!(queue.take(1), [event("set", 1)]);
        assert_eq!(queue.take(1), [event("del", 1)]);
        assert!(!queue.is_idle(), "the last one is being delivered");
        assert_eq!(queue.take(1), []);
        assert!(queue.is_idle());
    }

    #[test]
    fn events_above_the_bound_are_dropped_and_counted() {
        let queue = EventQueue::default();
        queue.put_off((0..65).map(|_| event("set", 1 << 20)));
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 2);
        assert_eq!(queue.take(usize::MAX).len(), 63);
        queue.put_off([event("del", 1)]);
        assert_eq!(queue.take(usize::MAX), [event("del", 1)]);
    }
}
