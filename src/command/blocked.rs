//! A client that waits for elements, from its first look at its keys to its reply.
//!
//! It waits in the queues of its keys ([`waiters`](crate::database::waiters)). When it has its turn
//! its command is computed again: it takes elements, or waits on. A write that loses against
//! another writer brings it back to its place in the queues. Only its own timeout bounds the wait.
//!
//! A client that has gone must take nothing. So the caller of [`serve`] has to look at the socket
//! each time before it polls the future. What is handed to the log after that is taken, also if the
//! client goes meanwhile, as in Redis.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::blocking::{Blocking, Look, Resolved};
use super::checks::{admit, before, find, unknown};
use super::clients::{Client, Unblocked};
use super::compute::{replied, take_turn, transact};
use super::notify::noting;
use super::session::Session;
use super::settle::failed;
use super::shared::Shared;
use super::step::{Before, Blocks, PendingReply, Step, error_reply, refused};
use super::table::CommandEntry;
use super::{Args, Data, Fault, Reply, rights};
use crate::acl::Refusals;
use crate::database::Wait;
use crate::database::waiters::Ticket;
use crate::database::write::Write;
use crate::log::{Completion, ProduceError};
use crate::model::Collection;

/// A client whose write has lost more than once tries again after a random pause: at most so long
/// for each time that it lost.
const PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Most keys that a client waits for: a change of one looks at all of them.
const MOST_KEYS: usize = 10_000;

/// What a look at the keys has found.
enum Found {
    /// Elements. The reply waits for the log.
    Taken(PendingReply),
    /// Nothing, as these writes under way leave it.
    Nothing(Vec<Arc<Write>>),
}

impl Found {
    /// The writes under way that it was computed on.
    fn depends(&self) -> &[Arc<Write>] {
        match self {
            Found::Taken(taken) => &taken.depends,
            Found::Nothing(depends) => depends,
        }
    }
}

/// Why a client waits no longer.
enum Ended {
    Late,
    Unblocked(Unblocked),
    /// Its connection ends.
    Closed,
}

/// Executes a command that waits for elements, as far as that is possible at once. If others wait
/// for its keys, it comes behind them.
pub(super) fn begin(
    session: &mut Session,
    shared: &Arc<Shared>,
    command: &'static CommandEntry,
    args: Args<'_>,
) -> Step {
    let Some(blocking) = command.blocks else {
        return refused(unknown(args));
    };
    let asked = match (blocking.asks)(args) {
        Ok(asked) => asked,
        Err(fault) => return refused(fault),
    };
    if asked.keys.len() > MOST_KEYS {
        return refused(Fault::error(format!(
            "ERR a command that waits takes at most {MOST_KEYS} keys"
        )));
    }
    let deadline = asked.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let waiters = &shared.service.waiters;
    let blocks = |taken, resolved, resolved_on| {
        Step::Blocks(Blocks {
            deadline,
            taken,
            resolved,
            resolved_on,
        })
    };
    let look = Look::default();
    // XREAD takes nothing from those that wait. A new XREADGROUP may come before them, as in Redis.
    if blocking.of != Collection::Stream && waiters.any_wait(blocking.of, session.database, asked.keys) {
        return blocks(None, look.resolved, Vec::new());
    }
    match take(session, shared, (command, blocking), args, &look) {
        Err(fault) => refused(fault),
        Ok(Found::Taken(taken)) => {
            let depends = taken.depends.to_vec();
            blocks(Some(taken), look.resolved, depends)
        }
        Ok(Found::Nothing(depends)) => blocks(None, look.resolved, depends),
    }
}

/// Looks at the keys, and takes elements if there are some.
fn take(
    session: &mut Session,
    shared: &Arc<Shared>,
    (command, blocking): (&'static CommandEntry, &'static Blocking),
    args: Args<'_>,
    look: &Look,
) -> Result<Found, Fault> {
    let database = session.database;
    let computed = transact(session, shared, command, args, database, |transaction| {
        noting(shared, (command, args), transaction, |transaction| {
            let mut data = Data {
                transaction,
                database,
                config: &shared.config,
            };
            (blocking.take)(&mut data, args, look)
        })
    })?;
    session.tally.looked_up(computed.lookups);
    Ok(match computed.value {
        None => Found::Nothing(computed.depends.into_iter().collect()),
        Some(reply) => Found::Taken(PendingReply {
            reply,
            write: computed.write,
            depends: computed.depends,
            barrier: false,
            database,
            sent: None,
            messages: computed.messages,
            exec: None,
            asked: None,
            repeated: 0,
            refusals: Refusals::default(),
        }),
    })
}

/// Waits for what was found at once to be in the log, and returns the reply. `None`: nothing was
/// found, or another writer came first. Nothing else of the connection may be under way.
pub async fn found_at_once(
    session: &mut Session,
    shared: &Arc<Shared>,
    args: Args<'_>,
    blocks: &mut Blocks,
) -> Option<Reply> {
    let taken = blocks.taken.take()?;
    let mut waiter = Waiter::new(session, shared, args, blocks.deadline)?;
    let reply = waiter.settled(taken).await?;
    Some(waiter.answered(reply))
}

