//! Compaction: the newest record of each key stays. It runs in the background, in closed segments
//! only.
//!
//! A pass has three steps. (1) The records that came since the last pass are put into a map, key →
//! newest offset. The map is bounded, so a pass may cover only a part of them. (2) All closed
//! segments are searched: a record goes if the map has a newer one of its key, or if a later flush
//! marker hides it. (3) Segments that lose something are rewritten, oldest first, small neighbours
//! into one. The new file replaces the first of them atomically and names the range that it stands
//! for, so a crash at any point leaves a log that opens.
//!
//! A tombstone or flush marker goes in turn once nothing older of its key or database is left *and*
//! nobody can still need it: it was in a closed segment for `keep_deletions`, and every follower is
//! past it. Before that the meta file remembers it (`purged_below`): a follower that comes later
//! with an older position gets the error that its position is lost. Expired values stay. The module
//! that owns the meaning of expiry writes tombstones for them.
//!
//! Memory: at most about 45 bytes per key in the map (with its growth), and twice the largest
//! frame.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustc_hash::FxBuildHasher;
use tracing::{debug, warn};

use super::disk::{DiskFile, write_all};
use super::frame::{FrameBuilder, Kind, RawRecord, Records};
use super::segment::{
    Compacted, Frame, FrameReader, SEGMENT_HEADER_LEN, Segment, TEMPORARY_SUFFIX, encode_header, io_error,
};
use super::writer::FRAME_TARGET;
use super::{Registry, Reserves, Shared};
use crate::log::LogError;
use crate::model::is_reserved;
use crate::room::{KEPT_BY_STORE, KEPT_WHILE_MAKING_ROOM};
use crate::supervise;

#[derive(Clone, Debug)]
pub struct Options {
    pub enabled: bool,
    /// Bound of the map: the number of keys that are compacted in one pass.
    pub max_keys: usize,
    /// Tombstones and flush markers stay at least this long, so that a store whose checkpoint is a
    /// little behind need not be rebuilt.
    pub keep_deletions: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            max_keys: 3_600_000,
            keep_deletions: Duration::from_secs(600),
        }
    }
}

/// How often compaction checks for work that no event reports.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A pass that is asked for (after a flush, on a full disk) waits for this many times as long as
/// the last one took.
const ASKED_PAUSE: u32 = 10;
/// It waits at least this long: while the disk lacks room, each delete asks for a pass.
const LEAST_ASKED_PAUSE: Duration = Duration::from_secs(1);
/// The pause after a pass that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);
/// How much is written at once, and fsynced at once. Fsyncs go in steps, so that the fsyncs of the
/// writer need not wait for one large one.
const WRITE_CHUNK: usize = 1024 * 1024;
const SYNC_STEP: u64 = 8 * 1024 * 1024;

/// Runs on the thread.
pub(super) fn run(shared: &Shared) {
    let mut schedule = Schedule::default();
    while schedule.wait(shared) {
        shared.reserves.iter().for_each(Reserves::keep);
        let Some(due) = schedule.due(shared) else {
            continue;
        };
        let began = Instant::now();
        match caught(shared, due) {
            Ok(done) => schedule.done(done, began),
            Err(Stop::Closing) => return,
            Err(Stop::FollowerBehind) => {
                debug!("compaction waits for a reader that has just begun")
            }
            Err(Stop::NoRoom(refusal)) => schedule.failed(shared, &LogError::Failed(refusal)),
            Err(Stop::Failed(e)) => schedule.failed(shared, &e),
        }
    }
}

/// A pass that panics has failed. The files are good at any moment, and the next pass begins from
/// the start.
fn caught(shared: &Shared, due: Due) -> Result<Done, Stop> {
    let pass = || {
        supervise::busy(Duration::ZERO);
        compact(shared, due)
    };
    catch_unwind(AssertUnwindSafe(pass)).unwrap_or_else(|panic| {
        let text = supervise::panic_text(&*panic);
        Err(Stop::Failed(LogError::Failed(format!("it panicked: {text}"))))
    })
}

/// Compacts as much as there is room for.
pub(super) fn compact(shared: &Shared, due: Due) -> Result<Done, Stop> {
    if due == Due::Asked {
        // The records to be freed may be hidden by records that were written just now.
        shared.close_segment();
    }
    match pass(shared) {
        Err(Stop::NoRoom(_)) => {}
        passed => return passed,
    }
    match make_room(shared) {
        Err(Stop::NoRoom(_)) if shared.give_up_reserve() => make_room(shared),
        made => made,
    }
}

