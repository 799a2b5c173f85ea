//! Opening: takes up what an engine has, or starts empty if that cannot be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::meta::{self, OfDatabase, Row};
use super::spaces::{Spaces, View};
use super::walk::Walk;
use super::writer::Writer;
use super::{Database, Entries};
use crate::store::engine::{EVERYTHING, Engine, Failure, Unusable};
use crate::store::files::{io_error, remove_directory, wait_for_lock};
use crate::store::{Checkpoint, Opened, Options, StoreError, panic_text};

/// The space of [`Row`]s.
const META: &str = "meta";

/// Opens the store in `directory`, or an empty one if there is none that can be trusted. Fails
/// where a rebuild would not help: no rights, no space, in use by another process.
pub(in crate::store) fn open<E: Engine>(directory: &Path, options: &Options) -> Result<Opened<Entries<E>>, StoreError> {
    let data = directory.join(E::NAME);
    let quarantine = directory.join(format!("{}.unusable", E::NAME));
    fs::create_dir_all(directory).map_err(|cause| io_error("create", directory, cause))?;
    remove_directory(&quarantine)?;
    wait_for_lock(&E::lock_file(directory))?;
    let rebuilt = match guarded(|| take_up::<E>(directory, options)) {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => None,
        Err(Unusable::Fatal(error)) => return Err(error),
        Err(Unusable::Rebuild(reason)) => {
            E::forget(directory)?;
            set_aside(&data, &quarantine)?;
            Some(reason)
        }
    };
    let store = guarded(|| start_empty::<E>(directory, options)).map_err(|unusable| match unusable {
        Unusable::Fatal(error) => error,
        Unusable::Rebuild(cause) => StoreError::Engine { doing: "create", cause },
    })?;
    // Removed only now: it is of no use, but after a failure up to here there should be something
    // to look at.
    remove_directory(&quarantine)?;
    Ok(Opened {
        store: Arc::new(store),
        checkpoint: Checkpoint::default(),
        rebuilt,
    })
}

/// Moves unusable data out of the way. A rename, since an engine that failed to open may still hold
/// files.
fn set_aside(data: &Path, quarantine: &Path) -> Result<(), StoreError> {
    match fs::rename(data, quarantine) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("set aside", data, cause)),
        _ => Ok(()),
    }
}

/// Opening can make an engine panic.
fn guarded<T>(open: impl FnOnce() -> Result<T, Unusable>) -> Result<T, Unusable> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| Err(Unusable::Rebuild(panic_text(panic.as_ref()))))
}

fn start_empty<E: Engine>(directory: &Path, options: &Options) -> Result<Entries<E>, Unusable> {
    let engine = E::create(directory, options.cache_bytes)?;
    let mut batch = E::Batch::default();
    let meta = engine.space(&mut batch, META)?;
    Row::Format.set(&engine, &mut batch, &meta, &[E::FORMAT])?;
    let count = u64::from(options.databases);
    Row::Databases.set(&engine, &mut batch, &meta, &[count])?;
    engine.commit(&mut batch)?;
    engine.flush()?;
    Ok(assemble(directory, engine, meta, options))
}

/// `None` if there is nothing.
fn take_up<E: Engine>(directory: &Path, options: &Options) -> Result<Option<Opened<Entries<E>>>, Unusable> {
    let Some((engine, note)) = E::open(directory, options.cache_bytes)? else {
        return Ok(None);
    };
    let checkpoint = Checkpoint::parse(&note).map_err(Unusable::Rebuild)?;
    let mut names = engine.spaces()?;
    let has_meta = names.iter().any(|name| name == META);
    names.retain(|name| name != META);
    let other_format = || Unusable::Rebuild("it has another format, or none".to_owned());
    if !has_meta {
        return Err(other_format());
    }
    let meta = engine.space(&mut E::Batch::default(), META)?;
    let rows = meta::read(&engine, &meta)?;
    if rows.format != Some(E::FORMAT) {
        return Err(other_format());
    }
    if rows.database_count != Some(u64::from(options.databases)) {
        let reason = "it was kept for another number of databases";
        return Err(Unusable::Rebuild(reason.to_owned()));
    }
    let mut store = assemble(directory, engine, meta, options);
    store.writer.get_mut().checkpoint = checkpoint.clone();
    store.writer.get_mut().dirty = rows.is_dirty;
    store.recover_rows(rows.databases, rows.is_dirty)?;
    store.recover_spaces(&names, rows.is_dirty)?;
    store.writer.lock().commit(&store)?;
    Ok(Some(Opened {
        store: Arc::new(store),
        checkpoint,
        rebuilt: None,
    }))
}

