//! Computes a command about data: its locks, its view of writes under way, its turn, and how it is
//! counted.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::SemaphorePermit;

use super::key_specs::keys_of;
use super::notify::noting;
use super::session::Session;
use super::shared::Shared;
use super::step::{Before, Exec, PendingReply, Step, refused};
use super::table::CommandEntry;
use super::{Args, Command, Data, DataHandler, Fault, Outcome, Reply, consistency, flag};
use crate::acl::Refusals;
use crate::database::consistency::Consistency;
use crate::database::transaction::{Computed, Keys as Locks, Transaction, View};
use crate::database::{Pace, Place, Turn, Wait, now_ms};

/// A command has its reply. Counts how long its client has waited, and notes it in SLOWLOG and
/// LATENCY if that was long. `held`: the reply waited for the log.
pub(super) fn replied(
    session: &mut Session,
    shared: &Shared,
    command: &'static CommandEntry,
    args: Args<'_>,
    waited: Duration,
    failed: bool,
    held: bool,
) {
    session.tally.replied(shared, command, waited, failed);
    let (stats, config, client) = (&shared.stats, &shared.config, &session.client);
    let microseconds = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
    if u64::try_from(config.slowlog_log_slower_than()).is_ok_and(|limit| microseconds >= limit)
        // EXEC: what it runs is there by itself, but does not wait for the log.
        && (held || !command.has(flag::SKIP_SLOWLOG))
        && stats.slowlog.takes(now_ms(), config.slowlog_max_len())
    {
        let address = client
            .address
            .as_ref()
            .map_or(String::new(), |address| address.to_string());
        let name = client.details.lock().name.clone();
        let arguments = command.without_secrets(args);
        stats
            .slowlog
            .note(&arguments, microseconds, address, name, config.slowlog_max_len());
    }
    let event = if command.has(flag::FAST) {
        "fast-command"
    } else {
        "command"
    };
    stats
        .latency
        .note(event, microseconds / 1_000, config.latency_monitor_threshold());
}

/// Computes what takes long when it is its turn, away from the threads that serve connections.
pub(super) async fn take_turn(
    session: &mut Session,
    shared: &Shared,
    mut turn: Turn,
    mut compute: impl FnMut(&mut Session) -> Step,
) -> Step {
    /// Times that it is computed while others may change its keys.
    const UNLOCKED: usize = 2;
    let Ok(mut permit) = a_turn(shared, turn).await else {
        return Step::Before(Before::Busy);
    };
    let mut times = 0;
    loop {
        let locked = times == UNLOCKED;
        session.pace = Pace { turn, locked };
        // Other tasks of this thread go on elsewhere.
        let step = tokio::task::block_in_place(|| compute(session));
        session.pace = Pace::default();
        match step {
            Step::Before(Before::Wait(Wait::Changed)) if !locked => times += 1,
            Step::Before(Before::Wait(Wait::Turn(longer))) if longer > turn => {
                drop(permit);
                turn = longer;
                permit = match a_turn(shared, turn).await {
                    Ok(permit) => permit,
                    Err(Busy) => return Step::Before(Before::Busy),
                };
            }
            step => return step,
        }
    }
}

/// Scripts have all turns, and have been running for longer than `busy-reply-threshold`.
struct Busy;

/// Waits for a turn. Only a script can wait for others that do not end.
async fn a_turn(shared: &Shared, turn: Turn) -> Result<Option<SemaphorePermit<'_>>, Busy> {
    let patience = shared.config.busy_reply_threshold();
    loop {
        let taking = shared.turns.take(turn);
        if turn != Turn::Script {
            return Ok(taking.await);
        }
        if let Ok(permit) = tokio::time::timeout(patience, taking).await {
            return Ok(permit);
        }
        if shared.scripts.is_busy(patience) {
            return Err(Busy);
        }
    }
}

pub(super) fn view(session: &Session, shared: &Shared, writes: bool) -> View {
    match (writes, session.outstanding.count()) {
        (true, _) => View::Update,
        (false, 1..) if consistency::mode(session, shared).sees_pending() => View::Pending,
        (false, _) => View::Committed,
    }
}

