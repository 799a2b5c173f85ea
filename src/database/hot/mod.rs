//! The hot tier: the newest known state of keys, in memory, in front of the store.
//!
//! A slot holds what the log has for a key (*committed*). This node's writes under way (*pending*)
//! are kept beside the slots. Acknowledged own records and applied records are merged by offset, so
//! it does not matter which of the two comes first. A slot is *pinned* while the store does not
//! have its state yet. Every other slot may be evicted (second chance) when the memory budget is
//! used up.
//!
//! While memory holds every key ([`HotTier::hold_all`]), a key without a slot does not exist, and
//! the store is not read.
//!
//! A read of many keys at random is bound by the lines of memory that it meets for the first time.
//! So a slot is small, and key and value stand together behind it ([`Slot`]).
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod slot;
mod table;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use parking_lot::Mutex;
use smallvec::SmallVec;

pub use self::slot::{INLINE, SLOT_OVERHEAD, own};
use self::slot::{NEVER, Slot};
use self::table::Table;
use super::write::Write;
use crate::model::{Change, Entry};
use crate::store::key_hash;

const SHARDS: usize = 64;
/// Visible keys without a slot may exist.
const SOME: u8 = 0;
/// As [`SOME`], but the missing keys are being filled in, and no key has lost its slot since that
/// began.
const COMING: u8 = 1;
/// Every visible key has a slot.
const ALL: u8 = 2;
/// For each insert that needs room: the most slots, and the most places of the table, that eviction
/// looks at.
const EVICTION_STEPS: usize = 8;
const EVICTION_PLACES: usize = 64;
/// Places in a row that the eviction looks at: as many as are in a few lines of memory.
const EVICTION_RUN: usize = 8;
/// 2³² divided by the golden ratio.
const GOLDEN: u32 = 0x9e37_79b9;
/// The most keys of one prefetch.
pub const PREFETCHED: usize = 32;
/// This many bytes are near the processor anyway: less is not prefetched.
const NEAR: usize = 4 << 20;

/// Memory that the hot tiers of all databases share.
#[derive(Default)]
pub struct Budget {
    /// Bytes that may be used. With 0 only pinned states are kept.
    pub limit: AtomicUsize,
    pub used: AtomicUsize,
    /// Bytes of pinned committed states: acknowledged or applied, not yet in the store.
    pub unstored: AtomicUsize,
    pub evicted: AtomicUsize,
}

/// Partition and offset of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub partition: u32,
    pub offset: u64,
}

impl At {
    pub fn of(change: &Change) -> At {
        At {
            partition: change.partition,
            offset: change.offset,
        }
    }
}

/// Where the eviction looks next: some places in a row ([`EVICTION_RUN`]), then some elsewhere,
/// spread evenly over the table. If it took all places in a row, it would leave the table empty
/// behind it and full in front of it. In a table that is too full by half, a search with linear
/// probing meets thousands of slots.
#[derive(Default)]
struct Hand {
    place: usize,
    /// Places left of this run.
    left: usize,
    /// The run's place as a part of 2³² of the table. Steps of the golden ratio come everywhere,
    /// and everywhere equally often (Knuth, The Art of Computer Programming 3, 6.4, theorem S).
    run: u32,
}

/// Writes under way, with the index of the key's item in each.
type Pending = SmallVec<[(Arc<Write>, usize); 1]>;

#[derive(Default)]
struct Shard {
    number: u8,
    slots: Table<Slot>,
    /// Own writes under way by key, oldest first.
    pending: HashMap<Box<[u8]>, Pending, foldhash::fast::RandomState>,
    hand: Hand,
    /// Names of states that became unstored, in any order. Some may be stored by now.
    unstored: Vec<Unstored>,
    /// Grows with every change of any slot. A fill from the store is dropped if this has changed
    /// since.
    changes: u64,
}

