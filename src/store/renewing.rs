//! A store that is thrown away and replaced by an empty one while it is in use, when what is on
//! disk turns out to be damaged.
//!
//! An engine that has found damage answers nothing any more ([`Store::damage`]). [`Store::renew`]
//! closes it as the end of the process would, and opens an empty one in its place as the next start
//! would.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use crate::model::{Meta, Version};
use crate::supervise;

use super::{Change, Checkpoint, EngineKind, Entry, Opened, Options, Scanned, Store, StoreError, open_engine};

/// How long calls under way may go on, and then how long the engine may take to close: its threads
/// may hang after damage.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Renewing {
    engine: EngineKind,
    directory: PathBuf,
    options: Options,
    /// `None` while the store is renewed, and after that failed.
    current: ArcSwapOption<Arc<dyn Store>>,
}

impl Renewing {
    pub fn open(engine: EngineKind, directory: &Path, options: &Options) -> Result<Opened, StoreError> {
        let opened = open_engine(engine, directory, options)?;
        let store = Renewing {
            engine,
            directory: directory.to_owned(),
            options: options.clone(),
            current: ArcSwapOption::from_pointee(opened.store),
        };
        Ok(Opened {
            store: Arc::new(store),
            ..opened
        })
    }

    fn call<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce(&dyn Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &*self.current.load() {
            Some(store) => call(&***store),
            None => Err(StoreError::Damaged {
                doing,
                cause: "it was thrown away".into(),
            }),
        }
    }
}

/// Closes an engine that no new call can reach.
fn close(store: Arc<Arc<dyn Store>>) -> Result<(), &'static str> {
    let deadline = Instant::now() + CLOSE_PATIENCE;
    while Arc::strong_count(&store) > 1 {
        if Instant::now() > deadline {
            return Err("calls of it do not end");
        }
        thread::sleep(Duration::from_millis(1));
    }
    let (closed, is_closed) = mpsc::channel();
    let close = move || {
        // A damaged engine may panic once more. Opening its files will show whether they are free.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
        let _ = closed.send(());
    };
    let started = supervise::thread(&supervise::STORE_CLOSER, close);
    started.map_err(|_| "no thread can be started")?;
    let ended = is_closed.recv_timeout(CLOSE_PATIENCE);
    ended.map_err(|_| "its engine does not close")
}

impl Store for Renewing {
    fn get_up_to(&self, database: u16, key: &[u8], most: usize) -> Result<Option<Entry>, StoreError> {
        self.call("get", |store| store.get_up_to(database, key, most))
    }

    fn scan(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError> {
        self.call("scan", |store| store.scan(database, from, at_least, visit))
    }

    fn scan_hidden(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError> {
        self.call("scan", |store| store.scan_hidden(database, from, at_least, visit))
    }

    fn elements(
        &self,
        database: u16,
        of: (&[u8], Version),
        from: &[u8],
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Entry),
    ) -> Result<Option<Bytes>, StoreError> {
        self.call("read elements", |store| {
            store.elements(database, of, from, at_most, visit)
        })
    }

    fn highest_element(
        &self,
        database: u16,
        of: (&[u8], Version),
        range: (&[u8], &[u8]),
    ) -> Result<Option<Bytes>, StoreError> {
        self.call("find an element", |store| store.highest_element(database, of, range))
    }

    fn orphans(&self, database: u16, limit: usize) -> Result<Vec<(Bytes, Version)>, StoreError> {
        self.call("find orphans", |store| store.orphans(database, limit))
    }

    fn orphaned(
        &self,
        database: u16,
        of: (&[u8], Version),
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Meta),
    ) -> Result<(), StoreError> {
        self.call("find orphans", |store| store.orphaned(database, of, at_most, visit))
    }

    fn sweep_orphans(
        &self,
        database: u16,
        of: (&[u8], Version),
        gone: bool,
        budget: usize,
    ) -> Result<bool, StoreError> {
        self.call("sweep orphans", |store| store.sweep_orphans(database, of, gone, budget))
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.call("apply", |store| store.apply(changes))
    }

    fn is_empty(&self, database: u16) -> Result<bool, StoreError> {
        self.call("look at", |store| store.is_empty(database))
    }

    fn count(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", |store| store.count(database))
    }

    fn count_expiring(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", |store| store.count_expiring(database))
    }

    fn count_hidden(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", |store| store.count_hidden(database))
    }

    fn expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.call("find expired keys", |store| store.expired(database, now, limit))
    }

    fn due(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.call("find what is due", |store| store.due(database, now, limit))
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.call("checkpoint", |store| store.checkpoint(checkpoint))
    }

    fn clear(&self, database: u16) -> Result<(), StoreError> {
        self.call("clear", |store| store.clear(database))
    }

    fn sweep(&self, budget: usize) -> Result<bool, StoreError> {
        self.call("sweep", |store| store.sweep(budget))
    }

    fn disk_bytes(&self) -> u64 {
        self.call("look", |store| Ok(store.disk_bytes())).unwrap_or(0)
    }

    fn lacks_room(&self, bytes: u64) -> Option<String> {
        self.call("look", |store| Ok(store.lacks_room(bytes))).unwrap_or(None)
    }

    fn damage(&self) -> Option<String> {
        let damage = self.call("look", |store| Ok(store.damage()));
        damage.unwrap_or_else(|gone| Some(gone.to_string()))
    }

    fn renew(&self) -> Result<(), StoreError> {
        let failed = |cause: &str| StoreError::Engine {
            doing: "begin anew",
            cause: cause.into(),
        };
        if let Some(damaged) = self.current.swap(None) {
            close(damaged).map_err(failed)?;
        }
        let opened = open_engine(self.engine, &self.directory, &self.options)?;
        if !opened.checkpoint.databases.is_empty() {
            return Err(failed("what is damaged is still there"));
        }
        self.current.store(Some(Arc::new(opened.store)));
        Ok(())
    }
}
