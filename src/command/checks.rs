//! What is checked before every command: that it exists, its arity, who may run it, whether this
//! node can give a right answer, and what has to happen first.

use super::admission::{self, Caller, Wants};
use super::args::{text, wrong_arity};
use super::broadcasts::Need;
use super::session::{Multi, Session};
use super::shared::Shared;
use super::step::Before;
use super::table::CommandEntry;
use super::{Args, Command, Fault, Run, consistency, flag, table};
use crate::acl::Context;
use crate::database::SHORT_WORK;
use crate::database::{Status, Turn, Wait};
use crate::resp::Version;

pub(super) fn find(args: Args<'_>) -> Result<&'static CommandEntry, Fault> {
    let there = table::find(args[0]).filter(|command| command.is_there());
    let command = there.ok_or_else(|| unknown(args))?;
    let Some(name) = args.get(1).filter(|_| !command.subcommands.is_empty()) else {
        return Ok(command);
    };
    match table::find_subcommand(command, name) {
        Some(sub) if sub.is_there() => Ok(sub),
        _ => Err(Fault::error(format!(
            "ERR unknown subcommand '{}'. Try {} HELP.",
            text(&name[..name.len().min(128)]),
            command.name.to_ascii_uppercase()
        ))),
    }
}

pub(super) fn is_exec(args: Args<'_>) -> bool {
    table::find(args[0]).is_some_and(|command| matches!(command.run, Run::Exec))
}

pub(super) fn check_arity(command: &CommandEntry, args: Args<'_>) -> Result<(), Fault> {
    match command.takes(args.len()) {
        true => Ok(()),
        false => Err(wrong_arity(command.name)),
    }
}

/// In RESP2 a client cannot tell a message from a reply. So while it listens, few commands are
/// allowed. As in Redis, a client that monitors counts as a replica.
pub(super) fn check_mode(session: &Session, command: &Command) -> Result<(), Fault> {
    if session.monitoring.is_some() && command.has(flag::READONLY | flag::WRITE | flag::MAY_REPLICATE) {
        return Err("ERR Replica can't interact with the keyspace".into());
    }
    if session.listening.is_none() || session.version == Version::Resp3 || command.has(flag::WHILE_LISTENING) {
        return Ok(());
    }
    Err(Fault::error(format!(
        "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
        command.name
    )))
}

/// Redis's text, with its limits on what is echoed: it prints C strings, which end at a NUL.
pub(super) fn unknown(args: Args<'_>) -> Fault {
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

/// Checks that are the same for every command: authentication, the user's rights, and whether this
/// node can be right.
pub(super) fn admit(
    session: &Session,
    shared: &Shared,
    (command, args): (&CommandEntry, Args<'_>),
    queued: Option<&Multi>,
) -> Result<(), Fault> {
    if command.has(flag::DEBUG) && !may_debug(session, shared) {
        return Err("ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it from a local connection, otherwise you need to set this option in the configuration file, and then restart the server.".into());
    }
    let caller = caller(session, session.context());
    if let Err(refusal) = admission::admit(shared, Wants::Run { caller, command, args }) {
        return Err(Fault::error(refusal.text().into_owned()));
    }
    ready(shared, command, queued)
}

/// Checks whether this node can be right now.
pub(super) fn ready(shared: &Shared, command: &Command, queued: Option<&Multi>) -> Result<(), Fault> {
    // What EXEC runs was queued while this node could be right, and is computed now.
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

/// Who the connection is, for a command that comes from here.
pub(super) fn caller(session: &Session, context: Context) -> Caller<'_> {
    Caller {
        client: &session.client,
        user: &session.user,
        authenticated: session.authenticated,
        context,
        may_repeat: false,
    }
}

fn may_debug(session: &Session, shared: &Shared) -> bool {
    match &*shared.config.enable_debug_command() {
        "yes" => true,
        "local" => session.client.is_local(),
        _ => false,
    }
}

/// What EXEC is about to run; `None` for all other commands.
pub(super) fn queued<'s>(session: &'s Session, command: &Command) -> Option<&'s Multi> {
    session.multi.as_ref().filter(|_| matches!(command.run, Run::Exec))
}

/// What must happen before this command, besides what it finds out itself.
pub(super) fn before(
    session: &Session,
    shared: &Shared,
    command: &Command,
    args: Args<'_>,
    prepared: bool,
) -> Option<Before> {
    if let Some(paused) = shared.pause.current() {
        let writes = |c: &Command| c.may_write() || c.has(flag::MAY_REPLICATE);
        let in_exec = queued(session, command).is_some_and(|m| m.queued.iter().any(|q| writes(q.command)));
        if (!paused.writes_only && !command.has(flag::ADMIN) && !command.has(flag::IN_MULTI))
            || writes(command)
            || in_exec
        {
            return Some(Before::Unpaused);
        }
    }
    // It may change the user. Scripts before it may have to be computed again, with the rights of
    // their own user.
    let may_log_in = |command: &Command| command.has(flag::NO_AUTH);
    let in_exec = || queued(session, command).is_some_and(|m| m.queued.iter().any(|q| may_log_in(q.command)));
    if !prepared && (may_log_in(command) || in_exec()) {
        return Some(Before::Settled);
    }
    if let Some(need) = needs_messages(shared, command, queued(session, command)) {
        return Some(Before::Messages(need));
    }
    if !prepared
        && shared.service.is_serving()
        && let Some(before) = before_reading(session, shared, command, args)
    {
        return Some(before);
    }
    let turn = takes_long(command, queued(session, command), args)?;
    (session.pace.turn < turn).then_some(Before::Wait(Wait::Turn(turn)))
}

/// What the topic of messages is not ready for, though this command, or one that EXEC runs, needs
/// it.
fn needs_messages(shared: &Shared, command: &Command, queued: Option<&Multi>) -> Option<Need> {
    shared.pubsub.topic.as_ref()?;
    let any = |is: fn(&Command) -> bool| is(command) || queued.is_some_and(|m| m.queued.iter().any(|q| is(q.command)));
    let sends = any(|command| matches!(command.run, Run::Publish { .. })).then_some(Need::Send);
    let hears = any(|command| command.has(flag::LISTENS)).then_some(Need::Hear);
    let mut needs = sends.into_iter().chain(hears);
    needs.find(|need| shared.pubsub.lacks(*need))
}

/// The turn for commands that look at very many things, or have very large arguments. Others find
/// out when they have begun ([`Transaction::works`](crate::database::Transaction::works)).
pub(super) fn takes_long(command: &Command, queued: Option<&Multi>, args: Args<'_>) -> Option<Turn> {
    /// Arguments, all queued commands together.
    const MANY: usize = 10_000;
    let (long, many, bytes) = match queued {
        Some(multi) => {
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
pub(super) fn size(args: Args<'_>) -> usize {
    args.iter().map(|arg| arg.len()).sum()
}

/// What a command that reads must wait for.
fn before_reading(session: &Session, shared: &Shared, command: &Command, args: Args<'_>) -> Option<Before> {
    let in_exec = |multi: &Multi| multi.queued.iter().any(|queued| queued.command.looks_at_store(None));
    let whole_store = command.looks_at_store(Some(args)) || queued(session, command).is_some_and(in_exec);
    // Whether a script reads the store is known when it has run.
    let may_read_store = whole_store || command.is_script();
    match consistency::needed(session, shared, command, args, may_read_store) {
        Some(fresh) => Some(Before::Fresh(fresh)),
        None => whole_store.then_some(Before::WholeStore),
    }
}
