//! Elements of split collections in memory, in front of the store.
//!
//! Memory has some of a collection's elements, or all of them. It has at least those that the store
//! may not have yet. Acknowledged own records and applied records are merged by offset, so it does
//! not matter which of the two comes first: a removed element is remembered until the store has the
//! removal. A reader gets a copy of the tree, which costs nothing, and sees no later change.
//!
//! A collection of another version is another collection here. What has lost its head is dropped
//! when the store finds it, or evicted.
//!
//! A collection that this node makes has all its elements in memory from the beginning. Of another
//! one memory has those that were read or written. Reading all elements fills in those that memory
//! lacks, from the store. What becomes visible meanwhile is merged with them: a fill that had to
//! begin again at each change would never end.
//!
//! A collection that has all its elements here can have them in the order of its type, too, from
//! the first command on that asks for it ([`Indexed`]). Of a long one memory can have all elements
//! from a name on: XADD needs only the newest entry.

mod filling;
mod indexed;
mod writes;

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use indexmap::IndexMap;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::hot::{At, Budget};
use super::write::Write;
use crate::model::{ElementName, Item, Sought, Tree, Value};
use crate::store::key_hash;

pub(super) use self::filling::InOrder;
pub use self::indexed::{Indexed, Order, Ranked};
use self::writes::UnderWayWrites;
pub use self::writes::Writes;

const SHARDS: usize = 16;
/// What an element costs besides its name and value, bytes (measured roughly).
const OVERHEAD: usize = 160;
/// Removed elements are looked through for those whose removal the store has by now when there are
/// this many, and when they have doubled since.
const PART: usize = 1_024;
/// The most collections that one insert looks at to make room.
const EVICTION_STEPS: usize = 4;

/// An element in memory.
#[derive(Clone, Debug)]
pub struct Held {
    /// Of the name. It comes first in the order: comparisons seldom look at the name, and the order
    /// is that of HSCAN's cursor.
    hash: u64,
    pub name: Arc<[u8]>,
    /// [`Value::Element`], or why it cannot be read.
    pub value: Value,
    /// The record that it comes from; of a write under way `u64::MAX`.
    pub offset: u64,
}

impl Item for Held {
    fn order(&self, other: &Held) -> Ordering {
        (self.hash, &self.name).cmp(&(other.hash, &other.name))
    }

    fn key(&self) -> u64 {
        self.hash
    }

    /// When it expires.
    fn mark(&self) -> u64 {
        self.value.due().unwrap_or(u64::MAX)
    }
}

impl Held {
    pub fn new(name: &[u8], value: Value, offset: u64) -> Held {
        Held {
            hash: key_hash(name),
            name: name.into(),
            value,
            offset,
        }
    }

    /// To seek the element of this name.
    pub fn named(name: &[u8]) -> impl Sought<Held> {
        NameSought {
            hash: key_hash(name),
            name,
        }
    }

    /// As [`Held::named`], for what is before all names with this hash.
    pub fn from_hash(hash: u64) -> impl Fn(&Held) -> Ordering {
        move |held| held.hash.cmp(&hash).then(Ordering::Greater)
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// True if it is there at this time (milliseconds since the epoch).
    pub fn is_live(&self, now: u64) -> bool {
        self.value.is_live(now)
    }

    fn weight(&self) -> usize {
        OVERHEAD + self.name.len() + self.value.bytes()
    }
}

struct NameSought<'n> {
    hash: u64,
    name: &'n [u8],
}

impl Sought<Held> for NameSought<'_> {
    fn key(&self) -> Option<u64> {
        Some(self.hash)
    }

    fn relation(&self, held: &Held) -> Ordering {
        (held.hash, &held.name[..]).cmp(&(self.hash, self.name))
    }
}

/// Writes under way of one element, oldest first, with the item's place in each.
type UnderWay = SmallVec<[(Arc<Write>, usize); 1]>;

