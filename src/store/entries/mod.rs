//! Everything that the store knows of entries, once for all engines: how they are found, counted,
//! hidden and removed. It implements [`Store`] over an [`Engine`].
//!
//! A space `meta` has numbers ([`meta::Row`]). Each generation of each Redis database has spaces of
//! its own ([`Spaces`]): entries (`hash ‖ key` → state), the expiry index, and the pieces of large
//! values.
//!
//! - Readers take a [`View`] (spaces and flush watermarks) without a lock. Only the [`Writer`],
//!   behind a mutex, changes anything.
//! - A flush hides entries by a watermark per partition. A [walk](walk::Walk) in the background
//!   removes them, or they stay until their tombstones come. If they are to be removed and nothing
//!   else is visible, or on [`Store::clear`], a new generation of spaces is begun and the old one
//!   dropped.
//! - Key counts are kept in memory. The engine gets them with each batch if its batches are atomic,
//!   otherwise at each checkpoint. If a crash took away the newest ones, a walk counts again. It
//!   also counts after a flush that does not hide everything in its partition (a group with records
//!   on both sides of the flush is applied before it).
//! - A store kept for another number of databases is not taken up: users of the store number hidden
//!   databases after the others.
//! - Damage ends all use of the store, and the next open starts with an empty one.

mod meta;
mod open;
mod spaces;
mod walk;
mod writer;

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use super::engine::{EVERYTHING, Engine, Failure};
use super::entry::{self, Body, Head};
use super::files::{directory_bytes, io_error, is_gone};
use super::{Change, Checkpoint, Entry, PASSED, Scanned, Store, StoreError, panic_text};
use crate::model::{ElementName, Meta, Value, Version, as_range};
use spaces::{Spaces, View};
use writer::{Writer, garbage};

#[cfg(test)]
mod tests;

pub(super) use open::open;

/// The store on some engine. Dropping it closes the engine.
pub(super) struct Entries<E: Engine> {
    // Fields are dropped in this order: handles to spaces first, the engine when none is left.
    databases: Vec<Database<E>>,
    writer: Mutex<Writer<E>>,
    /// The space of [`meta::Row`]s.
    meta: E::Space,
    engine: E,
    /// Why the engine cannot be trusted any more; set once.
    broken: OnceLock<String>,
    /// Where the engine has its data.
    directory: PathBuf,
}

/// What readers see of one Redis database.
struct Database<E: Engine> {
    view: ArcSwap<View<E>>,
    keys: AtomicU64,
    expiring: AtomicU64,
    hidden: AtomicU64,
    /// Whether the numbers above are right.
    counted: AtomicBool,
}

enum Got {
    Nothing,
    Entry(Entry),
    PieceMissing,
}

impl<E: Engine> Entries<E> {
    fn database(&self, database: u16) -> Result<&Database<E>, Failure> {
        self.databases.get(usize::from(database)).ok_or(Failure::NoSuchDatabase)
    }

