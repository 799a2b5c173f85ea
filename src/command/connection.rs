//! Connections: <https://redis.io/docs/latest/commands/?group=connection>.

mod client;
mod listing;
mod tracking;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use self::client::check_name;
use super::admission::{log_in, login_delay, needs_no_login};
use super::args::{NOT_AN_INTEGER, SYNTAX, int, is, parse_int, text, wrong_arity};
use super::session::{Replies, Session};
use super::shared::Shared;
use super::table::CommandEntry;
use super::{Args, Command, Fault, Outcome, REDIS_VERSION, Reply, Run, flag};
use crate::acl::DEFAULT;
use crate::resp::Version;

pub static COMMANDS: &[Command] = &[
    Command {
        name: "auth",
        arity: -2,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE | flag::FAST | flag::NO_AUTH | flag::ALLOW_BUSY,
        categories: &["connection"],
        group: "connection",
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Authenticates the connection.",
        secrets: Some(|args| (1..args.len()).collect()),
        run: Run::Session(auth),
        ..Command::DEFAULT
    },
    Command {
        name: "client",
        arity: -2,
        group: "connection",
        since: "2.4.0",
        complexity: "Depends on the subcommand.",
        summary: "Commands about connections.",
        run: Run::Container,
        subcommands: client::CLIENT,
        ..Command::DEFAULT
    },
    Command {
        name: "echo",
        arity: 2,
        flags: flag::LOADING | flag::STALE | flag::FAST,
        categories: &["connection"],
        group: "connection",
        since: "1.0.0",
        summary: "Returns its argument.",
        run: Run::Session(echo),
        ..Command::DEFAULT
    },
    Command {
        name: "hello",
        arity: -1,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE | flag::FAST | flag::NO_AUTH | flag::ALLOW_BUSY,
        categories: &["connection"],
        group: "connection",
        since: "6.0.0",
        summary: "Chooses the protocol version; may authenticate and name the connection.",
        secrets: Some(secrets_of_hello),
        run: Run::Session(hello),
        ..Command::DEFAULT
    },
    Command {
        name: "ping",
        arity: -1,
        flags: flag::FAST | flag::WHILE_LISTENING,
        categories: &["connection"],
        group: "connection",
        since: "1.0.0",
        summary: "Tells that the server is there.",
        run: Run::Session(ping),
        ..Command::DEFAULT
    },
    Command {
        name: "quit",
        arity: -1,
        flags: flag::NOSCRIPT
            | flag::LOADING
            | flag::STALE
            | flag::FAST
            | flag::NO_AUTH
            | flag::ALLOW_BUSY
            | flag::IN_MULTI
            | flag::WHILE_LISTENING,
        categories: &["connection"],
        group: "connection",
        since: "1.0.0",
        summary: "Closes the connection.",
        run: Run::Session(quit),
        ..Command::DEFAULT
    },
    Command {
        name: "reset",
        arity: 1,
        flags: flag::NOSCRIPT
            | flag::LOADING
            | flag::STALE
            | flag::FAST
            | flag::NO_AUTH
            | flag::ALLOW_BUSY
            | flag::IN_MULTI
            | flag::WHILE_LISTENING,
        categories: &["connection"],
        group: "connection",
        since: "6.2.0",
        summary: "Gives the connection the state of a new one.",
        run: Run::Session(reset),
        ..Command::DEFAULT
    },
    Command {
        name: "select",
        arity: 2,
        flags: flag::LOADING | flag::STALE | flag::FAST,
        categories: &["connection"],
        group: "connection",
        since: "1.0.0",
        summary: "Chooses the database of the connection.",
        run: Run::Select,
        ..Command::DEFAULT
    },
];

fn ping(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let listens = session.listening.is_some() && session.version == Version::Resp2;
    match args.len() {
        1 | 2 if listens => {
            let payload = args.get(1).copied().unwrap_or_default();
            Ok(Reply::Array(vec![Reply::bulk("pong"), Reply::bulk(payload)]))
        }
        1 => Ok(Reply::simple("PONG")),
        2 => Ok(Reply::bulk(args[1])),
        _ => Err(wrong_arity("ping")),
    }
}

fn echo(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    Ok(Reply::bulk(args[1]))
}

pub(super) fn select(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    session.select(selected(shared, args)?);
    Ok(Reply::Ok)
}

/// The database that SELECT names.
pub(super) fn selected(shared: &Shared, args: Args) -> Result<u16, Fault> {
    let index = int(args[1]).ok().and_then(|index| i32::try_from(index).ok());
    u16::try_from(index.ok_or(NOT_AN_INTEGER)?)
        .ok()
        .filter(|database| *database < shared.service.database_count())
        .ok_or_else(|| "ERR DB index is out of range".into())
}

fn quit(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    session.close = true;
    // Who redirects to it is told from now on that it is gone.
    session.client.pushes.close();
    Ok(Reply::Ok)
}

