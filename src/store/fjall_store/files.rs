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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::writer::{DatabaseWriter, Writer};
use super::{Database, Engine, Failure, FjallStore, key};
use crate::store::checkpoint::{KeyCount, PositionFile, sync_parent};
use crate::store::{
    Checkpoint, Opened, Options, StoreError, io_error, is_environment, is_gone, panic_text, remove_directory,
};

/// Format of keys and entries in the engine. A store with another format is rebuilt.
const FORMAT: u64 = 4;

/// The engine holds its lock for a moment after it was dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Threads that write tables and merge them.
const WORKERS: usize = 1;

pub(in crate::store) const DIRECTORY: &str = "fjall";
const QUARANTINE: &str = "fjall.unusable";
const BROKEN: &str = "fjall.broken";

/// Why an existing store is not used.
enum Unusable {
    Rebuild(String),
    Fatal(StoreError),
}

impl From<Failure> for Unusable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Engine(fjall::Error::Locked) => Unusable::Fatal(StoreError::Engine {
                doing: "open",
                cause: "in use by another process".into(),
            }),
            Failure::Engine(error) if io_of(&error).is_some_and(is_environment) => {
                Unusable::Fatal(StoreError::Engine {
                    doing: "open",
                    cause: error.to_string(),
                })
            }
            Failure::Engine(error) => Unusable::Rebuild(error.to_string()),
            Failure::Damaged(what) => Unusable::Rebuild(format!("damaged {what}")),
            Failure::NoSuchDatabase => Unusable::Rebuild("more databases than configured".into()),
            Failure::Timeout => Unusable::Rebuild("the engine does not answer".into()),
        }
    }
}

fn io_of(error: &fjall::Error) -> Option<&io::Error> {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => Some(error),
        _ => None,
    }
}

/// Whether an error comes from the file system rather than from what is in the files.
pub(super) fn is_io(error: &fjall::Error) -> bool {
    io_of(error).is_some_and(|error| !is_gone(error))
}

/// From now on the store cannot be used. The next [`open`] starts with an empty one.
pub(super) fn mark_broken(directory: &Path) -> io::Result<()> {
    let path = directory.join(BROKEN);
    crate::files::create(&path)?.sync_all()?;
    sync_parent(&path)
}

pub(super) fn open(directory: &Path, options: &Options) -> Result<Opened, StoreError> {
    let (data, quarantine, broken) = (
        directory.join(DIRECTORY),
        directory.join(QUARANTINE),
        directory.join(BROKEN),
    );
    fs::create_dir_all(directory).map_err(|cause| io_error("create", directory, cause))?;
    remove_directory(&quarantine)?;
    wait_for_lock(&data)?;
    let mut rebuilt = None;
    if broken.exists() {
        rebuilt = Some("it was found damaged while it was used".to_owned());
    } else if data.exists() {
        match guarded(|| open_existing(directory, &data, options)) {
            Ok(opened) => return Ok(opened),
            Err(Unusable::Fatal(error)) => return Err(error),
            Err(Unusable::Rebuild(reason)) => rebuilt = Some(reason),
        }
        // A rename, since an engine that failed to open may still hold files.
        fs::rename(&data, &quarantine).map_err(|cause| io_error("set aside", &data, cause))?;
    }
    remove_directory(&data)?;
    match fs::remove_file(&broken) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &broken, cause)),
        _ => {}
    }
    let opened = guarded(|| start_empty(directory, &data, options)).map_err(|unusable| match unusable {
        Unusable::Fatal(error) => error,
        Unusable::Rebuild(cause) => StoreError::Engine { doing: "create", cause },
    })?;
    remove_directory(&quarantine)?;
    Ok(Opened { rebuilt, ..opened })
}

fn guarded(open: impl FnOnce() -> Result<Opened, Unusable>) -> Result<Opened, Unusable> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| Err(Unusable::Rebuild(panic_text(panic.as_ref()))))
}

fn start_empty(directory: &Path, data: &Path, options: &Options) -> Result<Opened, Unusable> {
    let engine = open_engine(data, options)?;
    engine
        .keyspace
        .insert(key::FORMAT, FORMAT.to_be_bytes())
        .map_err(Failure::from)?;
    let databases = (0..options.databases).map(|_| DatabaseWriter::default()).collect();
    let store = assemble(
        directory,
        engine,
        Writer::new(databases, Checkpoint::default(), options.keeps_hidden, false),
        options,
    );
    store.writer.lock().flush_memory(&store.engine)?;
    Ok(Opened {
        store: Arc::new(store),
        checkpoint: Checkpoint::default(),
        rebuilt: None,
    })
}

