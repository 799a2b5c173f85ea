//! What a script reads, as it is at one moment.
//!
//! A script finds its keys as it goes, so they cannot be read together at first. Each key is
//! watched and then read, once: what was read stays for the rest of the run. When the run is over,
//! nobody may have changed any of them meanwhile: then all of it was there at that time. Otherwise
//! the script is computed again, and the keys that are known by then are read together before it
//! begins ([`Transaction::read_together`]), and so are those that the script declares. A run that
//! reads no other ones is right whatever changes meanwhile. So a script that runs for long comes to
//! an end, and holds up nobody, unless it finds more and more keys that others keep changing.
//!
//! If the script writes, its write rests on what it has read, and this is not needed.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::compute::Watching;
use super::{Transaction, View};
use crate::database::fault::{Fault, Wait};
use crate::database::watch::Watches;
use crate::database::{Database, Seen, Service};
use crate::log::TopicPartition;
use crate::model::Value;

/// The most keys that one script can read.
const MOST_KEYS: usize = if cfg!(test) { 100 } else { 1_000_000 };
/// Bytes of values that are kept for one script, besides those that memory holds anyway. The values
/// of further keys are read again each time.
const MOST_BYTES: usize = 64 << 20;
/// How often the known keys are read until they are of one moment.
const TRIES: usize = 100;

/// What the runs of one computation know of the keys that they read.
#[derive(Default)]
pub struct Moment {
    keys: Vec<(u16, Bytes)>,
    /// The last run has read what was not there at one time.
    pub lost: bool,
}

impl Moment {
    /// The next run reads these keys too before it begins: it is going to read them anyway.
    pub fn expect<'k>(&mut self, database: u16, keys: impl Iterator<Item = &'k [u8]>) {
        let known: HashSet<(u16, Bytes)> = self.keys.drain(..).collect();
        let keys = keys.map(|key| (database, Bytes::copy_from_slice(key)));
        let all: HashSet<(u16, Bytes)> = known.into_iter().chain(keys).collect();
        self.keys.extend(all);
    }
}

/// What was read of a key, and how far its home partition was applied before, if the outcome rests
/// on that.
#[derive(Clone)]
pub(super) struct Known {
    pub seen: Seen,
    pub applied: Option<(TopicPartition, u64)>,
}

/// What one run has read.
pub(super) struct Reads<'s> {
    watching: Watching<'s>,
    known: HashMap<(u16, Bytes), Known>,
    bytes: usize,
    /// What is in `known` was read at one moment. What else is read may not be of that.
    are_together: bool,
    /// Something else was read.
    others: bool,
}

impl<'s> Reads<'s> {
    /// A script that writes is told only of what others write: its own keys are locked.
    pub fn new(service: &'s Service, view: View) -> Reads<'s> {
        let of = |view| -> fn(&Database) -> &Watches {
            match view {
                View::Update => |database| &database.snapshots,
                View::Committed | View::Pending => |database| &database.moments,
            }
        };
        Reads {
            watching: Watching::new(service, of(view)),
            known: HashMap::new(),
            bytes: 0,
            are_together: false,
            others: false,
        }
    }

    pub fn known(&self, database: u16, key: &[u8]) -> Option<Known> {
        self.known.get(&(database, Bytes::copy_from_slice(key))).cloned()
    }

    /// A key is about to be read.
    pub fn begin(&mut self, database: u16, key: &[u8]) -> Result<(), Fault> {
        self.others |= self.are_together;
        self.watching.watch(database, key);
        if self.watching.len() > MOST_KEYS {
            return Err(Fault::error(format!("ERR a script can read at most {MOST_KEYS} keys")));
        }
        Ok(())
    }

    pub fn keep(&mut self, database: u16, key: &[u8], known: &Known) {
        let bytes = known.seen.own_bytes();
        if self.bytes + bytes <= MOST_BYTES {
            self.bytes += bytes;
            let mut known = known.clone();
            // It is not read there once more.
            known.seen.from_store = false;
            self.known.insert((database, Bytes::copy_from_slice(key)), known);
        }
    }

    /// True if what was read may not have been there at one time.
    fn is_lost(&self) -> bool {
        (self.others || !self.are_together) && self.watching.check().is_err()
    }
}

impl Transaction<'_> {
    /// Reads the keys that are known from earlier runs, as they are at one moment.
    pub(super) fn read_together(&mut self, moment: &Moment) -> Result<(), Fault> {
        if moment.keys.is_empty() {
            return Ok(());
        }
        for _ in 0..TRIES {
            match self.read_once(&moment.keys) {
                Err(Fault::Wait(Wait::Changed)) => {}
                Err(fault) => return Err(fault),
                Ok(()) => {
                    // A group becomes visible as a whole.
                    let _whole_groups = self.service.groups.hold();
                    if let Some(reads) = self.moment.as_mut().filter(|reads| !reads.is_lost()) {
                        reads.are_together = true;
                        return Ok(());
                    }
                }
            }
            self.moment = Some(Reads::new(self.service, self.view));
            self.trees.clear();
            self.forget_reads();
            self.depends.clear();
            self.depended.clear();
        }
        Err(Fault::Wait(Wait::Changed))
    }

    fn read_once(&mut self, keys: &[(u16, Bytes)]) -> Result<(), Fault> {
        for (database, key) in keys {
            let entry = self.look(*database, key, self.is_conditional())?;
            if let Some(Value::Split(split)) = entry.map(|entry| entry.value) {
                self.elements_to_pick(*database, key, &split)?;
            }
        }
        Ok(())
    }

    /// Whether what this run has read was there at one time. If not, notes the keys for the next
    /// run.
    pub(super) fn check_moment(&self, moment: &mut Moment) -> Result<(), Fault> {
        let Some(reads) = &self.moment else {
            return Ok(());
        };
        let is_lost = {
            let _whole_groups = self.service.groups.hold();
            reads.is_lost()
        };
        if !is_lost {
            return Ok(());
        }
        moment.lost = true;
        let before = std::mem::take(&mut moment.keys).into_iter();
        let keys: HashSet<(u16, Bytes)> = before.chain(reads.watching.keys().cloned()).collect();
        moment.keys = keys.into_iter().collect();
        Err(Fault::Wait(Wait::Changed))
    }

    /// Before a key is read for the first time: the run may be in vain already.
    pub(super) fn begin_read(&mut self, database: u16, key: &[u8]) -> Result<(), Fault> {
        let view = self.view;
        let Some(reads) = &mut self.moment else {
            return Ok(());
        };
        reads.begin(database, key)?;
        match view != View::Update && reads.is_lost() {
            true => Err(Fault::Wait(Wait::Changed)),
            false => Ok(()),
        }
    }
}