/// Whether keys that are only read have to be of one state of the log. `strict`: this holds for a
/// single key too, which then is not read while others of its group become visible.
pub(super) fn fit_together(writes: bool, keys: usize, strict: bool) -> bool {
    !writes && (keys > 1 || strict)
}

pub(super) fn locks<'k>(
    keys: &'k [&'k [u8]],
    places: &'k [Place<'k>],
    writes: bool,
    all: bool,
    finds_keys: bool,
) -> Locks<'k> {
    match (writes, places) {
        _ if all => Locks::All,
        (true, _) if finds_keys => Locks::SomeAndFound(keys),
        (false, _) if finds_keys => Locks::FoundReads,
        (true, _) => Locks::Some(keys),
        // Without keys the store is looked at, which takes groups in as they come.
        (false, []) => Locks::Unlocked,
        (false, places) => Locks::Together(places),
    }
}

/// Computes a command about data on a database.
pub(super) fn compute(
    (command, handler): (&Command, DataHandler),
    shared: &Shared,
    database: u16,
    transaction: &mut Transaction<'_>,
    args: Args<'_>,
) -> Outcome {
    noting(shared, (command, args), transaction, |transaction| {
        let mut data = Data {
            transaction,
            database,
            config: &shared.config,
        };
        handler(&mut data, args)
    })
}

/// Computes a single command in a transaction of its own. `again`: it has been computed before, so
/// it is counted already.
pub(super) fn compute_one(
    session: &mut Session,
    shared: &Arc<Shared>,
    command: &'static CommandEntry,
    handler: DataHandler,
    args: Args<'_>,
    database: u16,
    again: bool,
) -> Step {
    let computed = transact(session, shared, command, args, database, |transaction| {
        compute((command, handler), shared, database, transaction, args)
    });
    match computed {
        Err(fault) => refused(fault),
        Ok(computed) => conclude(session, computed, database, command.has(flag::BARRIER), again, None),
    }
}

/// Computes a function over a command's data, with the locks and the view that the command needs.
pub(super) fn transact<T>(
    session: &Session,
    shared: &Arc<Shared>,
    command: &CommandEntry,
    args: Args<'_>,
    database: u16,
    f: impl FnOnce(&mut Transaction<'_>) -> Result<T, Fault>,
) -> Result<Computed<T>, Fault> {
    session.reads(shared, command, args);
    let keys = keys_of(command.keys, args);
    let writes = command.has(flag::WRITE);
    let strict = consistency::mode(session, shared) == Consistency::Linearizable;
    let together = fit_together(writes, keys.len(), strict);
    let places = keys.iter().filter(|_| together).map(|key| (database, *key));
    let places: SmallVec<[Place<'_>; 4]> = places.collect();
    let (all, finds_keys) = (command.has(flag::ALL_KEYS), command.finds_keys(args));
    let locks = locks(&keys, &places, writes, all, finds_keys);
    let view = view(session, shared, writes);
    let service = &shared.service;
    service.transact_at(session.pace, &session.outstanding, locks, view, |transaction| {
        transaction.counts = !writes;
        f(transaction)
    })
}

/// The next step of a computed command: its reply is sent, or held back until the log has the
/// writes that it rests on.
pub(super) fn conclude(
    session: &mut Session,
    computed: Computed<Reply>,
    database: u16,
    barrier: bool,
    again: bool,
    exec: Option<Box<Exec>>,
) -> Step {
    let Computed {
        value,
        write,
        depends,
        lookups,
        messages,
    } = computed;
    if !again {
        session.tally.looked_up(lookups);
    }
    if write.is_none() && depends.is_empty() && messages.is_empty() {
        return Step::Reply(value);
    }
    Step::Pending(PendingReply {
        reply: value,
        write,
        depends,
        // What comes later may not be seen before the messages.
        barrier: barrier || !messages.is_empty(),
        database,
        sent: None,
        messages,
        exec,
        asked: None,
        repeated: 0,
        refusals: Refusals::default(),
    })
}