/// Waits until there is a reply. `None`: the connection is to be closed instead. Comes after
/// [`found_at_once`].
pub async fn serve(session: &mut Session, shared: &Arc<Shared>, args: Args<'_>, blocks: Blocks) -> Option<Reply> {
    let mut waiter = Waiter::new(session, shared, args, blocks.deadline)?;
    (waiter.resolved, waiter.resolved_on) = (blocks.resolved, blocks.resolved_on);
    let blocked = Blocked::until_unblocked(waiter.session);
    let reply = match waiter.wait().await {
        Ok(reply) => reply,
        Err(Ended::Late | Ended::Unblocked(Unblocked::TimedOut)) => Reply::NullArray,
        Err(Ended::Unblocked(Unblocked::WithError)) => unblocked(),
        Err(Ended::Closed) => return None,
    };
    drop(blocked);
    Some(waiter.answered(reply))
}

/// The reply of a command that CLIENT UNBLOCK ended with an error.
pub(super) fn unblocked() -> Reply {
    Reply::error("UNBLOCKED client unblocked via CLIENT UNBLOCK")
}

/// A client that waits.
struct Waiter<'w> {
    command: &'static CommandEntry,
    blocking: &'static Blocking,
    args: Args<'w>,
    session: &'w mut Session,
    shared: &'w Arc<Shared>,
    deadline: Option<Instant>,
    /// Times that its write has lost against another writer.
    lost: u32,
    /// See [`Look::resolved`].
    resolved: Resolved,
    /// The writes under way that the look was computed on that found these ids.
    resolved_on: Vec<Arc<Write>>,
    /// How long it has computed, and waited for the log.
    took: Duration,
}

impl<'w> Waiter<'w> {
    /// `None` if the request is none that waits.
    fn new(
        session: &'w mut Session,
        shared: &'w Arc<Shared>,
        args: Args<'w>,
        deadline: Option<Instant>,
    ) -> Option<Self> {
        let command = find(args).ok()?;
        Some(Waiter {
            command,
            blocking: command.blocks?,
            args,
            session,
            shared,
            deadline,
            lost: 0,
            resolved: Resolved::default(),
            resolved_on: Vec::new(),
            took: Duration::ZERO,
        })
    }

    /// Counts the command, which has its reply. The time that it waited for elements says nothing.
    fn answered(self, reply: Reply) -> Reply {
        self.session.client.has_taken.store(false, Ordering::Relaxed);
        let (shared, command, took) = (self.shared, self.command, self.took);
        self.session.tally.computed(shared, command, took);
        replied(self.session, shared, command, self.args, took, reply.is_error(), false);
        self.session.ends(Some(command));
        reply
    }

    async fn wait(&mut self) -> Result<Reply, Ended> {
        let keys = match (self.blocking.asks)(self.args) {
            Ok(asked) => asked.keys,
            Err(fault) => return Ok(error_reply(fault)),
        };
        let shared = self.shared;
        let service = &shared.service;
        let ticket = Ticket::new(service, self.blocking.of, self.session.database, keys);
        // Who waits for entries has looked at all its keys when it came.
        let (mut rests_on, mut has_waited) = (Vec::new(), self.blocking.of == Collection::Stream);
        loop {
            if let Some(why) = service.failure() {
                return Ok(Reply::error(format!("ERR this node {why}")));
            }
            let Some(ready) = ticket.begin() else {
                tokio::select! {
                    biased;
                    ended = self.ended() => return Err(ended),
                    () = ticket.turn() => {}
                    () = one_failed(rests_on.iter().chain(&self.resolved_on)) => {
                        rests_on.clear();
                        self.check_resolved();
                        ticket.try_again();
                    }
                }
                continue;
            };
            self.check_resolved();
            let resolved = self.resolved.clone();
            let was_resolved = resolved.get().is_some();
            let look = Look {
                has_waited,
                ready,
                resolved,
            };
            let found = self.turn(&look).await?;
            if !was_resolved && let Ok(found) = &found {
                self.resolved_on = found.depends().to_vec();
            }
            match found {
                Err(fault) => return Ok(error_reply(fault)),
                Ok(Found::Taken(taken)) => {
                    taken.write.iter().for_each(|write| ticket.took(write));
                    if let Some(reply) = self.settled(taken).await {
                        return Ok(reply);
                    }
                    ticket.try_again();
                }
                Ok(Found::Nothing(writes)) => {
                    ticket.found_nothing(!writes.is_empty());
                    rests_on = writes;
                    has_waited = true;
                }
            }
        }
    }

    /// Forgets the ids that XREAD reads from if a write failed that they were found on: `$` may
    /// then be the id of an entry that never was in the stream.
    fn check_resolved(&mut self) {
        if self.resolved_on.iter().any(|write| write.has_failed()) {
            self.resolved = Resolved::default();
            self.resolved_on.clear();
        }
        self.resolved_on.retain(|write| write.outcome().is_none());
    }

