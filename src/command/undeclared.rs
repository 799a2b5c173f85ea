//! Scripts may use keys that they do not declare. The first run locks the declared keys and notes
//! which others the script uses. Nothing of that run is written, and the next run locks those too.
//! A script that uses other keys each time is computed with all keys locked in the end.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::compute::{conclude, view};
use super::key_specs::{KeyList, keys_of};
use super::session::Session;
use super::shared::Shared;
use super::step::{Before, Step, refused};
use super::table::CommandEntry;
use super::{Args, Fault, ScriptHandler, flag};
use crate::database::Wait;
use crate::database::transaction::{Keys as Locks, Moment, View};

/// Runs that may use further keys. The one after them locks all keys.
const MISSES: usize = 3;
/// A run that uses more further keys is in vain: the next one locks all keys.
const MOST_FOUND: usize = 4_096;
/// Runs at once that have read what was not there at one time. After them, others go first.
const MOMENTS: usize = 8;
/// So many locked keys are looked through one by one.
const FEW: usize = 8;

/// The keys that one run may use, and those that it used besides.
pub struct Used<'k> {
    locked: Locked<'k>,
    found: HashSet<Bytes>,
    /// It used all keys.
    all: bool,
    /// It reads the whole store, which has not yet taken in what was acknowledged.
    wants_store: bool,
    store_is_whole: bool,
}

enum Locked<'k> {
    Few(&'k [&'k [u8]]),
    Many(HashSet<&'k [u8]>),
    All,
}

impl Used<'_> {
    /// The script uses a key.
    pub fn key(&mut self, key: &[u8]) {
        let known = match &self.locked {
            Locked::Few(keys) => keys.contains(&key),
            Locked::Many(keys) => keys.contains(key),
            Locked::All => true,
        };
        if !known && !self.found.contains(key) {
            self.found.insert(Bytes::copy_from_slice(key));
            self.all |= self.found.len() > MOST_FOUND;
        }
    }

    /// The script uses keys that only the command itself finds.
    pub fn all_keys(&mut self) {
        self.all |= !matches!(self.locked, Locked::All);
    }

    /// Whether the run is worth going on with: the next one will lock all keys anyway.
    pub fn is_in_vain(&self) -> bool {
        self.all
    }

    /// The script reads the whole store. False if it has to wait for that.
    pub fn whole_store(&mut self) -> bool {
        self.wants_store |= !self.store_is_whole;
        self.store_is_whole
    }

    /// An error if the run was in vain.
    pub fn check(&self) -> Result<(), Fault> {
        match self.all || self.wants_store || !self.found.is_empty() {
            true => Err(Fault::Wait(Wait::Changed)),
            false => Ok(()),
        }
    }
}

/// What the runs of a computation used that was not declared.
#[derive(Default)]
pub struct Undeclared {
    found: Vec<Bytes>,
    all: bool,
    misses: usize,
    pub wants_store: bool,
    /// Runs that have read what was not there at one time.
    moments: usize,
}

impl Undeclared {
    /// What the next run locks, besides its declared keys.
    pub fn found(&self) -> impl Iterator<Item = &[u8]> {
        self.found.iter().map(|key| &key[..])
    }

