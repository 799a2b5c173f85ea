//! CLIENT: the rows, and what a connection sets about itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{listing, tracking};
use crate::command::args::{SYNTAX, int, is, parse_int, text, unknown_subcommand, wrong_arity};
use crate::command::clients::Unblocked;
use crate::command::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, Session, Shared, flag, help_of};
use crate::database::now_ms;

/// Longest name of a connection, of its library and of the library's version, in bytes. CLIENT LIST
/// shows them all.
const MAX_NAME_BYTES: usize = 1_024;
const NAMES: Compatibility = Compatibility::Partial("1,024 bytes at most");

pub(super) const CLIENT: &[Command] = &[
    Command {
        name: "client|getname",
        arity: 2,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "2.6.9",
        summary: "Returns the name of the connection.",
        run: Run::Session(client_getname),
        ..Command::DEFAULT
    },
    Command {
        name: "client|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "5.0.0",
        summary: "Lists the subcommands.",
        run: Run::Session(client_help),
        ..Command::DEFAULT
    },
    Command {
        name: "client|id",
        arity: 2,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "5.0.0",
        summary: "Returns the id of the connection.",
        run: Run::Session(client_id),
        ..Command::DEFAULT
    },
    Command {
        name: "client|info",
        arity: 2,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "6.2.0",
        summary: "Returns what is known of the connection.",
        run: Run::Session(listing::client_info),
        ..Command::DEFAULT
    },
    Command {
        name: "client|kill",
        arity: -3,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "2.4.0",
        complexity: "O(N), N connections",
        summary: "Closes connections.",
        run: Run::Session(listing::client_kill),
        ..Command::DEFAULT
    },
    Command {
        name: "client|list",
        arity: -2,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "2.4.0",
        complexity: "O(N), N connections",
        summary: "Lists the connections.",
        run: Run::Session(listing::client_list),
        ..Command::DEFAULT
    },
    Command {
        name: "client|no-evict",
        arity: 3,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "7.0.0",
        summary: "Keeps the connection from being closed for memory; nothing does that here.",
        run: Run::Session(client_no_evict),
        ..Command::DEFAULT
    },
    Command {
        name: "client|no-touch",
        arity: 3,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "7.2.0",
        summary: "Keeps reads of the connection from counting as use.",
        compatibility: Compatibility::Partial("remembered and shown; reads still count as use in the hot tier"),
        run: Run::Session(client_no_touch),
        ..Command::DEFAULT
    },
    Command {
        name: "client|pause",
        arity: -3,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "3.0.0",
        summary: "Lets commands wait for some time.",
        run: Run::Session(client_pause),
        ..Command::DEFAULT
    },
    Command {
        name: "client|reply",
        arity: 3,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "3.2.0",
        summary: "Turns replies to the connection off and on.",
        run: Run::Session(client_reply),
        ..Command::DEFAULT
    },
    Command {
        name: "client|setinfo",
        arity: 4,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "7.2.0",
        summary: "Tells the server which client library this is.",
        compatibility: NAMES,
        run: Run::Session(client_setinfo),
        ..Command::DEFAULT
    },
    Command {
        name: "client|setname",
        arity: 3,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "2.6.9",
        summary: "Gives the connection a name.",
        compatibility: NAMES,
        run: Run::Session(client_setname),
        ..Command::DEFAULT
    },
    Command {
        name: "client|unpause",
        arity: 2,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "6.2.0",
        complexity: "O(N), N connections that wait",
        summary: "Ends a pause.",
        run: Run::Session(client_unpause),
        ..Command::DEFAULT
    },
    tracking::CACHING,
    tracking::GETREDIR,
    tracking::TRACKING,
    tracking::TRACKINGINFO,
    Command {
        name: "client|unblock",
        arity: -3,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "5.0.0",
        summary: "Ends another connection's blocking command.",
        run: Run::Session(client_unblock),
        ..Command::DEFAULT
    },
];

fn client_id(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Int(session.client.id as i64))
}

fn client_getname(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    let name = session.client.details.lock().name.clone();
    Ok(if name.is_empty() {
        Reply::Null
    } else {
        Reply::Bulk(name)
    })
}

fn client_setname(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let name = check_name(args[2], "Client names")?;
    session.client.details.lock().name = name;
    Ok(Reply::Ok)
}

pub(super) fn check_name(name: &[u8], what: &str) -> Result<Bytes, Fault> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Fault::error(format!(
            "ERR {what} cannot be longer than {MAX_NAME_BYTES} bytes."
        )));
    }
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        Ok(Bytes::copy_from_slice(name))
    } else {
        Err(Fault::error(format!(
            "ERR {what} cannot contain spaces, newlines or special characters."
        )))
    }
}

fn client_setinfo(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let [_, _, option, value] = args else {
        return Err(wrong_arity("client|setinfo"));
    };
    if is(option, "lib-name") {
        session.client.details.lock().library_name = check_name(value, &text(option))?;
    } else if is(option, "lib-ver") {
        session.client.details.lock().library_version = check_name(value, &text(option))?;
    } else {
        return Err(Fault::error(format!("ERR Unrecognized option '{}'", text(option))));
    }
    Ok(Reply::Ok)
}

fn client_pause(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let writes_only = match &args[3..] {
        [] => false,
        [mode] if is(mode, "write") => true,
        [mode] if is(mode, "all") => false,
        [_] => return Err("ERR CLIENT PAUSE mode must be WRITE or ALL".into()),
        _ => return Err(unknown_subcommand("client", args[1])),
    };
    let Some(duration) = parse_int(args[2]) else {
        return Err("ERR timeout is not an integer or out of range".into());
    };
    if duration < 0 {
        return Err("ERR timeout is negative".into());
    }
    shared
        .pause
        .pause(now_ms().saturating_add(duration as u64), writes_only);
    Ok(Reply::Ok)
}

fn client_unpause(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    shared.pause.unpause();
    Ok(Reply::Ok)
}

fn client_unblock(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let how = match &args[3..] {
        [] => Unblocked::TimedOut,
        [reason] if is(reason, "timeout") => Unblocked::TimedOut,
        [reason] if is(reason, "error") => Unblocked::WithError,
        [_] => return Err("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR".into()),
        _ => return Err(unknown_subcommand("client", args[1])),
    };
    let id = u64::try_from(int(args[2])?).ok();
    let client = id.and_then(|id| shared.clients.get(id));
    Ok(Reply::Int(i64::from(client.is_some_and(|client| client.unblock(how)))))
}

/// OFF and SKIP have no reply themselves.
fn client_reply(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let replies = &mut session.replies;
    match () {
        () if is(args[2], "on") => {
            (replies.off, replies.skip) = (false, false);
            return Ok(Reply::Ok);
        }
        () if is(args[2], "off") => replies.off = true,
        () if is(args[2], "skip") => replies.skip_next |= !replies.off,
        () => return Err(SYNTAX.into()),
    }
    Ok(Reply::None)
}

fn on_or_off(argument: &[u8]) -> Result<bool, Fault> {
    match () {
        () if is(argument, "on") => Ok(true),
        () if is(argument, "off") => Ok(false),
        () => Err(SYNTAX.into()),
    }
}

fn client_no_evict(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    session.client.no_evict.store(on_or_off(args[2])?, Ordering::Relaxed);
    Ok(Reply::Ok)
}

fn client_no_touch(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    session.client.no_touch.store(on_or_off(args[2])?, Ordering::Relaxed);
    Ok(Reply::Ok)
}

fn client_help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("client", CLIENT))
}