/// What memory has of one collection.
#[derive(Default)]
struct Loaded {
    /// All elements are here whose names are not lower than this. `None`: some may be missing.
    from: Option<Box<[u8]>>,
    shown: Indexed,
    /// Removed elements, with the offsets of their tombstones.
    gone: HashMap<Box<[u8]>, u64, foldhash::fast::RandomState>,
    under_way: HashMap<Box<[u8]>, UnderWay, foldhash::fast::RandomState>,
    /// Each of these writes once.
    writes: UnderWayWrites,
    /// `shown` with what is under way. Made for the first reader of all elements, and then kept up
    /// to date until nothing is under way.
    ahead: Option<Indexed>,
    /// Readers that are filling in the rest, or putting all in order.
    fills: u32,
    /// Readers that are putting all in order, and what has changed since the first of them began.
    makers: u32,
    changed: HashSet<Box<[u8]>>,
    /// Of the newest record that was taken in: its partition, and the offset after it.
    partition: u32,
    newest: u64,
    /// Grows when all is forgotten: a fill that began before is of no use.
    epoch: u64,
    /// The store had everything below this offset when this was last changed.
    stored: u64,
    /// When it is next looked through, see [`PART`].
    purge_at: usize,
    /// It was used since the eviction last passed.
    touched: bool,
}

#[derive(Default)]
struct Shard {
    /// By the part of the elements' record keys that ends with the version.
    collections: IndexMap<Box<[u8]>, Loaded, foldhash::fast::RandomState>,
    hand: usize,
}

/// What memory knows of one element.
pub(super) enum Known {
    /// The element, if there is one, and the write under way that it comes from.
    Here(Option<Held>, Option<Arc<Write>>),
    /// The store has it, or nobody.
    Unknown,
}

/// All elements of a collection.
pub struct All {
    pub elements: Indexed,
    /// The writes under way that it comes from, oldest first.
    pub depends: Writes,
}

/// The elements of the split collections of one database.
pub(super) struct Elements {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::fast::RandomState,
    budget: Arc<Budget>,
}

/// Whether one of these elements has not expired at this time.
pub fn has_live(tree: &Tree<Held>, now: u64) -> bool {
    match tree.least_mark() > now {
        true => !tree.is_empty(),
        false => tree.iter().any(|held| held.is_live(now)),
    }
}

/// The collection of an element's record, as the shards name it, and the element's name.
pub(super) fn split(record_key: &[u8]) -> (&[u8], &[u8]) {
    let sub_key = ElementName::parse(record_key).map_or(0, |name| name.sub_key.len());
    record_key.split_at(record_key.len() - sub_key)
}

impl Elements {
    pub fn new(budget: Arc<Budget>) -> Elements {
        Elements {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Default::default(),
            budget,
        }
    }

