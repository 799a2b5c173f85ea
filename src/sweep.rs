//! Deletes in the background what is not shown any more: keys and fields of hashes that have
//! expired, what a flush has hidden, what is left of split collections, and heads without elements.
//! This frees space, and informs consumers that know nothing of expiry and flush markers. A
//! tombstone is a conditional write: where others write to the log too, it never comes after a new
//! value. So is the record of a hash without its expired fields.
//!
//! The nodes of one topic do not communicate about this; the second one finds the work done. So
//! that they do not all do it at once, each leaves an expired key for a time of its own. What a
//! flush has hidden can be millions of keys: the node that flushed deletes them. Another node takes
//! over when their number does not go down, or not in time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::warn;

use crate::database::copies::databases_with_copies;
use crate::database::orphans::Orphans;
use crate::database::write::Write;
use crate::database::{Fault, Service, Wait, now_ms};
use crate::log::ProduceError;
use crate::supervise;

/// Time between looks at the databases.
const INTERVAL: Duration = Duration::from_millis(100);
/// The feature that a record of a hash needs.
const HASH: &str = "hash";
/// Keys of one database that are deleted, or lose expired fields, at one look. If there were so
/// many, the next look follows at once.
const KEYS: usize = 200;
/// Flushed keys at one look: at most, and at least. The number goes down where less than half of
/// them came into the log (a slow broker, many conflicts).
const FLUSHED: usize = 500;
const FEWEST: usize = 20;
/// Orphans of one database that get their tombstones at one look, and the most collections that
/// they are of.
const ORPHANS: usize = 2_000;
const COLLECTIONS: usize = 20;
/// Where others may write: the longest time, in milliseconds, that a key is left expired, or that a
/// flush is left to others.
const OTHERS_FIRST_MS: u64 = 2_000;
/// For so long, in milliseconds, a node does nothing about flushed keys when another node seems to
/// work on them. What the other node does shows once it is in the store, which can take seconds.
const OTHERS_AT_IT_MS: Range<u64> = 5_000..10_000;
/// Time, in milliseconds, after which a node does not leave them to others any more, whatever it
/// seems: writes of these keys, by anybody, reduce their number too.
const OTHERS_HAD_TIME_MS: Range<u64> = 60_000..90_000;
/// For keys that this node has to delete, in milliseconds: the pause after others came first to
/// most of them, and the pause until they are looked through again.
const CONFLICT_MS: Range<u64> = 0..300;
const AGAIN_MS: Range<u64> = 2_000..4_000;
/// Time until the next pass over flushed keys after a pass that found nothing to do.
const IN_VAIN: Duration = Duration::from_secs(60);

/// The progress through the flushed keys of one database.
struct Pass {
    /// Hash of the next key.
    from: u64,
    /// How many were left at the last look.
    left: u64,
    rests_until: Instant,
    /// Until then they are left to others. `None`: this node has to delete them.
    others_until: Option<Instant>,
    /// The number of own flushes when the number of keys last went up.
    own_flushes: u64,
    /// How many are taken at the next look.
    some: usize,
    /// Whether something was done, or put off, since the pass began.
    is_of_use: bool,
}

