//! From a request to its reply: finds the command, checks it ([`checks`](super::checks)), runs it,
//! and says what must happen before the reply may be sent ([`step`](super::step)).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::args;
use super::blocked::{self, Blocked};
use super::checks::{admit, before, check_arity, check_mode, find, is_exec, queued, size, unknown};
use super::clients::NO_COMMAND;
use super::compute::{compute_one, replied, take_turn};
use super::session::{Queued, Session};
use super::settle::{HeldReply, settle_all};
use super::shared::Shared;
use super::step::{Before, Step, error_reply, refused};
use super::table::CommandEntry;
use super::undeclared::{self, compute_script};
use super::{Args, Blocking, Command, Fault, Outcome, Reply, Run, connection, exec, flag, monitor, publish};
use crate::database::SHORT_WORK;
pub use crate::database::hot::PREFETCHED;
use crate::database::{Turn, Wait, now_ms};
use crate::resp::Request;

/// Bytes of memory that commands queued by MULTI may take.
const MAX_QUEUED_BYTES: usize = 256 << 20;

/// What a queued argument takes besides its bytes, also while EXEC runs.
const QUEUED_ARGUMENT: usize = 160;

/// Prefetches the keys of the next requests, at most [`PREFETCHED`] of them, so that memory is
/// asked for all of them at once.
pub fn prefetch<'a>(session: &Session, shared: &Shared, requests: impl Iterator<Item = Request<'a>>) {
    // The key of nearly every command; what is none does no harm. A plain SET looks at nothing.
    let looks = |request: &Request<'_>| request.len() > 3 || !args::is(request.arg(0), "set");
    let keys = requests
        .filter(|request| request.len() > 1 && looks(request))
        .map(|request| request.arg(1));
    shared.service.prefetch(session.database, keys);
}

/// Executes a request as far as that is possible at once. `prepared`: the caller has awaited
/// [`Before::WholeStore`], [`Before::Fresh`] or [`Before::Settled`].
pub fn execute(session: &mut Session, shared: &Arc<Shared>, args: Args<'_>, prepared: bool) -> Step {
    if is_http(args[0]) {
        tracing::debug!(
            client = session.client.id,
            "a client speaks HTTP; closing the connection"
        );
        session.close = true;
        return Step::Reply(Reply::None);
    }
    let command = match find(args) {
        Ok(command) => command,
        Err(fault) => {
            session.client.came_with(NO_COMMAND, now_ms());
            return reject(session, None, args, fault);
        }
    };
    let admitted = check_arity(command, args)
        .and_then(|()| admit(session, shared, (command, args), queued(session, command)))
        .and_then(|()| check_mode(session, command));
    if let Err(fault) = admitted {
        session.client.came_with(command.number, now_ms());
        command.stats.own().rejected.fetch_add(1, Ordering::Relaxed);
        return reject(session, Some(command), args, fault);
    }
    let started = session.tally.begin(shared, command);
    let since_start = started.saturating_duration_since(shared.started).as_millis() as u64;
    session
        .client
        .came_with(command.number, shared.started_at + since_start);
    if session.multi.is_some() && !command.has(flag::IN_MULTI) {
        if size(args) > SHORT_WORK && session.pace.turn == Turn::Short {
            return Step::Before(Before::Wait(Wait::Turn(Turn::Large)));
        }
        return Step::Reply(queue(session, command, args).unwrap_or_else(|fault| refuse(session, fault)));
    }
    if let Some(before) = before(session, shared, command, args, prepared) {
        return Step::Before(before);
    }
    let mut step = run(session, shared, command, args, prepared);
    keep_refusals(session, command, &mut step);
    let since = session.waits_since.unwrap_or(started);
    match &mut step {
        Step::Reply(reply) => {
            let took = session.tally.done(started);
            session.tally.computed(shared, command, took);
            let waited = took + started.saturating_duration_since(since);
            replied(session, shared, command, args, waited, reply.is_error(), false);
        }
        Step::Pending(pending) => {
            let took = session.tally.done(started);
            session.tally.computed(shared, command, took);
            pending.asked = Some((command, since));
        }
        Step::Before(_) => return step,
        Step::Later(_) | Step::Blocks(_) => {}
    }
    monitor::executed(session, shared, command, args);
    // A command that blocks will read its keys again.
    if !matches!(step, Step::Blocks(_)) {
        session.ends(Some(command));
    }
    step
}

