//! What readers see changes here, and nowhere else: a record becomes visible when the log has
//! acknowledged it, or when the applier has read it, whichever comes first. Memory takes it in, and
//! one [`Event`] tells what has changed.
//!
//! A record that memory knows already, or that is older than what memory knows, changes nothing and
//! has no event. So an own record, which comes twice, has one event.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::RwLock;

use super::hot::{At, Lookup};
use super::notices::Notice;
use super::write::{Item, Write};
use super::{Database, Seen, Service, now_ms};
use crate::model::{Collection, Entry, Value, home_key};
use crate::store::StoreError;

/// A record of a key that becomes visible.
pub(super) struct Shown<'r> {
    pub database: u16,
    pub key: &'r [u8],
    pub at: At,
    /// What the key holds from here on; `None`: it is deleted.
    pub entry: Option<Entry>,
}

/// How the applier shows a record; see [`HotTier::apply`](super::hot::HotTier::apply).
pub(super) struct Applied {
    pub insert: bool,
    pub ahead: Option<At>,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'e> {
    /// The key has a new state.
    Written(&'e [u8]),
    /// The key had a state, and has none any more. A key that this node deleted and that memory did
    /// not know counts as one that had a state: the log's thread does not wait for the store.
    Deleted(&'e [u8]),
    /// Every key of the partition is gone that had a record before this place.
    Flushed,
    /// Any key of any database may have changed: this node begins to serve, or ceases to.
    Anything,
    /// All records of an own write are visible now that has several.
    GroupShown,
}

/// A change of what readers see. Memory shows it before listeners get the event. Two threads can
/// tell events of one key at the same time, so a listener that needs the newest state has to read
/// the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'e> {
    pub database: u16,
    pub what: What<'e>,
    /// The record that changed it.
    pub at: At,
    /// A client of this node wrote the record.
    pub own: bool,
    /// The connection that wrote it, if this node knows one; else 0.
    pub writer: u64,
    /// The key that was deleted had expired before.
    pub expired: bool,
    /// A [`What::GroupShown`] follows at once, from the same thread.
    pub in_group: bool,
}

type NoticeListener = Box<dyn Fn(&[Notice]) + Send + Sync>;
type Listener = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Those who hear every event.
#[derive(Default)]
pub struct Listeners {
    /// How many want events, so that an event costs nothing while nobody does.
    wanted: AtomicUsize,
    all: RwLock<Vec<Listener>>,
    /// Gets the events that own writes carry.
    notices: OnceLock<NoticeListener>,
}

impl Listeners {
    /// From now on `listener` gets every event, from the thread that made the change. It must be
    /// quick and must not block.
    pub fn add(&self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) {
        self.add_idle(listener);
        self.want();
    }

    /// As [`Listeners::add`], but the listener gets events only while somebody wants them.
    pub fn add_idle(&self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) {
        self.all.write().push(Box::new(listener));
    }

    /// Events are told until [`Listeners::unwant`] is called as often as this.
    pub fn want(&self) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
    }

    pub fn unwant(&self) {
        self.wanted.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn any(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) > 0
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        if self.any() {
            self.all.read().iter().for_each(|listener| listener(event));
        }
    }

    /// `listener` gets the events that own writes carry, when the log has the write. Only the first
    /// one counts.
    pub fn on_notices(&self, listener: impl Fn(&[Notice]) + Send + Sync + 'static) {
        self.notices.get_or_init(|| Box::new(listener));
    }

    pub(super) fn tell_notices(&self, notices: &[Notice]) {
        if !notices.is_empty()
            && let Some(listener) = self.notices.get()
        {
            listener(notices);
        }
    }

    /// Any key may have changed.
    pub(super) fn tell_all_changed(&self) {
        self.tell_without_key(What::Anything);
    }

    /// All records of an own write that has several are visible.
    pub(super) fn tell_group_shown(&self) {
        self.tell_without_key(What::GroupShown);
    }

    fn tell_without_key(&self, what: What<'_>) {
        self.tell(&Event {
            database: 0,
            what,
            at: At {
                partition: 0,
                offset: 0,
            },
            own: false,
            writer: 0,
            expired: false,
            in_group: false,
        });
    }
}

impl Database {
    /// A flush marker stands at this place in the log: everything before it is hidden from now on.
    /// Returns false if that was known.
    fn hide_before(&self, at: At) -> bool {
        if let Some(partition) = self.partitions().get(at.partition as usize) {
            let before = partition.flushed.fetch_max(at.offset, Ordering::AcqRel);
            if before < at.offset {
                self.hot.forget_hidden(at);
                self.elements.forget_hidden(at);
                return true;
            }
        }
        false
    }
}

impl Service {
    /// The log has acknowledged an own record. Those who watch the key were told when the record
    /// was handed over.
    pub(super) fn show_own(&self, shown: Shown<'_>, write: &Arc<Write>, in_group: bool) {
        let Shown {
            database,
            key,
            at,
            entry,
        } = shown;
        let of = &self.databases[database as usize];
        let is_there = entry.is_some();
        let was_there = || !matches!(of.hot.get(key, false), Lookup::Committed(_, None) | Lookup::Absent);
        let changes = is_there || self.listeners.any() && was_there();
        let is_new = of.hot.resolve(key, write, Some((at, entry)));
        if in_group {
            of.snapshots.changed(key);
        }
        of.moments.changed(key);
        if is_new && changes {
            // The others were asked when the write was handed over. Those that only read see it
            // from now on.
            if is_there {
                self.waiters.shown(database, key);
            }
            self.tell(database, key, (is_there, false), at, Some((write, in_group)));
        }
    }