fn open_existing(directory: &Path, data: &Path, options: &Options) -> Result<Opened, Unusable> {
    check_lists_of_tables(&data.join("keyspaces")).map_err(Unusable::Rebuild)?;
    remove_journals(data).map_err(|cause| Unusable::Fatal(io_error("remove the journals of", data, cause)))?;
    let engine = open_engine(data, options)?;
    let get = |key: &[u8]| engine.slot(key);
    let format = get(key::FORMAT)?;
    if format.as_deref() != Some(&FORMAT.to_be_bytes()[..]) {
        return Err(Unusable::Rebuild("it has another format, or none".into()));
    }
    let checkpoint = match get(key::CHECKPOINT)? {
        Some(text) => PositionFile::parse(&text).map_err(Unusable::Rebuild)?.checkpoint,
        None => Checkpoint::default(),
    };
    let walking = get(key::WALK)?.is_some();
    let databases = recover_databases(&engine, options)?;
    let writer = Writer::new(databases, checkpoint.clone(), options.keeps_hidden, walking);
    Ok(Opened {
        store: Arc::new(assemble(directory, engine, writer, options)),
        checkpoint,
        rebuilt: None,
    })
}

fn recover_databases(engine: &Engine, options: &Options) -> Result<Vec<DatabaseWriter>, Failure> {
    let mut databases = vec![DatabaseWriter::default(); usize::from(options.databases)];
    let damaged = Failure::Damaged("count or watermark");
    for tag in [b'c', b'f', b'g'] {
        for found in engine.keyspace.prefix([tag]) {
            let (key, value) = found.into_inner()?;
            let (database, partition) = key[1..].split_first_chunk::<2>().ok_or(Failure::Damaged("key"))?;
            let of = databases
                .get_mut(usize::from(u16::from_be_bytes(*database)))
                .ok_or(Failure::NoSuchDatabase)?;
            let partition = partition
                .first_chunk::<4>()
                .map(|partition| u32::from_be_bytes(*partition));
            let numbers: Vec<u64> = value
                .chunks(8)
                .map(|number| number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
                .collect();
            match (tag, partition, numbers.as_slice()) {
                (b'c', Some(partition), &[keys, expiring, hidden, newest]) => {
                    let count = KeyCount {
                        keys,
                        expiring,
                        hidden,
                        newest,
                    };
                    of.counts.insert(partition, count);
                }
                (b'f', Some(partition), &[offset]) => of.view.flushed_below.push((partition, offset)),
                (b'g', None, &[generation]) => {
                    of.view.generation = u32::try_from(generation).map_err(|_| Failure::Damaged("generation"))?;
                }
                _ => return Err(damaged),
            }
        }
    }
    Ok(databases)
}

fn assemble(directory: &Path, engine: Engine, writer: Writer, options: &Options) -> FjallStore {
    let database = |_| Database {
        view: ArcSwap::default(),
        keys: AtomicU64::new(0),
        expiring: AtomicU64::new(0),
        hidden: AtomicU64::new(0),
    };
    let store = FjallStore {
        databases: (0..options.databases).map(database).collect(),
        writer: Mutex::new(writer),
        engine,
        broken: OnceLock::new(),
        directory: directory.to_path_buf(),
    };
    store.writer.lock().publish(&store);
    store
}

fn open_engine(data: &Path, options: &Options) -> Result<Engine, Failure> {
    let db = fjall::Database::builder(data)
        .cache_size(options.cache_bytes)
        .worker_threads(WORKERS)
        .open()?;
    let keyspace = db.keyspace("highwater", fjall::KeyspaceCreateOptions::default)?;
    Ok(Engine { keyspace, db })
}

/// Waits until no engine holds the directory.
fn wait_for_lock(data: &Path) -> Result<(), StoreError> {
    let path = data.join("lock");
    let Ok(file) = fs::File::options().read(true).write(true).open(&path) else {
        return Ok(());
    };
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::Error(cause)) => return Err(io_error("lock", &path, cause)),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(fs::TryLockError::WouldBlock) => {
                let cause = io::Error::new(io::ErrorKind::WouldBlock, "in use by another process");
                return Err(io_error("lock", &path, cause));
            }
        }
    }
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
