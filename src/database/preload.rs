//! Reads the store into memory after a start, so that memory holds every key and a miss costs no
//! read of the store ([`HotTier::hold_all`](super::hot::HotTier::hold_all)). Owns a thread that
//! ends when that is done, when memory turns out to be too small, or when the node no longer
//! serves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::hot::{Lookup, SLOT_OVERHEAD};
use super::{Database, Service};
use crate::store::{Scanned, StoreError};
use crate::supervise;

/// Keys that are read in one go. After each go the thread rests for as long as that took, so that
/// others get the processor.
const PART: usize = 256;
/// How often a key is read again because its shard has changed meanwhile.
const TRIES: usize = 100;
/// Pause between two checks whether the store has what was loaded.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts the preload when the node has just begun to serve. Called by the applier.
pub fn start(service: &Arc<Service>) -> std::io::Result<Option<JoinHandle<Option<()>>>> {
    let numbers: Vec<u16> = (0..service.database_count())
        .filter(|number| {
            let database = service.database(*number);
            database.only_partition().is_some() && database.hot.begin_to_hold_all()
        })
        .collect();
    if numbers.is_empty() {
        return Ok(None);
    }
    let preload = Preload {
        service: service.clone(),
        era: service.era(),
    };
    let body = move || {
        // The applier notices damage, and every reader gets the error itself.
        if let Err(error) = preload.run(&numbers) {
            tracing::debug!(%error, "cannot read the store into memory");
        }
    };
    supervise::thread(&supervise::PRELOAD, body).map(Some)
}

struct Preload {
    service: Arc<Service>,
    /// The preload ends with this era.
    era: u64,
}

impl Preload {
    fn run(&self, numbers: &[u16]) -> Result<(), StoreError> {
        // What was applied while loading is on its way to the store.
        while self.service.behind.is_loaded_only() {
            if !self.goes_on() {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        for &number in numbers {
            let begun = Instant::now();
            let database = self.service.database(number);
            let Some(keys) = self.load(number, database)? else {
                database.hot.hold_some();
                continue;
            };
            if database.hot.hold_all_that_came() {
                let seconds = begun.elapsed().as_secs_f64();
                tracing::debug!(database = number, keys, seconds, "memory has every key");
            }
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        !self.service.is_stopping() && self.service.has_served_since(self.era)
    }

    /// Makes sure that each key of the store is in memory. Returns the number of keys, or `None` if
    /// that is not possible.
    fn load(&self, number: u16, database: &Database) -> Result<Option<usize>, StoreError> {
        let mut keys = Vec::with_capacity(PART);
        let (mut next, mut met, mut read) = (Some(0), 0, Read::default());
        while let Some(from) = next {
            supervise::beat();
            let begun = Instant::now();
            let left = self.service.store.count(number)?.saturating_sub(met as u64);
            if !self.goes_on() || !database.hot.may_hold_all() || !self.has_room(left as usize, &read) {
                return Ok(None);
            }
            keys.clear();
            let mut meet = |scanned: Scanned<'_>| keys.push(scanned.key.to_vec());
            next = self.service.store.scan(number, from, PART, &mut meet)?;
            for key in &keys {
                if !self.take(number, database, key, &mut read)? {
                    return Ok(None);
                }
            }
            met += keys.len();
            std::thread::sleep(begun.elapsed());
        }
        Ok(Some(met))
    }

    /// True if there is room for this many more keys, if they are like those that were read.
    fn has_room(&self, left: usize, read: &Read) -> bool {
        let used = self.service.memory.used.load(Ordering::Relaxed);
        let limit = self.service.memory.limit.load(Ordering::Relaxed);
        let each = read.bytes.checked_div(read.keys).unwrap_or(SLOT_OVERHEAD);
        used.saturating_add(left.saturating_mul(each)) <= limit - limit / 8 && limit > 0
    }

    /// Reads this key into memory. True if memory has it now.
    fn take(&self, number: u16, database: &Database, key: &[u8], read: &mut Read) -> Result<bool, StoreError> {
        for _ in 0..TRIES {
            let Lookup::Cold(token) = database.hot.get(key, false) else {
                return Ok(true);
            };
            let entry = self.service.beneath(number, key, usize::MAX)?;
            database.hot.fill(key, entry.as_ref(), token);
            let value = entry.map_or(0, |entry| entry.value.bytes());
            read.keys += 1;
            read.bytes += SLOT_OVERHEAD + key.len() + value;
        }
        Ok(false)
    }
}

/// What was read from the store.
#[derive(Default)]
struct Read {
    keys: usize,
    bytes: usize,
}
