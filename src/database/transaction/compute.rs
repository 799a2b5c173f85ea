//! Computes a transaction under the locks of its keys, or watching them, and hands what it wrote to
//! the log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::RwLockReadGuard;
use smallvec::SmallVec;

use super::moment::{Moment, Reads};
use super::{Lookups, Posted, Transaction};
use crate::database::fault::{Fault, Pace, SHORT_WORK, Size, Turn, Wait};
use crate::database::hot::At;
use crate::database::stripes::Held;
use crate::database::together::Place;
use crate::database::watch::{Changed, Watches};
use crate::database::write::{Item, Outstanding, Write};
use crate::database::{Database, Service, now_ms};
use crate::log::record::HEADER_BYTES;
use crate::log::{Completion, Condition, Read, TopicPartition};
use crate::model::{function_key, is_reserved};

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
    /// Only reads, of keys that only the computation finds. They must be seen as they are at one
    /// moment.
    FoundReads,
    Some(&'k [&'k [u8]]),
    /// As `Some`, but the outcome also rests on keys that only the computation finds. It locks all
    /// keys, unless it watches what it reads.
    SomeAndFound(&'k [&'k [u8]]),
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
    /// Messages to be sent when the log has the write.
    pub messages: Vec<Posted>,
}

impl<T> Computed<T> {
    /// The same with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Computed<U> {
        Computed {
            value: f(self.value),
            write: self.write,
            depends: self.depends,
            lookups: self.lookups,
            messages: self.messages,
        }
    }
}

/// Keys that are watched until this is dropped.
pub(super) struct Watching<'s> {
    service: &'s Service,
    /// Which changes are watched for: new states that are handed to the log, or that become
    /// visible.
    of: fn(&Database) -> &Watches,
    changed: Arc<Changed>,
    /// Each once, however often it is read.
    keys: HashSet<(u16, Bytes)>,
}

