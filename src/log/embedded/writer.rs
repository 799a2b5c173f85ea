//! One thread that writes everything queued at once (group commit).
//!
//! What happens when the disk refuses:
//! - The disk is nearly full ([`crate::room`]): values are refused with `NotWritten`. Deletes and
//!   flushes, which make room, are still written. (Those after a refused value are `Stale`: they
//!   are computed again, and come once more.)
//! - A write fails (disk full): the segment is cut back to its last good length, and that is
//!   fsynced, so nothing of the batches can come back. The batches and everything queued fail with
//!   `NotWritten`. The epoch grows, so nothing that rests on them is written either. The next batch
//!   simply tries again.
//! - An fsync or the cutting back fails: the contents of the disk cannot be known any more. The
//!   batches under way are `Uncertain`, and the log takes no more until it is opened again (a later
//!   fsync that succeeds proves nothing).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use super::disk::write_all;
use super::frame::{FRAME_TARGET, FrameBuilder, RawRecord};
use super::queue::batch_bytes;
use super::segment::Segment;
use super::{Fsync, Shared};
use crate::log::{Appended, Batch, PREFETCHED, ProduceError, Record, prefetch_all};
use crate::model::Payload;
use crate::room::KEPT_BY_LOG;
use crate::supervise;

/// A write buffer that grew larger is given back.
const KEEP_BUFFER: usize = 4 * 1024 * 1024;
/// With `--fsync always`, small writes go into space that was filled with zeros before. An fsync
/// that need not also write a new file length takes about two thirds of the time.
const ZEROS_AHEAD: usize = 1024 * 1024;
const SMALL_WRITE: usize = 64 * 1024;
/// When nothing was written for this long, the mark is fsynced too.
const IDLE: Duration = Duration::from_millis(500);
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How many bytes may be written, and for how long, before the disk is asked for its room again.
const TRUSTED: u64 = 1024 * 1024;
const TRUSTED_FOR: Duration = Duration::from_millis(100);

impl Shared {
    /// Called when the log cannot know any more what is on the disk.
    fn break_off(&self, under_way: Vec<Batch>, cause: &str) {
        let cause = format!("{cause}; nothing is written until a restart, which finds out what is on the disk");
        self.note_error(&cause);
        let (queued, _failing) = self.start_failing(Some(&cause));
        fail(under_way, &ProduceError::Uncertain(cause.clone()));
        fail(queued, &ProduceError::NotWritten(cause.clone()));
        supervise::fail(format!("go on: {cause}"));
    }

    fn set_durable(&self, durable: u64) {
        self.durable.fetch_max(durable, Ordering::AcqRel);
        let mut mark = self.mark.lock();
        if let Err(e) = mark.advance(durable) {
            // Recovery then knows less of what was safe. The data itself is safe.
            self.note_error(&format!("cannot write {}: {e}", mark.path().display()));
        }
    }

    fn sync(&self, segment: &Segment) -> Result<(), String> {
        self.fsyncs.fetch_add(1, Ordering::Relaxed);
        let synced = match supervise::is_injected("fail", "fsync") {
            true => Err(std::io::Error::other("injected")),
            false => segment.file.sync_data(),
        };
        synced.map_err(|e| format!("cannot fsync {}: {e}", segment.path.display()))
    }
}

/// Whether the batch makes the log grow for good.
fn has_value(batch: &Batch) -> bool {
    let is_value = |record: &Record| record.payload.state().is_some();
    batch.records.iter().any(is_value)
}

fn fail(batches: Vec<Batch>, error: &ProduceError) {
    for batch in batches {
        batch.completion.complete(Err(error.clone()));
    }
}

/// The only thread that appends.
pub struct Writer {
    shared: Arc<Shared>,
    active: Arc<Segment>,
    /// Good bytes of the active segment.
    len: u64,
    /// The active segment is filled with zeros up to here.
    zeros_until: u64,
    /// The disk had no room for zeros. They are not tried again in this segment.
    no_zeros: bool,
    /// Offset of the next record.
    next: u64,
    buffer: Vec<u8>,
    appended: Vec<Appended>,
    /// Writing has failed since the last success. So a failure is logged once.
    failing: bool,
    /// Bytes that may be written, and until when, before the disk is asked again how much room it
    /// has.
    trusted: u64,
    trusted_until: Instant,
}