    /// Calls into the engine, which can panic. A panic or damage ends all use of the store.
    fn call<T>(&self, doing: &'static str, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, StoreError> {
        if let Some(reason) = self.broken.get() {
            return Err(StoreError::Damaged {
                doing,
                cause: reason.clone(),
            });
        }
        let other = |cause| Err(StoreError::Engine { doing, cause });
        let damage = match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::NoSuchDatabase)) => return other("no such database".into()),
            Ok(Err(Failure::Larger)) => return Err(StoreError::Larger),
            Ok(Err(Failure::Engine(reason))) => return other(reason),
            Ok(Err(Failure::Io { path, cause })) => match path {
                Some(path) if !is_gone(&cause) => return Err(io_error(doing, &path, cause)),
                None if !is_gone(&cause) => return other(cause.to_string()),
                Some(path) => format!("{}: {cause}", path.display()),
                None => cause.to_string(),
            },
            Ok(Err(Failure::Damaged(reason))) => reason,
            Err(panic) => panic_text(panic.as_ref()),
        };
        let cause = self.give_up(damage);
        Err(StoreError::Damaged { doing, cause })
    }

    /// Ends all use of the store.
    fn give_up(&self, damage: String) -> String {
        let cause = match self.engine.give_up() {
            Err(error) if !is_gone(&error) => {
                format!("{damage}; delete the store's directory (the damage could not be noted there: {error})")
            }
            _ => damage,
        };
        self.broken.get_or_init(|| cause).clone()
    }

    fn try_get(&self, database: u16, key: &[u8], most: usize) -> Result<Option<Entry>, Failure> {
        let database = self.database(database)?;
        // A cut value can be replaced while its pieces are read. Then they are gone, and the head
        // is read again.
        for _ in 0..2 {
            match self.get_once(&database.view.load(), key, most)? {
                Got::Nothing => return Ok(None),
                Got::Entry(entry) => return Ok(Some(entry)),
                Got::PieceMissing => {}
            }
        }
        // Either the value changes faster than it is read, or it is damaged. While the writer is
        // halted, a missing piece is damage.
        let _halted = self.writer.lock();
        match self.get_once(&database.view.load(), key, most)? {
            Got::Nothing => Ok(None),
            Got::Entry(entry) => Ok(Some(entry)),
            Got::PieceMissing => Err(Failure::damaged("value, a piece is missing")),
        }
    }

    fn get_once(&self, view: &View<E>, record_key: &[u8], most: usize) -> Result<Got, Failure> {
        let Some(spaces) = &view.spaces else {
            return Ok(Got::Nothing);
        };
        let place = spaces.place(record_key);
        match self.engine.get(place.space, &place.key)? {
            Some(stored) => self.got(view, spaces, &place.key, &stored, most),
            None => Ok(Got::Nothing),
        }
    }

    /// What is stored under a store key.
    fn got(
        &self,
        view: &View<E>,
        spaces: &Spaces<E>,
        store_key: &[u8],
        stored: &[u8],
        most: usize,
    ) -> Result<Got, Failure> {
        let (Head { meta, .. }, body) = entry::decode(stored)?;
        if view.hides(&meta) {
            return Ok(Got::Nothing);
        }
        let value = match body {
            Body::Cut(_, length) if length > most => return Err(Failure::Larger),
            Body::Cut(of, length) => spaces
                .join_pieces(&self.engine, store_key, &meta, length)?
                .map(|bytes| Value::of_kept(of, bytes)),
            uncut => entry::uncut_value(&uncut),
        };
        Ok(value.map_or(Got::PieceMissing, |value| Got::Entry(Entry { meta, value })))
    }

    fn try_elements(
        &self,
        number: u16,
        (key, version): (&[u8], Version),
        from: &[u8],
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Entry),
    ) -> Result<Option<Bytes>, Failure> {
        let view = self.database(number)?.view.load_full();
        let (Some(spaces), Some(prefix)) = (&view.spaces, entry::element_key(&ElementName::prefix(key, version)))
        else {
            return Ok(None);
        };
        let start = [&prefix[..], from].concat();
        let range = (Bound::Included(&start[..]), Bound::Unbounded);
        for (visited, found) in self.engine.range(&spaces.elements, range).enumerate() {
            let (store_key, stored) = found?;
            let Some(sub_key) = store_key.strip_prefix(&prefix[..]) else {
                return Ok(None);
            };
            if visited == at_most {
                return Ok(Some(Bytes::copy_from_slice(sub_key)));
            }
            let got = match self.got(&view, spaces, &store_key, &stored, usize::MAX)? {
                Got::Nothing => None,
                Got::Entry(entry) => Some(entry),
                // It is being replaced.
                Got::PieceMissing => self.try_get(number, &entry::record_key(&store_key)?, usize::MAX)?,
            };
            if let Some(entry) = got {
                visit(sub_key, entry);
            }
        }
        Ok(None)
    }

    /// What a flush has hidden counts, too: the caller looks at what is there from here on.
    fn try_highest(
        &self,
        database: u16,
        (key, version): (&[u8], Version),
        (start, end): (&[u8], &[u8]),
    ) -> Result<Option<Bytes>, Failure> {
        let view = self.database(database)?.view.load_full();
        let prefix = entry::element_key(&ElementName::prefix(key, version));
        let (Some(spaces), Some(prefix)) = (&view.spaces, prefix) else {
            return Ok(None);
        };
        let [start, end] = [start, end].map(|sub_key| [&prefix[..], sub_key].concat());
        let range = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
        let last = self.engine.last(&spaces.elements, range)?;
        Ok(last.map(|key| Bytes::copy_from_slice(&key[prefix.len()..])))
    }

    fn try_orphaned(
        &self,
        database: u16,
        (key, version): (&[u8], Version),
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Meta),
    ) -> Result<(), Failure> {
        let view = self.database(database)?.view.load_full();
        let prefix = entry::element_key(&ElementName::prefix(key, version));
        let (Some(spaces), Some(prefix)) = (&view.spaces, prefix) else {
            return Ok(());
        };
        // A batch that is under way has not to be seen.
        let head = spaces.head(&self.engine, &E::Batch::default(), key, version)?;
        let mut left = at_most;
        for range in garbage(head.as_ref()) {
            let range = range.behind(&prefix);
            for found in self.engine.range(&spaces.elements, as_range(&range)).take(left) {
                let (store_key, stored) = found?;
                let Some(sub_key) = store_key.strip_prefix(&prefix[..]) else {
                    break;
                };
                visit(sub_key, entry::decode(&stored)?.0.meta);
                left -= 1;
            }
        }
        Ok(())
    }

    fn try_orphans(&self, database: u16, limit: usize) -> Result<Vec<(Bytes, Version)>, Failure> {
        let view = self.database(database)?.view.load_full();
        let Some(spaces) = &view.spaces else {
            return Ok(Vec::new());
        };
        let rows = self.engine.range(&spaces.orphans, EVERYTHING).take(limit);
        rows.map(|row| {
            let record_key = entry::record_key(&row?.0)?;
            let name = ElementName::parse(&record_key).ok_or_else(|| Failure::damaged("orphans"))?;
            Ok((Bytes::copy_from_slice(name.key), name.version))
        })
        .collect()
    }

    fn try_scan(
        &self,
        database: u16,
        hidden: bool,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, Failure> {
        let view = self.database(database)?.view.load_full();
        let Some(spaces) = &view.spaces else {
            return Ok(None);
        };
        let from = from.to_be_bytes();
        let entries = self
            .engine
            .range(&spaces.entries, (Bound::Included(&from), Bound::Unbounded));
        let (mut visited, mut last_hash) = (0, None);
        for (passed, found) in entries.enumerate() {
            let (stored_key, stored) = found?;
            let (hash, key) = entry::split_store_key(&stored_key)?;
            if (visited >= at_least || passed >= PASSED) && last_hash != Some(hash) {
                return Ok(Some(hash));
            }
            last_hash = Some(hash);
            let (Head { meta, .. }, _) = entry::decode(&stored)?;
            if view.hides(&meta) == hidden {
                visit(Scanned { key, meta });
                visited += 1;
            }
        }
        Ok(None)
    }

    /// Keys with something that is due, of those that are `wanted`.
    fn try_due(
        &self,
        database: u16,
        now: u64,
        limit: usize,
        wanted: impl Fn(&Meta) -> bool,
    ) -> Result<Vec<Bytes>, Failure> {
        let view = self.database(database)?.view.load_full();
        let Some(spaces) = &view.spaces else {
            return Ok(Vec::new());
        };
        let mut keys = Vec::new();
        let end = now.checked_add(1).map(u64::to_be_bytes);
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        for found in self.engine.range(&spaces.expiry, (Bound::Unbounded, end)) {
            if keys.len() >= limit {
                break;
            }
            let (index, _) = found?;
            let (due, store_key) = entry::split_expiry_key(&index)?;
            // The index can be ahead of the entry or behind it for a moment. The entry decides.
            for space in [&spaces.entries, &spaces.elements] {
                let Some(stored) = self.engine.get(space, store_key)? else {
                    continue;
                };
                let (head, _) = entry::decode(&stored)?;
                if head.due == Some(due) && !view.hides(&head.meta) && wanted(&head.meta) {
                    keys.push(match std::ptr::eq(space, &spaces.elements) {
                        true => entry::record_key(store_key)?,
                        false => Bytes::copy_from_slice(entry::split_store_key(store_key)?.1),
                    });
                }
            }
        }
        Ok(keys)
    }

    /// Returns one of the counts; counts first if that has not been done.
    fn counted(&self, database: u16, number: impl Fn(&Database<E>) -> &AtomicU64) -> Result<u64, Failure> {
        const STEP: usize = 1_000;
        let of = self.database(database)?;
        while !of.counted.load(Ordering::Acquire) {
            self.writer.lock().walk_step(self, database, STEP)?;
        }
        Ok(number(of).load(Ordering::Relaxed))
    }
}

