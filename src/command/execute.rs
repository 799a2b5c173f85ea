//! From a request to its reply: looks the command up, checks what every command is checked for, computes it in a transaction,
//! and says what must happen before the reply may be sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use super::admission::{self, Wants};
use super::args::{self, text, wrong_arity};
use super::consistency::{self, Fresh};
use super::session::{Client, Multi, NO_COMMAND, Queued, Session, Shared, Watch};
use super::table::Entry;
use super::{Args, Command, Context, Fault, Keys, MAX_REPLY_MEMORY, Outcome, Reply, Run, Waiting, flag, info, table};
use crate::config::table as settings;
use crate::database::consistency::Consistency;
pub use crate::database::hot::EXPECTED;
use crate::database::transaction::{self, Computed, Keys as Locks, SHORT_WORK, View};
use crate::database::watch::Found;
use crate::database::write::{Outstanding, Write};
use crate::database::{Pace, Place, Status, Turn, Wait, now_ms};
use crate::log::{Completion, LogError, ProduceError};
use crate::resp::{Request, Version, Weight};
use crate::supervise;

/// Longest pause before a command is computed again that lost against another writer, milliseconds for each time it lost.
const PAUSE_MS: u64 = 2;
const MAX_PAUSE_MS: u64 = 50;
/// Bytes of memory that commands queued by MULTI may take.
const MAX_QUEUED_BYTES: usize = 256 << 20;
/// What a queued argument takes besides its bytes, also while EXEC runs.
const QUEUED_ARGUMENT: usize = 160;

type KeyList<'a> = SmallVec<[&'a [u8]; 4]>;

/// What became of a request.
pub enum Step {
    Reply(Reply),
    /// The reply may be sent when the writes are acknowledged.
    Pending(Pending),
    /// Await [`Before::happened`], then execute again.
    Before(Before),
    /// Answers later, by itself.
    Later(Waiting),
}

/// A reply that waits for the log.
pub struct Pending {
    pub reply: Reply,
    pub write: Option<Arc<Write>>,
    pub depends: SmallVec<[Arc<Write>; 1]>,
    /// The connection must not go on before the writes are acknowledged.
    pub barrier: bool,
    /// The connection's database when the command was computed.
    pub database: u16,
    /// What EXEC ran, so that it can be run again.
    pub exec: Option<Box<Transaction>>,
    /// The command, and since when its client waits.
    pub asked: Option<(&'static Entry, Instant)>,
    /// Times that it was computed again.
    pub repeated: u64,
}

/// A reply that is held back, its own or an earlier one's write being under way.
pub struct Held<'a> {
    pub args: crate::resp::Args<'a>,
    pub reply: Result<Reply, Pending>,
    /// CLIENT REPLY lets it be sent.
    pub is_sent: bool,
    pub version: Version,
}

/// What MULTI queued, and what was watched.
pub struct Transaction {
    multi: Option<Multi>,
    watch: Option<Watch>,
}

/// What must happen before a command can be computed.
pub enum Before {
    /// Own writes acknowledged, and in the store.
    WholeStore,
    /// This node new enough, as the read consistency in force asks.
    Fresh(Fresh),
    Unpaused,
    Wait(Wait),
}

/// Tells which requests come next, at most [`EXPECTED`] of them, so that their keys are looked for in memory all at once.
pub fn expect<'a>(session: &Session, shared: &Shared, requests: impl Iterator<Item = Request<'a>>) {
    // The key of nearly every command; what is none does no harm. A plain SET looks at nothing.
    let looks = |request: &Request<'_>| request.len() > 3 || !args::is(request.arg(0), "set");
    let keys = requests
        .filter(|request| request.len() > 1 && looks(request))
        .map(|request| request.arg(1));
    shared.service.expect(session.database, keys);
}

