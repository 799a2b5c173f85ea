//! Decides when records of the plain lane are handed to librdkafka: one batch of a partition at a
//! time. Records that come meanwhile wait here and are the next batch.
//!
//! librdkafka would gather them as well, but at a price. An idempotent producer sends nothing more
//! while five messages of a partition are unacknowledged (it counts messages where it means
//! requests). Without a linger time, its thread spins for as long as it has messages that it may
//! not send. With 50 clients of one request each that was two thirds of this process's time
//! (docs/decisions/one-batch-at-a-time.md).
//!
//! A batch that is not acknowledged for a while does not hold back its partition for longer:
//! librdkafka's own timeout is to count.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::producer::Outgoing;
use crate::log::TopicPartition;

/// How long records wait for the batch before theirs. After that librdkafka gets them all the same,
/// and spins.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// Bounds of what waits, over all partitions together, and of one batch.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub records: usize,
    pub bytes: usize,
    pub batch_records: usize,
    pub batch_bytes: usize,
}

pub(super) struct Gate {
    bounds: Bounds,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    partitions: HashMap<TopicPartition, Partition, foldhash::fast::RandomState>,
    records: usize,
    bytes: usize,
    mode: Mode,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Open,
    /// Nothing goes out: one producer takes over from another.
    Paused,
    /// Nothing more comes in.
    Closed,
}

#[derive(Default)]
struct Partition {
    /// Records that librdkafka has, and has not reported yet.
    under_way: usize,
    /// When librdkafka last got records.
    since: Option<Instant>,
    waiting: VecDeque<Outgoing>,
}

/// What becomes of a record that enters.
pub(super) enum Entered {
    /// It goes out now.
    Passes(Outgoing),
    Waits,
    Refused(Outgoing, Refusal),
}

pub(super) enum Refusal {
    Full,
    Closed,
}

/// Records of one partition that go out now, in their order.
pub(super) type Next = Vec<Outgoing>;

impl Gate {
    pub fn new(bounds: Bounds) -> Gate {
        Gate {
            bounds,
            state: Mutex::default(),
        }
    }

    pub fn enter(&self, held: Outgoing) -> Entered {
        let mut state = self.state.lock();
        let GateState {
            partitions,
            records,
            bytes,
            mode,
        } = &mut *state;
        if *mode == Mode::Closed {
            return Entered::Refused(held, Refusal::Closed);
        }
        let partition = partitions.entry(held.to()).or_default();
        if *mode == Mode::Open && partition.under_way == 0 && partition.waiting.is_empty() {
            partition.gets(1);
            return Entered::Passes(held);
        }
        let size = held.bytes();
        // One record has to fit, however large it is.
        let is_full = *records > 0 && *bytes + size > self.bounds.bytes;
        if *records >= self.bounds.records || is_full {
            return Entered::Refused(held, Refusal::Full);
        }
        *records += 1;
        *bytes += size;
        partition.waiting.push_back(held);
        Entered::Waits
    }

    /// `count` records of a partition are not under way any more. Returns the records that go out
    /// now.
    pub fn left(&self, at: TopicPartition, count: usize) -> Next {
        let mut state = self.state.lock();
        let mode = state.mode;
        let Some(partition) = state.partitions.get_mut(&at) else {
            return Next::new();
        };
        partition.under_way = partition.under_way.saturating_sub(count);
        if partition.under_way > 0 || mode == Mode::Paused {
            return Next::new();
        }
        state.next(at, &self.bounds)
    }

    /// Returns the records that have waited too long.
    pub fn overdue(&self) -> Vec<Next> {
        let mut state = self.state.lock();
        if state.records == 0 || state.mode == Mode::Paused {
            return Vec::new();
        }
        let late = |partition: &Partition| {
            !partition.waiting.is_empty() && partition.since.is_none_or(|since| since.elapsed() > PATIENCE)
        };
        let of: Vec<_> = state
            .partitions
            .iter()
            .filter(|(_, p)| late(p))
            .map(|(at, _)| *at)
            .collect();
        let everything = Bounds {
            batch_records: usize::MAX,
            batch_bytes: usize::MAX,
            ..self.bounds
        };
        of.into_iter().map(|at| state.next(at, &everything)).collect()
    }

