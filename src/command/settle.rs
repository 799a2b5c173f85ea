//! Replies that wait for the log. They are sent when the log has acknowledged their writes. If
//! another writer came first, the command is computed again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::checks::{find, ready, takes_long};
use super::compute::{compute_one, replied, take_turn};
use super::session::Session;
use super::shared::Shared;
use super::step::{Before, PendingReply, Step, error_reply};
use super::undeclared::{self, compute_script};
use super::{Args, Reply, Run, exec};
use crate::database::Wait;
use crate::log::{Completion, ProduceError};
use crate::resp::Version;

/// The first in the log wins, so a command that has lost need not pause. But writes over several
/// keys can make each other lose, again and again if both try at the same time. So a command that
/// was computed again this often pauses before the next time.
const LOSSES: u64 = 3;
/// The pause is random, and has at most so many milliseconds.
const PAUSE_MS: u64 = 8;

/// A reply that is held back, its own or an earlier one's write being under way.
pub struct HeldReply<'a> {
    pub args: crate::resp::Args<'a>,
    pub reply: Result<Reply, PendingReply>,
    /// CLIENT REPLY lets it be sent.
    pub is_sent: bool,
    pub version: Version,
}

/// Waits for the writes under way, once for all of them, until every held reply is there. A command
/// fails if a write that it rested on failed, or if another writer came first. Failed commands are
/// computed again in rounds. Each round begins when nothing is under way, and goes in the order of
/// the requests. A command that fails again waits for the next round, with all commands behind it.
pub async fn settle_all(session: &mut Session, shared: &Arc<Shared>, held: &mut [HeldReply<'_>]) {
    let deadline = Instant::now() + shared.service.write_timeout();
    let mut open = !held.is_empty();
    while open {
        session.outstanding.none(&shared.service).await;
        session.outstanding.settling();
        open = false;
        let mut now = Instant::now();
        for held in held.iter_mut() {
            let (asked, settled) = match std::mem::replace(&mut held.reply, Ok(Reply::None)) {
                // A message is sent after the earlier writes of its connection have ended.
                Err(pending) if open && pending.publishes() => (None, Err(pending)),
                Err(pending) if pending.is_acknowledged() => (pending.asked, Ok(pending.finish(shared).await)),
                Err(pending) => {
                    let asked = pending.asked;
                    let settled = settle(session, shared, &held.args, pending, deadline).await;
                    now = Instant::now();
                    (asked, settled)
                }
                settled => (None, settled),
            };
            if let (Ok(reply), Some((command, since))) = (&settled, asked) {
                let waited = now.saturating_duration_since(since);
                replied(session, shared, command, &held.args, waited, reply.is_error(), true);
            }
            open |= settled.is_err();
            held.reply = settled;
        }
    }
    session.outstanding.settling();
}

/// Looks at the writes of a pending reply. They have ended unless they belong to this round.
/// Returns the reply, or what it still waits for. After `deadline` nothing is computed again.
async fn settle(
    session: &mut Session,
    shared: &Arc<Shared>,
    request: Args<'_>,
    mut pending: PendingReply,
    deadline: Instant,
) -> Result<Reply, PendingReply> {
    let own = match &pending.write {
        Some(write) => write.finished().await.clone(),
        None => Ok(()),
    };
    let (mut stale, after) = match own {
        Err(ProduceError::Stale { after }) => (true, after),
        Err(error) => return Ok(failed(shared, &error)),
        Ok(()) => (false, None),
    };
    for write in &pending.depends {
        stale |= write.finished().await.is_err();
    }
    if !stale {
        return Ok(pending.finish(shared).await);
    }
    if pending.write.as_ref().is_some_and(|write| !write.has_failed()) {
        // Cannot be: what rests on a failed write does not reach the log.
        return Ok(Reply::error("UNCERTAIN a write that this one rested on failed"));
    }
    const LOST: &str = "NOTWRITTEN gave up after the write timeout: other writers kept changing these keys";
    if let Some((at, position)) = after {
        let left = deadline.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, shared.service.applied_to(at, position))
            .await
            .is_err()
        {
            let cause = shared.service.log.held_up(Some(at));
            let cause = cause.unwrap_or_else(|| "another writer's record could not be read in time".to_owned());
            return Ok(Reply::error(format!(
                "NOTWRITTEN gave up after the write timeout: {cause}"
            )));
        }
        if pending.repeated >= LOSSES {
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..=PAUSE_MS))).await;
        }
    }
    if Instant::now() >= deadline {
        return Ok(Reply::error(LOST));
    }
    *session.client.refusals.lock() = std::mem::take(&mut pending.refusals);
    let mut computed = compute_again(session, shared, request, pending, deadline).await;
    let refusals = std::mem::take(&mut *session.client.refusals.lock());
    if let Err(pending) = &mut computed {
        pending.refusals = refusals;
    }
    computed
}

