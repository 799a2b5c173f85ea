//! Connections: <https://redis.io/docs/latest/commands/?group=connection>.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::admission::{self, DEFAULT_USER, Wants, admit, login_delay};
use super::args::{NOT_AN_INTEGER, SYNTAX, int, is, parse_int, text, wrong_arity};
use super::session::{Client, ClientDetails, Replies, Session, Shared};
use super::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, flag, table};
use crate::database::now_ms;
use crate::resp::Version;

/// The Redis version whose commands and replies are implemented. Clients look at it.
pub const REDIS_VERSION: &str = "7.2.0";

/// Longest name of a connection, of its library and of the library's version, in bytes. CLIENT LIST
/// shows them all.
const MAX_NAME_BYTES: usize = 1_024;
const NAMES: Compatibility = Compatibility::Partial("1,024 bytes at most");

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
        compatibility: Compatibility::Partial(
            "CACHING, GETREDIR, TRACKING, TRACKINGINFO and UNBLOCK are not there yet",
        ),
        run: Run::Container,
        subcommands: CLIENT,
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
        flags: flag::FAST,
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
            | flag::IN_MULTI,
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
            | flag::IN_MULTI,
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

const CLIENT: &[Command] = &[
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
        run: Run::Session(client_info),
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
        run: Run::Session(client_kill),
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
        run: Run::Session(client_list),
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
    Command {
        name: "client|caching",
        arity: 3,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "6.0.0",
        summary: "Steers tracking of the next command's keys.",
        compatibility: Compatibility::NotYet,
        run: Run::NotYet,
        ..Command::DEFAULT
    },
    Command {
        name: "client|getredir",
        arity: 2,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "6.0.0",
        summary: "Tells where invalidations go.",
        compatibility: Compatibility::NotYet,
        run: Run::NotYet,
        ..Command::DEFAULT
    },
    Command {
        name: "client|tracking",
        arity: -3,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "6.0.0",
        summary: "Has the server tell when read keys change.",
        compatibility: Compatibility::NotYet,
        run: Run::NotYet,
        ..Command::DEFAULT
    },
    Command {
        name: "client|trackinginfo",
        arity: 2,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "6.2.0",
        summary: "Tells the state of tracking.",
        compatibility: Compatibility::NotYet,
        run: Run::NotYet,
        ..Command::DEFAULT
    },
    Command {
        name: "client|unblock",
        arity: -3,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
        categories: &["connection"],
        group: "connection",
        since: "5.0.0",
        summary: "Ends another connection's blocking command.",
        compatibility: Compatibility::NotYet,
        run: Run::NotYet,
        ..Command::DEFAULT
    },
];

