//! How a command reads and writes. It is a function over a [`Transaction`], computed under its
//! keys' locks on the newest state. It may be computed again: if a version that it rested on
//! failed, or if on Kafka another writer came first. Nothing is handed to the log before the
//! function has returned without a fault. Then all its records go as one batch.
//!
//! A function that takes long must not hold up others ([`Pace`]). It is computed away from the
//! threads that serve connections, and locks nothing meanwhile: it watches the keys that it reads.
//! When it is done, its keys are locked. If one of them has changed, it is computed again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::RwLockReadGuard;
use smallvec::SmallVec;

use super::flushed::Flushed;
use super::hot::At;
use super::stripes::{Held, Hold, Taken};
use super::together::{Place, Together};
use super::watch::{Changed, Watches};
use super::write::{Item, Outstanding, Write};
use super::{Database, Service, now_ms};
use crate::log::record::HEADER_BYTES;
use crate::log::{Completion, Condition, Read, TopicPartition};
use crate::model::{Collection, Entry, Packed, State, Value, is_reserved};
use crate::store::{Scanned, StoreError};

/// From this many items on, a transaction finds its own writes by a map instead of a linear search.
const LINEAR: usize = 8;

/// Bytes that a transaction may go through on a thread that serves connections: about a
/// millisecond's work.
pub const SHORT_WORK: usize = 4 << 20;
/// Bytes above which a transaction counts as one that takes seconds.
const LARGE_WORK: usize = 1 << 30;
/// What a read from the store counts as work, in bytes.
pub(super) const STORE_READ: usize = 16 << 10;

/// Why the computation of a command did not complete.
#[derive(Clone)]
pub enum Fault {
    /// The reply is this error: a code word, a space, a text.
    Error(Bytes),
    /// Wait, then compute again.
    Wait(Wait),
}

/// What has to happen before a command can be computed.
#[derive(Clone)]
pub enum Wait {
    /// This write must have ended: the command's outcome depends on it, and the log cannot chain
    /// the two.
    Write(Arc<Write>),
    /// All writes of this connection must have ended: the log takes what follows by another lane,
    /// which could be faster.
    Own,
    /// The database's topic must be created.
    CreateDatabase(u16),
    /// The database's topic must name this feature of the format.
    Feature(u16, &'static str),
    /// The store must take in what was acknowledged: too much is in memory only.
    Room(Size),
    /// This node is not serving, or was not serving all the time. The command may have read a store
    /// that is being filled.
    Loading,
    /// The command takes longer than its thread has time for. It has to be computed elsewhere, when
    /// it has a turn.
    Turn(Turn),
    /// A long computation holds the lock of a key.
    Locked(Taken),
    /// A key that the command read has changed while it was computed.
    Changed,
}

/// How much a transaction writes. Large writes leave half of `max_unstored_bytes` to small ones,
/// which would otherwise have to wait until the store has taken the large ones in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

/// Where a transaction is computed. Few long ones run at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// On a thread that serves connections.
    #[default]
    Short,
    /// Elsewhere, for a fraction of a second.
    Large,
    /// Elsewhere, for as long as it takes.
    Long,
}

impl Turn {
    /// Bytes that a transaction may go through in this turn.
    pub(super) fn work(self) -> usize {
        match self {
            Turn::Short => SHORT_WORK,
            Turn::Large => LARGE_WORK,
            Turn::Long => usize::MAX,
        }
    }
}

/// How a transaction is computed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    pub turn: Turn,
    /// Even a long transaction keeps its keys locked while it is computed, so that it comes to an
    /// end.
    pub locked: bool,
}

impl Pace {
    fn is_long(self) -> bool {
        self.turn > Turn::Short
    }

    fn hold(self) -> Hold {
        if self.is_long() { Hold::Long } else { Hold::Short }
    }

    /// True if the keys are watched while it is computed, and locked only after that.
    fn watches(self) -> bool {
        self.is_long() && !self.locked
    }
}

impl Fault {
    pub fn error(text: impl Into<Bytes>) -> Self {
        Fault::Error(text.into())
    }
}

impl From<&'static str> for Fault {
    fn from(text: &'static str) -> Self {
        Fault::error(text)
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Fault::error(text)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            // The applier will notice the damage.
            StoreError::Damaged { .. } => Fault::error(format!("LOADING rebuilding the local store: {error}")),
            StoreError::Larger => Fault::Wait(Wait::Turn(Turn::Large)),
            error => Fault::error(format!("ERR the local store cannot be read: {error}")),
        }
    }
}

