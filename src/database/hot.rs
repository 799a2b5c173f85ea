//! The hot tier: the newest known state of keys, in memory, in front of the store.
//!
//! A slot holds what the log has for a key (*committed*) and, behind it, this node's writes that are still under way
//! (*pending*). Acknowledged own records and applied records are merged by offset, so it does not matter which of the two
//! comes first. A slot is *pinned* while the store does not have its committed state yet, or while writes are
//! pending; every other slot may be evicted (second chance) when the memory budget is used up.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;

use super::write::Write;
use crate::store::Entry;

const SHARDS: usize = 64;
/// What a slot costs beside its key and value (measured roughly: table entry, slot, allocator rounding), bytes.
pub const SLOT_OVERHEAD: usize = 136;
/// Slots looked at per insert when room must be made.
const EVICTION_STEPS: usize = 8;

/// Memory that the hot tiers of all databases share.
#[derive(Default)]
pub struct Budget {
    /// Bytes that may be used; 0 keeps only what is pinned.
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

/// What the log is known to have for a key.
#[derive(Clone, Debug)]
enum Committed {
    /// Not known here: the store has it.
    Cold,
    Known {
        at: At,
        entry: Option<Entry>,
    },
}

struct Slot {
    committed: Committed,
    /// Own writes under way, oldest first, with the index of the key's item in the write.
    pending: Vec<(Arc<Write>, usize)>,
    /// The store does not have `committed` yet.
    unstored: bool,
    /// Read since the eviction hand last passed.
    touched: bool,
}

struct Shard {
    slots: IndexMap<Box<[u8]>, Slot, foldhash::fast::RandomState>,
    hand: usize,
    /// Grows with every change of any slot: a fill from the store is dropped if it is not what it was.
    changes: u64,
}

/// What the tier says of a key.
pub enum Lookup {
    /// The newest committed state, and the record that it comes from (offset 0 if the key was never met).
    Committed(At, Option<Entry>),
    /// The newest state is that of a write under way.
    Pending(Arc<Write>, usize),
    /// Ask the store, then [`HotTier::fill`] with this token.
    Cold(u64),
}

pub struct HotTier {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::fast::RandomState,
    budget: Arc<Budget>,
}

impl HotTier {
    pub fn new(budget: Arc<Budget>) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        let shard = || {
            Mutex::new(Shard {
                slots: IndexMap::with_hasher(hasher.clone()),
                hand: 0,
                changes: 0,
            })
        };
        HotTier {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: hasher.clone(),
            budget,
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        // The table in the shard uses the low bits of the same hash; take the high ones.
        &self.shards[(self.hasher.hash_one(key) >> 48) as usize % SHARDS]
    }

    /// The newest state of a key; writes under way only if `pending` is asked for.
    pub fn get(&self, key: &[u8], pending: bool) -> Lookup {
        let mut shard = self.shard(key).lock();
        let changes = shard.changes;
        let Some(slot) = shard.slots.get_mut(key) else {
            return Lookup::Cold(changes);
        };
        if pending && let Some((write, item)) = slot.pending.last() {
            return Lookup::Pending(write.clone(), *item);
        }
        slot.touched = true;
        match &slot.committed {
            Committed::Cold => Lookup::Cold(changes),
            Committed::Known { at, entry } => Lookup::Committed(*at, entry.clone()),
        }
    }

    /// True if writes of this key are under way.
    pub fn is_pending(&self, key: &[u8]) -> bool {
        let shard = self.shard(key).lock();
        shard.slots.get(key).is_some_and(|slot| !slot.pending.is_empty())
    }

    /// Remembers what the store answered, unless anything changed since the [`Lookup::Cold`] that gave the token.
    pub fn fill(&self, key: &[u8], entry: Option<&Entry>, token: u64) {
        let mut shard = self.shard(key).lock();
        if shard.changes != token || self.budget.limit.load(Ordering::Relaxed) == 0 {
            return;
        }
        let at = entry.map_or(
            At {
                partition: 0,
                offset: 0,
            },
            |e| At {
                partition: e.meta.partition,
                offset: e.meta.offset,
            },
        );
        let committed = Committed::Known {
            at,
            entry: entry.cloned(),
        };
        match shard.slots.get_mut(key) {
            Some(slot) => {
                self.charge(weigh(key, &committed), weigh(key, &slot.committed));
                slot.committed = committed;
            }
            None => self.insert(&mut shard, key, Slot::new(committed)),
        }
    }

    /// A write of this key was handed to the log.
    pub fn pend(&self, key: &[u8], write: &Arc<Write>, item: usize) {
        let mut shard = self.shard(key).lock();
        shard.changes += 1;
        match shard.slots.get_mut(key) {
            Some(slot) => slot.pending.push((write.clone(), item)),
            None => {
                let mut slot = Slot::new(Committed::Cold);
                slot.pending.push((write.clone(), item));
                self.insert(&mut shard, key, slot);
            }
        }
    }

    /// The pending write is over: with its place in the log and the state if it was acknowledged.
    pub fn resolve(&self, key: &[u8], write: &Arc<Write>, acknowledged: Option<(At, Option<Entry>)>) {
        let mut shard = self.shard(key).lock();
        shard.changes += 1;
        let Some(slot) = shard.slots.get_mut(key) else {
            return;
        };
        slot.pending.retain(|(w, _)| !Arc::ptr_eq(w, write));
        if let Some((at, entry)) = acknowledged {
            self.supersede(key, slot, at, entry);
        }
    }

