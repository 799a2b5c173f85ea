//! sled behind the [`Store`](super::Store) trait: owns the engine, its trees and the position file.
//! Of the log it knows only numbers. The reasons for its design, with figures, are in
//! `docs/decisions/store-sled.md`.
//!
//! One sled database holds everything: a tree `meta` (marks, see [`Mark`]) and three trees
//! ([`Trees`]) for each generation of each Redis database: entries (`hash ‖ key` → state), the
//! expiry index, and the pieces of large values.
//!
//! - Readers take a [`View`] (trees and flush watermarks) without a lock. Only the [`Writer`],
//!   behind a mutex, changes anything.
//! - Nothing is batched: while an `apply_batch` of sled runs, from the first one on, a process-wide
//!   lock excludes all readers. sled recovers a prefix of what was written, so after a crash the
//!   order of the single writes can be relied on.
//! - A flush hides entries by a watermark per partition. A [walk](writer::Walk) in the background
//!   removes them, or they stay until their tombstones come. If they are to be removed and nothing
//!   else is visible, or on [`Store::clear`], a new generation of trees is begun and the old one
//!   dropped.
//! - Key counts are kept in memory and in the position file. After an unclean stop the engine may
//!   be ahead of that file, and the walk counts again. It also counts after a flush that does not
//!   hide everything in its partition (a group with records on both sides of the flush is applied
//!   before it).
//! - sled does not survive a write to a full disk. So what it is about to write is reserved after
//!   the end of its file first, and nothing else can take that space.
//! - What sled does not notice itself is noticed at [`SledStore::open`]. Damage found later ends
//!   all use of the store and removes the position file, so the next open starts with an empty
//!   store.

mod open;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::checkpoint::{PositionFile, sync_parent};
use super::entry::{self, Body, Damaged, PIECE_BYTES};
use super::{Change, Checkpoint, Entry, Meta, PASSED, Scanned, Store, StoreError, io_error, is_gone};
use crate::model::Value;
use writer::Writer;

/// What belongs to this engine in the store's directory.
pub(super) const FILES: [&str; 2] = ["position", "sled"];

/// The embedded store. Opened by [`SledStore::open`]. Dropping it closes the engine and notes that
/// it was closed in order.
pub struct SledStore {
    // Fields are dropped in this order: the engine's handles first, `closer` when none of them is
    // left.
    databases: Vec<Database>,
    writer: Mutex<Writer>,
    meta: sled::Tree,
    db: sled::Db,
    /// Why the engine cannot be trusted any more; set once.
    broken: OnceLock<String>,
    closer: open::Closer,
}

/// What readers see of one Redis database.
struct Database {
    view: ArcSwap<View>,
    keys: AtomicU64,
    expiring: AtomicU64,
    hidden: AtomicU64,
    /// Whether the numbers above are right.
    counted: AtomicBool,
}

/// A consistent view of what is visible. While it is held, its trees are not dropped.
#[derive(Clone, Default)]
struct View {
    /// `None`: nothing was ever written.
    trees: Option<Arc<Trees>>,
    /// Per partition: entries with a lower offset are hidden.
    flushed_below: Vec<(u32, u64)>,
}

/// The trees of one generation of a database.
struct Trees {
    /// Their names in the engine begin with this.
    prefix: String,
    entries: sled::Tree,
    /// `expire_at ‖ hash ‖ key`, no value.
    expiry: sled::Tree,
    /// `hash ‖ key ‖ partition ‖ offset ‖ number` → up to [`PIECE_BYTES`].
    pieces: sled::Tree,
}

/// Keys of the tree `meta`.
enum Mark {
    /// The store's random id.
    Store,
    /// Format of the entries.
    Format,
    /// Number of the newest checkpoint whose data the engine holds.
    Checkpoint,
    /// Number of the checkpoint after which something was changed.
    Dirty,
    FlushedBelow {
        database: u16,
        partition: u32,
    },
    Generation {
        database: u16,
    },
    /// A walk is not finished.
    Walk {
        database: u16,
    },
}