    /// How a run that may write locks these keys, which are the declared and the found ones.
    pub fn locks<'k>(&self, keys: &'k [&'k [u8]]) -> Locks<'k> {
        match self.locks_all() {
            true => Locks::All,
            false => Locks::Some(keys),
        }
    }

    fn locks_all(&self) -> bool {
        self.all || self.misses >= MISSES
    }

    /// The next run. `keys`: as for [`Undeclared::locks`]. What only reads locks nothing.
    pub fn run<'k>(&self, keys: &'k [&'k [u8]], writes: bool, store_is_whole: bool) -> Used<'k> {
        Used {
            locked: match () {
                () if !writes || self.locks_all() => Locked::All,
                () if keys.len() <= FEW => Locked::Few(keys),
                () => Locked::Many(keys.iter().copied().collect()),
            },
            found: HashSet::new(),
            all: false,
            wants_store: false,
            store_is_whole,
        }
    }

    /// A run is over. True if it is worth another one at once.
    pub fn learn(&mut self, used: UsedMore, moment: &Moment) -> bool {
        let UsedMore {
            found,
            all,
            wants_store,
        } = used;
        let more = all || !found.is_empty();
        self.misses += usize::from(more);
        self.all |= all;
        self.found.extend(found);
        self.wants_store = wants_store;
        self.moments += usize::from(moment.lost);
        (more || moment.lost && self.moments < MOMENTS) && !wants_store
    }
}

/// What a run used that was not locked.
pub struct UsedMore {
    found: Vec<Bytes>,
    all: bool,
    wants_store: bool,
}

impl From<Used<'_>> for UsedMore {
    fn from(used: Used<'_>) -> Self {
        UsedMore {
            found: used.found.into_iter().collect(),
            all: used.all,
            wants_store: used.wants_store,
        }
    }
}

/// A script, and where it runs.
pub struct Request<'r> {
    pub command: &'static CommandEntry,
    pub handler: ScriptHandler,
    pub args: Args<'r>,
    pub database: u16,
}

impl<'r> Request<'r> {
    pub fn new(command: &'static CommandEntry, handler: ScriptHandler, args: Args<'r>, database: u16) -> Self {
        Request {
            command,
            handler,
            args,
            database,
        }
    }
}

/// Computes a single script in a transaction of its own. `again`: it has been computed before.
/// `store_is_whole`: the store has taken in what was acknowledged.
pub(super) fn compute_script(
    session: &mut Session,
    shared: &Arc<Shared>,
    request: &Request<'_>,
    again: bool,
    store_is_whole: bool,
) -> Step {
    let Request {
        command,
        handler,
        args,
        database,
    } = *request;
    let declared = keys_of(command.keys, args);
    let writes = command.may_write();
    let owner = session.outstanding.clone();
    let (mut undeclared, mut moment) = (Undeclared::default(), Moment::default());
    if again && !writes {
        moment.expect(database, declared.iter().copied());
    }
    loop {
        let keys: KeyList<'_> = declared.iter().copied().chain(undeclared.found()).collect();
        let locks = match writes {
            true => undeclared.locks(&keys),
            false => Locks::Unlocked,
        };
        let view = view(session, shared, writes);
        if view == View::Pending {
            // What is under way is not seen as it is at one moment.
            return Step::Before(Before::Wait(Wait::Own));
        }
        let mut used = undeclared.run(&keys, writes, store_is_whole);
        let (service, pace) = (&shared.service, session.pace);
        let computed = service.transact_of_moment(pace, &owner, (locks, view), Some(&mut moment), |transaction| {
            session.script_lines.clear();
            session.client.refusals.lock().begin();
            session.declares(command, args);
            let reply = handler(session, shared, transaction, &mut used, database, args);
            session.declares(command, &[]);
            let reply = reply?;
            used.check()?;
            Ok(reply)
        });
        let used = UsedMore::from(used);
        drop(keys);
        // A script that was stopped is not run again.
        let is_over = matches!(computed, Err(Fault::Error(_)));
        if moment.lost {
            moment.expect(database, declared.iter().copied());
        }
        if undeclared.learn(used, &moment) && !is_over {
            continue;
        }
        if undeclared.wants_store && !is_over {
            return Step::Before(Before::WholeStore);
        }
        return match computed {
            Err(fault) => refused(fault),
            Ok(computed) => {
                // As for EXEC: when it is computed again, it may write other keys. So no later
                // command may have been computed by then. Where others write too, that is usual;
                // else it takes a batch that fails, and then later commands wait
                // (`Outstanding::is_unsettled`).
                let barrier = command.has(flag::BARRIER) || writes && !shared.service.log.chains();
                conclude(session, computed, database, barrier, again, None)
            }
        };
    }
}
