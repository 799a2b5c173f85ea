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

mod table;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;

use self::table::{Hashed, Table};
use super::write::Write;
use crate::model::{Change, Entry, Meta, Type, Value};
use crate::store::key_hash;

const SHARDS: usize = 64;
/// Visible keys without a slot may exist.
const SOME: u8 = 0;
/// As [`SOME`], but the missing keys are being filled in, and no key has lost its slot since that
/// began.
const COMING: u8 = 1;
/// Every visible key has a slot.
const ALL: u8 = 2;
/// What a slot costs besides its block, bytes (measured roughly: its place in the table, allocator
/// rounding).
const BESIDE_BLOCK: usize = 48;
/// What a slot costs besides its key and value, bytes.
pub const SLOT_OVERHEAD: usize = BESIDE_BLOCK + Header::SHORT;
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
/// Values of up to this many bytes are copied for each reader. Larger ones are shared.
pub const INLINE: usize = 1_024;

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

/// The place of a key of which no record is known.
const NEVER: At = At {
    partition: 0,
    offset: 0,
};

/// The committed state of one key.
struct Slot {
    body: Body,
    /// The key's hash; see [`HotTier::hash`].
    hash: u32,
    /// The key does not exist.
    absent: bool,
    /// The store does not have it yet.
    unstored: bool,
    /// Its name is in [`Shard::unstored`].
    named: bool,
    /// It was read since the eviction hand last passed.
    touched: bool,
}

/// A block is the place in the log, timestamp, expiry and length of the key ([`Header`]), then the
/// key.
enum Body {
    /// A block, and after it the value, if there is one.
    Inline(Box<[u8]>),
    /// A block, and a large value.
    Apart(Box<(Box<[u8]>, Value)>),
}

/// A million keys need up to two million of these.
const _: () = assert!(size_of::<Option<Slot>>() == 24);

/// The beginning of a slot's block, in one of two forms:
///
/// - short, if the numbers are as small as they nearly always are: 0, or 1 if there is an expiry;
///   length of the key (1 byte), partition (1), offset (6), timestamp (6), expiry (6);
/// - long: 2; partition (4), offset (8), timestamp (8), expiry (8), length of the key (4).
///
/// The first byte's upper half is the type of an inline value ([`Type::number`]).
struct Header {
    of: Type,
    at: At,
    timestamp: i64,
    expire_at: Option<u64>,
    key_len: usize,
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

impl Hashed for Slot {
    fn hash(&self) -> u32 {
        self.hash
    }

    fn behind(&self) -> &[u8] {
        match &self.body {
            Body::Inline(block) => block,
            // The address of the block is not in the slot.
            Body::Apart(_) => &[],
        }
    }
}

impl Slot {
    fn new(hash: u32, key: &[u8], at: At, entry: Option<&Entry>) -> Slot {
        let mut slot = Slot {
            body: Body::Inline(Box::default()),
            hash,
            absent: true,
            unstored: false,
            named: false,
            touched: false,
        };
        slot.set(key, at, entry);
        slot
    }

    fn set(&mut self, key: &[u8], at: At, entry: Option<&Entry>) {
        let value = entry.map(|entry| &entry.value);
        let (of, inline, apart): (_, &[u8], _) = match value.map(Value::kept) {
            Some(Ok((of, value))) if value.len() <= INLINE => (of, value, None),
            _ => (Type::String, &[], value),
        };
        let header = Header {
            of,
            at,
            timestamp: entry.map_or(0, |entry| entry.meta.timestamp),
            expire_at: entry.and_then(|entry| entry.meta.expire_at),
            key_len: key.len(),
        };
        let len = header.len() + key.len() + inline.len();
        let mut block = match std::mem::replace(&mut self.body, Body::Inline(Box::default())) {
            Body::Inline(block) => block,
            Body::Apart(apart) => apart.0,
        };
        if block.len() != len {
            block = vec![0; len].into_boxed_slice();
        }
        header.write(&mut block);
        let (of_key, of_value) = block[header.len()..].split_at_mut(key.len());
        of_key.copy_from_slice(key);
        of_value.copy_from_slice(inline);
        self.absent = entry.is_none();
        self.body = match apart {
            None => Body::Inline(block),
            Some(value) => Body::Apart(Box::new((block, value.clone()))),
        };
    }