/// What can go wrong inside the engine's calls.
enum Failure {
    Engine(sled::Error),
    Damaged(&'static str),
    Larger,
    Io { path: PathBuf, cause: std::io::Error },
    NoSuchDatabase,
}

impl Mark {
    fn key(&self) -> Vec<u8> {
        match self {
            Mark::Store => b"store".to_vec(),
            Mark::Format => b"format".to_vec(),
            Mark::Checkpoint => b"checkpoint".to_vec(),
            Mark::Dirty => b"dirty".to_vec(),
            Mark::FlushedBelow { database, partition } => {
                [&b"flushed"[..], &database.to_be_bytes(), &partition.to_be_bytes()].concat()
            }
            Mark::Generation { database } => [&b"generation"[..], &database.to_be_bytes()].concat(),
            Mark::Walk { database } => [&b"walk"[..], &database.to_be_bytes()].concat(),
        }
    }
}

fn get_mark(meta: &sled::Tree, mark: &Mark) -> Result<Option<u64>, Failure> {
    let Some(stored) = meta.get(mark.key())? else {
        return Ok(None);
    };
    let bytes = stored.as_ref().try_into().map_err(|_| Failure::Damaged("mark"))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

fn set_mark(meta: &sled::Tree, mark: &Mark, number: u64) -> Result<(), Failure> {
    meta.insert(mark.key(), &number.to_be_bytes())?;
    Ok(())
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<Damaged> for Failure {
    fn from(Damaged(what): Damaged) -> Self {
        Failure::Damaged(what)
    }
}

impl View {
    fn hides(&self, meta: &Meta) -> bool {
        meta.offset < self.flushed_below(meta.partition)
    }

    fn flushed_below(&self, partition: u32) -> u64 {
        self.flushed_below
            .iter()
            .find(|(of, _)| *of == partition)
            .map_or(0, |(_, offset)| *offset)
    }
}

impl Trees {
    fn open(db: &sled::Db, database: u16, generation: u64) -> Result<Trees, sled::Error> {
        Trees::with_prefix(db, format!("{database}.{generation}."))
    }

    fn with_prefix(db: &sled::Db, prefix: String) -> Result<Trees, sled::Error> {
        Ok(Trees {
            entries: db.open_tree(format!("{prefix}entries"))?,
            expiry: db.open_tree(format!("{prefix}expiry"))?,
            pieces: db.open_tree(format!("{prefix}pieces"))?,
            prefix,
        })
    }

    /// Removes the trees from the engine. No view of them may be held.
    fn drop_from(&self, db: &sled::Db) -> Result<(), sled::Error> {
        for tree in ["pieces", "expiry", "entries"] {
            db.drop_tree(format!("{}{tree}", self.prefix))?;
        }
        Ok(())
    }

    /// The bytes of a value that was cut, or `None` if a piece is missing.
    fn join_pieces(&self, store_key: &[u8], meta: &Meta, length: usize) -> Result<Option<Bytes>, Failure> {
        const TRUSTED: usize = 64 << 20;
        let mut value = BytesMut::with_capacity(length.min(TRUSTED));
        let piece_key = |piece| entry::piece_key(store_key, meta.partition, meta.offset, piece);
        let pieces = self.pieces.range(piece_key(0)..=piece_key(u32::MAX));
        for (expected_number, found) in (0u32..).zip(pieces) {
            let (key, piece) = found?;
            let (_, _, _, number) = entry::split_piece_key(&key)?;
            if number > expected_number {
                return Ok(None);
            }
            if piece.len() != PIECE_BYTES.min(length - value.len()) {
                return Err(Failure::Damaged("piece"));
            }
            value.extend_from_slice(&piece);
        }
        Ok((value.len() == length).then(|| value.freeze()))
    }
}

impl SledStore {
    fn database(&self, database: u16) -> Result<&Database, Failure> {
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
            Ok(Err(Failure::Io { path, cause })) if !is_gone(&cause) => return Err(io_error(doing, &path, cause)),
            Ok(Err(Failure::Io { path, cause })) => format!("{}: {cause}", path.display()),
            Ok(Err(Failure::Engine(sled::Error::Io(error)))) if !is_gone(&error) => return other(error.to_string()),
            Ok(Err(Failure::Engine(error))) => error.to_string(),
            Ok(Err(Failure::Damaged(what))) => format!("damaged {what}"),
            Err(panic) => super::panic_text(panic.as_ref()),
        };
        let cause = self.give_up(damage);
        Err(StoreError::Damaged { doing, cause })
    }

    /// Ends all use of the store. Without a position file the next open starts with an empty one.
    fn give_up(&self, damage: String) -> String {
        let cause = match self.closer.discard_position() {
            Err(error) if !is_gone(&error) => {
                format!("{damage}; delete the store's directory (its position file: {error})")
            }
            _ => damage,
        };
        self.broken.get_or_init(|| cause).clone()
    }

    fn try_get(&self, database: u16, key: &[u8], most: usize) -> Result<Option<Entry>, Failure> {
        let store_key = entry::store_key(key);
        let database = self.database(database)?;
        // A cut value can be replaced while its pieces are read. Then they are gone, and the head
        // is read again.
        for _ in 0..2 {
            match get_once(&database.view.load(), &store_key, most)? {
                Got::Nothing => return Ok(None),
                Got::Entry(entry) => return Ok(Some(entry)),
                Got::PieceMissing => {}
            }
        }
        // Either the value changes faster than it is read, or it is damaged. While the writer is
        // halted, a missing piece is damage.
        let _halted = self.writer.lock();
        match get_once(&database.view.load(), &store_key, most)? {
            Got::Nothing => Ok(None),
            Got::Entry(entry) => Ok(Some(entry)),
            Got::PieceMissing => Err(Failure::Damaged("value, a piece is missing")),
        }
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
        let Some(trees) = &view.trees else {
            return Ok(None);
        };
        let (mut visited, mut last_hash) = (0, None);
        for (passed, found) in trees.entries.range(from.to_be_bytes()..).enumerate() {
            let (stored_key, stored) = found?;
            let (hash, key) = entry::split_store_key(&stored_key)?;
            if (visited >= at_least || passed >= PASSED) && last_hash != Some(hash) {
                return Ok(Some(hash));
            }
            last_hash = Some(hash);
            let (meta, _) = entry::decode(&stored)?;
            if view.hides(&meta) == hidden {
                visit(Scanned { key, meta });
                visited += 1;
            }
        }
        Ok(None)
    }

    fn try_expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, Failure> {
        let view = self.database(database)?.view.load_full();
        let Some(trees) = &view.trees else {
            return Ok(Vec::new());
        };
        let mut keys = Vec::new();
        let end = now
            .checked_add(1)
            .map_or(Bound::Unbounded, |end| Bound::Excluded(end.to_be_bytes()));
        for found in trees.expiry.range::<[u8; 8], _>((Bound::Unbounded, end)) {
            if keys.len() >= limit {
                break;
            }
            let (index, _) = found?;
            let (expire_at, store_key) = entry::split_expiry_key(&index)?;
            // The index can be ahead of the entry or behind it for a moment. The entry decides.
            let Some(stored) = trees.entries.get(store_key)? else {
                continue;
            };
            let (meta, _) = entry::decode(&stored)?;
            if meta.expire_at == Some(expire_at) && !view.hides(&meta) {
                keys.push(Bytes::copy_from_slice(entry::split_store_key(store_key)?.1));
            }
        }
        Ok(keys)
    }

    /// Returns one of the counts; counts first if that has not been done.
    fn counted(&self, database: u16, number: impl Fn(&Database) -> &AtomicU64) -> Result<u64, Failure> {
        const STEP: usize = 1_000;
        let of = self.database(database)?;
        while !of.counted.load(Ordering::Acquire) {
            self.writer.lock().walk_step(self, database, STEP)?;
        }
        Ok(number(of).load(Ordering::Relaxed))
    }

    fn try_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let mut writer = self.writer.lock();
        let number = writer.number + 1;
        set_mark(&self.meta, &Mark::Checkpoint, number)?;
        self.db.flush()?;
        let length = self.closer.sync()?;
        let counts = writer.known_counts();
        self.closer.write_position(|position| PositionFile {
            number,
            length,
            closed: false,
            counts,
            checkpoint: checkpoint.clone(),
            ..position.clone()
        })?;
        writer.checkpointed(number);
        Ok(())
    }
}

enum Got {
    Nothing,
    Entry(Entry),
    PieceMissing,
}

fn get_once(view: &View, store_key: &[u8], most: usize) -> Result<Got, Failure> {
    let Some(trees) = &view.trees else {
        return Ok(Got::Nothing);
    };
    let Some(stored) = trees.entries.get(store_key)? else {
        return Ok(Got::Nothing);
    };
    let (meta, body) = entry::decode(&stored)?;
    if view.hides(&meta) {
        return Ok(Got::Nothing);
    }
    let value = match body {
        Body::Cut(_, length) if length > most => return Err(Failure::Larger),
        Body::Cut(of, length) => trees
            .join_pieces(store_key, &meta, length)?
            .map(|bytes| Value::of_kept(of, bytes)),
        uncut => entry::uncut_value(&uncut),
    };
    Ok(value.map_or(Got::PieceMissing, |value| Got::Entry(Entry { meta, value })))
}

impl Store for SledStore {
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

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.call("apply", || self.writer.lock().apply(self, changes))
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
        self.call("find expired keys", || self.try_expired(database, now, limit))
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.call("checkpoint", || self.try_checkpoint(checkpoint))
    }

    fn clear(&self, database: u16) -> Result<(), StoreError> {
        self.call("clear", || self.writer.lock().clear(self, database))
    }

    fn sweep(&self, budget: usize) -> Result<bool, StoreError> {
        self.call("sweep", || self.writer.lock().sweep(self, budget))
    }

    fn disk_bytes(&self) -> u64 {
        super::directory_bytes(self.closer.directory())
    }

    fn lacks_room(&self, bytes: u64) -> Option<String> {
        self.closer.lacks_room(bytes)
    }

    fn damage(&self) -> Option<String> {
        self.broken.get().cloned()
    }
}

/// Fsyncs every file under a directory, and the directory.
fn sync_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let synced = match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path()),
            false => File::open(entry.path()).and_then(|file| file.sync_all()),
        };
        match synced {
            // The engine removes files of its own at any time.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    File::open(directory)?.sync_all()
}
