//! Batches on their way to the writer: a bounded queue, and why a batch is not taken into it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::frame::{FRAME_TARGET, MAX_BODY, RECORD_OVERHEAD};
use super::{MAX_RECORD_BYTES, Shared};
use crate::log::{Batch, ProduceError, Record};

/// The largest batch: it is one frame.
const MAX_BATCH_BYTES: usize = MAX_BODY - FRAME_TARGET - 1024;
/// From this size on a batch is large. Large batches have a bound of their own in the queue, so
/// that small ones are not refused because of them.
const LARGE_BATCH: usize = 4 * 1024 * 1024;
/// How long compaction waits for the writer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Queue {
    pub(super) batches: Vec<Batch>,
    /// Bytes of small batches.
    bytes: usize,
    large_bytes: usize,
    /// The writer has to close its segment, so that compaction can free what is hidden there.
    pub(super) close_segment: bool,
    refusing: Option<Refusing>,
    /// How many are failing batches now, see [`Failing`].
    failing: usize,
}

/// While it lives, batches fail that readers still see. What is computed now may rest on one of
/// them, with the newest epoch. So no batch is taken in, and with the end of this comes another
/// epoch.
#[must_use]
pub(super) struct Failing<'s>(&'s Shared);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.failing -= 1;
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

#[derive(Clone)]
enum Refusing {
    Closed,
    Broken(String),
}

impl Queue {
    pub fn refusing(&self) -> Option<String> {
        match &self.refusing {
            Some(Refusing::Broken(cause)) => Some(cause.clone()),
            _ => None,
        }
    }

    /// No batch is taken any more.
    pub(super) fn is_over(&self) -> bool {
        self.refusing.is_some()
    }

    /// Bytes of the batches that share a bound with a batch of this size.
    fn bytes_beside(&mut self, size: usize) -> &mut usize {
        if size < LARGE_BATCH {
            &mut self.bytes
        } else {
            &mut self.large_bytes
        }
    }

    pub(super) fn take(&mut self) -> Vec<Batch> {
        (self.bytes, self.large_bytes) = (0, 0);
        std::mem::take(&mut self.batches)
    }
}

impl Shared {
    pub(super) fn produce(&self, batch: Batch, epoch: u64) {
        let size = batch_bytes(&batch);
        let refusal = self.refusal(&batch, size);
        let mut queue = self.queue.lock();
        let refused = match refusal {
            Some(reason) => Some(ProduceError::NotWritten(reason)),
            None => self.admit(&mut queue, size, epoch),
        };
        let Some(refused) = refused else {
            queue.batches.push(batch);
            *queue.bytes_beside(size) += size;
            let first = queue.batches.len() == 1;
            drop(queue);
            if first {
                self.queue_filled.notify_one();
            }
            return;
        };
        // A stale batch leaves the epoch alone. Otherwise two batches that overlap would make each
        // other stale for ever.
        let failing = (!matches!(refused, ProduceError::Stale { .. })).then(|| self.begin_failing(&mut queue));
        drop(queue);
        batch.completion.complete(Err(refused));
        drop(failing);
    }

    fn begin_failing(&self, queue: &mut Queue) -> Failing<'_> {
        queue.failing += 1;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        Failing(self)
    }

    /// Why a batch can never be written.
    fn refusal(&self, batch: &Batch, size: usize) -> Option<String> {
        if size > MAX_BATCH_BYTES {
            return Some(format!(
                "a group of {size} bytes is larger than the log can hold ({MAX_BATCH_BYTES})"
            ));
        }
        batch.records.iter().find_map(|record| {
            let (to, size) = (record.to, record.size());
            if to.database >= self.options.databases || to.partition != 0 {
                Some(format!(
                    "the log has no database {}, partition {}",
                    to.database, to.partition
                ))
            } else if size > MAX_RECORD_BYTES {
                Some(format!(
                    "a record of {size} bytes is larger than the log can hold ({MAX_RECORD_BYTES})"
                ))
            } else if record.payload.is_unreadable() {
                Some("a value that cannot be read cannot be written".to_owned())
            } else {
                None
            }
        })
    }

    fn admit(&self, queue: &mut Queue, size: usize, epoch: u64) -> Option<ProduceError> {
        // The last batch may go over the bound. Otherwise a large one would hardly ever find room
        // on a busy log.
        let full =
            queue.batches.len() >= self.options.queue_batches || *queue.bytes_beside(size) >= self.options.queue_bytes;
        match &queue.refusing {
            Some(Refusing::Closed) => Some(ProduceError::NotWritten("the log is closed".to_owned())),
            Some(Refusing::Broken(cause)) => Some(ProduceError::NotWritten(cause.clone())),
            None if queue.failing > 0 || epoch < self.epoch.load(Ordering::Acquire) => {
                Some(ProduceError::Stale { after: None })
            }
            None if full => Some(ProduceError::NotWritten("the log's queue is full".to_owned())),
            None => None,
        }
    }

    /// Makes the writer close its segment, and waits for that; but not for long, since the writer
    /// may be waiting for the disk.
    pub(super) fn close_segment(&self) {
        self.stopping.lock().segment_closed = false;
        self.queue.lock().close_segment = true;
        self.queue_filled.notify_one();
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut stopping = self.stopping.lock();
        while !stopping.background && !stopping.writer_done && !std::mem::take(&mut stopping.segment_closed) {
            if self.stop_or_work.wait_until(&mut stopping, deadline).timed_out() {
                return;
            }
        }
    }

    pub(super) fn stop_taking_batches(&self) {
        let mut queue = self.queue.lock();
        queue.refusing.get_or_insert(Refusing::Closed);
        self.queue_filled.notify_one();
    }

    /// Takes out everything that is queued, to be failed. From here on, everything that rests on it
    /// is stale.
    pub(super) fn start_failing(&self, broken: Option<&str>) -> (Vec<Batch>, Failing<'_>) {
        let mut queue = self.queue.lock();
        let failing = self.begin_failing(&mut queue);
        if let Some(cause) = broken {
            queue.refusing = Some(Refusing::Broken(cause.to_owned()));
        }
        (queue.take(), failing)
    }
}

pub(super) fn batch_bytes(batch: &Batch) -> usize {
    let record_bytes = |record: &Record| record.key.len() + record.payload.bytes() + RECORD_OVERHEAD;
    batch.records.iter().map(record_bytes).sum()
}
