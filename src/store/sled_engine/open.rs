//! Opening: decides whether what is on disk can be trusted.
//!
//! A store is trusted if all of this holds; otherwise it is rebuilt:
//! - the position file can be read and has the engine's store id;
//! - the engine's checkpoint number is not below the file's (sled cuts its log at a tear and does
//!   not report it);
//! - the data file is not shorter than it was (exactly as long, if the store was closed);
//! - nothing in what sled is about to replay is damaged ([`verify`]): sled skips damaged parts and
//!   does not report them;
//! - it was closed, or the machine has not restarted since: sled reuses space before what was moved
//!   out of it is durable;
//! - sled opens it, without an error or a panic.

use std::fs;
use std::path::Path;

use super::closer::{Closer, boot_id};
use super::position::PositionFile;
use super::{CHECKPOINT, Paths, STORE, SledEngine, get_mark, set_mark, verify};
use crate::store::engine::{Failure, Unusable};

/// How often sled writes and syncs by itself. Each time it also cleans at most one segment of its
/// file, so this bounds how fast it takes back space: with its default of 500 ms the file grows to
/// twice the size under overwrites.
const ENGINE_FLUSH_MS: u64 = 100;

pub(super) fn open(paths: &Paths, cache_bytes: u64) -> Result<Option<(SledEngine, String)>, Unusable> {
    let has_data = paths.data.exists();
    let position = match PositionFile::read(&paths.position).map_err(Unusable::Rebuild)? {
        None if !paths.sled.exists() => return Ok(None),
        None => return rebuild("its position file is missing"),
        Some(_) if !has_data => return rebuild("its data file is missing"),
        Some(position) => position,
    };
    check(paths, &position).map_err(Unusable::Rebuild)?;
    verify::verify(&paths.sled).map_err(Unusable::Rebuild)?;
    // From here on the engine changes its files: they are no longer as they were closed.
    let position = PositionFile {
        closed: false,
        boot: boot_id(),
        ..position
    };
    position.write(&paths.position).map_err(Failure::at(&paths.position))?;

    let db = start(&paths.sled, cache_bytes)?;
    if get_mark(&db, STORE)? != Some(position.store) {
        return rebuild("its position file belongs to another store");
    }
    if get_mark(&db, CHECKPOINT)?.unwrap_or(0) < position.number {
        return rebuild("it lost data that its position file counts on");
    }
    let note = position.note.clone();
    let closer = Closer::new(paths, position)?;
    Ok(Some((SledEngine { db, closer }, note)))
}

fn rebuild<T>(reason: &str) -> Result<T, Unusable> {
    Err(Unusable::Rebuild(reason.to_owned()))
}

fn check(paths: &Paths, position: &PositionFile) -> Result<(), String> {
    let length = fs::metadata(&paths.data)
        .map_err(|error| format!("its data file: {error}"))?
        .len();
    if length < position.length || (position.closed && length != position.length) {
        return Err(format!(
            "its data file has {length} bytes where {} were written",
            position.length
        ));
    }
    if !position.closed && position.boot != boot_id() {
        return Err("the machine restarted before the store was closed".to_owned());
    }
    Ok(())
}

pub(super) fn create(paths: &Paths, cache_bytes: u64) -> Result<SledEngine, Failure> {
    let db = start(&paths.sled, cache_bytes)?;
    let store = rand::random::<u64>();
    set_mark(&db, STORE, store)?;
    set_mark(&db, CHECKPOINT, 0)?;
    db.flush()?;
    let position = PositionFile {
        store,
        boot: boot_id(),
        ..PositionFile::default()
    };
    let closer = Closer::new(paths, position)?;
    let length = closer.sync()?;
    closer.write_position(|position| PositionFile {
        length,
        ..position.clone()
    })?;
    Ok(SledEngine { db, closer })
}

fn start(directory: &Path, cache_bytes: u64) -> Result<sled::Db, Failure> {
    let config = sled::Config::new().path(directory).cache_capacity(cache_bytes);
    Ok(config.flush_every_ms(Some(ENGINE_FLUSH_MS)).open()?)
}
