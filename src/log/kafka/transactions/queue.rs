//! The batches that wait for the transaction lane, and how they become groups.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::log::kafka::producer::{CLOSED, QUEUE_FULL};
use crate::log::{Batch, ProduceError, Record, TopicPartition};

/// The most that may wait to be sent: the bound on the lane's memory.
const MAX_WAITING_RECORDS: usize = 250_000;
const MAX_WAITING_BYTES: usize = 256 << 20;
/// A group is full at these bounds. A single batch may be larger.
const MAX_GROUP_RECORDS: usize = 10_000;
const MAX_GROUP_BYTES: usize = 16 << 20;
/// How often the lane checks whether a producer has to be mended, or the tail is no longer in use.
const TICK: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Notified when as many batches wait as the lane wants, or the queue is closed.
    changed: Condvar,
    /// Notified when the lane has nothing more to do.
    idle: Condvar,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Handed>,
    records: usize,
    bytes: usize,
    /// A group is being committed.
    busy: bool,
    /// How many batches are likely to be in the next group: those that came while the last one was
    /// committed, and as many as that one answered.
    expected: usize,
    /// How many batches the lane waits for.
    wanted: usize,
    /// How often this node has begun to read the log.
    reading: u64,
    closed: bool,
}

/// A batch, when it was handed over, and in which reading of the log.
pub(super) struct Handed {
    pub(super) batch: Batch,
    pub(super) since: Instant,
    pub(super) reading: u64,
}

impl Handed {
    pub(super) fn stale(self, after: Option<(TopicPartition, u64)>) {
        self.batch.completion.complete(Err(ProduceError::Stale { after }));
    }

    pub(super) fn failed(self, error: ProduceError) {
        self.batch.completion.complete(Err(error));
    }

    pub(super) fn bytes(&self) -> usize {
        self.batch.records.iter().map(Record::size).sum()
    }

    /// A batch that it was computed on failed.
    pub(super) fn rests_on_failed(&self) -> bool {
        let condition = self.batch.condition.as_ref();
        condition.is_some_and(|c| c.rests_on.iter().any(|before| before.has_failed()))
    }
}