fn ping(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match args.len() {
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
    Ok(Reply::Ok)
}

fn reset(session: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let authenticated = admission::needs_no_login(shared);
    session.end_transaction();
    // CLIENT REPLY SKIP before RESET holds for the reply to RESET too.
    session.replies = Replies {
        skip: session.replies.skip,
        ..Replies::default()
    };
    session.reads.chosen = None;
    session.authenticated = authenticated;
    set_version(session, Version::Resp2);
    session.select(0);
    session.client.no_evict.store(false, Ordering::Relaxed);
    session.client.no_touch.store(false, Ordering::Relaxed);
    session.client.details.lock().name = Bytes::new();
    Ok(Reply::simple("RESET"))
}

fn set_version(session: &mut Session, version: Version) {
    session.version = version;
    session.client.resp3.store(version == Version::Resp3, Ordering::Relaxed);
}

fn auth(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    match args {
        [_, _] if admission::needs_no_login(shared) => {
            Err("ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?".into())
        }
        [_, password] => authenticate(session, shared, DEFAULT_USER, password),
        [_, user, password] => authenticate(session, shared, user, password),
        _ => Err(SYNTAX.into()),
    }
}

/// The places of the name and the password after AUTH.
fn secrets_of_hello(args: Args) -> Vec<usize> {
    let at = args.iter().skip(2).position(|argument| is(argument, "auth"));
    at.map_or_else(Vec::new, |at| (at + 3..at + 5).collect())
}

fn authenticate(session: &mut Session, shared: &Arc<Shared>, user: &[u8], password: &[u8]) -> Outcome {
    let client = &session.client;
    match admit(shared, Wants::LogIn { client, user, password }) {
        Ok(()) => {
            session.authenticated = true;
            Ok(Reply::Ok)
        }
        Err(refusal) => {
            session.delay = Some(login_delay(client));
            Err(refusal.text().into())
        }
    }
}

fn hello(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let mut version = session.version;
    if let Some(wanted) = args.get(1) {
        version = match parse_int(wanted) {
            Some(2) => Version::Resp2,
            Some(3) => Version::Resp3,
            Some(_) => return Err("NOPROTO unsupported protocol version".into()),
            None => return Err("ERR Protocol version is not an integer or out of range".into()),
        };
    }
    let (mut login, mut name) = (None, None);
    let mut rest = args.get(2..).unwrap_or(&[]);
    loop {
        rest = match rest {
            [] => break,
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
    if let Some((user, password)) = login {
        authenticate(session, shared, user, password)?;
    }
    if !session.authenticated {
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

fn check_name(name: &[u8], what: &str) -> Result<Bytes, Fault> {
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

fn client_info(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    let mut line = describe(&session.client);
    line.push('\n');
    Ok(verbatim(line))
}

fn client_list(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let mut ids = None;
    let mut normal = true;
    match &args[2..] {
        [] => {}
        [option, kind] if is(option, "type") => normal = is_normal(kind)?,
        [option, list @ ..] if is(option, "id") && !list.is_empty() => {
            let parsed: Option<Vec<i64>> = list.iter().map(|id| parse_int(id)).collect();
            ids = Some(parsed.ok_or("ERR Invalid client ID")?);
        }
        _ => return Err(SYNTAX.into()),
    }
    let mut lines = String::new();
    for client in shared.clients.list() {
        if normal && ids.as_ref().is_none_or(|ids| ids.contains(&(client.id as i64))) {
            lines.push_str(&describe(&client));
            lines.push('\n');
        }
    }
    Ok(verbatim(lines))
}

/// Whether the type of client is `normal`, as all connections are: there are no replicas and, so
/// far, no subscribers.
fn is_normal(kind: &[u8]) -> Result<bool, Fault> {
    match () {
        () if is(kind, "normal") => Ok(true),
        () if ["master", "slave", "replica", "pubsub"].iter().any(|k| is(kind, k)) => Ok(false),
        () => Err(Fault::error(format!("ERR Unknown client type '{}'", text(kind)))),
    }
}

fn verbatim(text: String) -> Reply {
    Reply::Verbatim {
        format: *b"txt",
        text: text.into(),
    }
}

/// A connection as CLIENT LIST shows it.
fn describe(client: &Client) -> String {
    let ClientDetails {
        name,
        library_name,
        library_version,
    } = client.details.lock().clone();
    let address = |a: Option<std::net::SocketAddr>| a.map_or("?:0".to_owned(), |a| a.to_string());
    let last_command = table::name_of(client.last_command.load(Ordering::Relaxed)).unwrap_or("NULL");
    let queued = client.queued.load(Ordering::Relaxed);
    let input = client.input_bytes.load(Ordering::Relaxed);
    let output = client.output_bytes.load(Ordering::Relaxed);
    let mut flags = String::new();
    for (set, letter) in [
        (queued != usize::MAX, 'x'),
        (client.blocked.load(Ordering::Relaxed), 'b'),
        (client.has_lost_its_watch(), 'd'),
        (client.is_killed(), 'A'),
        (client.no_evict.load(Ordering::Relaxed), 'e'),
        (client.no_touch.load(Ordering::Relaxed), 'T'),
    ] {
        if set {
            flags.push(letter);
        }
    }
    if flags.is_empty() {
        flags.push('N');
    }
    format!(
        "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={} db={} sub=0 psub=0 ssub=0 multi={} qbuf={} \
         qbuf-free=0 argv-mem=0 multi-mem={} rbs=0 rbp=0 obl={} oll=0 omem={} tot-mem={} events=r cmd={} user=default redir=-1 \
         resp={} lib-name={} lib-ver={}",
        client.id,
        address(client.address),
        address(client.local_address),
        client.descriptor,
        text(&name),
        client.connected_at.elapsed().as_secs(),
        now_ms().saturating_sub(client.last_command_at.load(Ordering::Relaxed)) / 1000,
        flags,
        client.database.load(Ordering::Relaxed),
        if queued == usize::MAX { -1 } else { queued as i64 },
        input,
        client.queued_bytes.load(Ordering::Relaxed),
        output,
        output,
        client.memory(),
        last_command,
        if client.resp3.load(Ordering::Relaxed) { 3 } else { 2 },
        text(&library_name),
        text(&library_version),
    )
}

/// Which connections CLIENT KILL means.
#[derive(Default)]
struct Victims<'a> {
    id: Option<i64>,
    address: Option<&'a [u8]>,
    local_address: Option<&'a [u8]>,
    none: bool,
    spare_caller: bool,
}

fn client_kill(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    if let [_, _, address] = args {
        let victims = Victims {
            address: Some(address),
            ..Victims::default()
        };
        return match kill(session, shared, &victims) {
            0 => Err("ERR No such client".into()),
            _ => Ok(Reply::Ok),
        };
    }
    let mut victims = Victims {
        spare_caller: true,
        ..Victims::default()
    };
    let (pairs, rest) = args[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SYNTAX.into());
    }
    for [option, value] in pairs {
        match () {
            () if is(option, "id") => match parse_int(value) {
                Some(id) if id > 0 => victims.id = Some(id),
                _ => return Err("ERR client-id should be greater than 0".into()),
            },
            () if is(option, "type") => victims.none |= !is_normal(value)?,
            () if is(option, "addr") => victims.address = Some(value),
            () if is(option, "laddr") => victims.local_address = Some(value),
            () if is(option, "user") => {
                if *value != b"default" {
                    return Err(Fault::error(format!("ERR No such user '{}'", text(value))));
                }
            }
            () if is(option, "skipme") && is(value, "yes") => victims.spare_caller = true,
            () if is(option, "skipme") && is(value, "no") => victims.spare_caller = false,
            () => return Err(SYNTAX.into()),
        }
    }
    Ok(Reply::Int(kill(session, shared, &victims)))
}

fn kill(session: &mut Session, shared: &Arc<Shared>, victims: &Victims) -> i64 {
    let (session, shared): (&mut Session, &Shared) = (session, shared);
    let same = |wanted: Option<&[u8]>, has: Option<std::net::SocketAddr>| {
        wanted.is_none_or(|w| has.is_some_and(|a| a.to_string().as_bytes() == w))
    };
    let mut killed = 0;
    for client in shared.clients.list() {
        let own = client.id == session.client.id;
        if victims.none
            || (own && victims.spare_caller)
            || victims.id.is_some_and(|id| id != client.id as i64)
            || !same(victims.address, client.address)
            || !same(victims.local_address, client.local_address)
        {
            continue;
        }
        killed += 1;
        if own {
            // The caller still gets its reply.
            session.close = true;
        } else {
            client.kill();
        }
    }
    killed
}

fn client_pause(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let writes_only = match &args[3..] {
        [] => false,
        [mode] if is(mode, "write") => true,
        [mode] if is(mode, "all") => false,
        [_] => return Err("ERR CLIENT PAUSE mode must be WRITE or ALL".into()),
        _ => {
            return Err(Fault::error(format!(
                "ERR unknown subcommand or wrong number of arguments for '{}'. Try CLIENT HELP.",
                text(args[1])
            )));
        }
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
    Ok(super::introspection::help_of("client", CLIENT))
}