enum Work {
    Batches(Vec<Batch>),
    CloseSegment,
    Idle,
    Closed,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, active: Arc<Segment>, next: u64) -> Self {
        let len = active.readable();
        Self {
            shared,
            active,
            len,
            zeros_until: len,
            no_zeros: false,
            next,
            buffer: Vec::new(),
            appended: Vec::new(),
            failing: false,
            trusted: 0,
            trusted_until: Instant::now(),
        }
    }

    pub fn run(mut self) {
        let _ended = Ended(self.shared.clone());
        loop {
            supervise::idle();
            match self.wait() {
                Work::Batches(batches) => {
                    let bytes = batches.iter().map(batch_bytes).sum::<usize>() as u64;
                    supervise::busy(supervise::disk_time(bytes + self.shared.options.segment_bytes));
                    self.append(batches);
                }
                Work::CloseSegment => {
                    supervise::busy(supervise::disk_time(self.shared.options.segment_bytes));
                    self.close_segment();
                }
                Work::Idle => self.sync_mark(),
                Work::Closed => break,
            }
        }
        self.finish();
    }

    fn wait(&self) -> Work {
        let mark_dirty = self.shared.options.fsync == Fsync::Always && self.shared.mark.lock().dirty();
        let deadline = mark_dirty.then(|| Instant::now() + IDLE);
        let mut queue = self.shared.queue.lock();
        loop {
            if std::mem::take(&mut queue.close_segment) && !queue.is_over() {
                return Work::CloseSegment;
            }
            if !queue.batches.is_empty() {
                return Work::Batches(queue.take());
            }
            if queue.is_over() {
                return Work::Closed;
            }
            match deadline {
                None => self.shared.queue_filled.wait(&mut queue),
                Some(deadline) => {
                    if self.shared.queue_filled.wait_until(&mut queue, deadline).timed_out() {
                        return Work::Idle;
                    }
                }
            }
        }
    }

    fn sync_mark(&self) {
        let mut mark = self.shared.mark.lock();
        if let Err(e) = mark.sync() {
            self.shared
                .note_error(&format!("cannot fsync {}: {e}", mark.path().display()));
        }
    }

    fn append(&mut self, mut batches: Vec<Batch>) {
        if let Some(cause) = self.lacks_room(&batches) {
            let first = batches.iter().position(has_value).unwrap_or(batches.len());
            let refused = batches.split_off(first);
            if !batches.is_empty() {
                self.append_all(batches);
            }
            return self.refuse_values(refused, cause);
        }
        self.append_all(batches);
    }

    fn append_all(&mut self, batches: Vec<Batch>) {
        let mut written = self.try_append(&batches);
        if matches!(written, Err(WriteFailure::NoRoom(_)))
            && !batches.iter().any(has_value)
            && self.shared.give_up_reserve()
        {
            written = self.try_append(&batches);
        }
        match written {
            Ok(end) => self.commit(batches, end),
            Err(failure) => self.give_up(batches, failure),
        }
    }

    /// Returns the offset after the batches.
    fn try_append(&mut self, batches: &[Batch]) -> Result<u64, WriteFailure> {
        if self.len >= self.shared.options.segment_bytes && self.next > self.active.base {
            self.rotate()?;
        }
        let end = self.encode(batches);
        self.write()?;
        Ok(end)
    }

    /// Why values among these batches are not to be written, on a disk that is nearly full. Deletes
    /// and flushes are always written: otherwise nothing would ever make room.
    fn lacks_room(&mut self, batches: &[Batch]) -> Option<String> {
        let bytes = batches.iter().map(batch_bytes).sum::<usize>() as u64;
        if bytes <= self.trusted && Instant::now() < self.trusted_until {
            self.trusted -= bytes;
            return None;
        }
        // A disk that does not report its room will report when it is written to.
        let room = self.shared.disk.room(&self.shared.dir).ok()?;
        let Some(refusal) = room.refusal(&self.shared.dir, bytes.saturating_add(TRUSTED), KEPT_BY_LOG) else {
            self.trusted = TRUSTED;
            self.trusted_until = Instant::now() + TRUSTED_FOR;
            return None;
        };
        self.trusted = 0;
        // It also removes what these batches hide.
        self.shared.compact_now();
        let refused = batches.iter().any(has_value);
        refused.then(|| format!("{refusal}; deletes are written, other writes when there is more"))
    }

    /// Puts the batches into the buffer, as frames; returns the offset after them.
    fn encode(&mut self, batches: &[Batch]) -> u64 {
        self.buffer.clear();
        self.buffer
            .reserve(batches.iter().map(batch_bytes).sum::<usize>() + 1024);
        let durable = self.shared.durable.load(Ordering::Acquire);
        let timestamp = now();
        let mut offset = self.next;
        let mut open: Option<FrameBuilder> = None;
        for batch in batches {
            let group = (batch.records.len() > 1).then_some(offset);
            for record in &batch.records {
                let frame = open.get_or_insert_with(|| FrameBuilder::begin(&mut self.buffer, offset, timestamp));
                let raw = RawRecord::of(record, offset, timestamp, group);
                frame.push(
                    &mut self.buffer,
                    &raw.expect("unreadable payloads are refused by produce"),
                );
                offset += 1;
            }
            if let Some(frame) = open.take_if(|frame| frame.body_len(&self.buffer) >= FRAME_TARGET) {
                frame.finish(&mut self.buffer, offset, durable, self.active.salt);
            }
        }
        if let Some(frame) = open {
            frame.finish(&mut self.buffer, offset, durable, self.active.salt);
        }
        self.appended.clear();
        let records = batches.iter().flat_map(|batch| &batch.records);
        self.appended
            .extend(records.zip(self.next..).map(|(r, offset)| Appended {
                at: r.to,
                offset,
                timestamp,
            }));
        offset
    }

    fn write(&mut self) -> Result<(), WriteFailure> {
        if let Err(e) = write_all(&*self.active.file, &self.buffer, self.len) {
            return Err(self.cut_back(&e));
        }
        if self.shared.options.fsync == Fsync::Always {
            self.zeros_ahead();
            self.shared.sync(&self.active).map_err(WriteFailure::Broken)?;
        }
        Ok(())
    }

    fn zeros_ahead(&mut self) {
        let end = self.len + self.buffer.len() as u64;
        if self.no_zeros || self.buffer.len() > SMALL_WRITE || end <= self.zeros_until {
            return;
        }
        // Zeros after the last frame mean nothing, so a part of them does no harm.
        match write_all(&*self.active.file, &vec![0; ZEROS_AHEAD], end) {
            Ok(()) => self.zeros_until = end + ZEROS_AHEAD as u64,
            Err(_) => self.no_zeros = true,
        }
    }

    fn commit(&mut self, batches: Vec<Batch>, end: u64) {
        self.len += self.buffer.len() as u64;
        self.next = end;
        if self.buffer.capacity() > KEEP_BUFFER {
            self.buffer = Vec::new();
        }
        if self.shared.options.fsync == Fsync::Always {
            self.shared.set_durable(end);
        }
        self.active.set_readable(self.len);
        *self.shared.end.lock() = end;
        if self.failing && batches.iter().any(has_value) {
            self.failing = false;
            info!("the log can be written again");
        }
        let flushed = batches
            .iter()
            .flat_map(|b| &b.records)
            .any(|r| r.payload == Payload::FLUSH);
        let mut appended = &self.appended[..];
        let mut batches = batches.into_iter();
        while !batches.as_slice().is_empty() {
            prefetch_all(
                batches
                    .as_slice()
                    .iter()
                    .take(PREFETCHED)
                    .map(|batch| &batch.completion),
            );
            for batch in batches.by_ref().take(PREFETCHED) {
                let (own, rest) = appended.split_at(batch.records.len());
                appended = rest;
                batch.completion.complete(Ok(own));
            }
        }
        // Last, so that followers need not look at records that were reported already.
        self.shared.end_grown.notify_all();
        if flushed {
            self.free_what_was_flushed();
        }
    }

    /// A flush marker frees space once it is in a closed segment. This does not wait for the
    /// segment to fill by itself.
    fn free_what_was_flushed(&mut self) {
        if self.shared.disk_bytes() < self.shared.options.segment_bytes / 64 {
            return;
        }
        match self.rotate() {
            Ok(()) => self.shared.compact_now(),
            // Nobody waits for this; the next batch tries the same and reports the failure.
            Err(WriteFailure::NoRoom(cause)) => warn!("{cause}"),
            Err(WriteFailure::Broken(cause)) => self.shared.break_off(Vec::new(), &cause),
        }
    }

    /// Closes the segment for compaction, which is notified in any case.
    fn close_segment(&mut self) {
        let closed = match self.next > self.active.base {
            true => self.rotate(),
            false => Ok(()),
        };
        match closed {
            Ok(()) => {}
            Err(WriteFailure::NoRoom(cause)) => self.shared.note_error(&cause),
            Err(WriteFailure::Broken(cause)) => self.shared.break_off(Vec::new(), &cause),
        }
        self.shared.stopping.lock().segment_closed = true;
        self.shared.stop_or_work.notify_all();
    }

    /// Closes the active segment and goes on in a new one.
    fn rotate(&mut self) -> Result<(), WriteFailure> {
        let path = self.active.path.display();
        let close = self
            .active
            .file
            .set_len(self.len)
            .and_then(|()| self.active.file.sync_all());
        close.map_err(|e| WriteFailure::Broken(format!("cannot close {path}: {e}")))?;
        self.zeros_until = self.len;
        self.shared.set_durable(self.next);
        let created = Segment::create(&*self.shared.disk, &self.shared.dir, self.next);
        let segment = created.map_err(|e| {
            let dir = self.shared.dir.display();
            WriteFailure::NoRoom(format!(
                "cannot create a segment in {dir}: {e}; writing goes on when that is mended"
            ))
        })?;
        self.active.close_at(Instant::now());
        self.active = Arc::new(segment);
        self.len = self.active.readable();
        self.zeros_until = self.len;
        self.no_zeros = false;
        self.shared.segments.write().push(self.active.clone());
        self.shared.stopping.lock().segment_closed = true;
        self.shared.stop_or_work.notify_all();
        Ok(())
    }

    /// Removes what a failed write left.
    fn cut_back(&mut self, cause: &std::io::Error) -> WriteFailure {
        let path = self.active.path.display();
        self.zeros_until = self.len;
        match self
            .active
            .file
            .set_len(self.len)
            .and_then(|()| self.active.file.sync_all())
        {
            Ok(()) => WriteFailure::NoRoom(format!(
                "cannot write {path}: {cause}; writing goes on when that is mended"
            )),
            Err(e) => WriteFailure::Broken(format!("cannot write {path}: {cause}, nor cut it back: {e}")),
        }
    }

    fn give_up(&mut self, batches: Vec<Batch>, failure: WriteFailure) {
        match failure {
            WriteFailure::NoRoom(cause) => {
                self.tell_failure(&cause);
                // Compaction may make room.
                self.shared.compact_now();
                let (queued, _failing) = self.shared.start_failing(None);
                fail(batches, &ProduceError::NotWritten(cause.clone()));
                fail(queued, &ProduceError::NotWritten(cause));
            }
            WriteFailure::Broken(cause) => self.shared.break_off(batches, &cause),
        }
    }

    /// Refuses batches of which the first has a value. The batches after it may rest on it. A batch
    /// without a value has to come again, by itself.
    fn refuse_values(&mut self, batches: Vec<Batch>, cause: String) {
        self.tell_failure(&cause);
        let (queued, _failing) = self.shared.start_failing(None);
        for batch in batches.into_iter().chain(queued) {
            let error = match has_value(&batch) {
                true => ProduceError::NotWritten(cause.clone()),
                false => ProduceError::Stale { after: None },
            };
            batch.completion.complete(Err(error));
        }
    }

    /// Logs the failure once, until values are written again.
    fn tell_failure(&mut self, cause: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            warn!("{cause}");
        }
        self.shared.note_error(cause);
    }

    /// Leaves the segment without zeros, all of it on the disk, with a mark that says so.
    fn finish(&mut self) {
        if self.shared.queue.lock().refusing().is_some() {
            return;
        }
        let closed = self
            .active
            .file
            .set_len(self.len)
            .and_then(|()| self.active.file.sync_all())
            .and_then(|()| {
                self.shared.durable.fetch_max(self.next, Ordering::AcqRel);
                self.shared.mark.lock().close(self.next)
            });
        if let Err(e) = closed {
            let cause = format!("cannot close {}: {e}", self.active.path.display());
            self.shared.note_error(&cause);
            error!("{cause}");
        }
    }
}