/// What the tier knows about a key.
pub enum Lookup {
    /// The newest committed state, and the record that it comes from (offset 0 if no record of the
    /// key is known).
    Committed(At, Option<Entry>),
    /// The newest state is that of a write under way: the write, and the item in it.
    Pending(Arc<Write>, usize),
    /// The key does not exist: memory holds every key.
    Absent,
    /// Read the store, then call [`HotTier::fill`] with this token.
    Cold(u64),
}

/// The name of a state that became unstored.
#[derive(Clone, Copy)]
pub struct Unstored {
    /// The key's place in the order of the store.
    order: u64,
    hash: u32,
    shard: u8,
}

pub struct HotTier {
    shards: Box<[Mutex<Shard>]>,
    /// States that become unstored are named.
    names_unstored: AtomicBool,
    /// [`SOME`], [`COMING`] or [`ALL`]. When a shard loses a visible key, this becomes `SOME`
    /// before the lock of the shard is released.
    holds: AtomicU8,
    hasher: foldhash::fast::RandomState,
    budget: Arc<Budget>,
}

impl HotTier {
    pub fn new(budget: Arc<Budget>) -> Self {
        HotTier {
            shards: (0..SHARDS as u8).map(Shard::new).map(Mutex::new).collect(),
            names_unstored: AtomicBool::new(false),
            holds: AtomicU8::new(SOME),
            hasher: foldhash::fast::RandomState::default(),
            budget,
        }
    }

    /// The shard of a key, and its hash there.
    fn shard(&self, key: &[u8]) -> (&Mutex<Shard>, u32) {
        let hash = self.hasher.hash_one(key);
        (&self.shards[(hash >> 32) as usize % SHARDS], hash as u32)
    }

