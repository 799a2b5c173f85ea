//! How a command reads and writes. It is a function over a [`Transaction`], computed under its
//! keys' locks on the newest state. It may be computed again: if a version that it rested on
//! failed, or if on Kafka another writer came first. Nothing is handed to the log before the
//! function has returned without a fault. Then all its records go as one batch.
//!
//! A function that takes long must not hold up others ([`Pace`]). It is computed away from the
//! threads that serve connections, and locks nothing meanwhile: it watches the keys that it reads.
//! When it is done, its keys are locked. If one of them has changed, it is computed again.

mod compute;
mod elements;
mod known_elements;
mod moment;
mod whole;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use smallvec::SmallVec;

use self::compute::Watching;
pub(super) use self::compute::known;
pub use self::compute::{Computed, Keys, View};
pub use self::elements::{Taken, element_of, score_of};
pub use self::moment::Moment;
use self::moment::{Known, Reads};
use self::whole::Undo;
use super::Service;
use super::consumers::{ByName, ConsumerNote, GroupName, note};
use super::fault::{Fault, LARGE_WORK, STORE_READ, Turn, Wait};
use super::flushed::Flushed;
use super::notices::{Notes, Notice};
use super::together::Together;
use super::write::{Item, Write};
use crate::log::{Read, TopicPartition};
use crate::model::{Entry, Span, State, Value};
use crate::store::Scanned;

/// From this many items on, a transaction finds its own writes by a map instead of a linear search.
const LINEAR: usize = 8;

/// Number of keys found and not found, among those that count as read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookups {
    pub hits: u64,
    pub misses: u64,
}

/// Bytes that one transaction may write: keys, values and [`RECORD_BYTES`] for each record. A
/// command of a few bytes can make a value of megabytes.
const MAX_BYTES: usize = 256 << 20;
/// The most elements of split collections that one transaction writes: what Kafka can end within
/// the write timeout.
pub const MOST_ELEMENTS: usize = 100_000;
/// The most that one transaction notes of consumers of streams.
const MOST_NOTES: usize = 10_000;
/// What each record counts besides its key and value. On its way to the log and to memory it takes
/// three times as much.
const RECORD_BYTES: usize = 256;

pub struct Transaction<'s> {
    service: &'s Arc<Service>,
    view: View,
    /// The time that this transaction sees, milliseconds since the epoch.
    pub now: u64,
    items: SmallVec<[Item; 1]>,
    /// Bytes of their keys and values.
    bytes: usize,
    /// How many of them are elements.
    elements: usize,
    /// Those of each collection, once there are more than [`LINEAR`] items; by the beginning of
    /// their names.
    own: HashMap<(u16, Bytes), elements::Own>,
    /// Place in `items` of each key, once there are more than [`LINEAR`].
    places: HashMap<(u16, Bytes), usize>,
    depends: SmallVec<[Arc<Write>; 1]>,
    /// The addresses of these, once there are more than [`LINEAR`].
    depended: HashSet<usize>,
    /// Split collections that it has read whole, with its own writes; by the beginning of their
    /// elements' names.
    trees: HashMap<(u16, Bytes), elements::SeenAll>,
    /// Split collections that it makes, named as above.
    begun: SmallVec<[(u16, Bytes); 1]>,
    flushed: SmallVec<[u16; 1]>,
    /// Messages to be sent when the log has what it writes.
    pub messages: Vec<Posted>,
    /// How many messages scripts have published, also those that were refused, and their bytes.
    pub message_count: usize,
    pub message_bytes: usize,
    /// What the command under way does, if that is wanted.
    pub notes: Option<Box<Notes>>,
    /// The events that it makes.
    pub notices: Vec<Notice>,
    /// What is noted of consumers of streams once it has been computed.
    consumer_notes: Vec<(GroupName, ConsumerNote)>,
    /// The reads that its outcome rests on, if others write to the log too.
    reads: Vec<Read>,
    /// Where and of what these are, once there are more than [`LINEAR`].
    noted: HashSet<(TopicPartition, Option<Bytes>, Option<Span>)>,
    /// What a script has read, to be of one moment.
    moment: Option<Reads<'s>>,
    /// How to take back what the command under way has written.
    undo: Option<Undo>,
    /// What was read of its keys before it was computed.
    together: Option<Together<'s>>,
    pub lookups: Lookups,
    /// What [`Transaction::get`] finds counts as read: set for commands that only read.
    pub counts: bool,
    /// A key was looked at.
    looked: bool,
    turn: Turn,
    /// Bytes that it has gone through.
    work: usize,
    /// Keys that it read, if they are not locked.
    watching: Option<Watching<'s>>,
}