    fn block(&self) -> &[u8] {
        match &self.body {
            Body::Inline(block) => block,
            Body::Apart(apart) => &apart.0,
        }
    }

    fn header(&self) -> Header {
        Header::read(self.block())
    }

    fn at(&self) -> At {
        self.header().at
    }

    fn key(&self) -> &[u8] {
        let block = self.block();
        let (start, len) = Header::key_of(block);
        &block[start..][..len]
    }

    fn entry(&self) -> Option<Entry> {
        let header = self.header();
        let value = match &self.body {
            _ if self.absent => return None,
            Body::Inline(block) => Value::of_kept(header.of, own(&block[header.len() + header.key_len..])),
            Body::Apart(apart) => apart.1.clone(),
        };
        let meta = Meta {
            partition: header.at.partition,
            offset: header.at.offset,
            timestamp: header.timestamp,
            expire_at: header.expire_at,
        };
        Some(Entry { meta, value })
    }

    /// True if the known state is from this place in the log or a later one.
    fn is_from(&self, place: Option<At>) -> bool {
        let at = self.at();
        place.is_some_and(|place| at.partition == place.partition && at.offset >= place.offset)
    }

    /// Bytes.
    fn weight(&self) -> usize {
        let apart = match &self.body {
            Body::Apart(apart) => apart.1.bytes(),
            Body::Inline(_) => 0,
        };
        BESIDE_BLOCK + self.block().len() + apart
    }
}

impl Header {
    /// Bytes of the short form without an expiry, with one, and of the long form.
    const SHORT: usize = 15;
    const SHORT_WITH_EXPIRY: usize = 21;
    const LONG: usize = 33;
    /// The bits of the first byte that say which form it is.
    const FORM: u8 = 0x0f;
    /// In place of an expiry, in the long form.
    const NONE: u64 = u64::MAX;

    fn form(&self) -> u8 {
        let is_short = self.key_len <= 0xff
            && self.at.partition <= 0xff
            && (self.at.offset | self.timestamp as u64 | self.expire_at.unwrap_or(0)) < 1 << 48;
        match is_short {
            true => u8::from(self.expire_at.is_some()),
            false => 2,
        }
    }

    fn len(&self) -> usize {
        [Header::SHORT, Header::SHORT_WITH_EXPIRY, Header::LONG][usize::from(self.form())]
    }

    /// Where the key stands in a block, and how long it is.
    fn key_of(block: &[u8]) -> (usize, usize) {
        match block[0] & Header::FORM {
            0 => (Header::SHORT, usize::from(block[1])),
            1 => (Header::SHORT_WITH_EXPIRY, usize::from(block[1])),
            _ => (Header::LONG, u32::from_le_bytes(part(block, 29)) as usize),
        }
    }

    fn read(block: &[u8]) -> Header {
        let (_, key_len) = Header::key_of(block);
        // Reads eight bytes, of which the first two belong to the field before and are shifted out:
        // there may be no bytes after these six.
        let six = |at: usize| u64::from_le_bytes(part(block, at - 2)) >> 16;
        let eight = |at| u64::from_le_bytes(part(block, at));
        // A number that is no type's is never written.
        let of = Type::of_number(block[0] >> 4).unwrap_or(Type::String);
        match block[0] & Header::FORM {
            2 => Header {
                of,
                at: At {
                    partition: u32::from_le_bytes(part(block, 1)),
                    offset: eight(5),
                },
                timestamp: eight(13) as i64,
                expire_at: Some(eight(21)).filter(|expiry| *expiry != Header::NONE),
                key_len,
            },
            form => Header {
                of,
                at: At {
                    partition: u32::from(block[2]),
                    offset: six(3),
                },
                timestamp: six(9) as i64,
                expire_at: (form == 1).then(|| six(15)),
                key_len,
            },
        }
    }