/// What a script or EXEC was refused goes with its reply. It is not noted again when that is
/// computed again.
fn keep_refusals(session: &Session, command: &Command, step: &mut Step) {
    let is_meant = command.is_script() || matches!(command.run, Run::Exec);
    if !is_meant || matches!(step, Step::Before(_)) {
        return;
    }
    let refusals = std::mem::take(&mut *session.client.refusals.lock());
    if let Step::Pending(pending) = step {
        pending.refusals = refusals;
    }
}

/// Runs a command that may run now.
fn run(
    session: &mut Session,
    shared: &Arc<Shared>,
    command: &'static CommandEntry,
    args: Args<'_>,
    prepared: bool,
) -> Step {
    let waits = |blocking: &&Blocking| session.may_block && blocking.waits(args);
    let blocking = command.blocks.filter(waits);
    match command.run_for(args) {
        Run::Data(_) if blocking.is_some() => blocked::begin(session, shared, command, args),
        Run::Data(handler) => compute_one(session, shared, command, handler, args, session.database, false),
        Run::Script(handler) => {
            let request = undeclared::Request::new(command, handler, args, session.database);
            compute_script(session, shared, &request, false, prepared)
        }
        Run::Session(handler) => handler(session, shared, args).map_or_else(refused, Step::Reply),
        Run::Select => connection::select(session, shared, args).map_or_else(refused, Step::Reply),
        Run::Later(handler) => match handler(session, shared, args) {
            Ok(waiting) => Step::Later(waiting),
            Err(fault) => refused(fault),
        },
        Run::Publish { shard } => publish::begin(session, shared, args, shard),
        Run::Exec => exec::begin(session, shared),
        Run::By(_) | Run::Container | Run::NotYet => refused(unknown(args)),
    }
}

/// A web page can make a browser send HTTP to a server on the same machine, where each line would
/// be a command. As in Redis, a word that only HTTP has ends the connection.
fn is_http(name: &[u8]) -> bool {
    args::is(name, "post") || args::is(name, "host:")
}

/// Executes a request to its end, waiting where it must; the reply may still be pending.
pub async fn execute_waiting(session: &mut Session, shared: &Arc<Shared>, args: Args<'_>, first: Step) -> Step {
    let mut deadline = Instant::now() + shared.service.write_timeout();
    let mut step = first;
    let (mut prepared, mut had_turn) = (false, false);
    loop {
        // As in Redis, CLIENT PAUSE makes nobody slow.
        if matches!(step, Step::Before(Before::Unpaused)) {
            session.waits_since = None;
        } else if session.waits_since.is_none() {
            session.waits_since = Some(Instant::now());
        }
        match step {
            Step::Before(Before::Wait(Wait::Turn(turn))) => {
                step = take_turn(session, shared, turn, |session| {
                    execute(session, shared, args, prepared)
                })
                .await;
                if !std::mem::replace(&mut had_turn, true) {
                    // The time that it took is its own.
                    deadline = Instant::now() + shared.service.write_timeout();
                }
            }
            Step::Before(before) => {
                if !matches!(before, Before::Unpaused) && Instant::now() > deadline {
                    let late = Fault::error(
                        "NOTWRITTEN what this command waits for (writes to the same keys, its topic, room in the store) did not come within the write timeout",
                    );
                    return give_up(session, shared, args, late);
                }
                let _blocked = matches!(before, Before::Unpaused).then(|| Blocked::new(session));
                let whole_store = matches!(before, Before::WholeStore);
                prepared |= whole_store || matches!(before, Before::Fresh(_) | Before::Settled);
                if let Err(fault) = before.happened(&session.outstanding, shared).await
                    // What answers even while loading (INFO) then tells of the store as it is.
                    && !(whole_store && find(args).is_ok_and(|command| command.has(flag::LOADING)))
                {
                    return give_up(session, shared, args, fault);
                }
                step = execute(session, shared, args, prepared);
            }
            Step::Later(waiting) => {
                let started = Instant::now();
                let command = find(args);
                let blocks = command.as_ref().is_ok_and(|command| command.has(flag::BLOCKING));
                let blocked = blocks.then(|| Blocked::until_unblocked(session));
                let reply = waiting.await;
                drop(blocked);
                if let Ok(command) = command {
                    // The time of a command that is there to wait says nothing.
                    let took = if command.has(flag::BLOCKING) {
                        Duration::ZERO
                    } else {
                        started.elapsed()
                    };
                    session.tally.computed(shared, command, took);
                    replied(session, shared, command, args, took, reply.is_error(), false);
                }
                session.waits_since = None;
                return Step::Reply(reply);
            }
            step => {
                session.waits_since = None;
                return step;
            }
        }
    }
}