/// Computes a command again. The session may have changed since, for example its database: the
/// command does not see that. If a command before it has failed again, it stays pending.
async fn compute_again(
    session: &mut Session,
    shared: &Arc<Shared>,
    request: Args<'_>,
    mut pending: PendingReply,
    deadline: Instant,
) -> Result<Reply, PendingReply> {
    let command = match find(request) {
        Ok(command) => command,
        Err(fault) => return Ok(error_reply(fault)),
    };
    let mut exec = pending.exec.take();
    let whole_store = command.looks_at_store(Some(request)) || exec.is_some();
    let mut store_is_whole = whole_store;
    loop {
        let queued = exec.as_ref().map(|exec| &exec.multi);
        if let Err(fault) = ready(shared, command, queued) {
            return Ok(error_reply(fault));
        }
        let turn = takes_long(command, queued, request);
        if whole_store && let Err(fault) = shared.service.store_caught_up().await {
            return Ok(error_reply(fault));
        }
        let mut compute = |session: &mut Session| match command.run_for(request) {
            Run::Data(handler) => compute_one(session, shared, command, handler, request, pending.database, true),
            Run::Script(handler) => {
                let request = undeclared::Request::new(command, handler, request, pending.database);
                compute_script(session, shared, &request, true, store_is_whole)
            }
            _ => exec::run(session, shared, &mut exec, true),
        };
        if let Some(tracks) = &mut session.tracks {
            tracks.again = true;
        }
        let mut step = match turn {
            None => compute(session),
            Some(turn) => Step::Before(Before::Wait(Wait::Turn(turn))),
        };
        if let Step::Before(Before::Wait(Wait::Turn(turn))) = step {
            step = take_turn(session, shared, turn, compute).await;
        }
        if let Some(tracks) = &mut session.tracks {
            tracks.again = false;
        }
        // They were shown when it was computed first.
        session.script_lines.clear();
        match step {
            Step::Reply(reply) => return Ok(reply),
            Step::Pending(next) => {
                return Err(PendingReply {
                    repeated: pending.repeated + 1,
                    asked: pending.asked,
                    ..next
                });
            }
            Step::Before(_) if session.outstanding.is_unsettled() => {
                pending.exec = exec;
                return Err(pending);
            }
            Step::Before(before) if Instant::now() < deadline => {
                store_is_whole |= matches!(before, Before::WholeStore);
                if let Err(fault) = before.happened(&session.outstanding, shared).await {
                    return Ok(error_reply(fault));
                }
            }
            Step::Before(_) | Step::Later(_) | Step::Blocks(_) => {
                return Ok(Reply::error("NOTWRITTEN the command could not be computed"));
            }
        }
    }
}

/// The error reply for a write that was not acknowledged.
pub fn failed(shared: &Shared, error: &ProduceError) -> Reply {
    let counter = match error {
        ProduceError::Uncertain(_) => &shared.service.counters.writes_uncertain,
        _ => &shared.service.counters.writes_refused,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    Reply::error(error.to_string())
}
