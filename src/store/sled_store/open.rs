//! Opening and closing: decides whether what is on disk can be trusted, and starts empty if not.
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

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::writer::{DatabaseWriter, Walk, Writer, recover_database};
use super::{
    Checkpoint, Database, Failure, Mark, PositionFile, SledStore, StoreError, Trees, View, get_mark, set_mark,
    sync_parent, sync_tree, verify,
};
use crate::room::{KEPT_BY_STORE, Room};
use crate::store::{OFTEN_WRITTEN, Opened, Options, io_error, is_environment, panic_text, remove_directory};

/// Format of keys and entries in the engine. A store with another format is rebuilt.
const FORMAT: u64 = 2;

/// How often sled writes and syncs by itself. Each time it also cleans at most one segment of its
/// file, so this bounds how fast it takes back space: with its default of 500 ms the file grows to
/// twice the size under overwrites.
const ENGINE_FLUSH_MS: u64 = 100;

/// After a store was dropped, sled's threads hold the lock of its directory for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

impl SledStore {
    /// Opens the store in `directory`, or an empty one if there is none that can be trusted. Fails
    /// where a rebuild would not help: no rights, no space, in use by another process.
    pub fn open(directory: &Path, options: &Options) -> Result<Opened<SledStore>, StoreError> {
        let paths = Paths::of(directory);
        fs::create_dir_all(directory).map_err(|cause| io_error("create", directory, cause))?;
        remove_directory(&paths.quarantine)?;
        wait_for_lock(&paths.data)?;

        let unusable = match paths.existing() {
            None => return start_empty(&paths, options, None),
            Some(Ok(position)) => match open_existing(&paths, options, position) {
                Ok(opened) => return Ok(opened),
                Err(Unusable::Fatal(error)) => return Err(error),
                Err(Unusable::Rebuild(reason)) => reason,
            },
            Some(Err(reason)) => reason,
        };
        paths.set_aside()?;
        let opened = start_empty(&paths, options, Some(unusable))?;
        // Removed only now: it is of no use, but after a failure up to here there should be
        // something to look at.
        remove_directory(&paths.quarantine)?;
        Ok(opened)
    }
}

/// Why an existing store is not used.
enum Unusable {
    Rebuild(String),
    Fatal(StoreError),
}

impl From<Failure> for Unusable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Engine(sled::Error::Io(error)) if is_environment(&error) => Unusable::Fatal(StoreError::Engine {
                doing: "open",
                cause: error.to_string(),
            }),
            Failure::Engine(error) => Unusable::Rebuild(error.to_string()),
            Failure::Damaged(what) => Unusable::Rebuild(format!("damaged {what}")),
            Failure::Larger => Unusable::Rebuild("a value that is too large".to_owned()),
            Failure::Io { path, cause } => Unusable::Fatal(io_error("open", &path, cause)),
            Failure::NoSuchDatabase => Unusable::Rebuild("more databases than configured".to_owned()),
        }
    }
}

struct Paths {
    sled: PathBuf,
    data: PathBuf,
    position: PathBuf,
    quarantine: PathBuf,
}

impl Paths {
    fn of(directory: &Path) -> Paths {
        let sled = directory.join("sled");
        Paths {
            data: sled.join("db"),
            sled,
            position: directory.join("position"),
            quarantine: directory.join("sled.unusable"),
        }
    }

    /// `None` if there is no store at all; otherwise its position, or the reason why it has none.
    fn existing(&self) -> Option<Result<PositionFile, String>> {
        let has_data = self.data.exists();
        match PositionFile::read(&self.position) {
            Ok(None) if !self.sled.exists() => None,
            Ok(None) => Some(Err("its position file is missing".to_owned())),
            Ok(Some(_)) if !has_data => Some(Err("its data file is missing".to_owned())),
            Ok(Some(position)) => Some(Ok(position)),
            Err(reason) => Some(Err(reason)),
        }
    }

    /// Moves an unusable store out of the way. A rename, since an engine that failed to open may
    /// still hold files.
    fn set_aside(&self) -> Result<(), StoreError> {
        remove_position(&self.position).map_err(|cause| io_error("remove", &self.position, cause))?;
        match fs::rename(&self.sled, &self.quarantine) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("set aside", &self.sled, cause)),
            _ => Ok(()),
        }
    }
}