    /// Holds everything back until [`Gate::resume`].
    pub fn pause(&self) {
        let mut state = self.state.lock();
        if state.mode == Mode::Open {
            state.mode = Mode::Paused;
        }
    }

    /// Lets records out again; returns those that go out now, of each partition.
    pub fn resume(&self) -> Vec<Next> {
        let mut state = self.state.lock();
        if state.mode == Mode::Paused {
            state.mode = Mode::Open;
        }
        let free = |partition: &Partition| partition.under_way == 0 && !partition.waiting.is_empty();
        let of: Vec<_> = state
            .partitions
            .iter()
            .filter(|(_, p)| free(p))
            .map(|(at, _)| *at)
            .collect();
        of.into_iter().map(|at| state.next(at, &self.bounds)).collect()
    }

    /// Lets nothing more in.
    pub fn close(&self) {
        self.state.lock().mode = Mode::Closed;
    }

    /// True if nothing waits and nothing is under way.
    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.records == 0 && state.partitions.values().all(|partition| partition.under_way == 0)
    }

    /// Takes out everything that waits.
    pub fn give_up(&self) -> Next {
        let mut state = self.state.lock();
        (state.records, state.bytes) = (0, 0);
        let all = state
            .partitions
            .values_mut()
            .flat_map(|partition| partition.waiting.drain(..));
        all.collect()
    }
}

impl GateState {
    /// Takes the next batch of a partition out.
    fn next(&mut self, at: TopicPartition, bounds: &Bounds) -> Next {
        let Some(partition) = self.partitions.get_mut(&at) else {
            return Next::new();
        };
        let (mut count, mut bytes) = (0, 0);
        for held in partition.waiting.iter().take(bounds.batch_records) {
            let more = bytes + held.bytes();
            if count > 0 && more > bounds.batch_bytes {
                break;
            }
            (count, bytes) = (count + 1, more);
        }
        self.records -= count;
        self.bytes -= bytes;
        if count > 0 {
            partition.gets(count);
        }
        partition.waiting.drain(..count).collect()
    }
}

