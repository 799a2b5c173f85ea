//! The transaction lane: batches with a [`Condition`](crate::log::Condition) are committed in
//! groups. Each group is one *optimistic* Kafka transaction. This module owns the order of such
//! batches, and decides whether their conditions held. It knows nothing of who waits for them.
//!
//! A group is produced and its acknowledgements are collected. Then every record is checked that
//! came before it in the partitions that were read ([`tail`]). If another writer, a plain producer
//! included, wrote a key that a batch was computed on, or that it writes with others, the
//! transaction is aborted. That batch is stale (its writer computes it again); the other batches
//! are sent again. So the earlier offset wins, somebody always makes progress, and an update is
//! never lost. Readers and compaction never see a record that lost.
//!
//! - Batches keep the order in which they were handed over, so a batch that rests on another comes
//!   after it.
//! - A group is sent when the one before it is decided. Batches that come while its transaction
//!   begins are added to it; the rest wait for the next. Two producers take turns, since Kafka
//!   makes a producer wait until the markers of its last transaction are written (KIP-98).
//! - Before the commit is asked for, every failure means *not written*, whatever the broker has.
//!   After it, the outcome is found out ([`client`]) before anything is reported.

mod client;
mod queue;
mod tail;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use self::client::{AGAIN, Client, Decided, FailureKind, GLANCE, TransactionFailure};
use self::queue::{Handed, Queue};
use self::tail::Tail;
use super::codec::Stamp;
use super::config::Config;
use super::context::Health;
use super::producer::{Lane, check};
use super::topics::Topics;
use crate::log::{
    Appended, Batch, Completion, LogCounts, LogError, Positions, ProduceError, Read, Record, TopicPartition,
};
use crate::model::{PASSED_KEY, Payload};
use crate::supervise;

/// How long a begun group waits for the clients that the last group answered and that are about to
/// send more. Without this wait, two groups would take turns for good, each with a part of the
/// clients. It costs next to nothing: librdkafka tells the coordinator of the partition a
/// millisecond after the first record, and sends no record before that is answered.
const GATHER: Duration = Duration::from_micros(1_500);
/// A group may wait for as long as the last commit took, up to this. A separate group would keep
/// those clients for that long as well.
const GATHER_LONGEST: Duration = Duration::from_millis(5);
/// After a long wait in vain, it is tried again this many waits later.
const TRY_AGAIN: u32 = 16;
/// When the log was found to be another one, nothing more is tried for this long, unless the node
/// begins to read the log again before. Each try takes offsets, until the other log looks as long
/// as the one that was known.
const NOTICED: Duration = Duration::from_secs(10);
const ANOTHER_LOG: &str =
    "the topic is not the one that this was computed on any more: it was deleted and made again, or has lost its end";
/// How many transactional ids take turns.
const CLIENTS: usize = 2;

pub(super) struct TransactionLane {
    queue: Arc<Queue>,
    topics: Arc<Topics>,
    counts: Arc<Counts>,
    thread: Mutex<Option<JoinHandle<Option<()>>>>,
}

/// How groups ended: see [`LogCounts::Kafka`].
#[derive(Default)]
struct Counts {
    committed: AtomicU64,
    conflicts: AtomicU64,
    failed: AtomicU64,
    uncertain: AtomicU64,
}

