//! fjall as an [`Engine`]. The reasons for its design, with figures, are in
//! `docs/decisions/store-fjall.md`.
//!
//! One keyspace holds everything, and each commit is one atomic batch. So if a crash takes away
//! some of the newest batches, the rest is whole: the state as it was after some batch, with the
//! note of that time. [`files`] makes sure that what remains is such a beginning, and nothing else.
//!
//! Each space has a number (4 bytes, big-endian) with which its keys begin. Space 0 is the engine's
//! own: the numbers of the spaces by their names, and the note.

mod files;
mod found;
mod long;

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::StoreError;
use super::engine::{EVERYTHING, Engine, Failure, Range, Unusable};
use super::files::{OFTEN_WRITTEN, io_error, remove_file};
use crate::room::{KEPT_BY_STORE, Room};
use found::Found;
use long::Records;

/// How much the engine holds in memory before it writes a table, by default.
const MEMTABLE: u64 = 64 << 20;
/// Bytes of one batch; more changes are committed as several.
const BATCH_BYTES: usize = 8 << 20;
/// How often a checkpoint makes the engine write its memory to disk. A crash means that the log is
/// read again from the last time this was done. Doing it at every checkpoint would write the same
/// data over and over.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time that writing the engine's memory to disk may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(60);

/// The number of the engine's own space.
const OWN: u32 = 0;
/// The key of the note in it. The names of the spaces come after [`NAME`].
const NOTE: &[u8] = b"p";
const NAME: u8 = b'n';

pub(super) struct FjallEngine {
    keyspace: fjall::Keyspace,
    db: fjall::Database,
    /// The numbers of the spaces by their names.
    numbers: Mutex<BTreeMap<String, u32>>,
    /// How far the removal of spaces is: everything of them up to this stored key is removed.
    removed: Mutex<BTreeMap<u32, Bytes>>,
    /// When a checkpoint last wrote the engine's memory to disk.
    last_flush: Mutex<Option<Instant>>,
    /// The store's.
    directory: PathBuf,
}

/// What the next commit writes, by stored keys. `None`: removed.
#[derive(Default)]
pub(super) struct Batch {
    writes: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl Batch {
    fn write(&mut self, stored: Bytes, value: Option<Bytes>) {
        self.bytes += stored.len() + value.as_ref().map_or(0, Bytes::len);
        self.writes.insert(stored, value);
    }
}

fn key_of_name(name: &str) -> Vec<u8> {
    [&[NAME], name.as_bytes()].concat()
}

impl FjallEngine {
    fn new(directory: &Path, db: fjall::Database, keyspace: fjall::Keyspace) -> Result<FjallEngine, Failure> {
        let mut numbers = BTreeMap::new();
        for found in Found::new(&keyspace, OWN, EVERYTHING) {
            let (key, value) = found?;
            let Some(name) = key.strip_prefix(&[NAME]) else {
                continue;
            };
            let name = String::from_utf8(name.to_vec()).ok();
            let number = value[..].try_into().map(u32::from_be_bytes).ok();
            let (name, number) = name.zip(number).ok_or_else(|| Failure::damaged("name of a space"))?;
            numbers.insert(name, number);
        }
        Ok(FjallEngine {
            keyspace,
            db,
            numbers: Mutex::new(numbers),
            removed: Mutex::new(BTreeMap::new()),
            last_flush: Mutex::new(None),
            directory: directory.to_owned(),
        })
    }

    fn read(&self, stored: &[u8]) -> Result<Option<Bytes>, Failure> {
        Ok(self.keyspace.get(stored)?.map(Bytes::from))
    }

    /// What is stored, with what the batch has written.
    fn read_in(&self, batch: &Batch, stored: &[u8]) -> Result<Option<Bytes>, Failure> {
        match batch.writes.get(stored) {
            Some(written) => Ok(written.clone()),
            None => self.read(stored),
        }
    }

    /// Gives a key a value; `None` removes it.
    fn write(&self, batch: &mut Batch, space: u32, key: &[u8], value: Option<&[u8]>) -> Result<(), Failure> {
        let stored = long::place(space, key);
        let value = match long::is_long(&stored) {
            false => value.map(Bytes::copy_from_slice),
            true => {
                let records = self.read_in(batch, &stored)?;
                let mut records = records.as_ref().map(Records::read).transpose()?.unwrap_or_default();
                records.set(key, value);
                records.build()
            }
        };
        batch.write(Bytes::copy_from_slice(&stored), value);
        Ok(())
    }
}

/// The value of a key in what is stored at its place.
fn value_at(stored: &[u8], key: &[u8], value: Option<Bytes>) -> Result<Option<Bytes>, Failure> {
    match value {
        Some(records) if long::is_long(stored) => Ok(Records::read(&records)?.find(key)),
        value => Ok(value),
    }
}

impl Engine for FjallEngine {
    const NAME: &'static str = "fjall";
    const FILES: &'static [&'static str] = &[files::BROKEN];
    const FORMAT: u64 = 6;
    const ATOMIC: bool = true;
    /// Values are not cut.
    const PIECE_BYTES: usize = usize::MAX;

    type Space = u32;
    type Bytes = Bytes;
    type Batch = Batch;

    fn lock_file(directory: &Path) -> PathBuf {
        directory.join(Self::NAME).join("lock")
    }

    fn open(directory: &Path, cache_bytes: u64) -> Result<Option<(Self, String)>, Unusable> {
        let Some((db, keyspace)) = files::open(directory, cache_bytes)? else {
            return Ok(None);
        };
        let engine = FjallEngine::new(directory, db, keyspace)?;
        let note = engine.get(&OWN, NOTE)?.unwrap_or_default();
        let note = String::from_utf8(note.to_vec()).map_err(|_| Failure::damaged("note"))?;
        Ok(Some((engine, note)))
    }

