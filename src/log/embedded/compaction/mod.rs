//! Compaction: the newest record of each key stays. It runs in the background, in closed segments
//! only.
//!
//! A pass has three steps. (1) The records that came since the last pass are put into a map, key →
//! newest offset. The map is bounded, so a pass may cover only a part of them. (2) All closed
//! segments are searched: a record goes if the map has a newer one of its key, or if a later flush
//! marker hides it ([`rule`]). (3) Segments that lose something are rewritten, oldest first, small
//! neighbours into one ([`rewrite`]). The new file replaces the first of them atomically and names
//! the range that it stands for, so a crash at any point leaves a log that opens.
//!
//! A tombstone or flush marker goes in turn once nothing older of its key or database is left *and*
//! nobody can still need it: it was in a closed segment for `keep_deletions`, and every follower is
//! past it. Before that the meta file remembers it (`purged_below`): a follower that comes later
//! with an older position gets the error that its position is lost. Expired values stay. The module
//! that owns the meaning of expiry writes tombstones for them.
//!
//! Memory: at most about 45 bytes per key in the map (with its growth), and twice the largest
//! frame.

mod rewrite;
mod rule;
mod schedule;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::debug;

use self::rewrite::rewrite;
use self::rule::{Looked, Rule, look};
use self::schedule::Schedule;
use super::frame::{RawRecord, Records};
use super::segment::{Frame, Segment, io_error, unreadable};
use super::{Registry, Reserves, Shared};
use crate::log::LogError;
use crate::room::{KEPT_BY_STORE, KEPT_WHILE_MAKING_ROOM};
use crate::supervise;

#[derive(Clone, Debug)]
pub struct CompactionOptions {
    pub enabled: bool,
    /// Bound of the map: the number of keys that are compacted in one pass.
    pub max_keys: usize,
    /// Tombstones and flush markers stay at least this long, so that a store whose checkpoint is a
    /// little behind need not be rebuilt.
    pub keep_deletions: Duration,
}

impl Default for CompactionOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            max_keys: 3_600_000,
            keep_deletions: Duration::from_secs(600),
        }
    }
}

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

fn check_stop(shared: &Shared) -> Result<(), Stop> {
    supervise::beat();
    if shared.stopping.lock().background {
        Err(Stop::Closing)
    } else {
        Ok(())
    }
}

fn records<'a>(segment: &'a Segment, frame: &'a Frame) -> impl Iterator<Item = Result<RawRecord<'a>, LogError>> + 'a {
    Records::new(frame.header, &frame.body).map(move |record| record.map_err(|e| unreadable(segment, &frame.header, e)))
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