/// Executes a request as far as that is possible at once. `prepared`: [`Before::WholeStore`] or [`Before::Fresh`] has been awaited.
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
            return reject(session, args, fault);
        }
    };
    if let Err(fault) = check_arity(command, args).and_then(|()| admit(session, shared, command)) {
        session.client.came_with(command.number, now_ms());
        command.stats.own().rejected.fetch_add(1, Ordering::Relaxed);
        return reject(session, args, fault);
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
        return Step::Reply(queue(session, command, args).unwrap_or_else(|fault| reply_of(session, fault)));
    }
    if let Some(before) = before(session, shared, command, args, prepared) {
        return Step::Before(before);
    }
    let mut step = match command.run {
        Run::Now(_) => compute_one(session, shared, command, args),
        Run::Later(handler) => match handler(session, shared, args) {
            Ok(waiting) => Step::Later(waiting),
            Err(fault) => refuse(session, fault),
        },
        Run::Exec => exec(session, shared),
        Run::Container | Run::NotYet => refuse(session, unknown(args)),
    };
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
        Step::Before(_) | Step::Later(_) => {}
    }
    step
}

/// A page in a browser can be made to send requests to a server on the same machine, each line of which would be a command: as in
/// Redis, what only HTTP says ends the connection.
fn is_http(name: &[u8]) -> bool {
    args::is(name, "post") || args::is(name, "host:")
}

/// A command has its reply: counts how long its client has waited for it, and remembers it if that was long. `held`: not for computing it alone.
fn replied(
    session: &mut Session,
    shared: &Shared,
    command: &'static Entry,
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
        let address = client.address.map_or(String::new(), |address| address.to_string());
        let name = client.details.lock().name.clone();
        let arguments = without_secrets(command, args);
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

/// The arguments as SLOWLOG may show them.
fn without_secrets<'a>(command: &Entry, args: Args<'a>) -> Vec<&'a [u8]> {
    let mut shown = args.to_vec();
    let mut hide = |at: usize| {
        if let Some(argument) = shown.get_mut(at) {
            *argument = b"(redacted)";
        }
    };
    match command.name {
        "auth" => (1..args.len()).for_each(hide),
        "hello" => {
            if let Some(at) = args.iter().skip(2).position(|argument| args::is(argument, "auth")) {
                (at + 3..at + 5).for_each(hide);
            }
        }
        "config|set" => {
            for at in (2..args.len()).step_by(2) {
                if settings::place(&text(args[at])).is_some_and(|place| settings::SETTINGS[place].secret) {
                    hide(at + 1);
                }
            }
        }
        _ => {}
    }
    shown
}

impl Pending {
    /// All that it waits for is in the log.
    fn is_acknowledged(&self) -> bool {
        let mut writes = self.write.iter().chain(&self.depends);
        writes.all(|write| matches!(write.outcome(), Some(Ok(()))))
    }
}

impl Before {
    /// Waits for it, or until this node has failed; an error is the command's reply.
    pub async fn happened(self, owner: &Outstanding, shared: &Arc<Shared>) -> Result<(), Fault> {
        tokio::select! {
            biased;
            happened = self.happens(owner, shared) => happened,
            // The command is executed again, and answers why.
            () = shared.service.failed() => Ok(()),
        }
    }

    async fn happens(self, owner: &Outstanding, shared: &Arc<Shared>) -> Result<(), Fault> {
        let service = &shared.service;
        match self {
            Before::WholeStore => {
                owner.none(service).await;
                service.store_caught_up().await
            }
            Before::Fresh(fresh) => fresh.reached(owner, service).await,
            Before::Unpaused => {
                shared.pause.ended().await;
                Ok(())
            }
            Before::Wait(Wait::Write(write)) => {
                let _ = write.finished().await;
                Ok(())
            }
            Before::Wait(Wait::Own) => {
                owner.none(service).await;
                Ok(())
            }
            Before::Wait(Wait::Room(size)) => service.room(size).await,
            Before::Wait(Wait::Locked(taken)) => {
                service.unlocked(taken).await;
                Ok(())
            }
            // Whoever executes it again finds out. Turns are taken by [`take_turn`].
            Before::Wait(Wait::Loading | Wait::Changed | Wait::Turn(_)) => Ok(()),
            Before::Wait(Wait::CreateDatabase(database)) if !shared.config.create_databases() => {
                Err(Fault::error(format!(
                    "ERR database {database} has no topic, and create-databases is no: create the topic first, compacted"
                )))
            }
            Before::Wait(Wait::CreateDatabase(database)) => {
                let creating = service.clone();
                supervise::blocking(&supervise::CREATE_DATABASE, move || creating.create_database(database))
                    .await
                    .map_err(|e| Fault::error(format!("ERR database {database}: {e}")))?
                    .map_err(|e| match e {
                        LogError::Unreachable(_) => Fault::error(format!("NOTWRITTEN {e}")),
                        _ => Fault::error(format!("ERR database {database}: {e}")),
                    })
            }
        }
    }
}