/// What one look has begun.
#[derive(Default)]
struct Look {
    /// There may be more expired keys, to be found once the store has these deletes.
    more_expired: bool,
    /// Tombstones of keys.
    expired: Vec<Arc<Write>>,
    /// Hashes without their expired fields.
    trimmed: Vec<Arc<Write>>,
    /// A feature that a topic has to name before such a hash is written to it.
    unnamed: Option<(u16, &'static str)>,
    flushed: Vec<Buried>,
    /// Tombstones of heads without elements, with their keys.
    emptied: Vec<(u16, Bytes, Arc<Write>)>,
    /// Why some of those heads could not be looked at.
    problem: Option<String>,
    /// Groups of tombstones for orphans, with the number of those.
    orphans: Vec<(usize, Arc<Write>)>,
}

/// Collections without a head that the store has found, with the time from which on this node
/// buries them: another one may do it before.
type Found = HashMap<Orphans, Instant>;

/// Flushed keys, and the tombstones for them, of one space of the store: a database, or the copies
/// that are kept beside it ([`crate::database::copies`]).
struct Buried {
    space: u16,
    found: usize,
    writes: Vec<Arc<Write>>,
}

/// Runs as long as the server does. `may_use` tells whether a feature of the topic's format may be
/// used in a topic that does not use it yet.
pub async fn run(service: Arc<Service>, may_use: impl Fn(&str) -> bool) {
    let mut passes = all_passes(&service);
    let mut orphans = Found::new();
    let mut failing = false;
    loop {
        let began = Instant::now();
        let (mut more_expired, mut more_flushed) = (false, false);
        if service.is_serving() {
            let looking = service.clone();
            let trims = may_use(HASH);
            let looked = supervise::blocking(&supervise::SWEEP_LOOK, move || {
                let look = look(&looking, &mut passes, &mut orphans, trims);
                (look, passes, orphans)
            });
            let mut look;
            (look, passes, orphans) = looked
                .await
                .unwrap_or_else(|panicked| (Err(panicked), all_passes(&service), Found::new()));
            if let Ok(Look {
                unnamed: Some((database, feature)),
                ..
            }) = look
                && let Err(fault) = service.name_feature(database, feature).await
            {
                look = Err(text(fault));
            }
            let problem = match &look {
                Ok(look) => look.problem.clone(),
                Err(reason) => Some(reason.clone()),
            };
            if let (Some(reason), false) = (&problem, failing) {
                warn!(reason, "cannot delete expired and flushed keys; trying again");
            }
            failing = problem.is_some();
            let look = look.unwrap_or_default();
            more_flushed = !look.flushed.is_empty();
            more_expired = look.finish(&service, &mut passes).await;
        }
        if more_expired && service.store_caught_up().await.is_ok() {
            continue;
        }
        // Others have at least half of the time that flushed keys take.
        tokio::time::sleep(if more_flushed { began.elapsed() } else { INTERVAL }).await;
    }
}

fn all_passes(service: &Service) -> Vec<Pass> {
    let now = Instant::now();
    let databases = databases_with_copies(service.database_count());
    (0..databases).map(|_| Pass::new(now)).collect()
}

fn text(fault: Fault) -> String {
    match fault {
        Fault::Error(text) => String::from_utf8_lossy(&text).into_owned(),
        Fault::Wait(_) => "the local store is behind".to_owned(),
    }
}

/// `trims`: expired fields are removed too, and not only expired keys, also where others write.
fn look(service: &Arc<Service>, passes: &mut [Pass], orphans: &mut Found, trims: bool) -> Result<Look, String> {
    let mut look = Look::default();
    let is_writable = |database: u16| {
        let topic = service.log.identity(database);
        topic.is_some_and(|topic| !topic.read_only)
            && service.log.incomplete(database).is_none()
            && service.log.refuses_writes(database).is_none()
    };
    let count = service.database_count();
    let mut room = FLUSHED;
    for (space, pass) in (0u16..).zip(passes.iter_mut()) {
        if room > 0
            && !service.log.chains()
            && is_writable(space % count)
            && let Some(buried) = pass.go_on(service, space, room).map_err(text)?
        {
            room -= buried.found.min(room);
            look.flushed.push(buried);
        }
    }
    if !service.log.chains() {
        for database in (0..count).filter(|database| is_writable(*database)) {
            bury_orphans(service, database, orphans, &mut look).map_err(text)?;
        }
    }
    for database in (0..count).filter(|database| is_writable(*database)) {
        remove_emptied(service, database, &mut look);
    }
    if service.settings.active_expire.load(Ordering::Relaxed) {
        for database in (0..count).filter(|database| is_writable(*database)) {
            // Flushed keys go first: any number of expired ones can be among them.
            if service.log.chains() || passes[database as usize].left == 0 {
                remove_expired(service, database, trims, &mut look).map_err(text)?;
            }
        }
    }
    Ok(look)
}

impl Look {
    /// Waits until its writes have ended. True if there may be more expired keys.
    async fn finish(self, service: &Service, passes: &mut [Pass]) -> bool {
        // At most one look's writes are under way.
        let (deleted, _) = done(&self.expired).await;
        let (trimmed, _) = done(&self.trimmed).await;
        for (database, key, write) in &self.emptied {
            if write.finished().await.is_err() {
                // It is looked at again later.
                service.emptied.note(*database, key);
            }
        }
        service.counters.expired.fetch_add(deleted as u64, Ordering::Relaxed);
        for (buried, write) in self.orphans {
            if write.finished().await.is_ok() {
                service.counters.orphans.fetch_add(buried as u64, Ordering::Relaxed);
            }
        }
        for Buried { space, found, writes } in self.flushed {
            let (buried, failed) = done(&writes).await;
            service.counters.flushed.fetch_add(buried as u64, Ordering::Relaxed);
            passes[space as usize].did(buried, failed, found);
        }
        // Keys that were not deleted (because their newest state is another one) must not make this
        // run without a pause.
        self.more_expired && deleted + trimmed > 0
    }
}

/// How many of them came into the log, and how many failed although no other writer came first. A
/// key whose tombstone failed is found again.
async fn done(writes: &[Arc<Write>]) -> (usize, usize) {
    let (mut done, mut failed) = (0, 0);
    for write in writes {
        match write.finished().await {
            Ok(()) => done += 1,
            Err(ProduceError::Stale { .. }) => {}
            Err(_) => failed += 1,
        }
    }
    (done, failed)
}

fn some_of(milliseconds: Range<u64>) -> Duration {
    Duration::from_millis(rand::random_range(milliseconds))
}

impl Pass {
    fn new(now: Instant) -> Pass {
        Pass {
            from: 0,
            left: 0,
            rests_until: now,
            others_until: None,
            own_flushes: 0,
            some: FLUSHED,
            is_of_use: false,
        }
    }

