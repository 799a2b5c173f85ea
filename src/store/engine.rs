//! What the store needs of an engine: ordered maps of bytes, called *spaces*. What the bytes mean
//! (entries, expiry index, pieces, counts) is the business of [`entries`](super::entries).
//!
//! The contract, which `tests/engine.rs` checks on every engine:
//! - Reads may come from any thread at any time. Writes come from one thread at a time. They go
//!   through a batch, and readers see them after [`Engine::commit`] at the latest.
//! - After a crash the engine has what was written up to some point, and nothing of what was
//!   written later, in whatever space. [`Engine::ATOMIC`] says where that point can be.
//! - The note is a text that goes with the data. After a crash it is one that was given to
//!   [`Engine::checkpoint`] or [`Engine::set_note`], and everything that was written before that
//!   checkpoint, or the last one before that, is there. Later writes may be there too.
//! - Damage to the files is an error, at the latest when the damaged part is read.

use std::io;
use std::ops::{Bound, Deref};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::entry::Damaged;
use super::files::{io_error, is_environment};

/// From one key to another, in the order of their bytes.
pub(super) type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

pub(super) const EVERYTHING: Range<'static> = (Bound::Unbounded, Bound::Unbounded);

pub(super) trait Engine: Sized + Send + Sync + 'static {
    /// The engine's name. Its data are in a directory of this name in the store's directory.
    const NAME: &'static str;
    /// Other files of this engine in the store's directory.
    const FILES: &'static [&'static str];
    /// Number of the format of all that is kept with this engine. A store with another one is
    /// rebuilt.
    const FORMAT: u64;
    /// A crash takes away whole batches. Otherwise it can take away the end of a batch.
    const ATOMIC: bool;
    /// Longer values are cut into pieces of this size.
    const PIECE_BYTES: usize;

    /// A handle to a space.
    type Space: Clone + Send + Sync + 'static;
    type Bytes: Deref<Target = [u8]> + Send;
    /// Writes that are not committed yet, if the engine does not do each at once.
    type Batch: Default + Send;

    /// A file that is locked while an engine has the directory open.
    fn lock_file(directory: &Path) -> PathBuf;

    /// Opens what is in the store's directory and verifies it. Returns its note too. `None` if
    /// there is nothing.
    fn open(directory: &Path, cache_bytes: u64) -> Result<Option<(Self, String)>, Unusable>;

    /// Creates an engine without spaces and with an empty note.
    fn create(directory: &Path, cache_bytes: u64) -> Result<Self, Unusable>;

    /// Removes the files that would speak for, or against, data that were moved away.
    fn forget(directory: &Path) -> Result<(), StoreError>;

    /// Marks the data as unusable for every later [`Engine::open`].
    fn give_up(&self) -> io::Result<()>;

    /// The names of all spaces.
    fn spaces(&self) -> Result<Vec<String>, Failure>;

    /// Opens a space, or creates it.
    fn space(&self, batch: &mut Self::Batch, name: &str) -> Result<Self::Space, Failure>;

    /// Removes a space that nobody uses. It may take several calls, of about `budget` keys each.
    /// Returns true once the space is gone.
    fn drop_space(&self, batch: &mut Self::Batch, name: &str, budget: usize) -> Result<bool, Failure>;

    fn get(&self, space: &Self::Space, key: &[u8]) -> Result<Option<Self::Bytes>, Failure>;

    /// Keys and values in order. What is written meanwhile may be seen or not, and so may what a
    /// batch has not committed.
    fn range(
        &self,
        space: &Self::Space,
        range: Range<'_>,
    ) -> impl Iterator<Item = Result<(Self::Bytes, Self::Bytes), Failure>>;

    /// The last key of such a range.
    fn last(&self, space: &Self::Space, range: Range<'_>) -> Result<Option<Self::Bytes>, Failure>;

    /// As [`Engine::get`], with what the batch has written.
    fn get_in(&self, batch: &Self::Batch, space: &Self::Space, key: &[u8]) -> Result<Option<Self::Bytes>, Failure>;

    fn set(&self, batch: &mut Self::Batch, space: &Self::Space, key: &[u8], value: &[u8]) -> Result<(), Failure>;

    fn remove(&self, batch: &mut Self::Batch, space: &Self::Space, key: &[u8]) -> Result<(), Failure>;

    /// Sets a value and returns the one before.
    fn replace(
        &self,
        batch: &mut Self::Batch,
        space: &Self::Space,
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<Self::Bytes>, Failure> {
        let before = self.get_in(batch, space, key)?;
        self.set(batch, space, key, value)?;
        Ok(before)
    }

    /// Whether the batch should be committed before more is written.
    fn is_full(_batch: &Self::Batch) -> bool {
        false
    }

    fn commit(&self, batch: &mut Self::Batch) -> Result<(), Failure>;

    /// Makes everything durable that was committed.
    fn flush(&self) -> Result<(), Failure>;

    /// Replaces the note: at the latest when the batch is committed, and before what is written
    /// later. It must not claim more than the last checkpoint, since nothing is made durable.
    fn set_note(&self, batch: &mut Self::Batch, note: &str) -> Result<(), Failure>;

    /// Commits the batch, makes everything durable, and then replaces the note. An engine that
    /// keeps the note with the data may let a crash take away both.
    fn checkpoint(&self, batch: &mut Self::Batch, note: &str) -> Result<(), Failure>;

    /// See [`Store::lacks_room`](super::Store::lacks_room).
    fn lacks_room(&self, bytes: u64) -> Option<String>;
}

/// What can go wrong inside the engine's calls.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file system refused. If a file is gone, that is damage.
    Io {
        path: Option<PathBuf>,
        cause: io::Error,
    },
    /// The engine refused.
    Engine(String),
    /// What is on disk is not what was written.
    Damaged(String),
    /// See [`Store::get_up_to`](super::Store::get_up_to).
    Larger,
    NoSuchDatabase,
}

impl Failure {
    pub fn damaged(what: &str) -> Failure {
        Failure::Damaged(format!("damaged {what}"))
    }

    /// For `map_err`: the file system refused something to this file.
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure {
        |cause| Failure::Io {
            path: Some(path.to_owned()),
            cause,
        }
    }
}

impl From<Damaged> for Failure {
    fn from(Damaged(what): Damaged) -> Self {
        Failure::damaged(what)
    }
}

/// Why an existing store is not used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It is rebuilt for this reason.
    Rebuild(String),
    /// A rebuild would not help.
    Fatal(StoreError),
}

impl From<Failure> for Unusable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Io {
                path: Some(path),
                cause,
            } => Unusable::Fatal(io_error("open", &path, cause)),
            Failure::Io { path: None, cause } if is_environment(&cause) => Unusable::Fatal(StoreError::Engine {
                doing: "open",
                cause: cause.to_string(),
            }),
            Failure::Io { path: None, cause } => Unusable::Rebuild(cause.to_string()),
            Failure::Engine(reason) | Failure::Damaged(reason) => Unusable::Rebuild(reason),
            Failure::Larger => Unusable::Rebuild("a value that is too large".to_owned()),
            Failure::NoSuchDatabase => Unusable::Rebuild("more databases than configured".to_owned()),
        }
    }
}
