//! Opening: decides whether what is on disk can be trusted, and starts empty if not.
//!
//! fjall's tables have a checksum for every block, checked whenever one is read from disk. Two
//! things it does not check:
//! - The journal. It is cut silently at its first damaged batch. The journals after it are replayed
//!   nevertheless, and what says where a batch belongs has no checksum. So journals are emptied
//!   before fjall sees them. Only tables count, and a table holds a beginning of what was
//!   committed. What a journal had is read from the log again.
//! - The list of tables (`v…`), whose checksum is in `current`. It is checked here.

use std::fs;
use std::io;
use std::path::Path;

use super::FjallEngine;
use crate::store::StoreError;
use crate::store::engine::{Engine, Failure, Unusable};
use crate::store::files::{io_error, sync_parent};

/// Threads that write tables and merge them.
const WORKERS: usize = 1;

/// A store with this file beside it was given up.
pub(super) const BROKEN: &str = "fjall.broken";

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(cause) | fjall::Error::Storage(fjall::LsmError::Io(cause)) => {
                Failure::Io { path: None, cause }
            }
            other => Failure::Damaged(other.to_string()),
        }
    }
}

pub(super) fn mark_broken(directory: &Path) -> io::Result<()> {
    let path = directory.join(BROKEN);
    crate::files::create(&path)?.sync_all()?;
    sync_parent(&path)
}

pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Option<(fjall::Database, fjall::Keyspace)>, Unusable> {
    let data = directory.join(FjallEngine::NAME);
    if directory.join(BROKEN).exists() {
        return Err(Unusable::Rebuild("it was found damaged while it was used".to_owned()));
    }
    if !data.exists() {
        return Ok(None);
    }
    check_lists_of_tables(&data.join("keyspaces")).map_err(Unusable::Rebuild)?;
    remove_journals(&data).map_err(|cause| Unusable::Fatal(io_error("remove the journals of", &data, cause)))?;
    start(&data, cache_bytes).map(Some)
}

pub(super) fn start(data: &Path, cache_bytes: u64) -> Result<(fjall::Database, fjall::Keyspace), Unusable> {
    let builder = fjall::Database::builder(data)
        .cache_size(cache_bytes)
        .worker_threads(WORKERS);
    let db = match builder.open() {
        Err(fjall::Error::Locked) => {
            return Err(Unusable::Fatal(StoreError::Engine {
                doing: "open",
                cause: "in use by another process".into(),
            }));
        }
        opened => opened.map_err(Failure::from)?,
    };
    let keyspace = db.keyspace("highwater", fjall::KeyspaceCreateOptions::default);
    Ok((db, keyspace.map_err(Failure::from)?))
}

/// Removes the journals and leaves an empty one: without any, fjall would not look how far the
/// tables are.
fn remove_journals(data: &Path) -> io::Result<()> {
    let mut newest = 0u64;
    for file in fs::read_dir(data)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number = path.file_stem().and_then(|name| name.to_str()?.parse().ok());
            newest = newest.max(number.unwrap_or(0));
            fs::remove_file(path)?;
        }
    }
    crate::files::create(&data.join(format!("{}.jnl", newest.saturating_add(1))))?;
    fs::File::open(data)?.sync_all()
}

/// Checks each list of tables against `current`: number of the list (8 bytes, little-endian), its
/// checksum (XXH3, 16 bytes), kind of checksum.
fn check_lists_of_tables(keyspaces: &Path) -> Result<(), String> {
    let unreadable = |path: &Path, error: io::Error| format!("its file {}: {error}", path.display());
    let directories = fs::read_dir(keyspaces).map_err(|error| unreadable(keyspaces, error))?;
    let mut checked = 0;
    for directory in directories {
        let directory = directory.map_err(|error| unreadable(keyspaces, error))?.path();
        let path = directory.join("current");
        let current = fs::read(&path).map_err(|error| unreadable(&path, error))?;
        let (number, rest) = current.split_first_chunk::<8>().ok_or("its list of tables is cut")?;
        let checksum = rest.first_chunk::<16>().ok_or("its list of tables is cut")?;
        let path = directory.join(format!("v{}", u64::from_le_bytes(*number)));
        let list = fs::read(&path).map_err(|error| unreadable(&path, error))?;
        if xxhash_rust::xxh3::xxh3_128(&list) != u128::from_le_bytes(*checksum) {
            return Err(format!("its list of tables {} is damaged", path.display()));
        }
        checked += 1;
    }
    match checked {
        0 => Err("its tables are missing".into()),
        _ => Ok(()),
    }
}
