//! sled as an [`Engine`]: a space is a tree. The reasons for its design, with figures, are in
//! `docs/decisions/store-sled.md`.
//!
//! - Nothing is batched: while an `apply_batch` of sled runs, from the first one on, a process-wide
//!   lock excludes all readers. sled recovers a prefix of what was written, so after a crash the
//!   order of the single writes can be relied on.
//! - The note is in the [position file](position), which is written after the data is durable.
//! - sled does not survive a write to a full disk. So what it is about to write is reserved after
//!   the end of its file first, and nothing else can take that space.
//! - What sled does not notice itself is noticed at [`SledEngine::open`]. A store that was given up
//!   has no position file, so the next open starts with an empty one.

mod closer;
mod open;
pub(super) mod position;
pub(super) mod verify;

use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::engine::{Engine, Failure, Range, Unusable};
use super::files::{io_error, remove_file};
use closer::Closer;
use position::PositionFile;

/// Opened by [`SledEngine::open`]. Dropping it closes sled and notes that it was closed in order.
pub(super) struct SledEngine {
    // sled's handle goes first, `closer` when none is left.
    db: sled::Db,
    closer: Closer,
}

struct Paths {
    sled: PathBuf,
    data: PathBuf,
    position: PathBuf,
}

impl Paths {
    fn of(directory: &Path) -> Paths {
        let sled = directory.join(SledEngine::NAME);
        Paths {
            data: sled.join("db"),
            sled,
            position: directory.join(POSITION),
        }
    }
}

const POSITION: &str = "position";

/// sled's name of the tree that is always there. The engine's own marks are in it.
const DEFAULT_TREE: &[u8] = b"__sled__default";
/// The store's random id.
const STORE: &[u8] = b"store";
/// Number of the newest checkpoint whose data sled holds.
const CHECKPOINT: &[u8] = b"checkpoint";

fn get_mark(db: &sled::Db, mark: &[u8]) -> Result<Option<u64>, Failure> {
    let Some(stored) = db.get(mark)? else {
        return Ok(None);
    };
    let bytes = stored.as_ref().try_into().map_err(|_| Failure::damaged("mark"))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

fn set_mark(db: &sled::Db, mark: &[u8], number: u64) -> Result<(), Failure> {
    db.insert(mark, &number.to_be_bytes())?;
    Ok(())
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(cause) => Failure::Io { path: None, cause },
            other => Failure::Damaged(other.to_string()),
        }
    }
}

impl SledEngine {
    /// Returns the length of sled's file. sled's own flush does not make everything durable.
    fn flush_and_sync(&self) -> Result<u64, Failure> {
        self.db.flush()?;
        self.closer.sync()
    }
}

impl Engine for SledEngine {
    const NAME: &'static str = "sled";
    const FILES: &'static [&'static str] = &[POSITION];
    const FORMAT: u64 = 4;
    const ATOMIC: bool = false;
    /// sled writes a leaf as one message, and messages above 128 KiB go from its log to files of
    /// their own, which leak disk space. A leaf has up to 20 values (16, and those of a small
    /// neighbour merged into it). That many pieces with their keys stay below the limit.
    const PIECE_BYTES: usize = 6_000;

    type Space = sled::Tree;
    type Bytes = sled::IVec;
    type Batch = ();

    fn lock_file(directory: &Path) -> PathBuf {
        Paths::of(directory).data
    }

    fn open(directory: &Path, cache_bytes: u64) -> Result<Option<(Self, String)>, Unusable> {
        open::open(&Paths::of(directory), cache_bytes)
    }

    fn create(directory: &Path, cache_bytes: u64) -> Result<Self, Unusable> {
        Ok(open::create(&Paths::of(directory), cache_bytes)?)
    }

    fn forget(directory: &Path) -> Result<(), StoreError> {
        let position = Paths::of(directory).position;
        remove_file(&position).map_err(|cause| io_error("remove", &position, cause))
    }

    fn give_up(&self) -> io::Result<()> {
        self.closer.discard_position()
    }

    fn spaces(&self) -> Result<Vec<String>, Failure> {
        let trees = self.db.tree_names().into_iter();
        let names = trees.filter(|name| name != DEFAULT_TREE);
        names
            .map(|name| String::from_utf8(name.to_vec()).map_err(|_| Failure::damaged("name of a tree")))
            .collect()
    }

    fn space(&self, _: &mut (), name: &str) -> Result<sled::Tree, Failure> {
        Ok(self.db.open_tree(name)?)
    }

    fn drop_space(&self, _: &mut (), name: &str, _: usize) -> Result<bool, Failure> {
        self.db.drop_tree(name)?;
        Ok(true)
    }

    fn get(&self, tree: &sled::Tree, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        Ok(tree.get(key)?)
    }

    fn range(
        &self,
        tree: &sled::Tree,
        range: Range<'_>,
    ) -> impl Iterator<Item = Result<(sled::IVec, sled::IVec), Failure>> {
        tree.range::<&[u8], _>(range).map(|found| Ok(found?))
    }

    fn last(&self, tree: &sled::Tree, range: Range<'_>) -> Result<Option<sled::IVec>, Failure> {
        let last = tree.range::<&[u8], _>(range).next_back().transpose()?;
        Ok(last.map(|(key, _)| key))
    }

    fn get_in(&self, _: &(), tree: &sled::Tree, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        self.get(tree, key)
    }

    fn set(&self, _: &mut (), tree: &sled::Tree, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        tree.insert(key, value)?;
        Ok(())
    }

    fn remove(&self, _: &mut (), tree: &sled::Tree, key: &[u8]) -> Result<(), Failure> {
        tree.remove(key)?;
        Ok(())
    }

    fn replace(&self, _: &mut (), tree: &sled::Tree, key: &[u8], value: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        Ok(tree.insert(key, value)?)
    }

    fn commit(&self, _: &mut ()) -> Result<(), Failure> {
        self.closer.note_length()
    }

    fn flush(&self) -> Result<(), Failure> {
        self.flush_and_sync()?;
        Ok(())
    }

    fn set_note(&self, _: &mut (), note: &str) -> Result<(), Failure> {
        self.closer.write_position(|position| PositionFile {
            note: note.to_owned(),
            ..position.clone()
        })
    }

    fn checkpoint(&self, _: &mut (), note: &str) -> Result<(), Failure> {
        let number = get_mark(&self.db, CHECKPOINT)?.unwrap_or(0) + 1;
        set_mark(&self.db, CHECKPOINT, number)?;
        let length = self.flush_and_sync()?;
        self.closer.write_position(|position| PositionFile {
            number,
            length,
            closed: false,
            note: note.to_owned(),
            ..position.clone()
        })
    }

    fn lacks_room(&self, bytes: u64) -> Option<String> {
        self.closer.lacks_room(bytes)
    }
}