    fn shard(&self, prefix: &[u8]) -> MutexGuard<'_, Shard> {
        self.shards[self.hasher.hash_one(prefix) as usize % SHARDS].lock()
    }

    /// The newest state of an element. Writes under way count only with `pending`.
    pub fn get(&self, record_key: &[u8], pending: bool) -> Known {
        let (prefix, name) = split(record_key);
        let mut shard = self.shard(prefix);
        let Some(loaded) = shard.collections.get_mut(prefix) else {
            return Known::Unknown;
        };
        loaded.touched = true;
        if pending && let Some((write, item)) = loaded.under_way.get(name).and_then(|writes| writes.last()) {
            let held = write.items[*item].element_value();
            let held = held.map(|value| Held::new(name, value, u64::MAX));
            return Known::Here(held, Some(write.clone()));
        }
        match loaded.shown.by_name().get(Held::named(name)) {
            Some(held) => Known::Here(Some(held.clone()), None),
            None if loaded.covers(name) || loaded.gone.contains_key(name) => Known::Here(None, None),
            None => Known::Unknown,
        }
    }

    /// The write under way that gives this element this value, if there is one.
    pub fn written_by(&self, record_key: &[u8], value: Option<&Value>) -> Option<Arc<Write>> {
        let (prefix, name) = split(record_key);
        let shard = self.shard(prefix);
        let writes = shard.collections.get(prefix)?.under_way.get(name)?;
        let gives = |(write, item): &&(Arc<Write>, usize)| write.items[*item].element_value().as_ref() == value;
        writes.iter().find(gives).map(|(write, _)| write.clone())
    }

    /// Whether a collection has an element that has not expired at this time; `None` if the store
    /// has to be asked.
    pub fn has_live(&self, prefix: &[u8], pending: bool, now: u64) -> Option<bool> {
        let mut shard = self.shard(prefix);
        let loaded = shard.collections.get_mut(prefix)?;
        let is_complete = loaded.covers(b"");
        let shown = loaded.shown.by_name();
        if shown.least_mark() > now && shown.len() > loaded.under_way.len() {
            // At least one of them is not being removed.
            return Some(true);
        }
        let mut newest = loaded.under_way.values().filter_map(|writes| writes.last());
        let is_live = |(write, item): &(Arc<Write>, usize)| {
            let value = write.items[*item].element_value();
            value.is_some_and(|value| value.is_live(now))
        };
        if pending && newest.any(is_live) {
            return Some(true);
        }
        let elements = loaded.elements(pending);
        drop(shard);
        let has = has_live(elements.by_name(), now);
        (has || is_complete).then_some(has)
    }

    /// A write of some element that is under way.
    pub fn under_way(&self, prefix: &[u8]) -> Option<Arc<Write>> {
        let shard = self.shard(prefix);
        let writes = shard.collections.get(prefix)?.writes.all();
        writes.iter().next().cloned()
    }

    /// The offset after the newest record that memory has of a collection, or 0. It changes with
    /// each change of the collection.
    pub fn newest(&self, prefix: &[u8]) -> u64 {
        self.shard(prefix)
            .collections
            .get(prefix)
            .map_or(0, |loaded| loaded.newest)
    }

    /// A write of these elements, which are its items from `first` on, was handed to the log. They
    /// are all of one collection, so that a reader sees all of them or none.
    pub fn pend<'k>(&self, record_keys: impl Iterator<Item = &'k [u8]>, write: &Arc<Write>, first: usize) {
        let mut record_keys = record_keys.map(split).peekable();
        let Some(&(prefix, _)) = record_keys.peek() else {
            return;
        };
        let mut shard = self.shard(prefix);
        let loaded = shard.of(prefix);
        for (item, (_, name)) in (first..).zip(record_keys) {
            let writes = loaded.under_way.entry(name.into()).or_default();
            writes.push((write.clone(), item));
            loaded.writes.add(write);
            loaded.refresh(name);
        }
    }

    /// The write has ended: with its place in the log and the value if it was acknowledged. Returns
    /// true if that is newer than what was known. `stored`: the store has everything below this
    /// offset.
    pub fn resolve(
        &self,
        record_key: &[u8],
        write: &Arc<Write>,
        acknowledged: Option<(At, Option<Value>)>,
        stored: u64,
    ) -> bool {
        let (prefix, name) = split(record_key);
        let mut shard = self.shard(prefix);
        let loaded = shard.of(prefix);
        loaded.stored = loaded.stored.max(stored);
        loaded.end_under_way(name, write);
        let is_new = acknowledged.is_some_and(|(at, value)| self.merge(loaded, name, at, value));
        loaded.refresh(name);
        match loaded.is_unused() {
            true => drop(shard.collections.swap_remove(prefix)),
            false => self.tidy(&mut shard, prefix, stored),
        }
        is_new
    }

    /// The applier has read this record. Without `insert`, only a collection that is here is
    /// changed. Returns false if the record was known.
    pub fn apply(&self, record_key: &[u8], at: At, value: Option<Value>, insert: bool, stored: u64) -> bool {
        let (prefix, name) = split(record_key);
        let mut shard = self.shard(prefix);
        if !insert && !shard.collections.contains_key(prefix) {
            return true;
        }
        let loaded = shard.of(prefix);
        loaded.stored = loaded.stored.max(stored);
        let is_new = self.merge(loaded, name, at, value);
        loaded.refresh(name);
        self.tidy(&mut shard, prefix, stored);
        is_new
    }

    /// Keeps a record if it is the newest of its element. What the store has by now is known, be it
    /// that it is not here any more: a writer can hear of its record late.
    fn merge(&self, loaded: &mut Loaded, name: &[u8], at: At, value: Option<Value>) -> bool {
        let is_news = match loaded.known(name) {
            Some(known) => known < at.offset,
            None => at.offset >= loaded.stored,
        };
        if is_news {
            // What comes from the store is no change.
            loaded.newest = loaded.newest.max(at.offset + 1);
            self.keep(loaded, name, at, value);
        }
        is_news
    }

    fn keep(&self, loaded: &mut Loaded, name: &[u8], at: At, value: Option<Value>) {
        let At { partition, offset } = at;
        loaded.partition = partition;
        if loaded.makers > 0 {
            loaded.changed.insert(name.into());
        }
        let place = loaded.shown.weight_of_place();
        let old = match value {
            Some(value) => {
                loaded.gone.remove(name);
                let held = Held::new(name, value, offset);
                self.budget.used.fetch_add(held.weight() + place, Relaxed);
                loaded.shown.insert(held)
            }
            None => {
                loaded.gone.insert(name.into(), offset);
                loaded.shown.remove(name)
            }
        };
        self.release(old.map_or(0, |old| old.weight() + place));
    }

    fn release(&self, weight: usize) {
        self.budget.used.fetch_sub(weight, Relaxed);
    }

    /// Forgets removals that the store has. Evicts a collection if memory is used up. `stored`: the
    /// store has everything below this offset of the collection's partition.
    fn tidy(&self, shard: &mut Shard, prefix: &[u8], stored: u64) {
        let Some(loaded) = shard.collections.get_mut(prefix) else {
            return;
        };
        let partition = loaded.partition;
        if loaded.gone.len() >= loaded.purge_at.max(PART) && loaded.fills == 0 {
            loaded.forget_gone();
            loaded.purge_at = loaded.gone.len() * 2;
        }
        let limit = self.budget.limit.load(Relaxed);
        for _ in 0..EVICTION_STEPS {
            if self.budget.used.load(Relaxed) <= limit || shard.collections.is_empty() {
                return;
            }
            self.evict_next(
                shard,
                At {
                    partition,
                    offset: stored,
                },
            );
        }
    }

    /// Forgets what the store has.
    fn forget_stored(&self, loaded: &mut Loaded) {
        let stored = loaded.stored;
        loaded.forget_gone();
        if loaded.shown.by_name().iter().all(|held| held.offset >= stored) {
            return;
        }
        loaded.from = None;
        self.release(loaded.shown.weight_of_order());
        let is_stored = |held: &&Held| held.offset < stored;
        let all = loaded.shown.by_name();
        self.release(all.iter().filter(is_stored).map(Held::weight).sum());
        let left = all.iter().filter(|held| !is_stored(held));
        // They have no order any more.
        loaded.shown = left.cloned().collect();
    }

    /// Takes from the next collection what the store has: of one partition everything before
    /// `stored`, else what was known when the collection was last changed.
    fn evict_next(&self, shard: &mut Shard, stored: At) {
        let hand = shard.hand % shard.collections.len();
        shard.hand = hand + 1;
        let Some((_, loaded)) = shard.collections.get_index_mut(hand) else {
            return;
        };
        if std::mem::take(&mut loaded.touched) || loaded.fills > 0 || !loaded.under_way.is_empty() {
            return;
        }
        if loaded.partition == stored.partition {
            loaded.stored = loaded.stored.max(stored.offset);
        }
        self.forget_stored(loaded);
        self.budget.evicted.fetch_add(1, Relaxed);
        if loaded.is_unused() {
            shard.collections.swap_remove_index(hand);
        }
    }

    /// A flush has hidden the states before this place in the log, and so the heads of these
    /// collections. What is under way stays.
    pub fn forget_hidden(&self, flush: At) {
        self.forget_some(|loaded| loaded.partition == flush.partition && loaded.newest <= flush.offset);
    }

    /// The committed states are those of another topic. What is under way stays.
    pub fn forget_all(&self) {
        self.forget_some(|_| true);
    }

    fn forget_some(&self, goes: impl Fn(&Loaded) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.collections.retain(|_, loaded| {
                let goes = goes(loaded);
                if goes {
                    self.release(loaded.shown.weight());
                    loaded.shown = Indexed::default();
                    loaded.gone.clear();
                    loaded.from = None;
                    loaded.ahead = None;
                    loaded.epoch += 1;
                }
                !goes || loaded.fills > 0 || !loaded.under_way.is_empty()
            });
        }
    }

    /// Forgets a collection that has lost its head.
    pub fn forget(&self, prefix: &[u8]) {
        let mut shard = self.shard(prefix);
        let is_free = |loaded: &Loaded| loaded.fills == 0 && loaded.under_way.is_empty();
        if shard.collections.get(prefix).is_some_and(is_free) {
            let loaded = shard.collections.swap_remove(prefix);
            // It can be large.
            drop(shard);
            self.release(loaded.map_or(0, |loaded| loaded.shown.weight()));
        }
    }
}