/// A message that a script or EXEC publishes.
pub struct Posted {
    /// By SPUBLISH.
    pub shard: bool,
    pub channel: Bytes,
    pub payload: Bytes,
    /// The place of its reply among those of EXEC, if MULTI queued it.
    pub queued: Option<usize>,
}

impl<'s> Transaction<'s> {
    /// True if it sees writes that are under way.
    pub fn sees_pending(&self) -> bool {
        self.view != View::Committed
    }

    pub fn service(&self) -> &'s Service {
        self.service
    }

    /// The key's newest state that is not expired, with this transaction's own writes.
    pub fn get(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        match self.counts {
            true => self.read(database, key),
            false => self.peek(database, key),
        }
    }

    /// As [`Transaction::get`]; counts as read whatever the command is.
    pub fn read(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        let entry = self.peek(database, key)?;
        match entry {
            Some(_) => self.lookups.hits += 1,
            None => {
                self.lookups.misses += 1;
                self.note_missed(database, key);
            }
        }
        Ok(entry)
    }

    /// As [`Transaction::get`]; never counts as read.
    pub fn peek(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        let entry = self.peek_head(database, key)?;
        match &entry {
            // A collection without elements does not exist.
            Some(Entry {
                value: Value::Split(split),
                ..
            }) if !self.has_elements(database, key, split)? => Ok(None),
            _ => Ok(entry),
        }
    }

    /// As [`Transaction::peek`], but a split collection may have no elements any more.
    fn peek_head(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        let now = self.now;
        let entry = self.get_even_expired(database, key)?;
        Ok(entry.filter(|entry| entry.is_live(now)))
    }

    /// As [`Transaction::get`], but an expired key is still seen.
    pub fn get_even_expired(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        self.look(database, key, self.is_conditional())
    }

    /// True if the key exists as far as this node knows. For the reply alone: what is written does
    /// not rest on it.
    pub fn seems_to_exist(&mut self, database: u16, key: &[u8]) -> Result<bool, Fault> {
        let now = self.now;
        let entry = self.look(database, key, false)?.filter(|entry| entry.is_live(now));
        match entry.map(|entry| entry.value) {
            Some(Value::Split(split)) => self.seems_to_have_elements(database, key, &split),
            other => Ok(other.is_some()),
        }
    }

    /// True if what is written rests on what is read, and others may write at the same time.
    fn is_conditional(&self) -> bool {
        self.view == View::Update && !self.service.log.chains()
    }

    /// True if scripts are computed in it, which can decide on what they write by each reply. (Not
    /// on a log that chains: nobody else writes there.)
    pub fn may_decide(&self) -> bool {
        self.moment.is_some()
    }

    /// True if nobody else writes to the log.
    pub fn is_only_writer(&self) -> bool {
        self.service.log.chains()
    }

    /// True if writes of this key have lost against other nodes a short time ago.
    pub fn is_contended(&self, database: u16, key: &[u8]) -> bool {
        self.service.databases[database as usize].contention.is_contended(key)
    }

    /// Notes something of a consumer of a stream, once this has been computed. After
    /// [`MOST_NOTES`] nothing is noted any more: only this node's memory lacks it then.
    pub fn note_consumer(&mut self, group: &GroupName, note: ConsumerNote) {
        let mut newest = self.consumer_notes.iter().rev().take(LINEAR);
        let is_known = newest.any(|(of, known)| of == group && *known == note);
        if !is_known && note.fits(group) && self.consumer_notes.len() < MOST_NOTES {
            self.consumer_notes.push((group.clone(), note));
        }
    }

    /// Whether this node has seen a consumer of a group.
    pub fn has_seen_consumer(&self, group: &GroupName, name: &[u8]) -> bool {
        let notes = self.consumer_notes.iter().rev().filter(|(of, _)| of == group);
        let mut notes = notes.filter_map(|(_, note)| match note {
            ConsumerNote::Seen { consumer, .. } if consumer == name => Some(true),
            ConsumerNote::Gone { consumer } if consumer == name => Some(false),
            ConsumerNote::GroupGone => Some(false),
            ConsumerNote::Seen { .. } | ConsumerNote::Gone { .. } => None,
        });
        notes.next().unwrap_or_else(|| self.service.consumers.has(group, name))
    }

    /// The consumers of a group that this node has seen.
    pub fn consumers(&self, group: &GroupName) -> Arc<ByName> {
        let mut consumers = self.service.consumers.of(group);
        for (_, what) in self.consumer_notes.iter().filter(|(of, _)| of == group) {
            note(Arc::make_mut(&mut consumers), what);
        }
        consumers
    }

    /// Notes that data is read: the result counts only if this node serves all the time.
    pub fn looks(&mut self) {
        self.looked = true;
    }

    /// Counts bytes that the transaction goes through. An error if that is more than its thread has
    /// time for.
    pub fn works(&mut self, bytes: usize) -> Result<(), Fault> {
        self.work = self.work.saturating_add(bytes);
        if self.work > self.turn.work() {
            let turn = if self.work > LARGE_WORK {
                Turn::Long
            } else {
                Turn::Large
            };
            return Err(Fault::Wait(Wait::Turn(turn)));
        }
        // A watched key may have changed: then the result is of no use.
        self.watching.as_ref().map_or(Ok(()), Watching::check)
    }

    fn look(&mut self, database: u16, key: &[u8], condition: bool) -> Result<Option<Entry>, Fault> {
        if let Some(place) = self.place(database, key) {
            return Ok(self.own_entry(place));
        }
        if self.flushed.contains(&database) {
            return Ok(None);
        }
        self.looks();
        self.service.check_features(database)?;
        if let Some(watching) = &mut self.watching {
            watching.watch(database, key);
        }
        let Known { seen, applied } = self.known(database, key, condition)?;
        if seen.from_store {
            self.works(STORE_READ + seen.entry.as_ref().map_or(0, |entry| entry.value.bytes()))?;
        }
        if let Some((at, applied)) = applied.filter(|_| condition) {
            let key = Bytes::copy_from_slice(key);
            let read = Read {
                at,
                key: Some(key.clone()),
                added: None,
                known: known(at, applied, seen.at),
            };
            if self.rests_on(read) {
                self.reads.extend(self.service.reads_of_copies(database, &key));
            }
        }
        if let Some(write) = seen.depends {
            self.depend_on(write)?;
        }
        let mut entry = seen.entry;
        if let Some(Entry { value, .. }) = &mut entry
            && matches!(value, Value::Split(_))
            && self.service.log.loses_records(database)
        {
            *value = Value::Unreadable(
                "its elements have records of their own, and some may be gone: the topic's cleanup.policy deletes"
                    .into(),
            );
        }
        Ok(entry)
    }

    /// Reads a key, or takes what was read before.
    fn known(&mut self, database: u16, key: &[u8], condition: bool) -> Result<Known, Fault> {
        let is_conditional = self.is_conditional();
        if let Some(known) = self.moment.as_ref().and_then(|reads| reads.known(database, key)) {
            return Ok(known);
        }
        self.begin_read(database, key)?;
        // In this order: what is read is at least as new as what was applied before.
        let applied = (condition || is_conditional)
            .then(|| self.service.applied_at_home(database, key))
            .flatten();
        let taken = self.together.as_mut().and_then(|together| together.get(database, key));
        let seen = match taken {
            Some(seen) => seen,
            None => {
                let pending = self.view != View::Committed;
                self.service.read_up_to(database, key, pending, self.turn.work())?
            }
        };
        let known = Known { seen, applied };
        if let Some(reads) = &mut self.moment {
            reads.keep(database, key, &known);
        }
        Ok(known)
    }

    /// Notes what the outcome rests on. What was noted first is the strictest: if that is there
    /// already, nothing is noted, and the result is false.
    pub(super) fn rests_on(&mut self, read: Read) -> bool {
        let is_new = if self.reads.len() < LINEAR {
            let mut reads = self.reads.iter();
            !reads.any(|other| other.at == read.at && other.key == read.key && other.added == read.added)
        } else {
            if self.noted.is_empty() {
                let reads = self.reads.iter();
                self.noted
                    .extend(reads.map(|read| (read.at, read.key.clone(), read.added)));
            }
            self.noted.insert((read.at, read.key.clone(), read.added))
        };
        if is_new {
            self.reads.push(read);
        }
        is_new
    }

    /// How many reads the outcome rests on.
    #[cfg(test)]
    pub fn noted(&self) -> usize {
        self.reads.len()
    }

    fn forget_reads(&mut self) {
        self.reads.clear();
        self.noted.clear();
    }

    /// An error if it writes more than a transaction may. To be called now and then while there is
    /// more to compute.
    pub fn check_size(&self) -> Result<(), Fault> {
        if self.bytes > MAX_BYTES {
            return Err(Fault::error(format!(
                "ERR a transaction can write at most {MAX_BYTES} bytes; nothing was written"
            )));
        }
        if self.elements > MOST_ELEMENTS {
            return Err(Fault::error(format!(
                "ERR a transaction can write at most {MOST_ELEMENTS} elements of collections; nothing was written"
            )));
        }
        Ok(())
    }

    /// Notes that all keys of the database were read, in the store.
    fn look_at_all(&mut self, database: u16) -> Result<(), Fault> {
        self.looks();
        self.service.check_features(database)?;
        if !self.is_conditional() {
            return Ok(());
        }
        let partitions = self.service.databases[database as usize].partitions().iter();
        for (progress, partition) in partitions.zip(0..) {
            self.rests_on(Read {
                at: TopicPartition { database, partition },
                key: None,
                added: None,
                known: progress.stored.load(Ordering::Acquire),
            });
        }
        Ok(())
    }

    /// The string value of a key.
    pub fn get_string(&mut self, database: u16, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let entry = self.get(database, key)?;
        entry.map(|entry| entry.string()).transpose()
    }

    /// As [`Transaction::get_string`]; counts as read whatever the command is.
    pub fn read_string(&mut self, database: u16, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let entry = self.read(database, key)?;
        entry.map(|entry| entry.string()).transpose()
    }

    pub fn exists(&mut self, database: u16, key: &[u8]) -> Result<bool, Fault> {
        Ok(self.get(database, key)?.is_some())
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    /// Gives a library of functions a new text, or deletes it. The record that stands for all
    /// libraries is written once, after them.
    pub(super) fn put_function(&mut self, library: Bytes, text: Option<Bytes>) {
        let of_all = Item::Function {
            library: Bytes::new(),
            text: Some(Bytes::new()),
        };
        let is_of_all = |item: &Item| matches!(item, Item::Function { library, .. } if library.is_empty());
        let item = Item::Function { library, text };
        self.bytes += item.value_bytes() + RECORD_BYTES;
        match self.items.iter().rposition(is_of_all) {
            Some(place) => {
                let old = self.replace(place, item);
                if let Some(undo) = &mut self.undo {
                    undo.replaced(place, old);
                }
            }
            None => {
                self.bytes += RECORD_BYTES;
                self.push(item);
            }
        }
        self.push(of_all);
    }

    /// True if it writes anything.
    pub fn writes(&self) -> bool {
        !self.items.is_empty()
    }

    /// Gives the key a string. `expire_at` is absolute, milliseconds since the epoch.
    pub fn set(&mut self, database: u16, key: &[u8], value: Bytes, expire_at: Option<u64>) {
        self.put(database, key, State::string(value, expire_at));
    }

    /// Gives the key a whole new state.
    pub fn put(&mut self, database: u16, key: &[u8], state: State) {
        self.write(database, key, Some(state));
    }

    pub fn delete(&mut self, database: u16, key: &[u8]) {
        self.write(database, key, None);
    }

    /// Writes a tombstone after a record that a flush has hidden, on the condition that nothing
    /// came after that record. Writes nothing if a later record is known.
    pub(super) fn bury(&mut self, flushed: &Flushed) -> Result<(), Fault> {
        let Flushed { at, key, .. } = flushed;
        if let Some(known) = self.service.known_of_flushed(flushed)? {
            let key = key.clone();
            let read = Read {
                at: *at,
                key: Some(key.clone()),
                added: None,
                known,
            };
            let item = Item::Tombstone {
                database: at.database,
                key,
                partition: at.partition,
            };
            self.add(read, item);
        }
        Ok(())
    }

    /// Writes a record that clients do not see, on this condition.
    pub(super) fn add(&mut self, read: Read, item: Item) {
        self.reads.push(read);
        self.push(item);
    }

    /// Hides everything in the database. Writes of this transaction that come after it stay.
    pub fn flush(&mut self, database: u16) {
        self.items
            .retain(|item| item.name().is_none_or(|(of, _)| of != database));
        self.trees.retain(|(of, _), _| *of != database);
        self.find_by_map();
        if !self.flushed.contains(&database) {
            self.flushed.push(database);
            self.push(Item::Flush { database });
        }
        // Nothing that flushes can fail after it.
        self.undo = None;
    }

    /// Number of keys in the database, including expired ones without a tombstone. It counts what
    /// is in the store: call [`Service::store_caught_up`] first.
    pub fn count(&mut self, database: u16) -> Result<u64, Fault> {
        self.look_at_all(database)?;
        let flushed = self.flushed.contains(&database);
        let mut count = if flushed {
            0
        } else {
            self.service.store.count(database)? as i64
        };
        for item in &self.items {
            if let Item::Key {
                database: d,
                key,
                state,
            } = item
                && *d == database
            {
                let before = !flushed && self.service.read(database, key, true)?.entry.is_some();
                let after = state.is_some();
                count += i64::from(after) - i64::from(before);
            }
        }
        Ok(count.max(0) as u64)
    }

    /// Visits the names of keys that are neither deleted nor expired, in hash order starting at
    /// `from`. Returns where to continue. No value is read: a key is as the store has it (call
    /// [`Service::store_caught_up`] first), or as this transaction left it. `at_least` counts keys
    /// in the store. Keys that this transaction created come with the last part.
    pub fn scan_keys(
        &mut self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<u64>, Fault> {
        self.look_at_all(database)?;
        let live = |expire_at: Option<u64>| expire_at.is_none_or(|at| at > self.now);
        let own = |place| self.own_entry(place).is_some_and(|e| live(e.meta.expire_at));
        let next = if self.flushed.contains(&database) {
            None
        } else {
            let mut meet = |scanned: Scanned<'_>| {
                let place = self.place(database, scanned.key);
                if place.map_or_else(|| live(scanned.meta.expire_at), own) {
                    visit(scanned.key);
                }
            };
            self.service.store.scan(database, from, at_least, &mut meet)?
        };
        if next.is_none() {
            for key in self.created(database)? {
                if self.place(database, &key).is_some_and(own) {
                    visit(&key);
                }
            }
        }
        Ok(next)
    }

    /// Keys that this transaction wrote and that are not in the store.
    fn created(&self, database: u16) -> Result<Vec<Bytes>, Fault> {
        let mut created = Vec::new();
        for item in &self.items {
            if let Item::Key { database: d, key, .. } = item
                && *d == database
                && (self.flushed.contains(&database) || self.service.store.get(database, key)?.is_none())
            {
                created.push(key.clone());
            }
        }
        Ok(created)
    }

    /// Notes a write under way that this transaction was computed on.
    fn depend_on(&mut self, write: Arc<Write>) -> Result<(), Fault> {
        match write.outcome() {
            Some(Ok(())) => return Ok(()),
            // It has failed since it was read: the key holds something else.
            Some(Err(_)) => return Err(Fault::Wait(Wait::Write(write))),
            None if self.is_conditional() && !write.conditional => return Err(Fault::Wait(Wait::Write(write))),
            None => {}
        }
        let address = |write: &Arc<Write>| Arc::as_ptr(write).addr();
        let is_new = match self.depends.len() {
            ..LINEAR => !self.depends.iter().any(|known| Arc::ptr_eq(known, &write)),
            LINEAR.. => {
                if self.depended.is_empty() {
                    self.depended = self.depends.iter().map(address).collect();
                }
                self.depended.insert(address(&write))
            }
        };
        if is_new {
            self.depends.push(write);
        }
        Ok(())
    }

    fn place(&self, database: u16, key: &[u8]) -> Option<usize> {
        if self.items.len() > LINEAR {
            return self.places.get(&(database, Bytes::copy_from_slice(key))).copied();
        }
        self.items
            .iter()
            .position(|item| item.name().is_some_and(|(of, name)| of == database && name == key))
    }

    fn own_entry(&self, place: usize) -> Option<Entry> {
        let state = self.items[place].state()?;
        Some(Entry::new(state, 0, u64::MAX, self.now as i64))
    }

    fn write(&mut self, database: u16, key: &[u8], state: Option<State>) {
        let key = Bytes::copy_from_slice(key);
        self.write_item(Item::Key { database, key, state });
    }

    /// Writes a record in place of the one that it has written under that name, if there is one.
    fn write_item(&mut self, item: Item) {
        if self.notes.is_some() {
            self.note(&item);
        }
        let Some((database, key)) = item.name() else {
            return self.push(item);
        };
        self.bytes += item.value_bytes();
        if let Some(place) = self.place(database, key) {
            self.bytes -= self.items[place].value_bytes();
            let old = self.replace(place, item);
            if let Some(undo) = &mut self.undo {
                undo.replaced(place, old);
            }
            return;
        }
        self.bytes += key.len() + RECORD_BYTES;
        self.elements += usize::from(matches!(item, Item::Element { .. }));
        self.push(item);
    }

    /// Appends a record. From [`LINEAR`] on, the maps hold all of them.
    fn push(&mut self, item: Item) {
        let place = self.items.len();
        if place > LINEAR {
            if let Some((database, key)) = item.name() {
                self.places.insert((database, key.clone()), place);
            }
            self.count_own(&item, true);
        }
        self.items.push(item);
        if place == LINEAR {
            self.find_by_map();
        }
    }

    /// Puts a record in place of another one, which it returns.
    fn replace(&mut self, place: usize, item: Item) -> Item {
        if self.items.len() > LINEAR {
            self.count_own(&self.items[place].clone(), false);
            self.count_own(&item, true);
        }
        std::mem::replace(&mut self.items[place], item)
    }

    /// Makes the maps of its own writes.
    fn find_by_map(&mut self) {
        let items = std::mem::take(&mut self.items);
        self.places.clear();
        self.own.clear();
        for (place, item) in items.iter().enumerate() {
            if let Some((database, key)) = item.name() {
                self.places.insert((database, key.clone()), place);
            }
            self.count_own(item, true);
        }
        self.items = items;
    }
}