impl<'s> Watching<'s> {
    pub(super) fn new(service: &'s Service, of: fn(&Database) -> &Watches) -> Watching<'s> {
        Watching {
            service,
            of,
            changed: Arc::default(),
            keys: HashSet::new(),
        }
    }

    pub(super) fn watch(&mut self, database: u16, key: &[u8]) {
        let key = Bytes::copy_from_slice(key);
        if self.keys.insert((database, key.clone())) {
            let watches = (self.of)(&self.service.databases[database as usize]);
            watches.watch(key, &self.changed);
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &(u16, Bytes)> {
        self.keys.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        match self.changed.load(Ordering::SeqCst) {
            true => Err(Fault::Wait(Wait::Changed)),
            false => Ok(()),
        }
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        let mut keys: Vec<(u16, Bytes)> = self.keys.drain().collect();
        keys.sort_unstable_by_key(|(database, _)| *database);
        for of_one in keys.chunk_by(|(a, _), (b, _)| a == b) {
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
    groups: Option<RwLockReadGuard<'s, ()>>,
}

impl Keys<'_> {
    fn lock<'s>(&self, service: &'s Service, pace: Pace) -> Result<Locked<'s>, Fault> {
        let stripes = match self {
            Keys::Unlocked | Keys::Together(_) | Keys::FoundReads => Ok(Held::default()),
            Keys::SomeAndFound(_) if !pace.watches() => service.stripes.lock_all(pace.hold()),
            Keys::Some(keys) | Keys::SomeAndFound(keys) => service.stripes.lock(keys.iter().copied(), pace.hold()),
            Keys::All => service.stripes.lock_all(pace.hold()),
        };
        Ok(Locked {
            _stripes: stripes.map_err(|taken| Fault::Wait(Wait::Locked(taken)))?,
            groups: self.are_of_one_moment().then(|| service.groups.hold()),
        })
    }

    /// True if no group may become visible while they are read.
    fn are_of_one_moment(&self) -> bool {
        match self {
            Keys::Together(_) | Keys::FoundReads | Keys::SomeAndFound(_) => true,
            Keys::Unlocked | Keys::Some(_) | Keys::All => false,
        }
    }

    /// Watches the keys, where they are not locked.
    fn watch<'s>(&self, service: &'s Service) -> Option<Watching<'s>> {
        let of: fn(&Database) -> &Watches = match self {
            Keys::Some(_) | Keys::SomeAndFound(_) => |database| &database.watches,
            Keys::Together(_) | Keys::FoundReads => |database| &database.snapshots,
            Keys::Unlocked | Keys::All => return None,
        };
        Some(Watching::new(service, of))
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
    pub fn transact_at<T>(
        self: &Arc<Self>,
        pace: Pace,
        owner: &Arc<Outstanding>,
        keys: Keys<'_>,
        view: View,
        f: impl FnOnce(&mut Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<Computed<T>, Fault> {
        self.transact_of_moment(pace, owner, (keys, view), None, f)
    }

    /// As [`Service::transact_at`]. With `moment`, all that is read is of one moment, whatever keys
    /// the computation finds. If that fails, `moment` says so, and it should be computed again.
    #[expect(clippy::too_many_lines, reason = "it is still to be split")]
    pub fn transact_of_moment<T>(
        self: &Arc<Self>,
        pace: Pace,
        owner: &Arc<Outstanding>,
        (keys, view): (Keys<'_>, View),
        moment: Option<&mut Moment>,
        f: impl FnOnce(&mut Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<Computed<T>, Fault> {
        // Where all writes are of this node, the locks keep what a command reads that may write.
        let mut moment = moment.filter(|_| view != View::Update || !self.log.chains());
        let (epoch, era) = (self.log.epoch(), self.era());
        let together = match keys {
            Keys::Together(keys) => self.together(keys, view != View::Committed, pace.turn)?,
            _ => None,
        };
        let watching = match together {
            None if pace.watches() => keys.watch(self),
            _ => None,
        };
        if matches!(keys, Keys::Some(_) | Keys::SomeAndFound(_)) && watching.is_some() && self.is_behind(Size::Large) {
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
            elements: 0,
            own: HashMap::new(),
            places: HashMap::new(),
            trees: HashMap::new(),
            begun: SmallVec::new(),
            depends: SmallVec::new(),
            depended: HashSet::new(),
            flushed: SmallVec::new(),
            messages: Vec::new(),
            message_count: 0,
            message_bytes: 0,
            notes: None,
            notices: Vec::new(),
            consumer_notes: Vec::new(),
            reads: Vec::new(),
            noted: HashSet::new(),
            moment: moment.as_ref().map(|_| Reads::new(self, view)),
            undo: None,
            together,
            lookups: Lookups::default(),
            counts: view != View::Update,
            looked: false,
            turn: pace.turn,
            work: 0,
            watching,
        };
        let before = match &mut moment {
            Some(moment) => {
                moment.lost = false;
                transaction.read_together(moment)
            }
            None => Ok(()),
        };
        let computed = before.and_then(|()| f(&mut transaction)).and_then(|value| {
            transaction.works(transaction.bytes)?;
            Ok(value)
        });
        if let Some(moment) = moment
            && matches!(computed, Ok(_) | Err(Fault::Wait(Wait::Changed)))
            && transaction.items.is_empty()
        {
            transaction.check_moment(moment)?;
        }
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
        // Nothing more is read. What the log acknowledges from here on may become visible.
        locked.groups = None;
        transaction.check_size()?;
        let Transaction {
            items,
            depends,
            reads,
            lookups,
            bytes,
            begun,
            messages,
            notices,
            consumer_notes,
            trees,
            ..
        } = transaction;
        // While somebody has a copy of them, a write copies what it changes in them.
        drop(trees);
        let write = if items.is_empty() {
            // Consumers of streams are made without a record.
            self.listeners.tell_notices(&notices);
            None
        } else {
            let items = self.with_copies(items)?;
            self.admit(&items, bytes)?;
            self.features_for(&items)?;
            let condition = self.condition(owner, &items, reads, &depends)?;
            let begun = begun.iter().map(|(database, prefix)| {
                let stored = self.stored_at_home(*database, prefix);
                self.databases[*database as usize].elements.begin(prefix, stored)
            });
            let _begun: SmallVec<[_; 1]> = begun.collect();
            Some(self.commit(items, owner, epoch, condition, notices))
        };
        drop(locked);
        self.consumers.note(&consumer_notes);
        Ok(Computed {
            value,
            write,
            depends,
            lookups,
            messages,
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
            let Some((database, key)) = item.name() else {
                continue;
            };
            if read.contains(&(database, key.clone())) {
                continue;
            }
            // As in [`Transaction::look`].
            let Some((at, applied)) = self.applied_at_home(database, key) else {
                continue;
            };
            let (under_way, seen) = match item {
                // A blind write of an element is one of a new version, whose name nobody else
                // knows, or it removes the element of a collection, and rests on another one of it.
                Item::Element { .. } => continue,
                _ => self.databases[database as usize].hot.newest(key),
            };
            if let Some(write) = under_way.filter(|write| !write.conditional && write.outcome().is_none()) {
                return Err(Fault::Wait(Wait::Write(write)));
            }
            written.push(Read {
                at,
                key: Some(key.clone()),
                added: None,
                known: known(at, applied, seen),
            });
        }
        Ok(written)
    }

    /// The key's home, and how far that partition has been applied; `None` while the database has
    /// no topic.
    pub(super) fn applied_at_home(&self, database: u16, key: &[u8]) -> Option<(TopicPartition, u64)> {
        let partitions = self.databases[database as usize].partitions();
        if partitions.is_empty() {
            return None;
        }
        let partition = self.log.partition(database, key);
        let applied = partitions.get(partition as usize)?.applied.load(Ordering::Acquire);
        Some((TopicPartition { database, partition }, applied))
    }

    /// The store has everything before this place in the key's home.
    pub(super) fn stored_at_home(&self, database: u16, key: &[u8]) -> At {
        let partition = self.log.partition(database, key);
        let offset = self.databases[database as usize].stored(partition);
        At { partition, offset }
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
            if let Item::Key { key, .. } = item
                && is_reserved(key)
            {
                return Err(Fault::error("ERR this key is reserved for the topic's control records"));
            }
            if let Item::Function { library, text } = item
                && text.is_some()
            {
                let limit = topic.max_record_bytes.load(Ordering::Relaxed);
                check_size(&function_key(library), item.value_bytes(), limit)?;
            }
            if let Some((_, key)) = item.name() {
                check_size(key, item.value_bytes(), topic.max_record_bytes.load(Ordering::Relaxed))?;
            }
        }
        Ok(())
    }
}

/// The offset below which every record of a key in this partition is known: the partition is
/// applied up to `applied`, and `seen` was read.
pub(in crate::database) fn known(at: TopicPartition, applied: u64, seen: Option<At>) -> u64 {
    // Offset 0 also stands for "no record met".
    let newer = seen.filter(|seen| seen.partition == at.partition && seen.offset > 0);
    newer.map_or(applied, |seen| applied.max(seen.offset + 1))
}

fn check_size(key: &Bytes, value_bytes: usize, limit: usize) -> Result<(), Fault> {
    let size = key.len() + HEADER_BYTES + value_bytes;
    if size > limit {
        return Err(Fault::error(format!(
            "ERR the record would have {size} bytes, more than the {limit} that the topic takes (max.message.bytes); nothing was written"
        )));
    }
    Ok(())
}