    /// Begins the tombstones for the next flushed keys, if it is time for them.
    fn go_on(&mut self, service: &Arc<Service>, space: u16, most: usize) -> Result<Option<Buried>, Fault> {
        let now = Instant::now();
        let before = std::mem::replace(&mut self.left, service.flushed_left(space)?);
        self.others_until = self.others_until.filter(|until| now < *until);
        let is_ours = self.others_until.is_none();
        if self.left > before {
            let own_flushes = service.own_flushes(space);
            let is_ours = own_flushes > self.own_flushes || is_ours && before > 0;
            let (others_first, others_until) = (some_of(0..OTHERS_FIRST_MS), now + some_of(OTHERS_HAD_TIME_MS));
            *self = Pass {
                left: self.left,
                others_until: (!is_ours).then_some(others_until),
                own_flushes,
                ..Pass::new(if is_ours { now } else { now + others_first })
            };
        } else if self.left < before && now < self.rests_until && !is_ours {
            self.rests_until = now + some_of(OTHERS_AT_IT_MS);
        }
        if self.left == 0 || now < self.rests_until {
            return Ok(None);
        }
        let (found, next) = service.find_flushed(space, self.from, self.some.min(most))?;
        let mut writes = Vec::new();
        for flushed in &found {
            match service.bury(flushed) {
                Ok(write) => writes.extend(write),
                // The key is handled in the next pass.
                Err(Fault::Wait(_)) => self.is_of_use = true,
                Err(error) => return Err(error),
            }
        }
        self.from = next.unwrap_or(0);
        if next.is_none() {
            // What was done has to reach the store before it is looked through again.
            let is_of_use = std::mem::take(&mut self.is_of_use) || !writes.is_empty();
            self.rests_until = now
                + match (is_of_use, self.others_until) {
                    (false, _) => IN_VAIN,
                    (true, None) => some_of(AGAIN_MS),
                    (true, Some(_)) => some_of(OTHERS_AT_IT_MS),
                };
        }
        Ok(Some(Buried {
            space,
            found: found.len(),
            writes,
        }))
    }

    /// Takes the result of a look: of the keys that were `found`, how many got their tombstones,
    /// and how many did not although no other writer came first.
    fn did(&mut self, buried: usize, failed: usize, found: usize) {
        self.is_of_use |= buried > 0;
        self.some = match buried < found / 2 {
            true => (self.some / 2).max(FEWEST),
            false => (self.some * 2).min(FLUSHED),
        };
        if buried + failed < found / 2 {
            let pause = self.others_until.map_or(CONFLICT_MS, |_| OTHERS_AT_IT_MS);
            self.rests_until = self.rests_until.max(Instant::now() + some_of(pause));
        }
    }
}

/// Begins the tombstones for orphans, where it is time for them.
fn bury_orphans(service: &Arc<Service>, database: u16, known: &mut Found, look: &mut Look) -> Result<(), Fault> {
    let now = Instant::now();
    let found = service.find_orphans(database, COLLECTIONS)?;
    known.retain(|orphans, _| orphans.database != database || found.contains(orphans));
    let mut room = ORPHANS;
    for orphans in found {
        let from = known
            .entry(orphans.clone())
            .or_insert_with(|| now + some_of(0..OTHERS_FIRST_MS));
        if now < *from || room == 0 {
            continue;
        }
        match service.bury_orphans(&orphans, room) {
            Ok((buried, write)) => {
                room -= buried.min(room);
                look.orphans.extend(write.map(|write| (buried, write)));
                // What was done has to reach the store before it is looked at again.
                *from = now + some_of(AGAIN_MS);
            }
            // They are handled at a later look.
            Err(Fault::Wait(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes heads whose collections have had no elements for a while. What fails is handled at a
/// later look.
fn remove_emptied(service: &Arc<Service>, database: u16, look: &mut Look) {
    for key in service.emptied.take_due(database, KEYS) {
        let removed = service.remove_emptied(database, &key);
        match removed {
            Ok(write) => look.emptied.extend(write.map(|write| (database, key, write))),
            Err(fault) => {
                service.emptied.note(database, &key);
                if matches!(fault, Fault::Error(_)) {
                    look.problem = Some(text(fault));
                }
            }
        }
    }
}

fn remove_expired(service: &Arc<Service>, database: u16, trims: bool, look: &mut Look) -> Result<(), Fault> {
    let patience = match service.log.chains() {
        true => 0,
        false => rand::random_range(0..=OTHERS_FIRST_MS),
    };
    let until = now_ms().saturating_sub(patience);
    let keys = match trims || service.log.chains() {
        true => service.store.due(database, until, KEYS)?,
        // A hash that cannot be written must not be in the way of keys that have expired.
        false => service.store.expired(database, until, KEYS)?,
    };
    look.more_expired |= keys.len() == KEYS;
    for key in &keys {
        match service.remove_expired(database, key) {
            Ok(removal) if removal.is_whole => look.expired.extend(removal.write),
            Ok(removal) => look.trimmed.extend(removal.write),
            Err(Fault::Wait(Wait::Feature(database, feature))) => look.unnamed = Some((database, feature)),
            // The key is handled at a later look.
            Err(Fault::Wait(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