/// Why a pass is to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// There is enough to do.
    Work,
    /// The room is needed.
    Asked,
}

#[derive(Default)]
struct Schedule {
    /// A pass is asked for that does not wait for the usual amount of work.
    asked: bool,
    asked_not_before: Option<Instant>,
    /// Bytes of tombstones and markers that the last pass could not remove yet, and when it was.
    kept: Option<(u64, Instant)>,
    /// Since when passes fail.
    failing: Option<Instant>,
}

impl Schedule {
    /// Waits for work. Returns false when the log is closed.
    fn wait(&mut self, shared: &Shared) -> bool {
        supervise::idle();
        let mut stopping = shared.stopping.lock();
        let deadline = Instant::now() + LOOK_INTERVAL;
        while !stopping.background {
            self.asked |= std::mem::take(&mut stopping.compact_now);
            let may_ask = self
                .asked_not_before
                .is_none_or(|not_before| not_before <= Instant::now());
            if std::mem::take(&mut stopping.segment_closed) || (self.asked && may_ask) {
                break;
            }
            let until = match self.asked_not_before {
                Some(not_before) if self.asked => deadline.min(not_before),
                _ => deadline,
            };
            if shared.stop_or_work.wait_until(&mut stopping, until).timed_out() {
                break;
            }
        }
        !stopping.background
    }

    /// Whether the records since the last pass are worth a pass: half of what the last pass left,
    /// and a segment at least.
    fn due(&mut self, shared: &Shared) -> Option<Due> {
        if self.failing.is_some_and(|since| since.elapsed() < PAUSE_AFTER_FAILURE) {
            return None;
        }
        let may_ask = self
            .asked_not_before
            .is_none_or(|not_before| not_before <= Instant::now());
        if may_ask && std::mem::take(&mut self.asked) {
            return Some(Due::Asked);
        }
        let clean_below = shared.registry.lock().meta.clean_below;
        let segments = shared.segments.read();
        let (mut clean, mut dirty) = (0, 0);
        for pair in segments.windows(2) {
            let bytes = if pair[1].base <= clean_below {
                &mut clean
            } else {
                &mut dirty
            };
            *bytes += pair[0].readable();
        }
        let purge = self.kept.is_some_and(|(bytes, since)| {
            bytes > clean / 4 && since.elapsed() >= shared.options.compaction.keep_deletions.max(LOOK_INTERVAL)
        });
        (dirty >= shared.options.segment_bytes.max(clean / 2) || purge).then_some(Due::Work)
    }

    fn done(&mut self, done: Done, began: Instant) {
        let took = began.elapsed();
        self.failing = None;
        self.asked_not_before = Some(Instant::now() + (took * ASKED_PAUSE).max(LEAST_ASKED_PAUSE));
        self.kept = (done.kept_bytes > 0).then(|| (done.kept_bytes, Instant::now()));
        debug!(
            ?took,
            records = done.dropped,
            kept_deletions = done.kept_bytes,
            "compacted the log"
        );
    }

    fn failed(&mut self, shared: &Shared, error: &LogError) {
        let text = format!("cannot compact the log: {error}");
        if self.failing.replace(Instant::now()).is_none() {
            warn!("{text}");
        }
        shared.note_error(&text);
    }
}

pub(super) enum Stop {
    Closing,
    /// A follower began below what this pass would remove; what was done so far stands.
    FollowerBehind,
    /// There is no room for the remaining records of a segment beside it.
    NoRoom(String),
    Failed(LogError),
}

impl<E: Into<LogError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// What a pass did.
pub(super) struct Done {
    pub(super) dropped: u64,
    /// Bytes of tombstones and markers that the pass had to keep.
    kept_bytes: u64,
}