    /// The applier read this record from the log. Without `insert` only a key that has a slot is kept up to date.
    /// A state that is known from `ahead` on stays: an own one that was acknowledged and that the applier will come to.
    /// False if the record was known already, or is not taken.
    pub fn apply(&self, key: &[u8], at: At, entry: Option<Entry>, insert: bool, ahead: Option<At>) -> bool {
        let mut shard = self.shard(key).lock();
        shard.changes += 1;
        match shard.slots.get_mut(key) {
            Some(slot) if slot.is_from(ahead) => false,
            Some(slot) => self.supersede(key, slot, at, entry),
            None if insert => {
                let mut slot = Slot::new(Committed::Known { at, entry });
                slot.unstored = true;
                self.budget
                    .unstored
                    .fetch_add(weigh(key, &slot.committed), Ordering::Relaxed);
                self.insert(&mut shard, key, slot);
                true
            }
            None => true,
        }
    }

    /// The store has the record at `at`: the slot may be evicted if it is not newer.
    pub fn stored(&self, key: &[u8], at: At) {
        let mut shard = self.shard(key).lock();
        let Some(slot) = shard.slots.get_mut(key) else {
            return;
        };
        if let Committed::Known { at: known, .. } = &slot.committed
            && slot.unstored
            && known.partition == at.partition
            && known.offset <= at.offset
        {
            slot.unstored = false;
            let bytes = weigh(key, &slot.committed);
            self.budget.unstored.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Forgets all committed states that match; writes under way stay.
    pub fn forget(&self, matches: impl Fn(&At) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.changes += 1;
            shard.hand = 0;
            shard.slots.retain(|key, slot| {
                if let Committed::Known { at, .. } = &slot.committed
                    && matches(at)
                {
                    let bytes = weigh(key, &slot.committed);
                    if std::mem::take(&mut slot.unstored) {
                        self.budget.unstored.fetch_sub(bytes, Ordering::Relaxed);
                    }
                    slot.committed = Committed::Cold;
                    self.charge(weigh(key, &slot.committed), bytes);
                }
                let keep = !slot.pending.is_empty() || matches!(slot.committed, Committed::Known { .. });
                if !keep {
                    self.charge(0, weigh(key, &slot.committed));
                }
                keep
            });
        }
    }

    /// Replaces the committed state if the record is newer; it is pinned until [`HotTier::stored`].
    /// False if this very record, or a newer one, was known.
    fn supersede(&self, key: &[u8], slot: &mut Slot, at: At, entry: Option<Entry>) -> bool {
        if let Committed::Known { at: known, .. } = &slot.committed
            && known.partition == at.partition
            && known.offset >= at.offset
            && *known
                != (At {
                    partition: 0,
                    offset: 0,
                })
        {
            return false;
        }
        let same = matches!(&slot.committed, Committed::Known { at: known, entry: Some(_) } if *known == at);
        let new = Committed::Known { at, entry };
        let (new_bytes, old_bytes) = (weigh(key, &new), weigh(key, &slot.committed));
        self.charge(new_bytes, old_bytes);
        if slot.unstored {
            self.budget.unstored.fetch_sub(old_bytes, Ordering::Relaxed);
        }
        self.budget.unstored.fetch_add(new_bytes, Ordering::Relaxed);
        slot.committed = new;
        slot.unstored = true;
        !same
    }

    fn charge(&self, more: usize, less: usize) {
        self.budget.used.fetch_add(more, Ordering::Relaxed);
        self.budget.used.fetch_sub(less, Ordering::Relaxed);
    }

    fn insert(&self, shard: &mut Shard, key: &[u8], slot: Slot) {
        self.charge(weigh(key, &slot.committed), 0);
        shard.slots.insert(key.into(), slot);
        let limit = self.budget.limit.load(Ordering::Relaxed);
        for _ in 0..EVICTION_STEPS {
            if self.budget.used.load(Ordering::Relaxed) <= limit || shard.slots.is_empty() {
                return;
            }
            self.step(shard);
        }
    }

    /// Moves the eviction hand by one slot.
    fn step(&self, shard: &mut Shard) {
        if shard.hand >= shard.slots.len() {
            shard.hand = 0;
        }
        let Some((_, slot)) = shard.slots.get_index_mut(shard.hand) else {
            return;
        };
        if slot.unstored || !slot.pending.is_empty() || std::mem::take(&mut slot.touched) {
            shard.hand += 1;
        } else if let Some((key, slot)) = shard.slots.swap_remove_index(shard.hand) {
            self.charge(0, weigh(&key, &slot.committed));
            self.budget.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Slot {
    fn new(committed: Committed) -> Self {
        Slot {
            committed,
            pending: Vec::new(),
            unstored: false,
            touched: false,
        }
    }

    /// True if what is known stands at this place of the log or behind it.
    fn is_from(&self, place: Option<At>) -> bool {
        let Committed::Known { at, .. } = &self.committed else {
            return false;
        };
        place.is_some_and(|place| at.partition == place.partition && at.offset >= place.offset)
    }
}

fn weigh(key: &[u8], committed: &Committed) -> usize {
    let value = match committed {
        Committed::Known {
            entry:
                Some(Entry {
                    value: crate::store::Value::String(value),
                    ..
                }),
            ..
        } => value.len(),
        _ => 0,
    };
    SLOT_OVERHEAD + key.len() + value
}

/// A copy that holds only itself: a slice of a read buffer would keep the whole buffer alive.
pub fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