/// Executes a request to its end, waiting where it must; the reply may still be [`Pending`].
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
                prepared |= whole_store || matches!(before, Before::Fresh(_));
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
                let blocked = blocks.then(|| Blocked::new(session));
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
    let mut held = [Held {
        args: crate::resp::Args::from_slice(args),
        reply: match step {
            Step::Reply(reply) => Ok(reply),
            Step::Pending(pending) => Err(pending),
            // `execute_waiting` leaves neither.
            Step::Before(_) | Step::Later(_) => Ok(unended()),
        },
        is_sent: true,
        version: session.version,
    }];
    settle_all(session, shared, &mut held).await;
    session.tally.settle(shared);
    let [Held { reply, .. }] = held;
    let reply = reply.unwrap_or_else(|_| unended());
    if let Reply::Error(text) = &reply {
        shared.stats.count_error(text);
    }
    reply
}

/// While it is there, CLIENT LIST shows the client as blocked.
struct Blocked(Arc<Client>);

impl Blocked {
    fn new(session: &Session) -> Self {
        session.client.blocked.store(true, Ordering::Relaxed);
        Blocked(session.client.clone())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.blocked.store(false, Ordering::Relaxed);
    }
}

/// Computes what takes long when it is its turn, away from the threads that serve connections.
async fn take_turn(
    session: &mut Session,
    shared: &Shared,
    mut turn: Turn,
    mut compute: impl FnMut(&mut Session) -> Step,
) -> Step {
    /// Times that it is computed while others may change its keys.
    const UNLOCKED: usize = 2;
    let (mut permit, mut times) = (shared.turns.take(turn).await, 0);
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
                permit = shared.turns.take(turn).await;
            }
            step => return step,
        }
    }
}

/// What the command waits for did not come. For EXEC that is the end of its transaction, of which nothing was done.
fn give_up(session: &mut Session, shared: &Shared, args: Args<'_>, fault: Fault) -> Step {
    if args::is(args[0], "exec") {
        session.end_transaction();
    }
    let waited = session
        .waits_since
        .take()
        .map_or(Duration::ZERO, |since| since.elapsed());
    if let Ok(command) = find(args) {
        session.tally.computed(shared, command, Duration::ZERO);
        replied(session, shared, command, args, waited, true, true);
    }
    Step::Reply(reply_of(session, fault))
}