/// The error of a command on a key that holds something else.
pub const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// Which states a transaction sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Committed states: for reads of a connection that has no writes under way.
    Committed,
    /// Writes under way too; the reply then waits for them. For reads after own writes.
    Pending,
    /// As `Pending`, for commands that may write.
    Update,
}

/// Keys that are locked while a transaction is computed.
pub enum Keys<'k> {
    /// Only reads, of at most one key.
    Unlocked,
    /// Only reads, of these keys, which must be seen as they are at one moment.
    Together(&'k [Place<'k>]),
    Some(&'k [&'k [u8]]),
    All,
}

/// A transaction that was computed.
pub struct Computed<T> {
    pub value: T,
    /// Its write under way, if it wrote anything.
    pub write: Option<Arc<Write>>,
    /// Writes of others, or earlier writes of this connection, that it was computed on.
    pub depends: SmallVec<[Arc<Write>; 1]>,
    pub lookups: Lookups,
}

impl<T> Computed<T> {
    /// The same with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Computed<U> {
        Computed {
            value: f(self.value),
            write: self.write,
            depends: self.depends,
            lookups: self.lookups,
        }
    }
}

/// Number of keys found and not found, among those that count as read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookups {
    pub hits: u64,
    pub misses: u64,
}

/// Bytes that one transaction may write: keys, values and [`RECORD_BYTES`] for each record. A
/// command of a few bytes can make a value of megabytes.
const MAX_BYTES: usize = 256 << 20;
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
    /// Place in `items` of each key, once there are more than [`LINEAR`].
    places: HashMap<(u16, Bytes), usize>,
    depends: SmallVec<[Arc<Write>; 1]>,
    flushed: SmallVec<[u16; 1]>,
    /// The reads that its outcome rests on, if others write to the log too.
    reads: Vec<Read>,
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

/// Keys that are watched until this is dropped.
struct Watching<'s> {
    service: &'s Service,
    /// Which changes are watched for: new states that are handed to the log, or that become
    /// visible.
    of: fn(&Database) -> &Watches,
    changed: Arc<Changed>,
    keys: Vec<(u16, Bytes)>,
}

impl<'s> Watching<'s> {
    fn watch(&mut self, database: u16, key: &[u8]) {
        let key = Bytes::copy_from_slice(key);
        let watches = (self.of)(&self.service.databases[database as usize]);
        watches.watch(key.clone(), &self.changed);
        self.keys.push((database, key));
    }

    fn check(&self) -> Result<(), Fault> {
        match self.changed.load(Ordering::SeqCst) {
            true => Err(Fault::Wait(Wait::Changed)),
            false => Ok(()),
        }
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        for of_one in self.keys.chunk_by(|(a, _), (b, _)| a == b) {
            let watches = (self.of)(&self.service.databases[of_one[0].0 as usize]);
            watches.unwatch(of_one.iter().map(|(_, key)| &key[..]), &self.changed);
        }
    }
}

/// What does not change until this is dropped: the keys, for a transaction that writes them, or
/// what is visible, for one that only reads.
#[derive(Default)]
struct Locked<'s> {
    _stripes: Held<'s>,
    _groups: Option<RwLockReadGuard<'s, ()>>,
}

impl Keys<'_> {
    fn lock<'s>(&self, service: &'s Service, pace: Pace) -> Result<Locked<'s>, Fault> {
        let stripes = match self {
            Keys::Unlocked | Keys::Together(_) => Ok(Held::default()),
            Keys::Some(keys) => service.stripes.lock(keys.iter().copied(), pace.hold()),
            Keys::All => service.stripes.lock_all(pace.hold()),
        };
        Ok(Locked {
            _stripes: stripes.map_err(|taken| Fault::Wait(Wait::Locked(taken)))?,
            _groups: matches!(self, Keys::Together(_)).then(|| service.groups.hold()),
        })
    }

    /// Watches the keys, where they are not locked.
    fn watch<'s>(&self, service: &'s Service) -> Option<Watching<'s>> {
        let of: fn(&Database) -> &Watches = match self {
            Keys::Some(_) => |database| &database.watches,
            Keys::Together(_) => |database| &database.snapshots,
            Keys::Unlocked | Keys::All => return None,
        };
        Some(Watching {
            service,
            of,
            changed: Arc::default(),
            keys: Vec::new(),
        })
    }
}