    /// How many keys have a committed state here, also those that are known not to exist.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.count()).sum()
    }

    /// Prefetch hint: these keys are about to be read. Their places in memory are requested all at
    /// once. Keys after the first [`PREFETCHED`] are ignored.
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        if self.budget.used.load(Ordering::Relaxed) < NEAR {
            return;
        }
        let places = keys.take(PREFETCHED).map(|key| self.shard(key));
        let places: SmallVec<[_; PREFETCHED]> = places.collect();
        if places.len() < 2 {
            return;
        }
        for (shard, hash) in &places {
            shard.lock().slots.prefetch(*hash);
        }
        for (shard, hash) in &places {
            shard.lock().slots.prefetch_behind(*hash);
        }
    }

    /// As [`HotTier::prefetch`], for a caller that passes many keys one by one, and then all of
    /// them once more with `again`.
    pub fn prefetch_one(&self, key: &[u8], again: bool) {
        if self.budget.used.load(Ordering::Relaxed) < NEAR {
            return;
        }
        let (shard, hash) = self.shard(key);
        let shard = shard.lock();
        match again {
            false => shard.slots.prefetch(hash),
            true => shard.slots.prefetch_behind(hash),
        }
    }

    /// The newest state of a key. Writes under way count only with `pending`.
    pub fn get(&self, key: &[u8], pending: bool) -> Lookup {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        if pending && let Some((write, item)) = shard.pending.get(key).and_then(|writes| writes.last()) {
            return Lookup::Pending(write.clone(), *item);
        }
        let changes = shard.changes;
        match shard.find(hash, key) {
            Some(slot) => {
                slot.touched = true;
                Lookup::Committed(slot.at(), slot.entry())
            }
            None if self.holds.load(Ordering::Relaxed) == ALL => Lookup::Absent,
            None => Lookup::Cold(changes),
        }
    }

    /// The write under way that gives this key this state, if there is one.
    pub fn written_by(&self, key: &[u8], entry: Option<&Entry>) -> Option<Arc<Write>> {
        let writes = self.shard(key).0.lock().pending.get(key).cloned();
        let gives = |(write, item): &(Arc<Write>, usize)| {
            let state = write.items[*item].state();
            state.map(|state| (&state.value, state.expire_at)) == entry.map(|e| (&e.value, e.meta.expire_at))
        };
        writes.into_iter().flatten().find(gives).map(|(write, _)| write)
    }

    /// True if writes of this key are under way.
    pub fn is_pending(&self, key: &[u8]) -> bool {
        self.shard(key).0.lock().pending.contains_key(key)
    }

    /// The last write of a key that is under way, and the record that its committed state comes
    /// from if memory has the state.
    pub fn newest(&self, key: &[u8]) -> (Option<Arc<Write>>, Option<At>) {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        let last = shard.pending.get(key).and_then(|writes| writes.last());
        let last = last.map(|(write, _)| write.clone());
        (last, shard.find(hash, key).map(|slot| slot.at()))
    }

    /// Remembers what the store answered, unless anything in the key's shard has changed since the
    /// [`Lookup::Cold`] that gave the token.
    pub fn fill(&self, key: &[u8], entry: Option<&Entry>, token: u64) {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        if shard.changes != token || self.budget.limit.load(Ordering::Relaxed) == 0 {
            return;
        }
        // Another reader may have filled it in already.
        if shard.find(hash, key).is_none() {
            let at = entry.map_or(NEVER, |entry| At {
                partition: entry.meta.partition,
                offset: entry.meta.offset,
            });
            self.insert(&mut shard, Slot::new(hash, key, at, entry));
        }
    }

    /// A write of this key was handed to the log.
    pub fn pend(&self, key: &[u8], write: &Arc<Write>, item: usize) {
        let mut shard = self.shard(key).0.lock();
        shard.changes += 1;
        match shard.pending.get_mut(key) {
            Some(writes) => writes.push((write.clone(), item)),
            None => {
                let writes = SmallVec::from_iter([(write.clone(), item)]);
                shard.pending.insert(key.into(), writes);
            }
        }
    }

    /// The pending write has ended: with its place in the log and the state if it was acknowledged.
    /// Returns true if that state is newer than what was known.
    pub fn resolve(&self, key: &[u8], write: &Arc<Write>, acknowledged: Option<(At, Option<Entry>)>) -> bool {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        shard.changes += 1;
        if let Some(writes) = shard.pending.get_mut(key) {
            writes.retain(|(w, _)| !Arc::ptr_eq(w, write));
            if writes.is_empty() {
                shard.pending.remove(key);
            }
        }
        acknowledged.is_some_and(|(at, entry)| self.supersede(&mut shard, hash, key, at, entry.as_ref()))
    }

    /// The applier read this record from the log. Without `insert`, only a key that has a slot is
    /// updated. A state from the place `ahead` or a later one stays: it is an own one that was
    /// acknowledged and that the applier has not reached yet. Returns false if the record was known
    /// already, or is not taken.
    pub fn apply(&self, key: &[u8], at: At, entry: Option<Entry>, insert: bool, ahead: Option<At>) -> bool {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        shard.changes += 1;
        match shard.find(hash, key) {
            Some(slot) if slot.is_from(ahead) => false,
            None if !insert => {
                self.hold_some();
                true
            }
            _ => self.supersede(&mut shard, hash, key, at, entry.as_ref()),
        }
    }

    /// The store has the record at `at`. The slot may be evicted unless its state is newer.
    pub fn stored(&self, key: &[u8], at: At) {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        let Some(slot) = shard.find(hash, key) else {
            return;
        };
        let known = slot.at();
        if slot.unstored && known.partition == at.partition && known.offset <= at.offset {
            slot.unstored = false;
            self.budget.unstored.fetch_sub(slot.weight(), Ordering::Relaxed);
        }
    }

    /// From now on states that become unstored are named. The caller has to call
    /// [`HotTier::take_unstored`] for them.
    pub fn name_unstored(&self) {
        self.names_unstored.store(true, Ordering::Release);
    }

    /// Names of the states that became unstored since the last call, in the order of the store.
    pub fn take_unstored(&self) -> Vec<Unstored> {
        let mut all = Vec::new();
        for shard in &self.shards {
            // Frees the memory too, so that a burst of writes leaves nothing behind.
            all.append(&mut std::mem::take(&mut shard.lock().unstored));
        }
        all.sort_unstable_by_key(|name| name.order);
        all
    }

    /// Shows the states of these names that are still unstored and `wanted`. The names of those not
    /// wanted are kept for the next [`HotTier::take_unstored`].
    pub fn show_unstored(
        &self,
        names: &[Unstored],
        mut wanted: impl FnMut(At) -> bool,
        mut show: impl FnMut(&[u8], At, Option<Entry>),
    ) {
        for names in names.chunks(PREFETCHED) {
            let shard = |name: &Unstored| &self.shards[name.shard as usize];
            for name in names {
                shard(name).lock().slots.prefetch(name.hash);
            }
            for name in names {
                shard(name).lock().slots.prefetch_behind(name.hash);
            }
            for name in names {
                let mut shard = shard(name).lock();
                let is_it = |slot: &Slot| key_hash(slot.key()) == name.order;
                let Some(slot) = shard.slots.find(name.hash, is_it) else {
                    continue;
                };
                let at = slot.at();
                // A state that comes from now on is named again.
                slot.named = slot.unstored && !wanted(at);
                if slot.named {
                    shard.unstored.push(*name);
                } else if slot.unstored {
                    show(slot.key(), at, slot.entry());
                }
            }
        }
    }

    /// Says that nothing was written yet, and that everything written comes here. From now on
    /// memory holds every key, until one has to be left out, is evicted or is forgotten.
    pub fn hold_all(&self) {
        self.holds.store(ALL, Ordering::Relaxed);
    }

    /// As [`HotTier::hold_all`], where something was written already. The caller is going to
    /// [`fill`](HotTier::fill) in each key that the store has from now on, and everything else that
    /// is written comes here. Returns false if memory holds every key already.
    pub fn begin_to_hold_all(&self) -> bool {
        let of_some = |held| (held != ALL).then_some(COMING);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.holds.fetch_update(set, fetch, of_some).is_ok()
    }

    /// True if nothing was left out, evicted or forgotten since then.
    pub fn may_hold_all(&self) -> bool {
        self.holds.load(Ordering::Relaxed) != SOME
    }

    /// The missing keys will not be filled in.
    pub fn hold_some(&self) {
        self.holds.store(SOME, Ordering::Relaxed);
    }

    /// All missing keys were filled in. Returns false if a key is missing again.
    pub fn hold_all_that_came(&self) -> bool {
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.holds.compare_exchange(COMING, ALL, set, fetch).is_ok()
    }

    /// Forgets the committed state of a key.
    pub fn forget_key(&self, key: &[u8]) {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.lock();
        shard.changes += 1;
        self.hold_some();
        if let Some(slot) = shard.slots.take(hash, |slot| slot.key() == key) {
            self.release(&slot);
        }
    }

    /// Forgets all committed states; writes under way stay.
    pub fn forget_all(&self) {
        self.hold_some();
        self.forget(|_| true);
    }

    /// Forgets the committed states before this place in the log, which a flush has hidden. A state
    /// that the store does not have yet stays, hidden, until the store has it: the deletes of
    /// others rest on what is there.
    pub fn forget_hidden(&self, flush: At) {
        self.forget(|slot| {
            let at = slot.at();
            !slot.unstored && at.partition == flush.partition && at.offset < flush.offset
        });
    }

    fn forget(&self, matches: impl Fn(&Slot) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.changes += 1;
            shard.slots.retain(|slot| {
                let goes = matches(slot);
                if goes {
                    self.release(slot);
                }
                !goes
            });
        }
    }

    /// Replaces the committed state if the record is newer. The new state is pinned until
    /// [`HotTier::stored`]. Returns false if this record, or a newer one, was known.
    fn supersede(&self, shard: &mut Shard, hash: u32, key: &[u8], at: At, entry: Option<&Entry>) -> bool {
        let Some(slot) = shard.find(hash, key) else {
            let mut slot = Slot::new(hash, key, at, entry);
            slot.unstored = true;
            slot.named = self.names_unstored.load(Ordering::Relaxed);
            self.budget.unstored.fetch_add(slot.weight(), Ordering::Relaxed);
            if slot.named {
                shard.name(hash, key);
            }
            self.insert(shard, slot);
            return true;
        };
        let known = slot.at();
        let was_met = known != NEVER || !slot.absent;
        if known.partition == at.partition && known.offset >= at.offset && was_met {
            return false;
        }
        let (old, was_unstored) = (slot.weight(), slot.unstored);
        slot.set(key, at, entry);
        slot.unstored = true;
        let new = slot.weight();
        change(&self.budget.used, new, old);
        change(&self.budget.unstored, new, if was_unstored { old } else { 0 });
        if self.names_unstored.load(Ordering::Relaxed) && !std::mem::replace(&mut slot.named, true) {
            shard.name(hash, key);
        }
        true
    }

    /// Takes a slot that was removed out of the counts.
    fn release(&self, slot: &Slot) {
        let weight = slot.weight();
        self.budget.used.fetch_sub(weight, Ordering::Relaxed);
        if slot.unstored {
            self.budget.unstored.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    fn insert(&self, shard: &mut Shard, slot: Slot) {
        let used = &self.budget.used;
        used.fetch_add(slot.weight(), Ordering::Relaxed);
        shard.slots.insert(slot);
        let limit = self.budget.limit.load(Ordering::Relaxed);
        let mut steps = 0;
        for _ in 0..EVICTION_PLACES {
            if steps == EVICTION_STEPS || used.load(Ordering::Relaxed) <= limit {
                return;
            }
            steps += usize::from(self.step(shard));
        }
    }

    /// Moves the eviction hand by one place; true if a slot was there.
    fn step(&self, shard: &mut Shard) -> bool {
        let Shard { slots, hand, .. } = shard;
        if hand.left == 0 {
            hand.run = hand.run.wrapping_add(GOLDEN);
            hand.place = slots.home(hand.run);
            hand.left = EVICTION_RUN;
        }
        hand.left -= 1;
        let place = hand.place;
        hand.place = slots.next(place);
        let Some(slot) = slots.at(place) else {
            return false;
        };
        if slot.unstored || std::mem::take(&mut slot.touched) {
            return true;
        }
        if let Some(slot) = slots.remove(place) {
            // Another slot may have moved there.
            hand.place = place;
            self.release(&slot);
            if !slot.absent {
                self.hold_some();
            }
            self.budget.evicted.fetch_add(1, Ordering::Relaxed);
        }
        true
    }
}

/// Changes a counter that all processors share, but only if there is a difference.
fn change(counter: &AtomicUsize, more: usize, less: usize) {
    match more.cmp(&less) {
        std::cmp::Ordering::Greater => drop(counter.fetch_add(more - less, Ordering::Relaxed)),
        std::cmp::Ordering::Less => drop(counter.fetch_sub(less - more, Ordering::Relaxed)),
        std::cmp::Ordering::Equal => {}
    }
}

impl Shard {
    fn new(number: u8) -> Shard {
        Shard {
            number,
            ..Shard::default()
        }
    }

    /// Notes that this key's state has become unstored.
    fn name(&mut self, hash: u32, key: &[u8]) {
        self.unstored.push(Unstored {
            order: key_hash(key),
            hash,
            shard: self.number,
        });
    }

    fn find(&mut self, hash: u32, key: &[u8]) -> Option<&mut Slot> {
        self.slots.find(hash, |slot| slot.key() == key)
    }
}

#[cfg(test)]
mod tests;