impl<E: Engine> Store for Entries<E> {
    fn get_up_to(&self, database: u16, key: &[u8], most: usize) -> Result<Option<Entry>, StoreError> {
        self.call("get", || self.try_get(database, key, most))
    }

    fn scan(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError> {
        self.call("scan", || self.try_scan(database, false, from, at_least, visit))
    }

    fn scan_hidden(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError> {
        self.call("scan", || self.try_scan(database, true, from, at_least, visit))
    }

    fn elements(
        &self,
        database: u16,
        of: (&[u8], Version),
        from: &[u8],
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Entry),
    ) -> Result<Option<Bytes>, StoreError> {
        self.call("read elements", || {
            self.try_elements(database, of, from, at_most, visit)
        })
    }

    fn highest_element(
        &self,
        database: u16,
        of: (&[u8], Version),
        range: (&[u8], &[u8]),
    ) -> Result<Option<Bytes>, StoreError> {
        self.call("find an element", || self.try_highest(database, of, range))
    }

    fn orphans(&self, database: u16, limit: usize) -> Result<Vec<(Bytes, Version)>, StoreError> {
        self.call("find orphans", || self.try_orphans(database, limit))
    }

    fn orphaned(
        &self,
        database: u16,
        of: (&[u8], Version),
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Meta),
    ) -> Result<(), StoreError> {
        self.call("find orphans", || self.try_orphaned(database, of, at_most, visit))
    }