    /// The applier has read a record.
    pub(super) fn show_applied(&self, shown: Shown<'_>, applied: Applied) -> Result<(), StoreError> {
        let Shown {
            database,
            key,
            at,
            entry,
        } = shown;
        let of = &self.databases[database as usize];
        let is_there = entry.is_some();
        // After what a flush has hidden, or after nothing, a tombstone changes nothing. An own
        // delete that is under way was told to those who watch the key, but not to listeners.
        let listened = self.listeners.any();
        let was_there = || Ok::<_, StoreError>(self.read(database, key, true)?.entry.is_some());
        let changes = is_there || of.watches.is_watched(key) && was_there()?;
        let is_asked = listened || self.waiters.any_wait(Collection::Stream, database, &[key]);
        let before = match is_asked && !is_there {
            true => self.read(database, key, false)?.entry,
            false => None,
        };
        let expired = before.as_ref().is_some_and(|before| !before.is_live(now_ms()));
        let is_told = is_there || before.is_some();
        let Applied { insert, ahead } = applied;
        let own = listened.then(|| of.hot.written_by(key, entry.as_ref())).flatten();
        if of.hot.apply(key, at, entry, insert, ahead) {
            of.snapshots.changed(key);
            of.moments.changed(key);
            if changes {
                of.watches.changed(key);
            }
            if is_told {
                match (is_there, own.is_some()) {
                    (true, true) => self.waiters.shown(database, key),
                    (true, false) => self.waiters.changed(database, key),
                    (false, true) => {}
                    (false, false) => self.waiters.gone(database, key),
                }
                self.tell(
                    database,
                    key,
                    (is_there, expired),
                    at,
                    own.as_ref().map(|own| (own, false)),
                );
            }
        }
        Ok(())
    }

    /// The log has acknowledged an own record of an element, which is this item of the write.
    pub(super) fn show_own_element(
        &self,
        database: u16,
        record_key: &[u8],
        at: At,
        (write, item): (&Arc<Write>, usize),
        in_group: bool,
    ) {
        let of = &self.databases[database as usize];
        let value = write.items[item].element_value();
        let is_there = value.is_some();
        let is_new = of
            .elements
            .resolve(record_key, write, Some((at, value)), of.stored(at.partition));
        let key = home_key(record_key);
        if in_group {
            of.snapshots.changed(key);
        }
        of.moments.changed(key);
        if is_new {
            // One turn is enough for entries that stand side by side.
            let next = write.items.get(item + 1);
            let follows = |next: &Item| next.concerns_readers() && next.is_of_collection(&write.items[item]);
            if self.waiters.any() && !next.is_some_and(follows) {
                self.waiters.element_shown(database, record_key, is_there);
            }
            self.tell(database, key, (true, false), at, Some((write, in_group)));
        }
    }

    /// The applier has read a record of an element.
    pub(super) fn show_applied_element(
        &self,
        database: u16,
        record_key: &[u8],
        at: At,
        value: Option<Value>,
        insert: bool,
    ) {
        let of = &self.databases[database as usize];
        let stored = of.stored(at.partition);
        let own = match self.listeners.any() {
            true => of.elements.written_by(record_key, value.as_ref()),
            false => None,
        };
        let is_there = value.is_some();
        if of.elements.apply(record_key, at, value, insert, stored) {
            let key = home_key(record_key);
            of.snapshots.changed(key);
            of.moments.changed(key);
            of.watches.changed(key);
            if !is_there && own.is_none() {
                self.consumers.element_removed(database, record_key);
            }
            match own.is_some() {
                true => self.waiters.element_shown(database, record_key, is_there),
                false => self.waiters.element_changed(database, record_key, is_there),
            }
            self.tell(database, key, (true, false), at, own.as_ref().map(|own| (own, false)));
        }
    }

    /// A flush marker was acknowledged or read. Raises the flags of watchers whose keys it hides,
    /// also of those who began to watch after it was handed to the log. Watchers of a key that does
    /// not exist are left alone.
    pub(super) fn show_flush(&self, database: u16, at: At, own: Option<(&Arc<Write>, bool)>) {
        let of = &self.databases[database as usize];
        let absent = |key: &Bytes| matches!(self.read(database, key, true), Ok(Seen { entry: None, .. }));
        let unaffected: HashSet<Bytes> = of.watches.watched().into_iter().filter(absent).collect();
        if of.hide_before(at) {
            of.snapshots.flushed(|_| true);
            of.moments.flushed(|_| true);
            of.watches.flushed(|key| !unaffected.contains(key));
            self.waiters.all_gone(database);
            self.listeners.tell(&Event {
                database,
                what: What::Flushed,
                at,
                own: own.is_some(),
                writer: own.map_or(0, |(write, _)| write.writer()),
                expired: false,
                in_group: own.is_some_and(|(_, in_group)| in_group),
            });
        }
    }

    fn tell(
        &self,
        database: u16,
        key: &[u8],
        (is_there, expired): (bool, bool),
        at: At,
        own: Option<(&Arc<Write>, bool)>,
    ) {
        let what = match is_there {
            true => What::Written(key),
            false => What::Deleted(key),
        };
        self.listeners.tell(&Event {
            database,
            what,
            at,
            own: own.is_some(),
            writer: own.map_or(0, |(write, _)| write.writer()),
            expired,
            in_group: own.is_some_and(|(_, in_group)| in_group),
        });
    }
}