/// One pass over all closed segments.
pub(super) fn pass(shared: &Shared) -> Result<Done, Stop> {
    let Begun {
        segments,
        active,
        mut rule,
    } = begin(shared)?;
    rule.purge_below = purge_limit(shared, &segments, rule.covered);

    let mut looked = look(shared, &segments, &rule)?;
    if looked.iter().any(|l| l.purged > 0) && !announce_purge(shared, rule.purge_below)? {
        rule.purge_below = 0;
        looked = look(shared, &segments, &rule)?;
    }
    if looked.iter().all(|l| l.purged == 0) {
        // Then no follower that begins meanwhile is in the way.
        rule.purge_below = 0;
    }
    let (covered, purge_below) = (rule.covered, rule.purge_below);
    // The map is not needed any more, and neither is a segment's old file once it is replaced.
    drop(rule);
    let (mut segments, mut start) = (segments.into_iter(), 0);
    while start < looked.len() {
        let len = group_len(&looked[start..], shared.options.segment_bytes);
        let group: Vec<_> = segments.by_ref().take(len).collect();
        let looked = &looked[start..start + len];
        if len > 1 || looked[0].dropped > 0 {
            let end = segments.as_slice().first().unwrap_or(&active).base;
            rewrite(shared, &group, looked, end, (purge_below, KEPT_BY_STORE))?;
        }
        start += len;
    }
    end(shared, covered, &looked)
}

/// The same as [`pass`], on a disk that has no room for it. Each segment is rewritten by itself,
/// and first those of which the least stays. So what deletes have hidden is freed wherever it is.
/// No tombstone goes: it may be rewritten before what it hides.
fn make_room(shared: &Shared) -> Result<Done, Stop> {
    let Begun { segments, active, rule } = begin(shared)?;
    let looked = look(shared, &segments, &rule)?;
    let covered = rule.covered;
    drop(rule);
    let mut order: Vec<usize> = (0..looked.len()).filter(|&place| looked[place].dropped > 0).collect();
    order.sort_unstable_by_key(|&place| looked[place].left);
    let ends: Vec<u64> = segments.iter().skip(1).chain([&active]).map(|next| next.base).collect();
    // An old file takes room until its last handle is closed.
    let mut segments: Vec<_> = segments.into_iter().map(Some).collect();
    for place in order {
        let segment = segments[place].take().expect("each is rewritten once");
        let looked = &looked[place..=place];
        let rewritten = rewrite(shared, &[segment], looked, ends[place], (0, KEPT_WHILE_MAKING_ROOM));
        // At once, before others take the freed room: the next segment needs it.
        if let Some(reserves) = &shared.reserves
            && let Err(error) = reserves.for_compaction.keep_what_there_is()
        {
            debug!(%error, "no room can be kept for compaction");
        }
        rewritten?;
    }
    end(shared, covered, &looked)
}

/// A pass that knows the records since the last one.
struct Begun {
    segments: Vec<Arc<Segment>>,
    /// The writer's segment, after them.
    active: Arc<Segment>,
    rule: Rule,
}

fn begin(shared: &Shared) -> Result<Begun, Stop> {
    let clean_below = shared.registry.lock().meta.clean_below;
    let mut segments = shared.segments.read().clone();
    let active = segments.pop().expect("there is always the writer's segment");
    let rule = Rule::gather(shared, &segments, clean_below, active.base)?;
    Ok(Begun { segments, active, rule })
}

/// Everything below `covered` is compacted.
fn end(shared: &Shared, covered: u64, looked: &[Looked]) -> Result<Done, Stop> {
    let mut registry = shared.registry.lock();
    registry.meta.clean_below = covered;
    registry
        .meta
        .save(&*shared.disk, &shared.dir)
        .map_err(|e| io_error("write to", &shared.dir, &e))?;
    drop(registry);
    shared.compactions.fetch_add(1, Ordering::Relaxed);
    let sum = |of: fn(&Looked) -> u64| looked.iter().map(of).sum();
    Ok(Done {
        dropped: sum(|l| l.dropped),
        kept_bytes: sum(|l| l.kept_deletions),
    })
}

/// Which records go.
struct Rule {
    /// 128 bits of two keyed hashes stand for database and key. SipHash is a hash that no client
    /// can make collide.
    hasher: RandomState,
    seed: u64,
    newest: HashMap<[u64; 2], u64, FxBuildHasher>,
    /// Per database: the newest flush marker among the new records.
    flushed: HashMap<u16, u64>,
    /// The map knows every record from the last pass up to here; records from here on are not
    /// judged.
    covered: u64,
    /// Tombstones and markers below this offset go.
    purge_below: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// Kept only because it is too early to remove it.
    KeepDeletion,
    Hidden,
    Purge,
}