fn start_empty(paths: &Paths, options: &Options, rebuilt: Option<String>) -> Result<Opened<SledStore>, StoreError> {
    let start = || -> Result<SledStore, Failure> {
        let db = open_engine(&paths.sled, options)?;
        let meta = db.open_tree("meta")?;
        let id = rand::random::<u64>();
        set_mark(&meta, &Mark::Store, id)?;
        set_mark(&meta, &Mark::Format, FORMAT)?;
        set_mark(&meta, &Mark::Checkpoint, 0)?;
        db.flush()?;
        let position = PositionFile {
            store: id,
            boot: boot_id(),
            ..PositionFile::default()
        };
        let closer = Closer::new(paths, position)?;
        let length = closer.sync()?;
        closer.write_position(|position| PositionFile {
            length,
            ..position.clone()
        })?;
        let databases = (0..options.databases)
            .map(|_| (View::default(), DatabaseWriter::default()))
            .collect();
        let writer = |writers| Writer::new(writers, 0, options.keeps_hidden, Vec::new());
        Ok(assemble(db, meta, closer, databases, writer))
    };
    let store = match catch_unwind(AssertUnwindSafe(start)) {
        Ok(started) => started.map_err(|failure| match Unusable::from(failure) {
            Unusable::Fatal(error) => error,
            Unusable::Rebuild(cause) => StoreError::Engine { doing: "create", cause },
        })?,
        Err(panic) => {
            return Err(StoreError::Engine {
                doing: "create",
                cause: panic_text(panic.as_ref()),
            });
        }
    };
    Ok(Opened {
        store: Arc::new(store),
        checkpoint: Checkpoint::default(),
        rebuilt,
    })
}

fn open_existing(paths: &Paths, options: &Options, position: PositionFile) -> Result<Opened<SledStore>, Unusable> {
    check_position(paths, &position).map_err(Unusable::Rebuild)?;
    verify::verify(&paths.sled).map_err(Unusable::Rebuild)?;
    // From here on the engine changes its files: they are no longer as they were closed.
    let position = PositionFile {
        closed: false,
        boot: boot_id(),
        ..position
    };
    position
        .write(&paths.position)
        .map_err(|cause| Unusable::Fatal(io_error("write", &paths.position, cause)))?;
    let checkpoint = position.checkpoint.clone();
    match catch_unwind(AssertUnwindSafe(|| recover(paths, options, position))) {
        Ok(recovered) => Ok(Opened {
            store: Arc::new(recovered?),
            checkpoint,
            rebuilt: None,
        }),
        Err(panic) => Err(Unusable::Rebuild(panic_text(panic.as_ref()))),
    }
}