/// A store without content.
fn assemble<E: Engine>(directory: &Path, engine: E, meta: E::Space, options: &Options) -> Entries<E> {
    let database = |_| Database {
        view: ArcSwap::from_pointee(View::default()),
        keys: AtomicU64::new(0),
        expiring: AtomicU64::new(0),
        hidden: AtomicU64::new(0),
        counted: AtomicBool::new(true),
    };
    let writer = Writer {
        databases: (0..options.databases).map(|_| Default::default()).collect(),
        batch: E::Batch::default(),
        checkpoint: Checkpoint::default(),
        dirty: false,
        keeps_hidden: options.keeps_hidden,
        retired: Vec::new(),
        encoded: Vec::new(),
        looked_up: None,
    };
    Entries {
        databases: (0..options.databases).map(database).collect(),
        writer: Mutex::new(writer),
        meta,
        engine,
        broken: OnceLock::new(),
        directory: directory.join(E::NAME),
    }
}

impl<E: Engine> Entries<E> {
    fn recover_rows(&mut self, databases: BTreeMap<u16, OfDatabase>, is_dirty: bool) -> Result<(), Failure> {
        let writer = self.writer.get_mut();
        for (database, found) in databases {
            let of = writer.database(database)?;
            *of = found.writer;
            if is_dirty || of.walk.as_ref().is_some_and(|walk| walk.counting) {
                of.forget_counts();
            }
            let view = &self.databases[usize::from(database)].view;
            view.store(Arc::new(View {
                spaces: None,
                flushed_below: found.flushed_below,
            }));
        }
        Ok(())
    }

    /// Gives each database its current spaces, and the writer those of earlier generations. If the
    /// counts are outdated, begins to count.
    fn recover_spaces(&mut self, names: &[String], is_dirty: bool) -> Result<(), Failure> {
        let damaged = || Failure::damaged("name of a space");
        let owners = names.iter().map(|name| Spaces::<E>::owner(name).ok_or_else(damaged));
        let owners = owners.collect::<Result<BTreeSet<_>, _>>()?;
        for (database, generation) in owners {
            let writer = self.writer.get_mut();
            let of = writer.databases.get_mut(usize::from(database));
            let of = of.ok_or(Failure::NoSuchDatabase)?;
            let spaces = Arc::new(Spaces::open(&self.engine, &mut writer.batch, database, generation)?);
            if generation != of.generation {
                writer.retired.push(spaces);
                continue;
            }
            probe(&self.engine, &spaces)?;
            let view = &self.databases[usize::from(database)].view;
            let flushed_below = view.load().flushed_below.clone();
            view.store(Arc::new(View {
                spaces: Some(spaces),
                flushed_below,
            }));
            if is_dirty {
                let row = Row::Walk { database };
                row.set(&self.engine, &mut writer.batch, &self.meta, &[1])?;
                of.walk = Some(Walk::new(true));
            }
        }
        Ok(())
    }
}

/// Reads the ends of the spaces, so that a wholly broken one is noticed now.
fn probe<E: Engine>(engine: &E, spaces: &Spaces<E>) -> Result<(), Failure> {
    let Spaces {
        entries,
        expiry,
        pieces,
        elements,
        orphans,
        ..
    } = spaces;
    for space in [entries, expiry, pieces, elements, orphans] {
        engine.range(space, EVERYTHING).next().transpose()?;
        let end = (Bound::Included(&[u8::MAX; 16][..]), Bound::Unbounded);
        engine.range(space, end).next().transpose()?;
    }
    Ok(())
}