/// When the writer has ended, however it ended, nobody waits for it any more.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_off(Vec::new(), "the log's writer panicked");
        }
        self.0.stopping.lock().writer_done = true;
        self.0.stop_or_work.notify_all();
    }
}

/// Why a write was given up.
enum WriteFailure {
    /// Nothing of the write is in the log. A later write may succeed.
    NoRoom(String),
    /// It cannot be known what is in the log.
    Broken(String),
}

/// The thread of `--fsync everysec`.
pub fn sync_every_second(shared: &Shared) {
    let mut stopping = shared.stopping.lock();
    loop {
        supervise::idle();
        let deadline = Instant::now() + SYNC_INTERVAL;
        while !stopping.background && !shared.stop_or_work.wait_until(&mut stopping, deadline).timed_out() {}
        if stopping.background {
            return;
        }
        parking_lot::MutexGuard::unlocked(&mut stopping, || sync_now(shared));
    }
}

pub(super) fn sync_now(shared: &Shared) {
    // In this order: what lies before the newest segment was fsynced when that segment was begun.
    let end = *shared.end.lock();
    let Some(active) = shared.segments.read().last().cloned() else {
        return;
    };
    if end <= shared.durable.load(Ordering::Acquire) || shared.queue.lock().refusing().is_some() {
        return;
    }
    supervise::busy(supervise::disk_time(active.readable()));
    match shared.sync(&active) {
        Ok(()) => shared.set_durable(end),
        Err(cause) => shared.break_off(Vec::new(), &cause),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