impl Rule {
    /// Reads the records since the last pass, as far as the map has room.
    fn gather(shared: &Shared, segments: &[Arc<Segment>], from: u64, end: u64) -> Result<Self, Stop> {
        let mut rule = Self {
            hasher: RandomState::new(),
            seed: rand::random(),
            newest: HashMap::default(),
            flushed: HashMap::new(),
            covered: end,
            purge_below: 0,
        };
        let first = segments
            .partition_point(|segment| segment.base <= from)
            .saturating_sub(1);
        for segment in segments.iter().skip(first) {
            let mut reader = FrameReader::new(segment.clone(), from);
            while let Some(frame) = reader.next()? {
                check_stop(shared)?;
                for record in records(segment, &frame) {
                    let record = record?;
                    if record.offset >= from && !rule.add(&record, shared.options.compaction.max_keys) {
                        rule.covered = record.offset;
                        return Ok(rule);
                    }
                }
            }
        }
        Ok(rule)
    }

    /// Adds a record; returns false if the map is full.
    fn add(&mut self, record: &RawRecord<'_>, max_keys: usize) -> bool {
        if record.kind == Kind::Flush {
            self.flushed.insert(record.database, record.offset);
            return true;
        }
        let name = self.name(record);
        if self.newest.len() >= max_keys && !self.newest.contains_key(&name) {
            return false;
        }
        self.newest.insert(name, record.offset);
        true
    }

    fn name(&self, record: &RawRecord<'_>) -> [u64; 2] {
        let seed = self.seed ^ u64::from(record.database);
        let keyed = self.hasher.hash_one((record.database, record.key));
        [keyed, xxhash_rust::xxh3::xxh3_64_with_seed(record.key, seed)]
    }

    fn judge(&self, record: &RawRecord<'_>) -> Verdict {
        if record.offset >= self.covered {
            return Verdict::Keep;
        }
        let is_flush = record.kind == Kind::Flush;
        if (is_flush || !is_reserved(record.key))
            && self
                .flushed
                .get(&record.database)
                .is_some_and(|&flush| record.offset < flush)
        {
            return Verdict::Hidden;
        }
        if matches!(record.kind, Kind::Value { .. } | Kind::Tombstone)
            && self
                .newest
                .get(&self.name(record))
                .is_some_and(|&newest| record.offset < newest)
        {
            return Verdict::Hidden;
        }
        match record.kind {
            Kind::Value { .. } => Verdict::Keep,
            Kind::Tombstone | Kind::Flush if record.offset < self.purge_below => Verdict::Purge,
            Kind::Tombstone | Kind::Flush => Verdict::KeepDeletion,
        }
    }
}

fn check_stop(shared: &Shared) -> Result<(), Stop> {
    supervise::beat();
    if shared.stopping.lock().background {
        Err(Stop::Closing)
    } else {
        Ok(())
    }
}

fn records<'a>(segment: &'a Segment, frame: &'a Frame) -> impl Iterator<Item = Result<RawRecord<'a>, LogError>> + 'a {
    Records::new(frame.header, &frame.body).map(|record| {
        record.map_err(|e| {
            let (path, base) = (segment.path.display(), frame.header.base);
            LogError::Failed(format!(
                "{path} holds a record that cannot be read, in the frame of offset {base}: {e}"
            ))
        })
    })
}

/// The offset below which tombstones and markers may go.
fn purge_limit(shared: &Shared, segments: &[Arc<Segment>], covered: u64) -> u64 {
    let keep = shared.options.compaction.keep_deletions;
    let young = segments
        .iter()
        .find(|segment| segment.closed_for() < keep)
        .map_or(u64::MAX, |segment| segment.base);
    covered.min(young).min(shared.registry.lock().slowest_follower())
}

impl Registry {
    fn slowest_follower(&self) -> u64 {
        let positions = self.followers.iter().filter_map(|follower| follower.upgrade());
        positions
            .map(|position| position.load(Ordering::Acquire))
            .min()
            .unwrap_or(u64::MAX)
    }
}

/// Stores durably what is about to be removed. Returns false if a follower came that still needs
/// it.
fn announce_purge(shared: &Shared, below: u64) -> Result<bool, Stop> {
    let mut registry = shared.registry.lock();
    if registry.slowest_follower() < below {
        return Ok(false);
    }
    if registry.meta.purged_below < below {
        registry.meta.purged_below = below;
        registry
            .meta
            .save(&*shared.disk, &shared.dir)
            .map_err(|e| io_error("write to", &shared.dir, &e))?;
    }
    Ok(true)
}

/// What a segment would be after the pass.
#[derive(Default)]
struct Looked {
    /// Bytes of the frames now, and (an estimate) of those that stay.
    bytes: u64,
    left: u64,
    dropped: u64,
    purged: u64,
    kept_deletions: u64,
    /// One bit per record, in order: whether it goes.
    goes: Vec<u64>,
    records: usize,
}