impl Shard {
    fn of(&mut self, prefix: &[u8]) -> &mut Loaded {
        if !self.collections.contains_key(prefix) {
            self.collections.insert(prefix.into(), Loaded::default());
        }
        self.collections.get_mut(prefix).expect("it was inserted")
    }
}

impl Loaded {
    /// Whether all elements from this name on are here.
    fn covers(&self, from: &[u8]) -> bool {
        self.from.as_ref().is_some_and(|covered| covered[..] <= *from)
    }

    /// What is here; with `pending` also what is under way, if it is known what is missing.
    fn elements(&mut self, pending: bool) -> Indexed {
        if pending && self.from.is_some() && !self.under_way.is_empty() {
            if self.ahead.is_none() {
                self.look_ahead();
            }
            return self.ahead.clone().unwrap_or_default();
        }
        self.shown.clone()
    }

    /// True if nothing of it is here.
    fn is_unused(&self) -> bool {
        self.shown.by_name().is_empty() && self.gone.is_empty() && self.under_way.is_empty() && self.fills == 0
    }

    fn all(&mut self, pending: bool) -> All {
        All {
            elements: self.elements(pending),
            depends: if pending {
                self.writes.all().clone()
            } else {
                Writes::default()
            },
        }
    }

    /// The write has ended, and with it what it does to this element.
    fn end_under_way(&mut self, name: &[u8], write: &Arc<Write>) {
        let Some(writes) = self.under_way.get_mut(name) else {
            return;
        };
        let before = writes.len();
        writes.retain(|(other, _)| !Arc::ptr_eq(other, write));
        let ended = before - writes.len();
        if writes.is_empty() {
            self.under_way.remove(name);
        }
        self.writes.end(write, ended);
    }