fn check_position(paths: &Paths, position: &PositionFile) -> Result<(), String> {
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

fn recover(paths: &Paths, options: &Options, position: PositionFile) -> Result<SledStore, Unusable> {
    let rebuild = |reason: &str| Err(Unusable::Rebuild(reason.to_owned()));
    let db = open_engine(&paths.sled, options)?;
    let meta = db.open_tree("meta").map_err(Failure::from)?;
    if get_mark(&meta, &Mark::Format)? != Some(FORMAT) {
        return rebuild("it has another format");
    }
    if get_mark(&meta, &Mark::Store)? != Some(position.store) {
        return rebuild("its position file belongs to another store");
    }
    let number = get_mark(&meta, &Mark::Checkpoint)?.unwrap_or(0);
    if number < position.number {
        return rebuild("it lost data that its position file counts on");
    }
    // If something was changed after the position file was written, the counts in the file are
    // outdated.
    let is_ahead = get_mark(&meta, &Mark::Dirty)?.is_some_and(|dirty| dirty >= position.number);
    let mut databases = Vec::new();
    for database in 0..options.databases {
        let counts = if is_ahead {
            None
        } else {
            position.counts.get(&database).cloned()
        };
        let mut writer = recover_database(&meta, database, counts)?;
        if is_ahead {
            set_mark(&meta, &Mark::Walk { database }, 1)?;
            writer.walk = Some(Walk::new(true));
        }
        databases.push((
            View {
                trees: None,
                flushed_below: flushed_below(&meta, database)?,
            },
            writer,
        ));
    }
    let retired = open_trees(&db, &mut databases)?;
    let closer = Closer::new(paths, position)?;
    let writer = |writers| Writer::new(writers, number, options.keeps_hidden, retired);
    Ok(assemble(db, meta, closer, databases, writer))
}

/// Gives each database its current trees. Returns the trees of earlier generations.
fn open_trees(db: &sled::Db, databases: &mut [(View, DatabaseWriter)]) -> Result<Vec<Arc<Trees>>, Failure> {
    let mut left = BTreeMap::new();
    for name in db.tree_names() {
        let Some((database, generation)) = parse_tree_name(&name) else {
            continue;
        };
        let Some((view, writer)) = databases.get_mut(usize::from(database)) else {
            return Err(Failure::NoSuchDatabase);
        };
        if generation == writer.generation {
            if view.trees.is_none() {
                let trees = Trees::open(db, database, generation)?;
                probe(&trees)?;
                view.trees = Some(Arc::new(trees));
            }
        } else if let std::collections::btree_map::Entry::Vacant(vacant) = left.entry((database, generation)) {
            vacant.insert(Arc::new(Trees::open(db, database, generation)?));
        }
    }
    Ok(left.into_values().collect())
}

/// `<database>.<generation>.<tree>`
fn parse_tree_name(name: &[u8]) -> Option<(u16, u64)> {
    let mut parts = std::str::from_utf8(name).ok()?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Reads the ends of the trees, so that a wholly broken tree is noticed now.
fn probe(trees: &Trees) -> Result<(), Failure> {
    for tree in [&trees.entries, &trees.expiry, &trees.pieces] {
        tree.first()?;
        // Not `last`, which puts a constant of 1 MiB into the binary. This reads the last leaf too.
        tree.get([u8::MAX; 16])?;
    }
    Ok(())
}

fn flushed_below(meta: &sled::Tree, database: u16) -> Result<Vec<(u32, u64)>, Failure> {
    let first = Mark::FlushedBelow { database, partition: 0 }.key();
    let last = Mark::FlushedBelow {
        database,
        partition: u32::MAX,
    }
    .key();
    let mut watermarks = Vec::new();
    for found in meta.range(first..=last) {
        let (key, stored) = found?;
        let partition = key.last_chunk::<4>().ok_or(Failure::Damaged("mark"))?;
        let offset = stored.as_ref().try_into().map_err(|_| Failure::Damaged("mark"))?;
        watermarks.push((u32::from_be_bytes(*partition), u64::from_be_bytes(offset)));
    }
    Ok(watermarks)
}

fn open_engine(directory: &Path, options: &Options) -> Result<sled::Db, Failure> {
    let config = sled::Config::new().path(directory).cache_capacity(options.cache_bytes);
    Ok(config.flush_every_ms(Some(ENGINE_FLUSH_MS)).open()?)
}

fn assemble(
    db: sled::Db,
    meta: sled::Tree,
    closer: Closer,
    databases: Vec<(View, DatabaseWriter)>,
    writer: impl FnOnce(Vec<DatabaseWriter>) -> Writer,
) -> SledStore {
    let (views, writers): (Vec<View>, Vec<DatabaseWriter>) = databases.into_iter().unzip();
    let databases = views.into_iter().map(|view| Database {
        view: ArcSwap::from_pointee(view),
        keys: AtomicU64::new(0),
        expiring: AtomicU64::new(0),
        hidden: AtomicU64::new(0),
        counted: AtomicBool::new(false),
    });
    let store = SledStore {
        databases: databases.collect(),
        writer: Mutex::new(writer(writers)),
        meta,
        db,
        broken: std::sync::OnceLock::new(),
        closer,
    };
    for database in 0..store.databases.len() {
        store.writer.lock().publish_counts(&store, database);
    }
    store
}

/// Waits until no engine holds the data file: one that was dropped releases it a moment later.
fn wait_for_lock(data: &Path) -> Result<(), StoreError> {
    match File::options().read(true).write(true).open(data) {
        Ok(file) => lock_patiently(&file).map_err(|cause| io_error("lock", data, cause)),
        Err(cause) if is_environment(&cause) => Err(io_error("open", data, cause)),
        // Missing, or not a file: the engine or the rebuild handles that.
        Err(_) => Ok(()),
    }
}

fn lock_patiently(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(cause)) => return Err(cause),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "in use by another process"));
            }
        }
    }
}

/// Reserves so many bytes of the disk after the end of a file, whose length does not change. Bytes
/// that are already reserved cost nothing.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    Ok(fallocate(
        file,
        FallocateFlags::KEEP_SIZE,
        file.metadata()?.len(),
        bytes,
    )?)
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Removes the position file, durably.
fn remove_position(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_parent(path),
    }
}