impl Looked {
    fn note(&mut self, record: &RawRecord<'_>, verdict: Verdict) {
        if self.records.is_multiple_of(64) {
            self.goes.push(0);
        }
        match verdict {
            Verdict::Keep => self.left += record_bytes(record),
            Verdict::KeepDeletion => {
                self.left += record_bytes(record);
                self.kept_deletions += record_bytes(record);
            }
            Verdict::Hidden | Verdict::Purge => {
                self.goes[self.records / 64] |= 1 << (self.records % 64);
                self.dropped += 1;
            }
        }
        self.purged += u64::from(verdict == Verdict::Purge);
        self.records += 1;
    }

    fn goes(&self, record: usize) -> bool {
        self.goes
            .get(record / 64)
            .is_some_and(|bits| bits & 1 << (record % 64) != 0)
    }
}

fn look(shared: &Shared, segments: &[Arc<Segment>], rule: &Rule) -> Result<Vec<Looked>, Stop> {
    let mut all = Vec::with_capacity(segments.len());
    for segment in segments {
        let mut looked = Looked {
            bytes: segment.readable(),
            ..Looked::default()
        };
        let mut reader = FrameReader::new(segment.clone(), 0);
        while let Some(frame) = reader.next()? {
            check_stop(shared)?;
            for record in records(segment, &frame) {
                let record = record?;
                looked.note(&record, rule.judge(&record));
            }
        }
        all.push(looked);
    }
    Ok(all)
}

fn record_bytes(record: &RawRecord<'_>) -> u64 {
    const ABOUT: usize = 12;
    let value = match record.kind {
        Kind::Value { value, .. } => value.len(),
        _ => 0,
    };
    (record.key.len() + value + ABOUT) as u64
}

/// How many segments from the first on go into one file.
fn group_len(looked: &[Looked], segment_bytes: u64) -> usize {
    let stands_alone = |l: &Looked| l.dropped == 0 && l.bytes >= segment_bytes / 2;
    let mut left = looked[0].left;
    let mut len = 1;
    if stands_alone(&looked[0]) {
        return len;
    }
    while let Some(next) = looked.get(len)
        && left + next.left <= segment_bytes
        && !stands_alone(next)
    {
        left += next.left;
        len += 1;
    }
    len
}

/// Writes the remaining records of the segments into one file and puts it in their place, if that
/// much room is kept beside it.
fn rewrite(
    shared: &Shared,
    segments: &[Arc<Segment>],
    looked: &[Looked],
    end: u64,
    (purge_below, kept): (u64, u64),
) -> Result<(), Stop> {
    let left: u64 = looked.iter().map(|l| l.left).sum();
    let first = &segments[0];
    let mut name = first.path.clone().into_os_string();
    name.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(name);
    let room = shared.disk.room(&shared.dir).ok();
    let refusal = room.and_then(|room| room.refusal(&shared.dir, left, kept));
    let created = match (refusal, &shared.reserves) {
        (None, _) => shared.disk.create(&temporary),
        (Some(_), Some(reserves))
            if left <= reserves.for_compaction.kept() && reserves.for_compaction.become_file(&temporary) =>
        {
            shared.disk.open(&temporary)
        }
        (Some(refusal), _) => return Err(Stop::NoRoom(refusal)),
    };
    let file = created.map_err(|e| io_error("create", &temporary, &e).into());
    let written = file.and_then(|file| {
        let mut output = Output::new(file, first.base, &temporary, end);
        for (segment, looked) in segments.iter().zip(looked) {
            let mut reader = FrameReader::new(segment.clone(), 0);
            let mut record = 0;
            while let Some(frame) = reader.next()? {
                check_stop(shared)?;
                output.copy(segment, &frame, looked, &mut record)?;
            }
        }
        output.finish(first, segments.iter().map(|s| s.closed_at()).max().flatten())
    });
    let replaced = written.and_then(|segment| replace(shared, segments, segment, &temporary, purge_below));
    if replaced.is_err() {
        // It may never have been created. What is left of it is removed at the next open at the
        // latest.
        let _ = shared.disk.remove(&temporary);
    }
    replaced
}

/// A compacted segment being written.
struct Output {
    temporary: PathBuf,
    file: Arc<dyn DiskFile>,
    salt: u32,
    base: u64,
    end: u64,
    buffer: Vec<u8>,
    frame: Option<(FrameBuilder, u64)>,
    written: u64,
    synced: u64,
}