    fn sweep_orphans(
        &self,
        database: u16,
        of: (&[u8], Version),
        gone: bool,
        budget: usize,
    ) -> Result<bool, StoreError> {
        self.call("sweep orphans", || {
            let mut writer = self.writer.lock();
            writer.sweep_orphans(self, database, of, gone, budget)
        })
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.call("apply", || self.writer.lock().apply(self, changes))
    }

    fn is_empty(&self, database: u16) -> Result<bool, StoreError> {
        self.call("look at", || {
            let view = self.database(database)?.view.load();
            Ok(view.spaces.is_none() && view.flushed_below.is_empty())
        })
    }

    fn count(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", || self.counted(database, |of| &of.keys))
    }

    fn count_expiring(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", || self.counted(database, |of| &of.expiring))
    }

    fn count_hidden(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", || self.counted(database, |of| &of.hidden))
    }

    fn expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        let has_expired = |meta: &Meta| meta.expire_at.is_some_and(|at| at <= now);
        self.call("find expired keys", || self.try_due(database, now, limit, has_expired))
    }

    fn due(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.call("find what is due", || self.try_due(database, now, limit, |_| true))
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.call("checkpoint", || self.writer.lock().checkpoint(self, checkpoint))
    }

    fn clear(&self, database: u16) -> Result<(), StoreError> {
        self.call("clear", || self.writer.lock().clear(self, database))
    }

    fn sweep(&self, budget: usize) -> Result<bool, StoreError> {
        self.call("sweep", || self.writer.lock().sweep(self, budget))
    }

    fn disk_bytes(&self) -> u64 {
        directory_bytes(&self.directory)
    }

    fn lacks_room(&self, bytes: u64) -> Option<String> {
        self.engine.lacks_room(bytes)
    }

    fn damage(&self) -> Option<String> {
        self.broken.get().cloned()
    }
}

impl<E: Engine> Drop for Entries<E> {
    fn drop(&mut self) {
        let closed = self.call("close", || self.engine.flush());
        if let (Err(error), None) = (closed, self.broken.get()) {
            // Harmless: the next start reads more of the log again.
            tracing::warn!(%error, "the store could not be closed in order");
        }
    }
}