impl TransactionLane {
    /// `lane`: that of plain writes.
    pub fn start(
        config: &Arc<Config>,
        topics: &Arc<Topics>,
        health: &Arc<Health>,
        lane: &Arc<Lane>,
    ) -> Result<Self, LogError> {
        let queue = Arc::new(Queue::default());
        let counts = Arc::new(Counts::default());
        let committer = Committer {
            queue: queue.clone(),
            counts: counts.clone(),
            config: config.clone(),
            topics: topics.clone(),
            lane: lane.clone(),
            clients: (0..CLIENTS).map(|n| Client::new(config, topics, health, n)).collect(),
            turn: 0,
            tail: Tail::new(config, topics, health),
            alone: 0,
            commit_time: Duration::ZERO,
            in_vain: 0,
            another_log: None,
            sent_again: None,
        };
        let thread = supervise::thread(&supervise::TRANSACTIONS, move || committer.run())
            .map_err(|error| LogError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(TransactionLane {
            queue,
            topics: topics.clone(),
            counts,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub fn produce(&self, batch: Batch) {
        let several = batch.records.len() > 1;
        let header = if several {
            Stamp::new(&batch.records).extra_bytes(|database| self.topics.name(database))
        } else {
            0
        };
        let completion = batch.completion.clone();
        let taken = check(&self.topics, &batch.records, header).and_then(|()| self.queue.push(batch));
        if let Err(cause) = taken {
            completion.complete(Err(ProduceError::NotWritten(cause)));
        }
    }

    pub fn counts(&self) -> LogCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogCounts::Kafka {
            committed: get(&self.counts.committed),
            conflicts: get(&self.counts.conflicts),
            failed: get(&self.counts.failed),
            uncertain: get(&self.counts.uncertain),
        }
    }

    /// The node begins to read the log. What it computes from now on rests on this reading.
    pub fn reads_anew(&self) {
        self.queue.reads_anew();
    }

    /// Takes in no more batches, and waits for those under way.
    pub fn close(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        self.queue.close();
        if !self.queue.is_done_by(end) {
            return;
        }
        if let Some(thread) = self.thread.lock().take() {
            // The thread has reported it if it panicked.
            let _ = thread.join();
        }
    }
}

impl Drop for TransactionLane {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The lane's thread.
struct Committer {
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    config: Arc<Config>,
    topics: Arc<Topics>,
    lane: Arc<Lane>,
    clients: Vec<Client>,
    turn: usize,
    tail: Tail,
    /// How many of the next batches are sent alone. One of them made a group fail, and must not
    /// cost the others anything.
    alone: usize,
    /// How long the last commit took.
    commit_time: Duration,
    /// How often in a row a group waited for batches that did not come.
    in_vain: u32,
    /// The log was found to be another one than this reading is of, and when.
    another_log: Option<(u64, Instant)>,
    /// Why the last group has to be sent again.
    sent_again: Option<String>,
}

/// A batch by its place in the group, and the position after the record that came before its own.
type Conflict = (usize, (TopicPartition, u64));

/// What became of a group that was sent. Places of records are in the order of all batches'
/// records.
enum Outcome {
    Committed(Vec<Appended>),
    /// Nothing is in the log: another writer came before these batches.
    Conflicts(Vec<Conflict>),
    Failed(ProduceError),
    /// Nothing is in the log, and it may be the fault of one batch.
    Refused(String),
    /// Nothing is in the log, and it is the fault of none of them.
    Again(String),
}

impl Counts {
    fn add(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Committed(_) => &self.committed,
            Outcome::Conflicts(_) => &self.conflicts,
            Outcome::Failed(ProduceError::Uncertain(_)) => &self.uncertain,
            Outcome::Failed(_) | Outcome::Refused(_) | Outcome::Again(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Committer {
    fn run(mut self) {
        // A group takes as long as its writes may take. Finding out how it ended takes about as
        // long again.
        let longest = self.config.write_timeout * 3;
        self.clients.iter_mut().for_each(Client::mend);
        loop {
            supervise::busy(longest);
            let alone = self.alone > 0;
            let Some(group) = self.queue.next_group(if alone { 1 } else { usize::MAX }) else {
                return;
            };
            if group.is_empty() {
                self.clients.iter_mut().for_each(Client::mend);
                self.tail.rest_if_unused();
                continue;
            }
            let group = self.without_stale(group, true);
            if !group.is_empty() {
                self.commit(group);
            }
            if alone {
                self.alone -= 1;
            }
        }
    }

    /// Completes the batches that are seen to be stale, or that come too late, before they are
    /// sent; returns the others. `nothing_sent`: the tail cannot have read records of this group,
    /// which are not decided yet.
    fn without_stale(&self, group: Vec<Handed>, nothing_sent: bool) -> Vec<Handed> {
        let is_of_another_log = |handed: &Handed| {
            let found = self.another_log.filter(|(_, found)| found.elapsed() < NOTICED);
            found.is_some_and(|(reading, _)| handed.reading <= reading)
        };
        let mut kept = Vec::with_capacity(group.len());
        for handed in group {
            if handed.rests_on_failed() {
                handed.stale(None);
            } else if is_of_another_log(&handed) {
                handed.failed(ProduceError::NotWritten(ANOTHER_LOG.into()));
            } else if handed.since.elapsed() >= self.config.write_timeout / 2 {
                let why = self.sent_again.as_ref().map(|cause| format!(": {cause}"));
                let cause = format!(
                    "its turn did not come within the write timeout{}",
                    why.unwrap_or_else(|| self.clients[0].trouble())
                );
                handed.failed(ProduceError::NotWritten(cause));
            } else if nothing_sent && let Some(after) = self.tail.seen_conflict(&handed.batch) {
                handed.stale(Some(after));
            } else {
                kept.push(handed);
            }
        }
        kept
    }

    fn commit(&mut self, mut group: Vec<Handed>) {
        // Nothing that has waited for more than half of its time is begun.
        let oldest = group
            .iter()
            .map(|handed| handed.since)
            .min()
            .unwrap_or_else(Instant::now);
        let deadline = oldest + self.config.write_timeout;
        let outcome = self.try_commit(&mut group, deadline);
        self.counts.add(&outcome);
        match outcome {
            Outcome::Committed(appended) => {
                self.sent_again = None;
                self.queue.answers(group.len());
                let mut rest = appended.as_slice();
                for Handed { batch, .. } in group {
                    let (mine, others) = rest.split_at(batch.records.len());
                    rest = others;
                    batch.completion.complete(Ok(mine));
                }
                let next = (self.turn + 1) % self.clients.len();
                self.clients[next].begin_early();
            }
            Outcome::Refused(_) if group.len() > 1 && Instant::now() < deadline => {
                self.alone = group.len();
                self.queue.put_back(group);
            }
            Outcome::Again(cause) if Instant::now() < deadline => {
                tracing::debug!(cause, "a group is sent again");
                self.sent_again = Some(cause);
                self.queue.put_back(group);
            }
            Outcome::Refused(cause) | Outcome::Again(cause) => {
                let error = ProduceError::NotWritten(cause);
                group.into_iter().for_each(|handed| handed.failed(error.clone()));
            }
            Outcome::Failed(error) => group.into_iter().for_each(|handed| handed.failed(error.clone())),
            Outcome::Conflicts(conflicts) => {
                let (mut kept, mut conflicts) = (Vec::new(), conflicts.into_iter().peekable());
                let mut after = None;
                for (place, handed) in group.into_iter().enumerate() {
                    if let Some((_, at)) = conflicts.next_if(|(conflicting, _)| *conflicting == place) {
                        after = Some(at);
                        handed.stale(after);
                    } else if handed.rests_on_failed() {
                        handed.stale(after);
                    } else {
                        kept.push(handed);
                    }
                }
                self.queue.put_back(kept);
            }
        }
    }

    /// Begins a transaction of the client whose turn it is, or of another one if that is not ready:
    /// Kafka may take long to finish its last transaction.
    fn begin(&mut self, deadline: Instant) -> Result<(), TransactionFailure> {
        let count = self.clients.len();
        let next = (self.turn + 1) % count;
        let mut patience = AGAIN;
        loop {
            let mut turns = (0..count).map(|later| (next + later) % count);
            if let Some(turn) = turns.find(|turn| self.clients[*turn].is_ready(patience)) {
                self.turn = turn;
                return self.clients[turn].begin(deadline);
            }
            if self.clients.iter().all(Client::is_refused) || Instant::now() >= deadline {
                return Err(TransactionFailure::refused(self.clients[next].not_usable()));
            }
            patience = GLANCE;
        }
    }

    /// Sends a group in a transaction, and adds the batches that come while the transaction begins.
    fn send(&mut self, group: &mut Vec<Handed>, deadline: Instant) -> Result<(), TransactionFailure> {
        self.begin(deadline)?;
        self.clients[self.turn].add(&batches(group), deadline)?;
        if self.alone > 0 {
            return Ok(());
        }
        let patience = match self.in_vain % TRY_AGAIN {
            0 => self.commit_time.clamp(GATHER, GATHER_LONGEST),
            _ => GATHER,
        };
        let first = group.len();
        match self.queue.gather(group, patience) {
            Some(true) => self.in_vain = 0,
            Some(false) => self.in_vain = self.in_vain.wrapping_add(1),
            None => {}
        }
        let more = self.without_stale(group.split_off(first), false);
        group.extend(more);
        self.clients[self.turn].add(&batches(&group[first..]), deadline)
    }

    /// What a failure before the commit was asked for means.
    fn failed(&self, failure: TransactionFailure) -> Outcome {
        if failure.kind == FailureKind::Uncertain {
            return Outcome::Failed(ProduceError::Uncertain(failure.cause));
        }
        self.tail.decided(&failure.appended);
        match failure.kind {
            FailureKind::Producer => Outcome::Again(failure.cause),
            _ => Outcome::Refused(failure.cause),
        }
    }

    /// Lets every reader of these partitions, this node too, know at once that these records were
    /// aborted: see [`PASSED_KEY`]. Without the mark they know it later.
    fn mark_passed(&self, aborted: &[Appended]) {
        let partitions: BTreeSet<TopicPartition> = aborted.iter().map(|record| record.at).collect();
        for to in partitions {
            let (key, payload) = (Bytes::from_static(PASSED_KEY), Payload::PASSED);
            self.lane.produce(Record { to, key, payload }, Arc::new(Unnoticed));
        }
    }

    /// Commits a group, and adds to it the batches that come in time.
    fn try_commit(&mut self, group: &mut Vec<Handed>, deadline: Instant) -> Outcome {
        let not_written = |cause: String| Outcome::Failed(ProduceError::NotWritten(cause));
        if let Err(cause) = self.tail.watch(&batches(group), &[], deadline) {
            return not_written(cause);
        }
        if let Err(failure) = self.send(group, deadline) {
            return self.failed(failure);
        }
        let client = &mut self.clients[self.turn];
        let reading = group.iter().map(|handed| handed.reading).max();
        let batches = batches(group);
        let begun = Instant::now();
        let appended = match client.acknowledged(deadline) {
            Ok(appended) => appended,
            Err(failure) => return self.failed(failure),
        };
        let conflicts = ends_if_needed(&self.topics, &batches, deadline).and_then(|ends| {
            if is_another_log(&batches, &appended, ends.as_ref()) {
                self.topics.hurry();
                self.another_log = reading.map(|reading| (reading, Instant::now()));
                return Err(ANOTHER_LOG.into());
            }
            self.tail.watch(&batches, &appended, deadline)?;
            self.tail.conflicts(&batches, &appended, ends.as_ref(), deadline)
        });
        let conflicts = match conflicts {
            Ok(conflicts) if conflicts.is_empty() => None,
            Ok(conflicts) => Some(Outcome::Conflicts(conflicts)),
            Err(cause) => Some(not_written(cause)),
        };
        if let Some(outcome) = conflicts {
            if let Err(cause) = client.abort(&appended, deadline) {
                return Outcome::Failed(ProduceError::Uncertain(cause));
            }
            self.tail.decided(&appended);
            if matches!(outcome, Outcome::Conflicts(_)) {
                self.mark_passed(&appended);
            }
            return outcome;
        }
        match client.commit(&appended, deadline) {
            Decided::Committed => {
                self.commit_time = begun.elapsed();
                self.tail.decided(&appended);
                Outcome::Committed(appended)
            }
            Decided::Aborted(failure) => {
                self.tail.decided(&appended);
                match failure.kind {
                    FailureKind::Producer => Outcome::Again(failure.cause),
                    _ => not_written(failure.cause),
                }
            }
            Decided::Unknown(cause) => Outcome::Failed(ProduceError::Uncertain(cause)),
        }
    }
}

/// Nobody waits for this record, and nothing is lost if it is not written.
struct Unnoticed;

impl Completion for Unnoticed {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        if let Err(error) = outcome {
            tracing::debug!(%error, "the mark behind aborted records was not written");
        }
    }
}

fn batches(group: &[Handed]) -> Vec<&Batch> {
    group.iter().map(|handed| &handed.batch).collect()
}

/// Each batch with the places of its own records; with no places if `appended` is empty.
fn with_places<'g>(
    batches: &'g [&'g Batch],
    appended: &'g [Appended],
) -> impl Iterator<Item = (&'g Batch, &'g [Appended])> {
    let mut rest = appended;
    batches.iter().map(move |&batch| {
        let (mine, others) = rest.split_at(batch.records.len().min(rest.len()));
        rest = others;
        (batch, mine)
    })
}

/// The keys that nobody else may have written since they were known: those that the batch read, and
/// those that it writes unless its records stand together (as far as is known: `mine` is empty
/// before they are sent).
fn checked<'b>(batch: &'b Batch, mine: &[Appended]) -> impl Iterator<Item = &'b Read> + use<'b> {
    let follow = |pair: &[Appended]| pair[1].offset == pair[0].offset + 1;
    let stands_together = is_in_one_partition(batch) && mine.windows(2).all(follow);
    batch.condition.iter().flat_map(move |condition| {
        let written = (!stands_together).then_some(&condition.written);
        condition.reads.iter().chain(written.into_iter().flatten())
    })
}

/// The partitions that a batch reads or writes.
fn partitions(batch: &Batch) -> impl Iterator<Item = TopicPartition> {
    let reads = batch.condition.iter().flat_map(|condition| &condition.reads);
    reads
        .map(|read| read.at)
        .chain(batch.records.iter().map(|record| record.to))
}

/// True if the order of records in one partition says who came first.
fn is_in_one_partition(batch: &Batch) -> bool {
    let mut all = partitions(batch);
    let first = all.next();
    all.all(|at| Some(at) == first)
}

/// True if the log is not the one that these batches were computed on: what was appended to it, or
/// its end, is below what they knew of it.
fn is_another_log(batches: &[&Batch], appended: &[Appended], ends: Option<&Positions>) -> bool {
    with_places(batches, appended).any(|(batch, mine)| {
        let conditions = batch.condition.iter();
        let mut reads = conditions.flat_map(|condition| condition.reads.iter().chain(&condition.written));
        reads.any(|read| {
            let is_cut = |end: &u64| *end < read.known;
            ends.and_then(|ends| ends.get(&read.at)).is_some_and(is_cut)
                || mine.iter().any(|own| own.at == read.at && own.offset < read.known)
        })
    })
}

/// The log's ends after all records were acknowledged, if a batch needs them. There is no order
/// over several partitions, so such a batch is checked against every record that is there when its
/// own writes are.
fn ends_if_needed(topics: &Topics, batches: &[&Batch], deadline: Instant) -> Result<Option<Positions>, String> {
    let is_checked = |batch: &&&Batch| checked(batch, &[]).next().is_some();
    if batches
        .iter()
        .filter(is_checked)
        .all(|batch| is_in_one_partition(batch))
    {
        return Ok(None);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    topics.ends(left).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::Condition;
    use crate::model::Payload;

    struct Nobody;

    impl Completion for Nobody {
        fn complete(self: Arc<Self>, _: Result<&[Appended], ProduceError>) {}
    }

    pub(super) fn at(partition: u32) -> TopicPartition {
        TopicPartition { database: 0, partition }
    }

    /// A batch that writes a key of partition 0, having read keys of these partitions up to these
    /// positions.
    pub(super) fn batch(reads: &[(u32, u64)]) -> Batch {
        let key = Bytes::from_static(b"k");
        let read = |&(partition, known): &(u32, u64)| Read {
            at: at(partition),
            key: Some(key.clone()),
            added: None,
            known,
        };
        let record = Record {
            to: at(0),
            key: key.clone(),
            payload: Payload::TOMBSTONE,
        };
        let condition = Condition {
            reads: reads.iter().map(read).collect(),
            ..Condition::default()
        };
        Batch {
            records: [record].into_iter().collect(),
            condition: Some(condition),
            completion: Arc::new(Nobody),
        }
    }

    pub(super) fn appended(partition: u32, offset: u64) -> Appended {
        Appended {
            at: at(partition),
            offset,
            timestamp: 0,
        }
    }

    #[test]
    fn what_is_written_is_checked_unless_nothing_can_stand_between() {
        let is_checked = |partitions: [u32; 2], mine: &[Appended]| {
            let mut both = batch(&[]);
            both.records.extend(batch(&[]).records);
            for (record, partition) in both.records.iter_mut().zip(partitions) {
                record.to = at(partition);
            }
            let condition = both.condition.as_mut().expect("a condition");
            condition.written = partitions
                .map(|partition| Read {
                    at: at(partition),
                    key: None,
                    added: None,
                    known: 5,
                })
                .into();
            checked(&both, mine).count() == 2
        };
        assert!(!is_checked([0, 0], &[]), "it is not known yet");
        assert!(!is_checked([0, 0], &[appended(0, 7), appended(0, 8)]));
        assert!(is_checked([0, 0], &[appended(0, 7), appended(0, 9)]));
        assert!(is_checked([0, 1], &[]));
        assert!(is_checked([0, 1], &[appended(0, 7), appended(1, 8)]));
    }

    #[test]
    fn a_log_that_is_shorter_than_what_was_known_of_it_is_another_one() {
        let is_another = |batches: &[Batch], offsets: &[u64], ends: Option<&Positions>| {
            let appended: Vec<Appended> = offsets.iter().map(|&offset| appended(0, offset)).collect();
            is_another_log(&batches.iter().collect::<Vec<_>>(), &appended, ends)
        };
        // Its own records come after all that it knew.
        assert!(!is_another(&[batch(&[(0, 5)]), batch(&[])], &[5, 0], None));
        assert!(is_another(&[batch(&[]), batch(&[(0, 5)])], &[5, 4], None));
        // Of a partition that it does not write to, only the end tells.
        let ends = |end| Positions::from([(at(0), 10), (at(1), end)]);
        assert!(!is_another(&[batch(&[(1, 5)])], &[9], Some(&ends(5))));
        assert!(is_another(&[batch(&[(0, 5), (1, 5)])], &[9], Some(&ends(4))));
    }
}
