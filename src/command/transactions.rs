//! Transactions: <https://redis.io/docs/latest/commands/?group=transactions>. EXEC itself is in
//! [`super::exec`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::key_specs::access;
use super::{Args, Command, Fault, KeySpec, Outcome, Reply, Run, Session, Shared, flag};
use crate::database::write::Write;
use crate::database::{Wait, hot, now_ms};

/// Most keys that one connection may watch.
const MAX_WATCHED: usize = 100_000;
/// Most bytes that their names may have.
const MAX_WATCHED_BYTES: usize = 64 << 20;
/// Flags that MULTI, DISCARD, WATCH and UNWATCH have in common.
const FLAGS: u32 = flag::NOSCRIPT | flag::LOADING | flag::STALE | flag::FAST | flag::ALLOW_BUSY;

const ROW: Command = Command {
    categories: &["transaction"],
    group: "transactions",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "multi",
        arity: 1,
        flags: FLAGS | flag::IN_MULTI,
        since: "1.2.0",
        summary: "Opens a transaction: commands are queued from here on.",
        run: Run::Session(multi),
        ..ROW
    },
    Command {
        name: "exec",
        arity: 1,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE | flag::SKIP_SLOWLOG | flag::IN_MULTI,
        since: "1.2.0",
        complexity: "That of the queued commands together.",
        summary: "Runs the queued commands as one, unless a watched key changed.",
        run: Run::Exec,
        ..ROW
    },
    Command {
        name: "discard",
        arity: 1,
        flags: FLAGS | flag::IN_MULTI,
        since: "2.0.0",
        complexity: "O(N), N being the number of queued commands.",
        summary: "Drops the queued commands and forgets watched keys.",
        run: Run::Session(discard),
        ..ROW
    },
    Command {
        name: "watch",
        arity: -2,
        flags: FLAGS | flag::IN_MULTI,
        keys: &[KeySpec::from(1, access::RO)],
        since: "2.2.0",
        complexity: "O(1) for each key.",
        summary: "Makes the next EXEC do nothing if one of these keys changes before it.",
        run: Run::Session(watch),
        ..ROW
    },
    Command {
        name: "unwatch",
        arity: 1,
        flags: FLAGS,
        since: "2.2.0",
        summary: "Forgets all keys that this connection watches.",
        run: Run::Session(unwatch),
        ..ROW
    },
];

// Errors inside MULTI are replies here, not faults: these commands run instead of being queued, and
// do not make EXEC refuse.

fn multi(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    if session.multi.is_some() {
        return Ok(Reply::error("ERR MULTI calls can not be nested"));
    }
    session.multi = Some(Default::default());
    session.client.queued.store(0, Ordering::Relaxed);
    Ok(Reply::Ok)
}

fn discard(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    if session.multi.is_none() {
        return Err("ERR DISCARD without MULTI".into());
    }
    session.end_transaction();
    Ok(Reply::Ok)
}

/// Registers each key first. A write of the key that was already under way must then end before the
/// key is read: that write has raised its flags already, so the read must see it. Every later write
/// raises the flag of this connection.
fn watch(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    if session.multi.is_some() {
        return Ok(Reply::error("ERR WATCH inside MULTI is not allowed"));
    }
    let (database, now) = (session.database, now_ms());
    let service = &shared.service;
    for key in &args[1..] {
        let watch = session.watch.get_or_insert_default();
        if watch.keys.is_empty() {
            *session.client.watch.lock() = Arc::downgrade(&watch.changed);
        }
        let place = (database, hot::own(key));
        match watch.keys.get(&place) {
            Some(Some(_)) => continue,
            // The write that WATCH waited for is over.
            Some(None) => {}
            None => {
                if watch.keys.len() == MAX_WATCHED || watch.bytes + key.len() > MAX_WATCHED_BYTES {
                    return Err(Fault::error(format!(
                        "ERR a connection can watch at most {MAX_WATCHED} keys of {MAX_WATCHED_BYTES} bytes together"
                    )));
                }
                if session.outstanding.count() > 0 {
                    // The write under way may be the connection's own. That it reaches the log is
                    // no change to this connection.
                    wait_for(service.under_way(database, key)?)?;
                }
                let watches = &service.database(database).watches;
                watches.watch(place.1.clone(), &watch.changed);
                watch.keys.insert(place.clone(), None);
                watch.bytes += key.len();
                let client = &session.client;
                client.watching.store(watch.keys.len(), Ordering::Relaxed);
                client.watched_bytes.store(watch.bytes, Ordering::Relaxed);
                wait_for(service.under_way(database, key)?)?;
            }
        }
        let seen = service.read(database, key, false)?;
        watch
            .keys
            .insert(place, Some(service.found(database, key, seen.entry.as_ref(), now)));
    }
    Ok(Reply::Ok)
}

fn wait_for(write: Option<Arc<Write>>) -> Result<(), Fault> {
    match write {
        Some(write) if write.outcome().is_none() => Err(Fault::Wait(Wait::Write(write))),
        _ => Ok(()),
    }
}

/// MULTI queues it like any other command. EXEC forgets the keys by itself.
fn unwatch(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    if session.multi.is_none() {
        session.watch = None;
        session.client.watching.store(0, Ordering::Relaxed);
        session.client.watched_bytes.store(0, Ordering::Relaxed);
    }
    Ok(Reply::Ok)
}