    fn forget_gone(&mut self) {
        let stored = self.stored;
        self.gone.retain(|_, offset| *offset >= stored);
    }

    /// The newest record of an element that is here.
    fn known(&self, name: &[u8]) -> Option<u64> {
        let shown = self.shown.by_name().get(Held::named(name)).map(|held| held.offset);
        shown.max(self.gone.get(name).copied())
    }

    /// The newest state of an element, with what is under way.
    fn newest_of(&self, name: &[u8]) -> Option<Held> {
        match self.under_way.get(name).and_then(|writes| writes.last()) {
            Some((write, item)) => {
                let value = write.items[*item].element_value()?;
                Some(Held::new(name, value, u64::MAX))
            }
            None => self.shown.by_name().get(Held::named(name)).cloned(),
        }
    }

    /// Brings one element up to date in what is ahead.
    fn refresh(&mut self, name: &[u8]) {
        if self.under_way.is_empty() || self.from.is_none() {
            self.ahead = None;
        }
        if let Some(mut ahead) = self.ahead.take() {
            self.bring_up_to_date(&mut ahead, name);
            self.ahead = Some(ahead);
        }
    }

    fn bring_up_to_date(&self, ahead: &mut Indexed, name: &[u8]) {
        match self.newest_of(name) {
            Some(held) => drop(ahead.insert(held)),
            None => drop(ahead.remove(name)),
        }
    }