impl Partition {
    fn gets(&mut self, records: usize) {
        self.under_way += records;
        self.since = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::log::{Appended, Completion, ProduceError, Record};
    use crate::model::Payload;

    struct Nobody;

    impl Completion for Nobody {
        fn complete(self: Arc<Self>, _: Result<&[Appended], ProduceError>) {}
    }

    const HOME: TopicPartition = TopicPartition {
        database: 0,
        partition: 0,
    };

    fn held(at: TopicPartition, key: u32) -> Outgoing {
        let record = Record {
            to: at,
            key: Bytes::from(key.to_string()),
            payload: Payload::TOMBSTONE,
        };
        Outgoing::new(record, Arc::new(Nobody))
    }

    fn gate() -> Gate {
        Gate::new(Bounds {
            records: 10,
            bytes: 1 << 20,
            batch_records: 4,
            batch_bytes: 1 << 20,
        })
    }

    /// Enters records 0, 1, 2 …; returns how many pass.
    fn enter(gate: &Gate, at: TopicPartition, keys: std::ops::Range<u32>) -> usize {
        let passes = |key| matches!(gate.enter(held(at, key)), Entered::Passes(_));
        keys.map(passes).filter(|passes| *passes).count()
    }

    fn keys(next: &Next) -> Vec<String> {
        let text = |held: &Outgoing| String::from_utf8_lossy(held.key()).into_owned();
        next.iter().map(text).collect()
    }

    #[test]
    fn one_batch_of_a_partition_goes_out_at_a_time_and_in_order() {
        let gate = gate();
        assert_eq!(enter(&gate, HOME, 0..7), 1);
        let other = TopicPartition { partition: 1, ..HOME };
        assert_eq!(enter(&gate, other, 7..8), 1, "partitions do not wait for each other");
        assert_eq!(keys(&gate.left(HOME, 1)), ["1", "2", "3", "4"]);
        assert!(gate.left(HOME, 3).is_empty(), "one of the batch is still under way");
        assert_eq!(keys(&gate.left(HOME, 1)), ["5", "6"]);
        assert!(!gate.is_empty());
        assert!(gate.left(HOME, 2).is_empty());
        assert!(gate.left(other, 1).is_empty());
        assert!(gate.is_empty());
        assert_eq!(enter(&gate, HOME, 8..9), 1, "it is free again");
    }

    #[test]
    fn a_batch_has_a_bound_in_bytes_but_a_large_record_passes() {
        let gate = Gate::new(Bounds {
            batch_bytes: 1,
            ..gate().bounds
        });
        enter(&gate, HOME, 0..3);
        assert_eq!(keys(&gate.left(HOME, 1)), ["1"]);
        assert_eq!(keys(&gate.left(HOME, 1)), ["2"]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let gate = gate();
        assert_eq!(enter(&gate, HOME, 0..11), 1);
        assert!(matches!(gate.enter(held(HOME, 11)), Entered::Refused(_, Refusal::Full)));
        gate.close();
        assert!(matches!(
            gate.enter(held(HOME, 12)),
            Entered::Refused(_, Refusal::Closed)
        ));
        assert_eq!(gate.give_up().len(), 10);
        gate.left(HOME, 1);
        assert!(gate.is_empty());
    }

    #[test]
    fn a_batch_that_is_not_acknowledged_holds_the_others_up_for_a_while_only() {
        let gate = gate();
        enter(&gate, HOME, 0..7);
        assert!(gate.overdue().is_empty());
        let end = Instant::now() + Duration::from_secs(10);
        let late = loop {
            if let Some(late) = gate.overdue().pop() {
                break late;
            }
            assert!(Instant::now() < end, "nothing is late");
            std::thread::yield_now();
        };
        assert_eq!(late.len(), 6);
        assert_eq!(enter(&gate, HOME, 7..8), 0, "all of that is under way");
        assert!(gate.left(HOME, 6).is_empty());
        assert_eq!(keys(&gate.left(HOME, 1)), ["7"]);
    }

    #[test]
    fn while_a_producer_is_replaced_nothing_goes_out() {
        let gate = gate();
        enter(&gate, HOME, 0..2);
        gate.pause();
        assert_eq!(enter(&gate, HOME, 2..3), 0);
        assert!(gate.left(HOME, 1).is_empty());
        let next = gate.resume();
        assert_eq!(next.iter().flat_map(keys).collect::<Vec<_>>(), ["1", "2"]);
    }
    #[test]
    fn a_producer_that_takes_over_gets_nothing_before_the_other_has_left() {
        let gate = gate();
        enter(&gate, HOME, 0..2);
        gate.pause();
        std::thread::sleep(PATIENCE + Duration::from_millis(10));
        assert!(
            gate.overdue().is_empty(),
            "it is late, but would overtake what is under way"
        );
        assert!(gate.resume().is_empty(), "one is still under way");
        assert_eq!(keys(&gate.left(HOME, 1)), ["1"]);
        gate.left(HOME, 1);
        assert_eq!(enter(&gate, HOME, 2..3), 1, "it is open again");
        gate.close();
        gate.pause();
        assert!(gate.resume().is_empty());
        assert_eq!(enter(&gate, HOME, 3..4), 0, "it stays closed");
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_one_record_always_fits() {
        let size = held(HOME, 0).bytes();
        let gate = Gate::new(Bounds {
            bytes: 2 * size,
            ..gate().bounds
        });
        for _ in 0..5 {
            let waits = |key| matches!(gate.enter(held(HOME, key)), Entered::Waits);
            assert_eq!(enter(&gate, HOME, 0..1), 1);
            assert_eq!([waits(1), waits(2), waits(3)], [true, true, false]);
            assert_eq!(gate.left(HOME, 1).len(), 2);
            gate.left(HOME, 2);
        }
        let gate = Gate::new(Bounds {
            bytes: 1,
            ..gate.bounds
        });
        enter(&gate, HOME, 0..1);
        assert!(matches!(gate.enter(held(HOME, 1)), Entered::Waits));
    }
}
