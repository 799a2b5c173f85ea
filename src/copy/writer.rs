//! Produces states to another log, a bounded number of them at a time: those that a copy chose, or
//! those of a snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use smallvec::smallvec;

use super::Problem;
use crate::database::now_ms;
use crate::log::{Appended, Batch, Completion, Log, ProduceError, Record, TopicPartition};
use crate::model::{Control, FEATURES_KEY, Features, Payload};

/// Bounds of what is under way to the target at a time.
const MAX_RECORDS: usize = 20_000;
const MAX_BYTES: usize = 32 << 20;

/// What became of the records that were chosen.
#[derive(Default)]
pub(crate) struct Copied {
    /// Records that were written. Of a split collection each element has one.
    pub(crate) keys: u64,
    pub(crate) expired: u64,
}

/// Produces what it is given.
pub(crate) struct Writer<'t> {
    target: &'t dyn Log,
    window: Arc<Window>,
    /// Databases of the target in which features were named.
    named: BTreeSet<u16>,
    copied: Copied,
}

impl Writer<'_> {
    pub(crate) fn new(target: &dyn Log) -> Writer<'_> {
        Writer {
            target,
            window: Arc::default(),
            named: BTreeSet::new(),
            copied: Copied::default(),
        }
    }

    /// Takes a state, or a library of functions, and the key of its record.
    pub(crate) fn take(&mut self, database: u16, key: Bytes, payload: Payload) -> Result<(), Problem> {
        let (is_expired, needs_features) = match &payload {
            Payload::Key(Some(state)) => {
                let now = now_ms();
                let is_expired = state.expire_at.is_some_and(|at| at <= now) || !state.value.is_live(now);
                (is_expired, state.value.features().next().is_some())
            }
            Payload::Control(Control::Function(Some(_))) => (false, true),
            Payload::Key(None) | Payload::Control(_) => return Ok(()),
        };
        if is_expired {
            self.copied.expired += 1;
            return Ok(());
        }
        if self.target.identity(database).is_none() {
            self.target
                .create(database)
                .map_err(|e| format!("copy database {database}: {e}"))?;
        }
        if needs_features {
            self.name_features(database)?;
        }
        let partition = match payload {
            Payload::Control(_) => 0,
            Payload::Key(_) => self.target.partition(database, &key),
        };
        let to = TopicPartition { database, partition };
        self.produce(Record { to, key, payload })?;
        self.copied.keys += 1;
        Ok(())
    }

    /// Names features in every partition, before the first record that needs one. A target that was
    /// there before may use any of them already, so all are named.
    fn name_features(&mut self, database: u16) -> Result<(), Problem> {
        // The embedded log is read by this version alone, or by a newer one.
        if self.target.chains() || !self.named.insert(database) {
            return Ok(());
        }
        let payload = Payload::Control(Control::Features(Features::known()));
        let partitions = self.target.identity(database).map_or(0, |topic| topic.partitions);
        (0..partitions).try_for_each(|partition| {
            self.produce(Record {
                to: TopicPartition { database, partition },
                key: Bytes::from_static(FEATURES_KEY),
                payload: payload.clone(),
            })
        })
    }

    fn produce(&self, record: Record) -> Result<(), Problem> {
        let bytes = record.size();
        self.window.enter(bytes)?;
        let completion = Arc::new(Sent {
            window: self.window.clone(),
            bytes,
        });
        let batch = Batch {
            records: smallvec![record],
            condition: None,
            completion,
        };
        self.target.produce(batch, self.target.epoch());
        Ok(())
    }

    /// Waits until everything is acknowledged.
    pub(crate) fn finish(self) -> Result<Copied, Problem> {
        self.window.wait_until_empty()?;
        Ok(self.copied)
    }
}

/// What was produced and is not acknowledged yet: this bounds the memory of the second pass.
#[derive(Default)]
struct Window {
    state: Mutex<UnderWay>,
    left: Condvar,
}

#[derive(Default)]
struct UnderWay {
    records: usize,
    bytes: usize,
    failed: Option<ProduceError>,
}

impl UnderWay {
    fn check(&self) -> Result<(), Problem> {
        match &self.failed {
            Some(error) => Err(format!("write to the new topic: {error}")),
            None => Ok(()),
        }
    }
}

impl Window {
    /// Waits for room. A record larger than the whole window goes alone.
    fn enter(&self, bytes: usize) -> Result<(), Problem> {
        let mut state = self.state.lock();
        while state.records > 0 && (state.records >= MAX_RECORDS || state.bytes + bytes > MAX_BYTES) {
            self.left.wait(&mut state);
        }
        state.check()?;
        state.records += 1;
        state.bytes += bytes;
        Ok(())
    }

    fn wait_until_empty(&self) -> Result<(), Problem> {
        let mut state = self.state.lock();
        while state.records > 0 {
            self.left.wait(&mut state);
        }
        state.check()
    }
}

struct Sent {
    window: Arc<Window>,
    bytes: usize,
}

impl Completion for Sent {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let mut state = self.window.state.lock();
        state.records -= 1;
        state.bytes -= self.bytes;
        if let Err(error) = outcome {
            state.failed.get_or_insert(error);
        }
        self.window.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_bounded_and_keeps_the_first_error() {
        let window = Arc::<Window>::default();
        let sent = |bytes| {
            window.enter(bytes).expect("there is room");
            Arc::new(Sent {
                window: window.clone(),
                bytes,
            })
        };
        // Larger than the window, and alone in it.
        let large = sent(MAX_BYTES * 2);
        let next = std::thread::spawn({
            let window = window.clone();
            move || window.enter(1)
        });
        large.complete(Err(ProduceError::NotWritten("first".into())));
        let refused = next.join().expect("does not panic").expect_err("one failed");
        assert!(refused.contains("first"), "{refused}");
        assert!(window.wait_until_empty().is_err());
    }
}