impl Queue {
    pub(super) fn push(&self, batch: Batch) -> Result<(), String> {
        let mut handed = Handed {
            batch,
            since: Instant::now(),
            reading: 0,
        };
        let (records, bytes) = (handed.batch.records.len(), handed.bytes());
        let mut waiting = self.waiting.lock();
        handed.reading = waiting.reading;
        if waiting.closed {
            return Err(CLOSED.into());
        }
        let full = waiting.records + records > MAX_WAITING_RECORDS || waiting.bytes + bytes > MAX_WAITING_BYTES;
        if full && !waiting.batches.is_empty() {
            return Err(QUEUE_FULL.into());
        }
        waiting.records += records;
        waiting.bytes += bytes;
        waiting.batches.push_back(handed);
        let is_waited_for = waiting.batches.len() >= waiting.wanted;
        drop(waiting);
        if is_waited_for {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The node begins to read the log. What is pushed from now on rests on this reading.
    pub(super) fn reads_anew(&self) {
        self.waiting.lock().reading += 1;
    }

    /// Takes in no more batches.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until every batch is decided. False if that does not come in time.
    pub(super) fn is_done_by(&self, end: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        while waiting.busy || !waiting.batches.is_empty() {
            if self.idle.wait_until(&mut waiting, end).timed_out() {
                return false;
            }
        }
        true
    }

    /// The batches that the next group begins with, in order, at most `most` of them. Empty after a
    /// [`TICK`] without any; `None` when the lane is closed and done.
    pub(super) fn next_group(&self, most: usize) -> Option<Vec<Handed>> {
        let mut waiting = self.waiting.lock();
        waiting.busy = false;
        if waiting.batches.is_empty() {
            self.idle.notify_all();
            if waiting.closed {
                return None;
            }
            waiting.wanted = 1;
            self.changed.wait_for(&mut waiting, TICK);
        }
        waiting.busy = !waiting.batches.is_empty();
        let mut group = Vec::new();
        waiting.move_to(&mut group, most);
        Some(group)
    }

    /// Adds the batches that are likely to come to a group, and waits for them for at most
    /// `patience`. Returns whether they came, if any were missing.
    pub(super) fn gather(&self, group: &mut Vec<Handed>, patience: Duration) -> Option<bool> {
        let until = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        waiting.wanted = waiting.expected.saturating_sub(group.len());
        let mut came = None;
        while came != Some(false) && waiting.batches.len() < waiting.wanted && !waiting.closed {
            came = Some(!self.changed.wait_until(&mut waiting, until).timed_out());
        }
        waiting.wanted = usize::MAX;
        waiting.move_to(group, usize::MAX);
        waiting.expected = group.len();
        came
    }

    /// A group of `count` batches is about to be answered.
    pub(super) fn answers(&self, count: usize) {
        let mut waiting = self.waiting.lock();
        waiting.expected = waiting.batches.len() + count;
    }

    /// Puts the batches back to the front, in their order.
    pub(super) fn put_back(&self, group: Vec<Handed>) {
        let mut waiting = self.waiting.lock();
        for handed in group.into_iter().rev() {
            waiting.records += handed.batch.records.len();
            waiting.bytes += handed.bytes();
            waiting.batches.push_front(handed);
        }
    }
}

impl Waiting {
    /// Adds the next batches to a group, as many as it has room for.
    fn move_to(&mut self, group: &mut Vec<Handed>, most: usize) {
        let mut records: usize = group.iter().map(|handed| handed.batch.records.len()).sum();
        let mut bytes: usize = group.iter().map(Handed::bytes).sum();
        while let Some(next) = self.batches.front() {
            let (more, larger) = (next.batch.records.len(), next.bytes());
            records += more;
            bytes += larger;
            if !group.is_empty() && (records > MAX_GROUP_RECORDS || bytes > MAX_GROUP_BYTES || group.len() >= most) {
                break;
            }
            self.records -= more;
            self.bytes -= larger;
            group.extend(self.batches.pop_front());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::batch;
    use super::*;

    /// A group of `waiting` batches, where `expected` are expected.
    fn group_of(queue: &Queue, waiting: usize, expected: usize) -> Vec<Handed> {
        (0..waiting).for_each(|_| queue.push(batch(&[])).expect("room"));
        queue.waiting.lock().expected = expected;
        queue.next_group(usize::MAX).expect("an open queue")
    }

    /// Returns when somebody waits for two more.
    fn eventually_waits(queue: &Queue) {
        let end = Instant::now() + Duration::from_secs(60);
        while queue.waiting.lock().wanted != 2 {
            assert!(Instant::now() < end, "nobody waits");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_group_waits_for_those_who_are_expected_and_no_longer() {
        const LONG: Duration = Duration::from_secs(60);
        let queue = Queue::default();
        let mut group = group_of(&queue, 2, 2);
        assert_eq!(queue.gather(&mut group, LONG), None, "all are there");
        assert_eq!(group.len(), 2);

        let mut group = group_of(&queue, 1, 3);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                eventually_waits(&queue);
                (0..2).for_each(|_| queue.push(batch(&[])).expect("room"));
            });
            assert_eq!(queue.gather(&mut group, LONG), Some(true), "two more came");
        });
        assert_eq!(group.len(), 3);

        let mut group = group_of(&queue, 1, 3);
        queue.push(batch(&[])).expect("room");
        let outcome = queue.gather(&mut group, Duration::from_millis(1));
        assert_eq!(outcome, Some(false), "one is missing");
        assert_eq!(group.len(), 2, "but the other is taken along");
        assert_eq!(queue.waiting.lock().expected, 2, "and is not expected again");

        queue.answers(group.len());
        let mut group = group_of(&queue, 1, 2);
        queue.waiting.lock().closed = true;
        assert_eq!(
            queue.gather(&mut group, LONG),
            None,
            "nobody comes when the lane is closed"
        );
    }

    #[test]
    fn a_group_takes_batches_in_their_order_and_is_full_at_a_bound() {
        let queue = Queue::default();
        let large = |first: u32| {
            let mut large = batch(&[(first, 0)]);
            large.records = large
                .records
                .iter()
                .cycle()
                .take(MAX_GROUP_RECORDS / 2)
                .cloned()
                .collect();
            large
        };
        (0..5).for_each(|n| queue.push(large(n)).expect("room"));
        let order = |group: &[Handed]| -> Vec<u32> {
            let condition = |handed: &Handed| handed.batch.condition.as_ref().map(|c| c.reads[0].at.partition);
            group.iter().filter_map(condition).collect()
        };
        let mut group = queue.next_group(1).expect("an open queue");
        assert_eq!(order(&group), [0]);
        queue.gather(&mut group, Duration::ZERO);
        assert_eq!(order(&group), [0, 1], "the third is above the bound");
        queue.put_back(group);
        assert_eq!(order(&queue.next_group(usize::MAX).expect("an open queue")), [0, 1]);
        assert_eq!(queue.waiting.lock().records, 3 * (MAX_GROUP_RECORDS / 2));
    }
}