/// Waits for the writes under way, once for all of them, until every held reply is there. What failed, because a write that it
/// rested on did or another writer came first, is computed again: in rounds, each in the order of the requests and begun when nothing is under way.
/// What fails again meanwhile is left for the next round, and so is what comes after it.
pub async fn settle_all(session: &mut Session, shared: &Arc<Shared>, held: &mut [Held<'_>]) {
    let deadline = Instant::now() + shared.service.write_timeout();
    let mut open = !held.is_empty();
    while open {
        session.outstanding.none(&shared.service).await;
        session.outstanding.settling();
        open = false;
        let mut now = Instant::now();
        for held in held.iter_mut() {
            let (asked, settled) = match std::mem::replace(&mut held.reply, Ok(Reply::None)) {
                Err(pending) if pending.is_acknowledged() => (pending.asked, Ok(pending.reply)),
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

/// Looks at the writes of a pending reply, which are over unless they belong to this round: gives the reply, or what the command is pending
/// on. After `deadline` nothing is computed again.
async fn settle(
    session: &mut Session,
    shared: &Arc<Shared>,
    request: Args<'_>,
    pending: Pending,
    deadline: Instant,
) -> Result<Reply, Pending> {
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
        return Ok(pending.reply);
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
        if pending.repeated > 0 {
            let most = (PAUSE_MS * pending.repeated).min(MAX_PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..=most))).await;
        }
    }
    if Instant::now() >= deadline {
        return Ok(Reply::error(LOST));
    }
    compute_again(session, shared, request, pending, deadline).await
}

/// Computes a command again as if nothing of the session had changed since. If one that comes before it has failed again, it stays as it is.
async fn compute_again(
    session: &mut Session,
    shared: &Arc<Shared>,
    request: Args<'_>,
    mut pending: Pending,
    deadline: Instant,
) -> Result<Reply, Pending> {
    let command = match find(request) {
        Ok(command) => command,
        Err(fault) => return Ok(reply_of(session, fault)),
    };
    let transaction = pending.exec.take();
    let is_exec = transaction.is_some();
    let now = (session.database, session.multi.take(), session.watch.take());
    let replies = session.replies;
    if let Some(transaction) = transaction {
        (session.multi, session.watch) = (transaction.multi, transaction.watch);
    }
    session.database = pending.database;
    let whole_store = command.has(flag::WHOLE_STORE) || is_exec;
    session.is_repeating = true;
    let again = loop {
        if let Err(fault) = admit(session, shared, command) {
            break Ok(reply_of(session, fault));
        }
        if whole_store && let Err(fault) = shared.service.store_caught_up().await {
            break Ok(reply_of(session, fault));
        }
        let compute = |session: &mut Session| match is_exec {
            true => exec(session, shared),
            false => compute_one(session, shared, command, request),
        };
        let step = match takes_long(session, command, request) {
            None => compute(session),
            Some(turn) => Step::Before(Before::Wait(Wait::Turn(turn))),
        };
        let step = match step {
            Step::Before(Before::Wait(Wait::Turn(turn))) => take_turn(session, shared, turn, compute).await,
            step => step,
        };
        break match step {
            Step::Reply(reply) => Ok(reply),
            Step::Pending(next) => Err(Pending {
                repeated: pending.repeated + 1,
                asked: pending.asked,
                ..next
            }),
            Step::Before(_) if session.outstanding.is_unsettled() => {
                let (multi, watch) = (session.multi.take(), session.watch.take());
                pending.exec = is_exec.then(|| Box::new(Transaction { multi, watch }));
                Err(pending)
            }
            Step::Before(before) if Instant::now() < deadline => {
                match before.happened(&session.outstanding, shared).await {
                    Ok(()) => continue,
                    Err(fault) => Ok(reply_of(session, fault)),
                }
            }
            Step::Before(_) | Step::Later(_) => Ok(Reply::error("NOTWRITTEN the command could not be computed")),
        };
    };
    session.is_repeating = false;
    (session.multi, session.watch) = (now.1, now.2);
    // What EXEC chose by CLIENT REPLY has come into force when it was computed first.
    session.replies = replies;
    if !is_exec || shared.service.log.chains() {
        session.database = now.0;
    }
    again
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

fn find(args: Args<'_>) -> Result<&'static Entry, Fault> {
    let there = table::find(args[0]).filter(|command| !matches!(command.run, Run::NotYet));
    let command = there.ok_or_else(|| unknown(args))?;
    let Some(name) = args.get(1).filter(|_| !command.subcommands.is_empty()) else {
        return Ok(command);
    };
    match table::find_subcommand(command, name) {
        Some(sub) if !matches!(sub.run, Run::NotYet) => Ok(sub),
        _ => Err(Fault::error(format!(
            "ERR unknown subcommand '{}'. Try {} HELP.",
            text(&name[..name.len().min(128)]),
            command.name.to_ascii_uppercase()
        ))),
    }
}

fn check_arity(command: &Entry, args: Args<'_>) -> Result<(), Fault> {
    let count = args.len() as i32;
    let fits = if command.arity >= 0 {
        count == command.arity
    } else {
        count >= -command.arity
    };
    if fits { Ok(()) } else { Err(wrong_arity(command.name)) }
}

/// Redis's text, with its limits on what is echoed: it prints C strings, which end at a NUL.
fn unknown(args: Args<'_>) -> Fault {
    const ECHOED: usize = 128;
    let echo = |arg: &[u8], limit: usize| {
        let end = arg.iter().take(limit).position(|&byte| byte == 0);
        arg[..end.unwrap_or(arg.len().min(limit))].to_vec()
    };
    let mut message = b"ERR unknown command '".to_vec();
    message.extend(echo(args[0], ECHOED));
    message.extend_from_slice(b"', with args beginning with: ");
    let start = message.len();
    for arg in &args[1..] {
        let Some(left) = ECHOED.checked_sub(message.len() - start).filter(|left| *left > 0) else {
            break;
        };
        message.push(b'\'');
        message.extend(echo(arg, left));
        message.extend_from_slice(b"' ");
    }
    Fault::error(message)
}

/// Checks that are the same for every command: authentication, and whether this node can be right.
fn admit(session: &Session, shared: &Shared, command: &Command) -> Result<(), Fault> {
    if command.name == "debug" && !may_debug(session, shared) {
        return Err("ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it from a local connection, otherwise you need to set this option in the configuration file, and then restart the server.".into());
    }
    let authenticated = session.authenticated;
    if let Err(refusal) = admission::admit(shared, Wants::Run { authenticated, command }) {
        return Err(refusal.text().into());
    }
    // What EXEC runs was queued while this node could be right, and is computed now.
    let queued = session.multi.as_ref().filter(|_| matches!(command.run, Run::Exec));
    let may_load = |command: &Command| command.has(flag::LOADING);
    let may_load = may_load(command) && queued.is_none_or(|m| m.queued.iter().all(|q| may_load(q.command)));
    if may_load || shared.service.is_serving() {
        return Ok(());
    }
    Err(Fault::error(match &*shared.service.status() {
        Status::Loading {
            applied,
            total,
            rebuilding,
        } => {
            let percent = if *total == 0 {
                0
            } else {
                applied.min(total) * 100 / total
            };
            let why = rebuilding
                .as_ref()
                .map_or(String::new(), |r| format!(", rebuilding the local store: {r}"));
            let outage = || shared.service.log.outage().map(|outage| outage.cause);
            let waits = shared
                .service
                .store_lacks_room()
                .or_else(outage)
                .map_or(String::new(), |reason| format!(", waiting: {reason}"));
            let held_up = shared
                .service
                .log
                .held_up(None)
                .map_or(String::new(), |cause| format!(", {cause}"));
            format!("LOADING Highwater is loading the dataset: {percent}%{why}{waits}{held_up}")
        }
        Status::Failed(reason) => format!("ERR this node {reason}"),
        Status::Serving | Status::Stale => return Ok(()),
    }))
}

fn may_debug(session: &Session, shared: &Shared) -> bool {
    match &*shared.config.enable_debug_command() {
        "yes" => true,
        "local" => session.client.is_local(),
        _ => false,
    }
}

/// What must happen before this command, besides what it finds out itself.
fn before(session: &Session, shared: &Shared, command: &Command, args: Args<'_>, prepared: bool) -> Option<Before> {
    if let Some(paused) = shared.pause.current() {
        let writes = |c: &Command| c.has(flag::WRITE | flag::MAY_REPLICATE);
        let in_exec = session
            .multi
            .as_ref()
            .is_some_and(|m| m.queued.iter().any(|q| writes(q.command)));
        if (!paused.writes_only && !command.has(flag::ADMIN) && !command.has(flag::IN_MULTI))
            || writes(command)
            || (matches!(command.run, Run::Exec) && in_exec)
        {
            return Some(Before::Unpaused);
        }
    }
    if !prepared
        && shared.service.is_serving()
        && let Some(before) = before_reading(session, shared, command, args)
    {
        return Some(before);
    }
    let turn = takes_long(session, command, args)?;
    (session.pace.turn < turn).then_some(Before::Wait(Wait::Turn(turn)))
}

/// The turn for commands that look at very many things, or have very large arguments. Others find out when they have begun
/// ([`Transaction::works`](crate::database::Transaction::works)).
fn takes_long(session: &Session, command: &Command, args: Args<'_>) -> Option<Turn> {
    /// Arguments, all queued commands together.
    const MANY: usize = 10_000;
    let (long, many, bytes) = match &session.multi {
        Some(multi) if matches!(command.run, Run::Exec) => {
            let long = multi.queued.iter().any(|queued| queued.command.has(flag::LONG));
            (long, multi.args, multi.bytes)
        }
        _ => (command.has(flag::LONG), args.len(), size(args)),
    };
    match () {
        _ if long || many > MANY => Some(Turn::Long),
        _ if bytes > SHORT_WORK => Some(Turn::Large),
        _ => None,
    }
}

/// Bytes of the arguments.
fn size(args: Args<'_>) -> usize {
    args.iter().map(|arg| arg.len()).sum()
}

/// What a command that reads must wait for.
fn before_reading(session: &Session, shared: &Shared, command: &Command, args: Args<'_>) -> Option<Before> {
    let whole = |c: &Command| c.has(flag::WHOLE_STORE);
    let in_exec = || {
        matches!(command.run, Run::Exec)
            && session
                .multi
                .as_ref()
                .is_some_and(|m| m.queued.iter().any(|q| whole(q.command)))
    };
    // INFO is what probes ask for: only one of its sections looks at the store.
    let looks = whole(command) && (command.name != "info" || info::tells_of_keys(args));
    let whole_store = looks || in_exec();
    match consistency::needed(session, shared, command, args, whole_store) {
        Some(fresh) => Some(Before::Fresh(fresh)),
        None => whole_store.then_some(Before::WholeStore),
    }
}

fn queue(session: &mut Session, command: &'static Entry, args: Args<'_>) -> Outcome {
    if command.has(flag::NO_MULTI) || matches!(command.run, Run::Later(_)) {
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

/// The request cannot be looked into. For EXEC that is the end of its transaction.
fn reject(session: &mut Session, args: Args<'_>, fault: Fault) -> Step {
    match &fault {
        Fault::Error(text) if args::is(args[0], "exec") => {
            session.end_transaction();
            let reason = text.strip_prefix(b"ERR ").unwrap_or(text);
            Step::Reply(Reply::error(
                [b"EXECABORT Transaction discarded because of: ", reason].concat(),
            ))
        }
        _ => refuse(session, fault),
    }
}

fn refuse(session: &mut Session, fault: Fault) -> Step {
    match fault {
        Fault::Wait(wait) => Step::Before(Before::Wait(wait)),
        fault => Step::Reply(reply_of(session, fault)),
    }
}

/// The error reply; inside MULTI it makes EXEC refuse.
fn reply_of(session: &mut Session, fault: Fault) -> Reply {
    if let Some(multi) = &mut session.multi {
        multi.aborted = true;
    }
    match fault {
        Fault::Error(text) => Reply::Error(text),
        Fault::Wait(_) => Reply::error("NOTWRITTEN the command could not be computed"),
    }
}

/// The keys among a command's arguments.
pub fn keys_of<'a>(command: &Command, args: &[&'a [u8]]) -> KeyList<'a> {
    match command.keys {
        Keys::None | Keys::All => KeyList::new(),
        Keys::Range { first, last, step } => {
            let last = if last < 0 { args.len() as i32 + last } else { last };
            (first..=last)
                .step_by(step.max(1) as usize)
                .filter_map(|at| args.get(at as usize).copied())
                .collect()
        }
        Keys::Counted(at) => {
            let count = args.get(at).and_then(|n| super::args::parse_int(n)).unwrap_or(0).max(0) as usize;
            args.iter().skip(at + 1).take(count).copied().collect()
        }
    }
}

fn view(session: &Session, shared: &Shared, writes: bool) -> View {
    match (writes, session.outstanding.count()) {
        (true, _) => View::Update,
        (false, 1..) if consistency::mode(session, shared).sees_pending() => View::Pending,
        (false, _) => View::Committed,
    }
}

/// Whether keys that are only read have to fit together. `strict`: even a single one must not be read while others of its group become visible.
fn fit_together(writes: bool, keys: usize, strict: bool) -> bool {
    !writes && (keys > 1 || strict)
}

fn locks<'k>(keys: &'k [&'k [u8]], places: &'k [Place<'k>], writes: bool, all: bool) -> Locks<'k> {
    match (writes, places) {
        _ if all => Locks::All,
        (true, _) => Locks::Some(keys),
        // Without keys the store is looked at, which takes groups in as they come.
        (false, []) => Locks::Unlocked,
        (false, places) => Locks::Together(places),
    }
}

fn compute_one(session: &mut Session, shared: &Arc<Shared>, command: &'static Entry, args: Args<'_>) -> Step {
    let Run::Now(handler) = command.run else {
        return refuse(session, unknown(args));
    };
    let keys = keys_of(command, args);
    let writes = command.has(flag::WRITE);
    let strict = consistency::mode(session, shared) == Consistency::Linearizable;
    let together = fit_together(writes, keys.len(), strict);
    let places = keys.iter().filter(|_| together).map(|key| (session.database, *key));
    let places: SmallVec<[Place<'_>; 4]> = places.collect();
    let locks = locks(&keys, &places, writes, matches!(command.keys, Keys::All));
    let (owner, view) = (session.outstanding.clone(), view(session, shared, writes));
    let computed = shared
        .service
        .transact_at(session.pace, &owner, locks, view, |transaction| {
            transaction.counts = !writes;
            handler(
                &mut Context {
                    session: &mut *session,
                    shared,
                    transaction,
                },
                args,
            )
        });
    match computed {
        Err(fault) => refuse(session, fault),
        Ok(computed) => {
            let database = session.database;
            conclude(session, computed, database, command.has(flag::BARRIER), None)
        }
    }
}

fn conclude(
    session: &mut Session,
    computed: Computed<Reply>,
    database: u16,
    barrier: bool,
    exec: Option<Box<Transaction>>,
) -> Step {
    let Computed {
        value,
        write,
        depends,
        lookups,
    } = computed;
    if !session.is_repeating {
        session.tally.looked_up(lookups);
    }
    if write.is_none() && depends.is_empty() {
        return Step::Reply(value);
    }
    Step::Pending(Pending {
        reply: value,
        write,
        depends,
        barrier,
        database,
        exec,
        asked: None,
        repeated: 0,
    })
}

#[expect(clippy::too_many_lines, reason = "it is still to be split")]
fn exec(session: &mut Session, shared: &Arc<Shared>) -> Step {
    let Some(multi) = &session.multi else {
        return Step::Reply(Reply::error("ERR EXEC without MULTI"));
    };
    if multi.aborted {
        session.end_transaction();
        return Step::Reply(Reply::error(
            "EXECABORT Transaction discarded because of previous errors.",
        ));
    }
    let queued = multi.queued.clone();
    let watched = session.watch.as_ref().map_or_else(HashMap::new, |w| w.keys.clone());
    let changed = session.watch.as_ref().map(|w| w.changed.clone());
    let requests: Vec<(&'static Entry, Vec<&[u8]>)> = queued
        .iter()
        .map(|q| (q.command, q.args.iter().map(|a| &a[..]).collect()))
        .collect();
    let writes = requests.iter().any(|(c, _)| c.has(flag::WRITE));
    let all = requests.iter().any(|(c, _)| matches!(c.keys, Keys::All));
    // Computed again, it must find the session as it was: where others write too, nothing is computed behind it.
    let barrier = !shared.service.log.chains() || requests.iter().any(|(c, _)| c.has(flag::BARRIER));
    let mut keys: KeyList<'_> = requests.iter().flat_map(|(c, args)| keys_of(c, args)).collect();
    keys.extend(watched.keys().map(|(_, key)| &key[..]));
    let (database, replies) = (session.database, session.replies);
    let mut times: Vec<Duration> = Vec::with_capacity(requests.len());
    let places = match fit_together(writes, keys.len(), true) {
        true => places(shared, database, &watched, &requests),
        false => Vec::new(),
    };
    let (owner, view) = (session.outstanding.clone(), view(session, shared, writes));
    let locks = locks(&keys, &places, writes, all);
    let computed = shared
        .service
        .transact_at(session.pace, &owner, locks, view, |transaction| {
            // The keys before the flag: a transaction that watches what it reads notices what changes after that.
            if has_changed(transaction, &watched)? || changed.is_some_and(|c| c.load(Ordering::SeqCst)) {
                return Ok(Reply::NullArray);
            }
            let mut replies = Vec::with_capacity(requests.len());
            times.clear();
            let mut weight = Weight::default();
            for (command, args) in &requests {
                let Run::Now(handler) = command.run else {
                    return Err("ERR Command not allowed inside a transaction".into());
                };
                let started = session.tally.begin(shared, command);
                transaction.counts = !command.has(flag::WRITE);
                let mut context = Context {
                    session: &mut *session,
                    shared,
                    transaction: &mut *transaction,
                };
                let reply = match handler(&mut context, args) {
                    Ok(reply) => reply,
                    Err(Fault::Error(text)) => Reply::Error(text),
                    Err(wait) => return Err(wait),
                };
                times.push(session.tally.done(started));
                transaction.check_size()?;
                weight.add(&reply);
                if weight.bytes() > MAX_REPLY_MEMORY {
                    return Err(Fault::error(format!(
                        "ERR the reply of EXEC would take more than {MAX_REPLY_MEMORY} bytes of memory; nothing was executed"
                    )));
                }
                replies.push(reply);
            }
            // What was written is checked by the log. What was only read may have changed since the first look.
            if !transaction.writes() && has_changed(transaction, &watched)? {
                return Ok(Reply::NullArray);
            }
            Ok(Reply::Array(replies))
        });
    if !matches!(
        &computed,
        Ok(Computed {
            value: Reply::Array(_),
            ..
        })
    ) {
        // Nothing was executed, or it will be computed again, from where it began.
        session.select(database);
        session.replies = replies;
    }
    if let Err(Fault::Wait(wait)) = computed {
        return Step::Before(Before::Wait(wait));
    }
    if let (
        Ok(Computed {
            value: Reply::Array(replies),
            ..
        }),
        false,
    ) = (&computed, session.is_repeating)
    {
        for (((command, args), took), reply) in requests.iter().zip(&times).zip(replies) {
            session.tally.computed(shared, command, *took);
            replied(session, shared, command, args, *took, reply.is_error(), false);
            if let Reply::Error(text) = reply {
                shared.stats.count_error(text);
            }
        }
    }
    let transaction = Box::new(Transaction {
        multi: session.multi.take(),
        watch: session.watch.take(),
    });
    session.end_transaction();
    match computed {
        Err(fault) => refuse(session, fault),
        Ok(computed) => conclude(session, computed, database, barrier, Some(transaction)),
    }
}

/// The keys that EXEC looks at, each once, with the database that is selected by then.
fn places<'q>(
    shared: &Shared,
    mut database: u16,
    watched: &'q HashMap<(u16, Bytes), Option<Found>>,
    requests: &'q [(&'static Entry, Vec<&'q [u8]>)],
) -> Vec<Place<'q>> {
    let mut met = HashSet::new();
    let mut places: Vec<Place<'q>> = watched.keys().map(|(database, key)| (*database, &key[..])).collect();
    met.extend(places.iter().copied());
    for (command, request) in requests {
        if command.name == "select" {
            // If there is no such database, the one before stays.
            let selected = request.get(1).and_then(|number| args::parse_int(number));
            let selected = selected.and_then(|number| u16::try_from(number).ok());
            database = selected
                .filter(|number| *number < shared.service.database_count())
                .unwrap_or(database);
        }
        let of_command = keys_of(command, request).into_iter().map(|key| (database, key));
        places.extend(of_command.filter(|place| met.insert(*place)));
    }
    places
}

/// Whether a watched key is no longer what WATCH found. So the transaction rests on that.
fn has_changed(
    transaction: &mut transaction::Transaction<'_>,
    watched: &HashMap<(u16, Bytes), Option<Found>>,
) -> Result<bool, Fault> {
    let now = transaction.now;
    for ((database, key), found) in watched {
        let entry = transaction.get_even_expired(*database, key)?;
        if *found != Some(Found::of(entry.as_ref(), now)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;