    /// Looks at the keys. What has to happen before that may take as long as the client waits.
    async fn turn(&mut self, look: &Look) -> Result<Result<Found, Fault>, Ended> {
        let started = Instant::now();
        let ended = ended(self.session.client.clone(), self.shared, self.deadline);
        let found = tokio::select! {
            biased;
            ended = ended => return Err(ended),
            found = self.look(look) => found,
        };
        self.took += started.elapsed();
        Ok(found)
    }

    async fn look(&mut self, look: &Look) -> Result<Found, Fault> {
        loop {
            let (session, shared, args) = (&mut *self.session, self.shared, self.args);
            if let Err(fault) = admit(session, shared, (self.command, args), None) {
                let service = &shared.service;
                // While the node loads it shows nothing. It says when it serves again.
                return match service.is_serving() || service.failure().is_some() {
                    true => Err(fault),
                    false => Ok(Found::Nothing(Vec::new())),
                };
            }
            let row = (self.command, self.blocking);
            let computed = match before(session, shared, self.command, args, true) {
                Some(before) => Err(before),
                None => match take(session, shared, row, args, look) {
                    Err(Fault::Wait(wait)) => Err(Before::Wait(wait)),
                    found => Ok(found),
                },
            };
            let before = match computed {
                Ok(found) => return found,
                Err(Before::Wait(Wait::Turn(turn))) => {
                    let mut found = None;
                    let step = take_turn(session, shared, turn, |session| {
                        if !rights::allow(&session.user, row.0, args) {
                            // Since it has waited for the turn. The next look says so.
                            return Step::Before(Before::Settled);
                        }
                        match take(session, shared, row, args, look) {
                            Err(fault @ Fault::Wait(_)) => refused(fault),
                            other => {
                                found = Some(other);
                                Step::Reply(Reply::None)
                            }
                        }
                    })
                    .await;
                    match (found, step) {
                        (Some(found), _) => return found,
                        (None, Step::Before(before)) => before,
                        (None, _) => return Err("NOTWRITTEN the command could not be computed".into()),
                    }
                }
                Err(before) => before,
            };
            before.happened(&session.outstanding, shared).await?;
        }
    }

    /// Waits for the write that takes elements, and for the writes that it was computed on. `None`:
    /// another writer came first, or a write that it rested on failed.
    async fn settled(&mut self, taken: PendingReply) -> Option<Reply> {
        let started = Instant::now();
        let (outstanding, service) = (&self.session.outstanding, &self.shared.service);
        self.session.client.has_taken.store(true, Ordering::Relaxed);
        outstanding.none(service).await;
        outstanding.settling();
        let own = match &taken.write {
            Some(write) => write.finished().await.clone(),
            None => Ok(()),
        };
        let mut rests_on_failed = false;
        for write in &taken.depends {
            rests_on_failed |= write.finished().await.is_err();
        }
        let reply = match own {
            // With a write of its own it would have lost.
            Ok(()) if rests_on_failed && taken.write.is_none() => None,
            Ok(()) => Some(taken.reply),
            Err(ProduceError::Stale { after }) => {
                self.lost += 1;
                if let Some((at, position)) = after {
                    // If that record cannot be read in time, the next write loses again.
                    let _ = tokio::time::timeout(service.write_timeout(), service.applied_to(at, position)).await;
                    if self.lost > 1 {
                        let most = (PAUSE * self.lost).min(MAX_PAUSE);
                        tokio::time::sleep(rand::random_range(Duration::ZERO..=most)).await;
                    }
                }
                None
            }
            Err(error) => Some(failed(self.shared, &error)),
        };
        if reply.is_none() {
            self.session.client.has_taken.store(false, Ordering::Relaxed);
        }
        self.took += started.elapsed();
        reply
    }

    async fn ended(&self) -> Ended {
        ended(self.session.client.clone(), self.shared, self.deadline).await
    }
}

/// Waits until the client need not wait any longer.
async fn ended(client: Arc<Client>, shared: &Shared, deadline: Option<Instant>) -> Ended {
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => pending().await,
        }
    };
    let unblocked = || client.unblocked().is_some();
    tokio::select! {
        biased;
        () = client.killed_or(|| unblocked() || shared.shutdown.is_asked()) => match client.unblocked() {
            Some(how) if !client.is_killed() => Ended::Unblocked(how),
            _ => Ended::Closed,
        },
        () = late => Ended::Late,
    }
}

/// Waits until one of these writes has failed.
async fn one_failed(writes: impl Iterator<Item = &Arc<Write>>) {
    for write in writes {
        if write.finished().await.is_err() {
            return;
        }
    }
    pending().await
}

/// While it is there, CLIENT LIST shows the client as blocked.
pub(super) struct Blocked(Arc<Client>);

impl Blocked {
    pub(super) fn new(session: &Session) -> Self {
        session.client.blocked.store(true, Ordering::Relaxed);
        Blocked(session.client.clone())
    }

    /// As [`Blocked::new`]; CLIENT UNBLOCK may end the command.
    pub(super) fn until_unblocked(session: &Session) -> Self {
        session.client.may_be_unblocked(true);
        Blocked::new(session)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.blocked.store(false, Ordering::Relaxed);
        self.0.may_be_unblocked(false);
    }
}