    /// Makes what is ahead from all that is shown and under way.
    fn look_ahead(&mut self) {
        let mut ahead = self.shown.clone();
        for name in self.under_way.keys() {
            self.bring_up_to_date(&mut ahead, name);
        }
        self.ahead = Some(ahead);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::filling::Making;
    use super::*;
    use crate::model::{Element, Version};

    const NAMES: u8 = 12;

    #[derive(Clone, Debug)]
    enum Step {
        /// A record comes into the log: a value, or a removal.
        Append(u8, Option<u8>),
        /// Its writer hears of it, in any order.
        Acknowledge(usize),
        /// The applier reads the next ones.
        Apply(usize),
        /// The store takes in what was applied.
        Store,
        Fill,
        /// The store is read, and the fill ends.
        Complete,
        /// A reader begins to put all in order.
        Order,
        /// It is done.
        Ordered,
        Evict,
        Check,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..NAMES, prop::option::weighted(0.7, any::<u8>())).prop_map(|(name, value)| Step::Append(name, value)),
            4 => any::<usize>().prop_map(Step::Acknowledge),
            4 => (1usize..4).prop_map(Step::Apply),
            1 => Just(Step::Store),
            1 => Just(Step::Fill),
            1 => Just(Step::Complete),
            1 => Just(Step::Order),
            1 => Just(Step::Ordered),
            1 => Just(Step::Evict),
            2 => Just(Step::Check),
        ]
    }

    fn at(offset: u64) -> At {
        At { partition: 0, offset }
    }

    fn value(byte: u8) -> Value {
        Value::Element(Element::new(&f64::from(byte).to_be_bytes(), None))
    }

    fn byte(held: &Held) -> u8 {
        let Value::Element(element) = &held.value else {
            panic!("no element")
        };
        element.score().expect("a score") as u8
    }

    /// The state after these records.
    fn state<'r>(records: impl Iterator<Item = &'r (u8, Option<u8>)>) -> BTreeMap<u8, u8> {
        let mut state = BTreeMap::new();
        for (name, value) in records {
            match value {
                Some(value) => drop(state.insert(*name, *value)),
                None => drop(state.remove(name)),
            }
        }
        state
    }

    proptest! {
        /// Memory and store together show the newest of what was acknowledged or applied.
        #[test]
        fn nothing_is_lost_and_nothing_comes_back(steps in prop::collection::vec(step(), 1..150)) {
            let budget = Arc::new(Budget::default());
            budget.limit.store(usize::MAX, Relaxed);
            let elements = Elements::new(budget.clone());
            let prefix = ElementName::prefix(b"h", Version::new(0));
            let key = |name: u8| [&prefix[..], &[name]].concat();
            let mut log: Vec<(u8, Option<u8>)> = Vec::new();
            let mut acknowledged: Vec<bool> = Vec::new();
            let (mut applied, mut stored) = (0, 0);
            let mut fill = None;
            let mut making: Option<Making> = None;
            for step in steps {
                let show = |offset: usize, stored: usize, log: &[(u8, Option<u8>)]| {
                    let (name, to) = log[offset];
                    elements.apply(&key(name), at(offset as u64), to.map(value), true, stored as u64);
                };
                match step {
                    Step::Append(name, to) => {
                        log.push((name, to));
                        acknowledged.push(false);
                    }
                    Step::Acknowledge(which) if !log.is_empty() => {
                        let which = which % log.len();
                        acknowledged[which] = true;
                        show(which, stored, &log);
                    }
                    Step::Apply(count) => {
                        for _ in 0..count.min(log.len() - applied) {
                            show(applied, stored, &log);
                            applied += 1;
                        }
                    }
                    Step::Store => stored = applied,
                    Step::Fill => fill = Some(elements.fill(&prefix, at(stored as u64))),
                    Step::Complete => {
                        if let Some(fill) = fill.take() {
                            let mut newest: BTreeMap<u8, (u64, Option<u8>)> = BTreeMap::new();
                            for (offset, (name, to)) in log[..stored].iter().enumerate() {
                                newest.insert(*name, (offset as u64, *to));
                            }
                            let found = newest.into_iter().filter_map(|(name, (offset, to))| {
                                Some(Held::new(&[name], value(to?), offset))
                            });
                            prop_assert!(fill.complete(found.collect(), b"", false).is_some());
                        }
                    }
                    Step::Order => {
                        if let Some(InOrder::ToMake(begun)) = elements.in_order(&prefix, (Order::Score, b""), at(stored as u64), false) {
                            making = Some(begun);
                        }
                    }
                    Step::Ordered => {
                        if let Some(mut making) = making.take() {
                            making.put_in_order();
                            let all = making.complete(false).expect("nothing was forgotten");
                            prop_assert!(all.elements.in_order(Order::Score).is_some());
                        }
                    }
                    Step::Evict => {
                        budget.limit.store(0, Relaxed);
                        for shard in &elements.shards {
                            let mut shard = shard.lock();
                            for _ in 0..2 * shard.collections.len() {
                                if shard.collections.is_empty() {
                                    break;
                                }
                                elements.evict_next(&mut shard, at(stored as u64));
                            }
                        }
                        budget.limit.store(usize::MAX, Relaxed);
                    }
                    Step::Acknowledge(_) | Step::Check => {
                        let known = log.iter().enumerate();
                        let known = known.filter(|(offset, _)| *offset < applied || acknowledged[*offset]);
                        let expected = state(known.map(|(_, record)| record));
                        let in_store = state(log[..stored].iter());
                        for name in 0..NAMES {
                            let found = match elements.get(&key(name), false) {
                                Known::Here(held, _) => held.as_ref().map(byte),
                                Known::Unknown => in_store.get(&name).copied(),
                            };
                            prop_assert_eq!(found, expected.get(&name).copied());
                        }
                        if let Some(all) = elements.all(&prefix, b"", false) {
                            let all = all.elements;
                            let tree = all.by_name().iter().map(|held| (held.name[0], byte(held)));
                            prop_assert_eq!(tree.collect::<BTreeMap<u8, u8>>(), expected.clone());
                            if let Some(ordered) = all.in_order(Order::Score) {
                                let ordered = ordered.iter().map(|ranked| (ranked.score as u8, ranked.name[0]));
                                let expected = expected.iter().map(|(name, score)| (*score, *name));
                                let expected: BTreeSet<(u8, u8)> = expected.collect();
                                prop_assert!(ordered.eq(expected));
                            }
                        }
                    }
                }
            }
            drop((fill, making));
            elements.forget_all();
            prop_assert_eq!(budget.used.load(Relaxed), 0);
        }
    }
}