impl Output {
    fn new(file: Arc<dyn DiskFile>, base: u64, temporary: &std::path::Path, end: u64) -> Self {
        Self {
            temporary: temporary.to_path_buf(),
            file,
            salt: rand::random(),
            base,
            end,
            buffer: Vec::new(),
            frame: None,
            written: SEGMENT_HEADER_LEN as u64,
            synced: 0,
        }
    }

    /// Copies the remaining records of a frame. Groups never span frames, so neither do their
    /// remaining records here.
    fn copy(&mut self, segment: &Segment, frame: &Frame, looked: &Looked, index: &mut usize) -> Result<(), Stop> {
        let end = frame.header.end();
        if let Some((open, _)) = &self.frame {
            let body = open.body_len(&self.buffer) + frame.body.len();
            if body > FRAME_TARGET || end - open.base() > u64::from(u32::MAX) {
                self.end_frame();
            }
        }
        for record in records(segment, frame) {
            let record = record?;
            let goes = looked.goes(*index);
            *index += 1;
            if goes {
                continue;
            }
            let (open, open_end) = self.frame.get_or_insert_with(|| {
                (
                    FrameBuilder::begin(&mut self.buffer, frame.header.base, frame.header.timestamp),
                    end,
                )
            });
            *open_end = end;
            open.push(&mut self.buffer, &record);
        }
        if self.frame.is_none() && self.buffer.len() >= WRITE_CHUNK || self.buffer.len() >= 2 * WRITE_CHUNK {
            self.end_frame();
            self.flush()?;
        }
        Ok(())
    }

    fn end_frame(&mut self) {
        if let Some((frame, end)) = self.frame.take() {
            frame.finish(&mut self.buffer, end, self.end, self.salt);
        }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let failed = |e: std::io::Error| io_error("write", &self.temporary, &e);
        write_all(&*self.file, &self.buffer, self.written).map_err(failed)?;
        self.written += self.buffer.len() as u64;
        if self.written - self.synced >= SYNC_STEP {
            self.file.sync_data().map_err(failed)?;
            self.synced = self.written;
        }
        self.buffer.clear();
        self.buffer.shrink_to(2 * WRITE_CHUNK);
        Ok(())
    }

    /// Returns the segment, wholly on the disk under its temporary name.
    fn finish(mut self, first: &Segment, closed_at: Option<Instant>) -> Result<Segment, Stop> {
        self.end_frame();
        self.flush()?;
        let compacted = Compacted {
            end: self.end,
            file_len: self.written,
        };
        let header = encode_header(self.base, self.salt, Some(compacted));
        let synced = write_all(&*self.file, &header, 0)
            .and_then(|()| self.file.set_len(self.written))
            .and_then(|()| self.file.sync_all());
        synced.map_err(|e| io_error("write", &self.temporary, &e))?;
        let segment = Segment::new(
            first.path.clone(),
            self.file,
            self.base,
            self.salt,
            Some(compacted),
            self.written,
        );
        if let Some(closed_at) = closed_at {
            segment.close_at(closed_at);
        }
        Ok(segment)
    }
}

/// Puts the new file in the place of the old ones. Readers of the old files read them to their end.
fn replace(
    shared: &Shared,
    old: &[Arc<Segment>],
    new: Segment,
    temporary: &std::path::Path,
    purge_below: u64,
) -> Result<(), Stop> {
    // Held so that no follower begins between this check and the change.
    let registry = shared.registry.lock();
    if registry.slowest_follower() < purge_below {
        return Err(Stop::FollowerBehind);
    }
    shared
        .disk
        .rename(temporary, &new.path)
        .map_err(|e| io_error("rename", temporary, &e))?;
    let lasting = shared.disk.sync_dir(&shared.dir);
    let mut segments = shared.segments.write();
    let first = segments.partition_point(|segment| segment.base < old[0].base);
    segments.splice(first..first + old.len(), [Arc::new(new)]);
    drop(segments);
    drop(registry);
    // Until the new name is durable, the other files are needed beside the old file.
    lasting.map_err(|e| io_error("fsync", &shared.dir, &e))?;
    for segment in &old[1..] {
        shared
            .disk
            .remove(&segment.path)
            .map_err(|e| io_error("remove", &segment.path, &e))?;
    }
    Ok(())
}