impl Service {
    /// Computes `f` under the locks of `keys` and hands what it wrote to the log, however long it
    /// takes.
    pub fn transact<T>(
        self: &Arc<Self>,
        owner: &Arc<Outstanding>,
        keys: Keys<'_>,
        view: View,
        f: impl FnOnce(&mut Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<Computed<T>, Fault> {
        let pace = Pace {
            turn: Turn::Long,
            locked: true,
        };
        self.transact_at(pace, owner, keys, view, f)
    }

    /// As [`Service::transact`], at this pace.
    #[expect(clippy::too_many_lines, reason = "it is still to be split")]
    pub fn transact_at<T>(
        self: &Arc<Self>,
        pace: Pace,
        owner: &Arc<Outstanding>,
        keys: Keys<'_>,
        view: View,
        f: impl FnOnce(&mut Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<Computed<T>, Fault> {
        let (epoch, era) = (self.log.epoch(), self.era());
        let together = match keys {
            Keys::Together(keys) => self.together(keys, view != View::Committed, pace.turn)?,
            _ => None,
        };
        let watching = match together {
            None if pace.watches() => keys.watch(self),
            _ => None,
        };
        if matches!(keys, Keys::Some(_)) && watching.is_some() && self.is_behind(Size::Large) {
            // Otherwise it would be computed in vain.
            return Err(Fault::Wait(Wait::Room(Size::Large)));
        }
        let mut locked = match watching.is_some() || together.is_some() {
            true => Locked::default(),
            false => keys.lock(self, pace)?,
        };
        let mut transaction = Transaction {
            service: self,
            view,
            now: now_ms(),
            items: SmallVec::new(),
            bytes: 0,
            places: HashMap::new(),
            depends: SmallVec::new(),
            flushed: SmallVec::new(),
            reads: Vec::new(),
            together,
            lookups: Lookups::default(),
            counts: view != View::Update,
            looked: false,
            turn: pace.turn,
            work: 0,
            watching,
        };
        let computed = f(&mut transaction).and_then(|value| {
            transaction.works(transaction.bytes)?;
            Ok(value)
        });
        if let (Some(watching), Ok(_)) = (&transaction.watching, &computed) {
            locked = keys.lock(self, pace)?;
            watching.check()?;
        }
        if transaction.looked || !transaction.items.is_empty() {
            if !self.has_served_since(era) {
                return Err(Fault::Wait(Wait::Loading));
            }
            // It may have been computed without seeing an earlier write that failed and is going to
            // be computed again.
            if owner.is_unsettled() {
                return Err(Fault::Wait(Wait::Own));
            }
        }
        if matches!(computed, Err(Fault::Error(_))) {
            self.counters.add(transaction.lookups);
        }
        let value = computed?;
        transaction.check_size()?;
        let Transaction {
            items,
            depends,
            reads,
            lookups,
            bytes,
            ..
        } = transaction;
        let write = if items.is_empty() {
            None
        } else {
            let items = self.with_copies(items)?;
            self.admit(&items, bytes)?;
            self.features_for(&items)?;
            let condition = self.condition(owner, &items, reads, &depends)?;
            Some(self.commit(items, owner, epoch, condition))
        };
        drop(locked);
        Ok(Computed {
            value,
            write,
            depends,
            lookups,
        })
    }

    /// The condition under which these items may be written; `None` for a blind write of one key,
    /// and on a log that chains. What a connection writes after a write with a condition takes the
    /// same lane, so that it comes after that write.
    fn condition(
        &self,
        owner: &Outstanding,
        items: &[Item],
        reads: Vec<Read>,
        depends: &[Arc<Write>],
    ) -> Result<Option<Condition>, Fault> {
        let is_blind = match items {
            [Item::Key { database, key, .. }] => {
                let others = self.conditional_writes.load(Ordering::Relaxed) > 0;
                reads.is_empty()
                    && owner.conditional() == 0
                    && !(others && self.databases[*database as usize].hot.is_pending(key))
            }
            _ => false,
        };
        if is_blind || self.log.chains() {
            // If it is blind only because an earlier write has failed just now, it must not get
            // ahead of that write.
            return match owner.is_unsettled() {
                true => Err(Fault::Wait(Wait::Own)),
                false => Ok(None),
            };
        }
        if owner.plain() > 0 {
            return Err(Fault::Wait(Wait::Own));
        }
        let written = match items.len() {
            0 | 1 => Vec::new(),
            _ => self.written_unread(items, &reads)?,
        };
        let before = depends.iter().cloned().chain(owner.last_conditional());
        Ok(Some(Condition {
            reads,
            written,
            rests_on: before.map(|write| write as Arc<dyn Completion>).collect(),
        }))
    }

    /// See [`Condition::written`]. Nothing else orders two such writes over several partitions;
    /// they would be mixed.
    fn written_unread(&self, items: &[Item], reads: &[Read]) -> Result<Vec<Read>, Fault> {
        let key_of = |read: &Read| Some((read.at.database, read.key.clone()?));
        let read: HashSet<(u16, Bytes)> = reads.iter().filter_map(key_of).collect();
        let mut written = Vec::with_capacity(items.len());
        for item in items {
            let Item::Key { database, key, .. } = item else {
                continue;
            };
            if read.contains(&(*database, key.clone())) {
                continue;
            }
            // As in [`Transaction::look`].
            let Some((at, applied)) = self.applied_at_home(*database, key) else {
                continue;
            };
            let (under_way, seen) = self.databases[*database as usize].hot.newest(key);
            if let Some(write) = under_way.filter(|write| !write.conditional && write.outcome().is_none()) {
                return Err(Fault::Wait(Wait::Write(write)));
            }
            written.push(Read {
                at,
                key: Some(key.clone()),
                known: known(at, applied, seen),
            });
        }
        Ok(written)
    }

    /// The key's home, and how far that partition has been applied; `None` while the database has
    /// no topic.
    fn applied_at_home(&self, database: u16, key: &[u8]) -> Option<(TopicPartition, u64)> {
        let partitions = self.databases[database as usize].partitions();
        if partitions.is_empty() {
            return None;
        }
        let partition = self.log.partition(database, key);
        let applied = partitions.get(partition as usize)?.applied.load(Ordering::Acquire);
        Some((TopicPartition { database, partition }, applied))
    }

    /// Checks everything that must hold before records are handed to the log.
    fn admit(&self, items: &[Item], bytes: usize) -> Result<(), Fault> {
        let size = if bytes > SHORT_WORK { Size::Large } else { Size::Small };
        if self.is_behind(size) {
            return Err(Fault::Wait(Wait::Room(size)));
        }
        for item in items {
            let database = item.database();
            self.check_features(database)?;
            let Some(topic) = self.databases[database as usize].topic.get() else {
                return Err(Fault::Wait(Wait::CreateDatabase(database)));
            };
            if topic.read_only {
                return Err(Fault::error(format!(
                    "READONLY database {database} shows topic {} read-only",
                    topic.name
                )));
            }
            if let Item::Key { key, state, .. } = item {
                check_record(key, state.as_ref(), topic.max_record_bytes.load(Ordering::Relaxed))?;
            }
        }
        Ok(())
    }
}

/// The offset below which every record of a key in this partition is known: the partition is
/// applied up to `applied`, and `seen` was read.
pub(super) fn known(at: TopicPartition, applied: u64, seen: Option<At>) -> u64 {
    // Offset 0 also stands for "no record met".
    let newer = seen.filter(|seen| seen.partition == at.partition && seen.offset > 0);
    newer.map_or(applied, |seen| applied.max(seen.offset + 1))
}

fn check_record(key: &Bytes, state: Option<&State>, limit: usize) -> Result<(), Fault> {
    if is_reserved(key) {
        return Err(Fault::error("ERR this key is reserved for the topic's control records"));
    }
    let size = key.len() + HEADER_BYTES + value_bytes(state);
    if size > limit {
        return Err(Fault::error(format!(
            "ERR the record would have {size} bytes, more than the {limit} that the topic takes (max.message.bytes); nothing was written"
        )));
    }
    Ok(())
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
            None => self.lookups.misses += 1,
        }
        Ok(entry)
    }

    /// As [`Transaction::get`]; never counts as read.
    pub fn peek(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
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
        let entry = self.look(database, key, false)?;
        Ok(entry.is_some_and(|entry| entry.is_live(now)))
    }

    /// True if what is written rests on what is read, and others may write at the same time.
    fn is_conditional(&self) -> bool {
        self.view == View::Update && !self.service.log.chains()
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
        // In this order: what is read is at least as new as what was applied before.
        let applied = condition.then(|| self.service.applied_at_home(database, key)).flatten();
        let taken = self.together.as_mut().and_then(|together| together.get(database, key));
        let seen = match taken {
            Some(seen) => seen,
            None => {
                let pending = self.view != View::Committed;
                self.service.read_up_to(database, key, pending, self.turn.work())?
            }
        };
        if seen.from_store {
            self.works(STORE_READ + seen.entry.as_ref().map_or(0, |entry| entry.value.bytes()))?;
        }
        if let Some((at, applied)) = applied {
            let key = Bytes::copy_from_slice(key);
            self.reads.extend(self.service.reads_of_copies(database, &key));
            self.reads.push(Read {
                at,
                key: Some(key),
                known: known(at, applied, seen.at),
            });
        }
        if let Some(write) = seen.depends {
            self.depend_on(write)?;
        }
        Ok(seen.entry)
    }

    /// An error if it writes more than a transaction may. To be called now and then while there is
    /// more to compute.
    pub fn check_size(&self) -> Result<(), Fault> {
        if self.bytes > MAX_BYTES {
            return Err(Fault::error(format!(
                "ERR a transaction can write at most {MAX_BYTES} bytes; nothing was written"
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
        let all = partitions.zip(0..).map(|(progress, partition)| Read {
            at: TopicPartition { database, partition },
            key: None,
            known: progress.stored.load(Ordering::Acquire),
        });
        self.reads.extend(all);
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
        self.items.push(item);
    }

    /// Hides everything in the database. Writes of this transaction that come after it stay.
    pub fn flush(&mut self, database: u16) {
        self.items
            .retain(|item| !matches!(item, Item::Key { database: d, .. } if *d == database));
        self.places.clear();
        for (place, item) in self.items.iter().enumerate() {
            if let Item::Key { database, key, .. } = item {
                self.places.insert((*database, key.clone()), place);
            }
        }
        if !self.flushed.contains(&database) {
            self.flushed.push(database);
            self.items.push(Item::Flush { database });
        }
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
        if write.outcome().is_some() {
            return Ok(());
        }
        if self.is_conditional() && !write.conditional {
            return Err(Fault::Wait(Wait::Write(write)));
        }
        if !self.depends.iter().any(|w| Arc::ptr_eq(w, &write)) {
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
            .position(|item| matches!(item, Item::Key { database: d, key: k, .. } if *d == database && k == key))
    }

    fn own_entry(&self, place: usize) -> Option<Entry> {
        let state = self.items[place].state()?;
        Some(Entry::new(state, 0, u64::MAX, self.now as i64))
    }

    fn write(&mut self, database: u16, key: &[u8], state: Option<State>) {
        self.bytes += value_bytes(state.as_ref());
        if let Some(place) = self.place(database, key) {
            if let Item::Key { state: old, .. } = &mut self.items[place] {
                self.bytes -= value_bytes(old.as_ref());
                *old = state;
            }
            return;
        }
        let key = Bytes::copy_from_slice(key);
        self.bytes += key.len() + RECORD_BYTES;
        if self.items.len() == LINEAR {
            for (place, item) in self.items.iter().enumerate() {
                if let Item::Key { database, key, .. } = item {
                    self.places.insert((*database, key.clone()), place);
                }
            }
        }
        if self.items.len() >= LINEAR {
            self.places.insert((database, key.clone()), self.items.len());
        }
        self.items.push(Item::Key { database, key, state });
    }
}

fn value_bytes(state: Option<&State>) -> usize {
    state.map_or(0, |state| state.value.bytes())
}

impl Entry {
    /// The string, or an error that says why it is not one.
    pub fn string(&self) -> Result<Bytes, Fault> {
        match &self.value {
            Value::String(value) => Ok(value.clone()),
            Value::Packed(_) => Err(WRONG_TYPE.into()),
            Value::Unreadable(reason) => Err(self.unreadable(reason)),
        }
    }

    /// The collection, if it is of this type.
    pub fn packed(&self, of: Collection) -> Result<&Packed, Fault> {
        match &self.value {
            Value::Packed(packed) if packed.of() == of => Ok(packed),
            Value::Packed(_) | Value::String(_) => Err(WRONG_TYPE.into()),
            Value::Unreadable(reason) => Err(self.unreadable(reason)),
        }
    }

    /// The state, of whatever kind, if it can be written again.
    pub fn state(self) -> Result<State, Fault> {
        self.type_name()?;
        Ok(self.into_state())
    }

    /// The type as TYPE returns it.
    pub fn type_name(&self) -> Result<&'static str, Fault> {
        let kept = self.value.kept();
        kept.map(|(of, _)| of.name()).map_err(|reason| self.unreadable(reason))
    }

    /// The error for a record that cannot be read.
    pub fn unreadable(&self, reason: &str) -> Fault {
        Fault::error(format!(
            "ERR the record of this key (partition {}, offset {}) cannot be read: {reason}",
            self.meta.partition, self.meta.offset
        ))
    }
}