/// Identifies the current run of the kernel. Empty where there is no such id.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Handles the files for what the engine does not do itself: syncs them, keeps the position file,
/// and notes an orderly close.
pub(super) struct Closer {
    directory: PathBuf,
    /// Held open from the start: the kernel reports a failed write-back once to every open file.
    data: File,
    path: PathBuf,
    /// As last written. `None` once it was discarded.
    position: Mutex<Option<PositionFile>>,
}

impl Closer {
    fn new(paths: &Paths, position: PositionFile) -> Result<Closer, Failure> {
        let opened = File::options().read(true).write(true).open(&paths.data);
        let data = opened.map_err(|cause| Failure::Io {
            path: paths.data.clone(),
            cause,
        })?;
        let position = Mutex::new(Some(position));
        Ok(Closer {
            directory: paths.sled.clone(),
            data,
            path: paths.position.clone(),
            position,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes what the engine has written durable (its own flush does not). Returns the length of
    /// the data file.
    pub fn sync(&self) -> Result<u64, Failure> {
        let synced = self
            .data
            .sync_all()
            .and_then(|()| sync_tree(&self.directory))
            .and_then(|()| self.data.metadata());
        match synced {
            Ok(metadata) => Ok(metadata.len()),
            Err(cause) => Err(Failure::Io {
                path: self.directory.clone(),
                cause,
            }),
        }
    }

    /// sled shortens its file when the last segments are free. The position file is soon updated
    /// with the new length, so that a kill does not make it look like damage. The update is not
    /// made durable: it is for a kill, which loses nothing that was written.
    pub fn note_length(&self) -> Result<(), Failure> {
        let failed = |cause| Failure::Io {
            path: self.directory.clone(),
            cause,
        };
        let length = self.data.metadata().map_err(failed)?.len();
        let mut position = self.position.lock();
        if let Some(position) = position.as_mut().filter(|position| length < position.length) {
            let before = std::mem::replace(&mut position.length, length);
            if let Err(cause) = position.write_unsynced(&self.path) {
                position.length = before;
                // Then the length is updated later. A kill until then costs a rebuild.
                if cause.kind() != io::ErrorKind::StorageFull {
                    return Err(failed(cause));
                }
            }
        }
        Ok(())
    }

    /// Reserves room after the end of the engine's file for changes of so many bytes. Returns the
    /// reason if it cannot.
    pub fn lacks_room(&self, bytes: u64) -> Option<String> {
        // If the disk does not say how much room it has, a write will fail when it is full.
        let room = Room::of(&self.directory).ok()?;
        let needed = room.needed(bytes.saturating_mul(OFTEN_WRITTEN), KEPT_BY_STORE);
        match reserve(&self.data, needed) {
            Ok(()) => None,
            Err(error) if is_environment(&error) => Some(room.shortage(&self.directory, needed)),
            // Not every file system can reserve. Then it has to be enough that there is room now.
            Err(_) => (room.free < needed).then(|| room.shortage(&self.directory, needed)),
        }
    }

    pub fn write_position(&self, change: impl FnOnce(&PositionFile) -> PositionFile) -> Result<(), Failure> {
        let mut position = self.position.lock();
        let Some(last) = position.as_ref() else {
            return Err(Failure::Damaged("store, given up"));
        };
        let changed = change(last);
        changed.write(&self.path).map_err(|cause| Failure::Io {
            path: self.path.clone(),
            cause,
        })?;
        *position = Some(changed);
        Ok(())
    }

    pub fn discard_position(&self) -> io::Result<()> {
        *self.position.lock() = None;
        remove_position(&self.path)
    }

    fn close(&self) -> Result<(), Failure> {
        if self.position.lock().is_none() {
            return Ok(());
        }
        // Waits for the engine's last threads.
        lock_patiently(&self.data).map_err(|cause| Failure::Io {
            path: self.directory.clone(),
            cause,
        })?;
        let length = self.sync()?;
        self.write_position(|position| PositionFile {
            length,
            closed: true,
            ..position.clone()
        })
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Err(Failure::Io { path, cause }) = self.close() {
            // Harmless: the next start treats it as an unclean stop.
            tracing::warn!(path = %path.display(), %cause, "the store could not be closed in order");
        }
    }
}