    fn create(directory: &Path, cache_bytes: u64) -> Result<Self, Unusable> {
        let (db, keyspace) = files::start(&directory.join(Self::NAME), cache_bytes)?;
        Ok(FjallEngine::new(directory, db, keyspace)?)
    }

    fn forget(directory: &Path) -> Result<(), StoreError> {
        let broken = directory.join(files::BROKEN);
        remove_file(&broken).map_err(|cause| io_error("remove", &broken, cause))
    }

    fn give_up(&self) -> io::Result<()> {
        files::mark_broken(&self.directory)
    }

    fn spaces(&self) -> Result<Vec<String>, Failure> {
        Ok(self.numbers.lock().keys().cloned().collect())
    }

    fn space(&self, batch: &mut Batch, name: &str) -> Result<u32, Failure> {
        let mut numbers = self.numbers.lock();
        if let Some(number) = numbers.get(name) {
            return Ok(*number);
        }
        let number = numbers.values().max().unwrap_or(&OWN) + 1;
        self.write(batch, OWN, &key_of_name(name), Some(&number.to_be_bytes()))?;
        numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    fn drop_space(&self, batch: &mut Batch, name: &str, budget: usize) -> Result<bool, Failure> {
        let Some(number) = self.numbers.lock().get(name).copied() else {
            return Ok(true);
        };
        // Not from the beginning each time: what was removed would have to be passed again.
        let mut removed = self.removed.lock();
        let (first, end) = long::places(number, EVERYTHING).expect("not empty");
        let from = match removed.get(&number) {
            Some(last) => Bound::Excluded(long::StoredKey::from_slice(last)),
            None => first,
        };
        let mut count = 0;
        for found in self.keyspace.range((from, end)).take(budget) {
            let stored = Bytes::from(found.key()?);
            removed.insert(number, stored.clone());
            batch.write(stored, None);
            count += 1;
        }
        if count == budget {
            return Ok(false);
        }
        removed.remove(&number);
        self.write(batch, OWN, &key_of_name(name), None)?;
        self.numbers.lock().remove(name);
        Ok(true)
    }

    fn get(&self, space: &u32, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        let stored = long::place(*space, key);
        value_at(&stored, key, self.read(&stored)?)
    }

    fn range(&self, space: &u32, range: Range<'_>) -> impl Iterator<Item = Result<(Bytes, Bytes), Failure>> {
        Found::new(&self.keyspace, *space, range)
    }

    fn last(&self, space: &u32, range: Range<'_>) -> Result<Option<Bytes>, Failure> {
        let Some(places) = long::places(*space, range) else {
            return Ok(None);
        };
        let Some(found) = self.keyspace.range(places).next_back() else {
            return Ok(None);
        };
        let stored = Bytes::from(found.key()?);
        if !long::is_long(&stored) {
            return Ok(Some(stored.slice(long::NUMBER..)));
        }
        // Long keys that begin alike are not in their order.
        let mut last = None;
        for found in self.range(space, range) {
            last = Some(found?.0);
        }
        Ok(last)
    }

    fn get_in(&self, batch: &Batch, space: &u32, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        let stored = long::place(*space, key);
        value_at(&stored, key, self.read_in(batch, &stored)?)
    }

    fn set(&self, batch: &mut Batch, space: &u32, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(batch, *space, key, Some(value))
    }

    fn remove(&self, batch: &mut Batch, space: &u32, key: &[u8]) -> Result<(), Failure> {
        self.write(batch, *space, key, None)
    }

    fn is_full(batch: &Batch) -> bool {
        batch.bytes >= BATCH_BYTES
    }

    fn commit(&self, batch: &mut Batch) -> Result<(), Failure> {
        let Batch { writes, .. } = std::mem::take(batch);
        if writes.is_empty() {
            return Ok(());
        }
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.db.clone(), writes.len());
        for (stored, value) in writes {
            match value {
                Some(value) => batch.insert(&self.keyspace, stored, value),
                None => batch.remove(&self.keyspace, stored),
            }
        }
        Ok(batch.commit()?)
    }

    /// Only tables count after a restart ([`files`]).
    fn flush(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + FLUSH_PATIENCE;
        if self.keyspace.rotate_memtable()? {
            while self.keyspace.sealed_memtable_count() > 0 {
                if Instant::now() > deadline {
                    let reason = "the engine did not write its memory to disk in time";
                    return Err(Failure::Engine(reason.to_owned()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn set_note(&self, batch: &mut Batch, note: &str) -> Result<(), Failure> {
        self.write(batch, OWN, NOTE, Some(note.as_bytes()))
    }

    fn checkpoint(&self, batch: &mut Batch, note: &str) -> Result<(), Failure> {
        self.set_note(batch, note)?;
        self.commit(batch)?;
        let mut last_flush = self.last_flush.lock();
        if last_flush.is_none_or(|last| last.elapsed() >= FLUSH_INTERVAL) {
            self.flush()?;
            *last_flush = Some(Instant::now());
        }
        Ok(())
    }

    fn lacks_room(&self, bytes: u64) -> Option<String> {
        // If the disk does not say how much room it has, a write will fail when it is full.
        let room = Room::of(&self.directory).ok()?;
        let needed = bytes.saturating_mul(OFTEN_WRITTEN).saturating_add(MEMTABLE);
        room.refusal(&self.directory, needed, KEPT_BY_STORE)
    }
}