/// Executes one request to its reply, for front doors without pipelines.
pub async fn execute_alone(session: &mut Session, shared: &Arc<Shared>, args: Args<'_>) -> Reply {
    let mut step = execute(session, shared, args, false);
    if matches!(step, Step::Before(_) | Step::Later(_)) {
        step = execute_waiting(session, shared, args, step).await;
    }
    session.tally.settle(shared);
    let unended = || Reply::error("UNCERTAIN the command did not end");
    let mut held = [HeldReply {
        args: crate::resp::Args::from_slice(args),
        reply: match step {
            Step::Reply(reply) => Ok(reply),
            Step::Pending(pending) => Err(pending),
            // `execute_waiting` leaves neither, and only a session that may block has the third.
            Step::Before(_) | Step::Later(_) | Step::Blocks(_) => Ok(unended()),
        },
        is_sent: true,
        version: session.version,
    }];
    settle_all(session, shared, &mut held).await;
    session.tally.settle(shared);
    let [HeldReply { reply, .. }] = held;
    let reply = reply.unwrap_or_else(|_| unended());
    if let Reply::Error(text) = &reply {
        shared.stats.count_error(text);
    }
    reply
}

/// What the command waits for did not come in time. EXEC's transaction ends with that; nothing of
/// it was executed.
fn give_up(session: &mut Session, shared: &Shared, args: Args<'_>, fault: Fault) -> Step {
    if is_exec(args) {
        session.end_transaction();
    }
    let waited = session
        .waits_since
        .take()
        .map_or(Duration::ZERO, |since| since.elapsed());
    session.script_lines.clear();
    session.client.refusals.lock().clear();
    if let Ok(command) = find(args) {
        session.ends(Some(command));
        session.tally.computed(shared, command, Duration::ZERO);
        replied(session, shared, command, args, waited, true, true);
    }
    Step::Reply(refuse(session, fault))
}

fn queue(session: &mut Session, command: &'static CommandEntry, args: Args<'_>) -> Outcome {
    if command.has(flag::NO_MULTI) || matches!(command.run, Run::Later(_) | Run::By(_)) {
        return Err("ERR Command not allowed inside a transaction".into());
    }
    let multi = session.multi.get_or_insert_default();
    if multi.aborted {
        // EXEC will refuse: nothing more needs to be kept.
        return Ok(Reply::simple("QUEUED"));
    }
    let client = &session.client;
    multi.args += args.len();
    multi.bytes += args.iter().map(|arg| arg.len() + QUEUED_ARGUMENT).sum::<usize>();
    if multi.bytes > MAX_QUEUED_BYTES {
        multi.queued = Vec::new();
        client.queued_bytes.store(0, Ordering::Relaxed);
        return Err(Fault::error(format!(
            "ERR MULTI takes at most {MAX_QUEUED_BYTES} bytes of memory for commands"
        )));
    }
    multi.queued.push(Queued {
        command,
        args: args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect(),
    });
    client.queued.store(multi.queued.len(), Ordering::Relaxed);
    client.queued_bytes.store(multi.bytes, Ordering::Relaxed);
    Ok(Reply::simple("QUEUED"))
}

/// The reply of a request that cannot be executed, or queued. Inside MULTI it makes EXEC refuse.
fn refuse(session: &mut Session, fault: Fault) -> Reply {
    if let Some(multi) = &mut session.multi {
        multi.aborted = true;
    }
    error_reply(fault)
}

/// The request cannot be looked into. For EXEC that is the end of its transaction.
fn reject(session: &mut Session, command: Option<&Command>, args: Args<'_>, fault: Fault) -> Step {
    session.client.refusals.lock().clear();
    let step = match &fault {
        Fault::Error(text) if is_exec(args) => {
            session.end_transaction();
            let reason = text.strip_prefix(b"ERR ").unwrap_or(text);
            Step::Reply(Reply::error(
                [b"EXECABORT Transaction discarded because of: ", reason].concat(),
            ))
        }
        _ => Step::Reply(refuse(session, fault)),
    };
    session.ends(command);
    step
}

#[cfg(test)]
#[path = "execute_tests.rs"]
pub(crate) mod tests;