fn reset(session: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    session.end_transaction();
    // CLIENT REPLY SKIP before RESET holds for the reply to RESET too.
    session.replies = Replies {
        skip: session.replies.skip,
        ..Replies::default()
    };
    session.reads.chosen = None;
    session.listening = None;
    session.tracks = None;
    session.monitoring = None;
    session.log_out(&shared.users);
    set_version(session, Version::Resp2);
    session.select(0);
    session.client.no_evict.store(false, Ordering::Relaxed);
    session.client.no_touch.store(false, Ordering::Relaxed);
    session.client.details.lock().name = Bytes::new();
    Ok(Reply::simple("RESET"))
}

fn set_version(session: &mut Session, version: Version) {
    // Those before were pushed to a client of the version before.
    session.pushes_first = true;
    session.version = version;
    session.client.resp3.store(version == Version::Resp3, Ordering::Relaxed);
}

/// A user and a password.
pub(super) type Login<'a> = (&'a [u8], &'a [u8]);

fn auth(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let given = login_of_auth(shared, args)?;
    authenticate(session, shared, given, args[0])
}

fn login_of_auth<'a>(shared: &Shared, args: Args<'a>) -> Result<Login<'a>, Fault> {
    match *args {
        [_, _] if needs_no_login(shared) => {
            Err("ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?".into())
        }
        [_, password] => Ok((DEFAULT, password)),
        [_, user, password] => Ok((user, password)),
        _ => Err(SYNTAX.into()),
    }
}

/// Who logs in with this request, if that is an AUTH or a HELLO that logs in.
pub(super) fn login<'a>(shared: &Shared, command: &CommandEntry, args: Args<'a>) -> Option<Login<'a>> {
    match command.name {
        "auth" => login_of_auth(shared, args).ok(),
        "hello" => Greeting::parse(args).ok()?.login,
        _ => None,
    }
}

/// The places of the name and the password after each AUTH.
fn secrets_of_hello(args: Args) -> Vec<usize> {
    let (mut at, mut secrets) = (2, Vec::new());
    while let Some(word) = args.get(at) {
        at += match () {
            () if is(word, "auth") => {
                secrets.extend(at + 1..at + 3);
                3
            }
            () if is(word, "setname") => 2,
            () => 1,
        };
    }
    secrets
}

fn authenticate(session: &mut Session, shared: &Arc<Shared>, given: Login<'_>, by: &[u8]) -> Outcome {
    let client = &session.client;
    match log_in(shared, (client, session.context()), given, by) {
        Ok(user) => {
            session.log_in(user);
            Ok(Reply::Ok)
        }
        Err(refusal) => {
            session.delay = Some(login_delay(client));
            Err(Fault::error(refusal.text().into_owned()))
        }
    }
}

/// What a HELLO says.
struct Greeting<'a> {
    version: Option<Version>,
    login: Option<Login<'a>>,
    name: Option<Bytes>,
}

impl<'a> Greeting<'a> {
    fn parse(args: Args<'a>) -> Result<Self, Fault> {
        let version = match args.get(1).map(|wanted| parse_int(wanted)) {
            None => None,
            Some(Some(2)) => Some(Version::Resp2),
            Some(Some(3)) => Some(Version::Resp3),
            Some(Some(_)) => return Err("NOPROTO unsupported protocol version".into()),
            Some(None) => return Err("ERR Protocol version is not an integer or out of range".into()),
        };
        let (mut login, mut name) = (None, None);
        let mut rest = args.get(2..).unwrap_or(&[]);
        loop {
            rest = match rest {
                [] => return Ok(Greeting { version, login, name }),
                [option, user, password, rest @ ..] if is(option, "auth") => {
                    login = Some((*user, *password));
                    rest
                }
                [option, wanted, rest @ ..] if is(option, "setname") => {
                    name = Some(check_name(wanted, "Client names")?);
                    rest
                }
                [option, ..] => {
                    return Err(Fault::error(format!(
                        "ERR Syntax error in HELLO option '{}'",
                        text(option)
                    )));
                }
            };
        }
    }
}

fn hello(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let Greeting { version, login, name } = Greeting::parse(args)?;
    let version = version.unwrap_or(session.version);
    if let Some(given) = login {
        authenticate(session, shared, given, args[0])?;
    }
    if !session.is_authenticated(&shared.users) {
        return Err("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time".into());
    }
    if let Some(name) = name {
        session.client.details.lock().name = name;
    }
    set_version(session, version);
    let pair = |name: &str, value: Reply| (Reply::bulk(name), value);
    Ok(Reply::Map(vec![
        pair("server", Reply::bulk("redis")),
        pair("version", Reply::bulk(REDIS_VERSION)),
        pair("proto", Reply::Int(if version == Version::Resp3 { 3 } else { 2 })),
        pair("id", Reply::Int(session.client.id as i64)),
        pair("mode", Reply::bulk("standalone")),
        pair("role", Reply::bulk("master")),
        pair("modules", Reply::Array(Vec::new())),
    ]))
}