    fn write(&self, block: &mut [u8]) {
        let form = self.form();
        block[0] = form | self.of.number() << 4;
        if form == 2 {
            block[1..5].copy_from_slice(&self.at.partition.to_le_bytes());
            block[5..13].copy_from_slice(&self.at.offset.to_le_bytes());
            block[13..21].copy_from_slice(&self.timestamp.to_le_bytes());
            block[21..29].copy_from_slice(&self.expire_at.unwrap_or(Header::NONE).to_le_bytes());
            block[29..33].copy_from_slice(&(self.key_len as u32).to_le_bytes());
            return;
        }
        let mut six = |at: usize, number: u64| block[at..at + 6].copy_from_slice(&number.to_le_bytes()[..6]);
        six(3, self.at.offset);
        six(9, self.timestamp as u64);
        if let Some(expire_at) = self.expire_at {
            six(15, expire_at);
        }
        block[1] = self.key_len as u8;
        block[2] = self.at.partition as u8;
    }
}

/// Some bytes of a header.
fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&block[at..at + N]);
    part
}

/// A copy of these bytes alone. A slice of a read buffer would keep the whole buffer alive.
pub fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Collection, Packed};

    fn at(offset: u64) -> At {
        At { partition: 3, offset }
    }

    fn entry(offset: u64, value: Value, expire_at: Option<u64>) -> Entry {
        let meta = Meta {
            partition: 3,
            offset,
            timestamp: -5,
            expire_at,
        };
        Entry { meta, value }
    }

    fn tier(limit: usize) -> HotTier {
        HotTier::new(Arc::new(Budget {
            limit: AtomicUsize::new(limit),
            ..Budget::default()
        }))
    }

    fn shown(tier: &HotTier, key: &[u8]) -> Option<Option<Entry>> {
        match tier.get(key, false) {
            Lookup::Committed(_, entry) => Some(entry),
            _ => None,
        }
    }

    #[test]
    fn headers_come_back_in_each_form() {
        let edge = 1u64 << 48;
        let numbers = [0, 1, edge - 1, edge, u64::MAX - 1];
        for (index, offset) in numbers.into_iter().enumerate() {
            for expire_at in numbers.map(Some).into_iter().chain([None]) {
                for (partition, key_len, timestamp) in [
                    (0, 0, 0),
                    (255, 255, edge as i64 - 1),
                    (256, 1, 5),
                    (1, 256, 5),
                    (u32::MAX, 600_000_000, i64::MAX),
                    (7, 7, -1),
                ] {
                    let header = Header {
                        of: Type::of_number((key_len % 4) as u8).expect("four types"),
                        at: At { partition, offset },
                        timestamp,
                        expire_at,
                        key_len,
                    };
                    let mut block = vec![index as u8; header.len()];
                    header.write(&mut block);
                    let read = Header::read(&block);
                    assert_eq!((read.of, read.at, read.timestamp), (header.of, header.at, timestamp));
                    assert_eq!((read.expire_at, read.key_len), (expire_at, key_len));
                    assert_eq!(Header::key_of(&block), (block.len(), key_len));
                }
            }
        }
        let usual = Header {
            of: Type::String,
            at: at(1),
            timestamp: 1_800_000_000_000,
            expire_at: None,
            key_len: 16,
        };
        assert_eq!(usual.len(), Header::SHORT);
    }

    #[test]
    fn every_kind_of_state_comes_back_as_it_was() {
        let tier = tier(1 << 20);
        let sizes = [0, 1, 64, INLINE, INLINE + 1, 100_000];
        let strings = sizes.map(|size| Value::String(vec![7; size].into()));
        let packed = Collection::ALL.map(|of| Value::Packed(Packed::kept(of, vec![7; 20].into())));
        let values = strings
            .into_iter()
            .chain(packed)
            .chain([Value::Unreadable("no such type".into())]);
        let mut offset = 0;
        for value in values {
            for expire_at in [None, Some(0), Some(u64::MAX - 1)] {
                offset += 1;
                let entry = entry(offset, value.clone(), expire_at);
                for key in [&b"k"[..], b"", &[0; 300]] {
                    tier.apply(key, at(offset), Some(entry.clone()), true, None);
                    assert_eq!(shown(&tier, key), Some(Some(entry.clone())));
                }
            }
        }
        tier.apply(b"k", at(1_000), None, true, None);
        assert_eq!(shown(&tier, b"k"), Some(None));
        assert_eq!(shown(&tier, b"other"), None);
    }

    #[test]
    fn what_became_unstored_is_shown_once_and_again_if_it_changed_before_it_was_stored() {
        let tier = tier(1 << 20);
        tier.name_unstored();
        let put = |key: &str, offset| {
            let entry = entry(offset, Value::String(key.to_owned().into()), None);
            tier.apply(key.as_bytes(), at(offset), Some(entry), true, None);
        };
        let shown = |below: u64| {
            let mut shown = Vec::new();
            let mut show = |key: &[u8], at: At, _| shown.push((String::from_utf8_lossy(key).into_owned(), at.offset));
            tier.show_unstored(&tier.take_unstored(), |at| at.offset < below, &mut show);
            shown.sort();
            shown
        };
        let pair = |key: &str, offset| (key.to_owned(), offset);
        put("a", 1);
        put("b", 2);
        put("a", 3);
        put("c", 4);
        assert_eq!(shown(4), [pair("a", 3), pair("b", 2)], "one is too new");
        put("a", 5);
        tier.stored(b"a", at(3));
        tier.stored(b"b", at(2));
        assert_eq!(
            shown(9),
            [pair("a", 5), pair("c", 4)],
            "one changed while it was written"
        );
        tier.stored(b"a", at(5));
        tier.stored(b"c", at(4));
        assert_eq!(shown(9), []);
        put("b", 6);
        assert_eq!(shown(9), [pair("b", 6)]);
        assert_eq!(shown(9), [], "who took it stores it");
    }

    #[test]
    fn a_key_without_a_slot_is_absent_until_one_has_to_be_left_out() {
        let is_absent = |tier: &HotTier, key: &[u8]| matches!(tier.get(key, true), Lookup::Absent);
        let value = |n| entry(n, Value::String(vec![1; 50].into()), None);
        let filled = || {
            let tier = tier(1 << 20);
            assert!(!is_absent(&tier, b"never"), "not before it is said");
            tier.hold_all();
            tier.apply(b"deleted", at(1), None, true, None);
            tier.apply(b"flushed", at(2), Some(value(2)), true, None);
            tier.stored(b"deleted", at(1));
            tier.stored(b"flushed", at(2));
            tier.forget_hidden(at(3));
            tier.apply(b"k", at(4), Some(value(4)), true, None);
            tier.stored(b"k", at(4));
            assert!(
                [&b"never"[..], b"deleted", b"flushed"]
                    .iter()
                    .all(|key| is_absent(&tier, key))
            );
            assert!(shown(&tier, b"k").is_some());
            tier
        };
        type Step = fn(&HotTier);
        let steps: [(usize, Step); 4] = [
            (1 << 20, |tier| tier.forget_key(b"k")),
            (1 << 20, HotTier::forget_all),
            (1 << 20, |tier| assert!(tier.apply(b"loaded", at(5), None, false, None))),
            (0, |tier| {
                let next = |n: u64| tier.apply(&n.to_le_bytes(), at(n), None, true, None);
                assert!((5..2_000).all(next));
            }),
        ];
        for (limit, step) in steps {
            let tier = filled();
            tier.budget.limit.store(limit, Ordering::Relaxed);
            step(&tier);
            assert!(!is_absent(&tier, b"never"));
        }
    }

    /// A reader read the store. Then the key changed, the store got the change, and memory evicted
    /// the slot. Only then the reader comes back.
    #[test]
    fn what_the_store_answered_before_a_change_is_not_remembered() {
        let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
        let cold = |tier: &HotTier, key: &[u8]| match tier.get(key, false) {
            Lookup::Cold(token) => Some(token),
            _ => None,
        };
        type Change = fn(&HotTier);
        let changes: [(&str, Change); 5] = [
            ("written", |tier| {
                let new = entry(7, Value::String(Bytes::from_static(b"new")), None);
                assert!(tier.apply(b"k", at(7), Some(new), true, None));
            }),
            ("deleted", |tier| assert!(tier.apply(b"k", at(7), None, true, None))),
            ("loaded", |tier| assert!(tier.apply(b"k", at(7), None, false, None))),
            ("flushed", |tier| tier.forget_hidden(at(7))),
            ("read anew", HotTier::forget_all),
        ];
        for (what, change) in changes {
            let tier = tier(1);
            let asked = cold(&tier, b"k").expect("it was never met");
            change(&tier);
            tier.stored(b"k", at(7));
            // Other keys need its room.
            for n in 0..100_000u64 {
                if cold(&tier, b"k").is_some() {
                    break;
                }
                let token = cold(&tier, &n.to_le_bytes()).expect("it was never met");
                tier.fill(&n.to_le_bytes(), Some(&value(n)), token);
            }
            let asked_after = cold(&tier, b"k").expect("it was evicted");
            tier.budget.limit.store(1 << 20, Ordering::Relaxed);
            tier.fill(b"k", Some(&value(5)), asked);
            assert_eq!(shown(&tier, b"k"), None, "{what}: an old state is kept");
            tier.fill(b"k", Some(&value(7)), asked_after);
            assert_eq!(shown(&tier, b"k"), Some(Some(value(7))), "{what}");
        }
    }

    #[test]
    fn rows_of_slots_stay_short_however_long_it_evicts() {
        let tier = tier(8 << 20);
        let longest = |tier: &HotTier| {
            let rows = tier.shards.iter().map(|shard| shard.lock().slots.longest_row());
            rows.max().expect("shards")
        };
        for n in 0..500_000u64 {
            let Lookup::Cold(token) = tier.get(&n.to_le_bytes(), false) else {
                panic!("{n} was never read before");
            };
            tier.fill(
                &n.to_le_bytes(),
                Some(&entry(n, Value::String(Bytes::from_static(b"value")), None)),
                token,
            );
        }
        // Chance makes rows of up to 140 (1 in 150 runs). Each 60 more are ten times less likely.
        assert!(longest(&tier) < 300, "{}", longest(&tier));
    }

    #[test]
    fn what_is_used_and_unstored_is_counted_and_evicted_only_when_it_is_stored() {
        let tier = tier(100 * 200);
        let key = |n: u64| format!("key:{n}").into_bytes();
        let value = |n: u64| entry(n, Value::String(vec![1; 50].into()), None);
        for n in 1..=1_000 {
            tier.apply(&key(n), at(n), Some(value(n)), true, None);
        }
        let load = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!(load(&tier.budget.used), load(&tier.budget.unstored));
        assert!((1..=1_000).all(|n| shown(&tier, &key(n)).is_some()));
        for n in 1..=1_000 {
            tier.stored(&key(n), at(n - 1));
        }
        assert_eq!(load(&tier.budget.used), load(&tier.budget.unstored));
        for n in 1..=1_000 {
            tier.stored(&key(n), at(n));
        }
        assert_eq!(load(&tier.budget.unstored), 0);
        for n in 1_001..=3_000 {
            tier.apply(&key(n), at(n), Some(value(n)), true, None);
            tier.stored(&key(n), at(n));
        }
        assert!(load(&tier.budget.used) <= 100 * 200 + 8 * SHARDS * 200);
        assert!(load(&tier.budget.evicted) > 2_000);
        tier.forget_all();
        assert_eq!(load(&tier.budget.used), 0);
    }
    #[test]
    fn what_is_known_from_a_place_on_is_kept() {
        let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
        let copy = At {
            partition: 7,
            offset: 1,
        };
        let ahead = |partition, offset| Some(At { partition, offset });
        for (ahead, is_kept) in [
            (ahead(3, 9), true),
            (ahead(3, 10), true),
            (ahead(3, 11), false),
            (ahead(4, 9), false),
            (None, false),
        ] {
            let tier = tier(1 << 20);
            tier.apply(b"k", at(10), Some(value(10)), true, None);
            assert_eq!(tier.apply(b"k", copy, None, true, ahead), !is_kept, "{ahead:?}");
            assert_eq!(shown(&tier, b"k"), Some(is_kept.then(|| value(10))), "{ahead:?}");
        }
    }

    #[test]
    fn a_key_that_is_to_be_forgotten_is_gone_and_no_other() {
        let tier = tier(1 << 20);
        for (key, n) in [(b"k", 1), (b"l", 2)] {
            tier.apply(key, at(n), None, true, None);
        }
        tier.forget_key(b"k");
        assert_eq!((shown(&tier, b"k"), shown(&tier, b"l")), (None, Some(None)));
        let Lookup::Cold(asked) = tier.get(b"k", false) else {
            panic!("it was forgotten")
        };
        tier.apply(b"k", at(3), None, true, None);
        tier.forget_key(b"k");
        let old = entry(1, Value::String(Bytes::from_static(b"old")), None);
        tier.fill(b"k", Some(&old), asked);
        assert_eq!(shown(&tier, b"k"), None, "an old state is kept");
    }

    #[test]
    fn a_record_is_stored_once_and_by_its_own_partition() {
        let tier = tier(1 << 20);
        let unstored = || tier.budget.unstored.load(Ordering::Relaxed);
        tier.apply(b"k", at(10), None, true, None);
        let other = At {
            partition: 4,
            offset: 20,
        };
        tier.stored(b"k", other);
        assert!(unstored() > 0, "it is another record");
        tier.stored(b"k", at(10));
        tier.stored(b"k", at(10));
        assert_eq!(unstored(), 0);
    }

    #[test]
    fn a_flush_makes_memory_forget_what_is_before_it_in_its_partition_and_stored() {
        let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
        for (offset, is_stored, partition, is_kept) in [
            (9, true, 3, false),
            (10, true, 3, true),
            (9, true, 4, true),
            (9, false, 3, true),
        ] {
            let tier = tier(1 << 20);
            tier.apply(b"k", at(offset), Some(value(offset)), true, None);
            if is_stored {
                tier.stored(b"k", at(offset));
            }
            tier.forget_hidden(At { partition, offset: 10 });
            assert_eq!(
                shown(&tier, b"k").is_some(),
                is_kept,
                "{offset} {is_stored} {partition}"
            );
        }
    }

    #[test]
    fn of_two_records_the_later_of_a_partition_wins_and_of_two_partitions_the_last_that_came() {
        let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
        let tier = tier(1 << 20);
        let put = |at: At, n| tier.apply(b"k", at, Some(value(n)), true, None);
        let of = |partition, offset| At { partition, offset };
        // Nothing is known yet, though this place is also the one of a key of which no record is
        // known.
        assert!(put(of(0, 0), 1));
        assert!(!put(of(0, 0), 2), "it is the same record");
        assert!(put(of(0, 5), 3));
        assert!(!put(of(0, 4), 4));
        assert!(put(of(1, 4), 5));
        let tier = HotTier::new(tier.budget.clone());
        let Lookup::Cold(token) = tier.get(b"k", false) else {
            panic!("it was never met")
        };
        tier.fill(b"k", None, token);
        assert!(
            tier.apply(b"k", of(0, 0), Some(value(1)), true, None),
            "the log's first record"
        );
        assert!(!tier.apply(b"k", of(0, 0), None, true, None));
    }
}
