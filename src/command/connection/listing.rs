//! CLIENT INFO, LIST and KILL: what is known of the connections, and which of them are closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::command::args::{SYNTAX, is, parse_int, text};
use crate::command::clients::{Client, ClientDetails};
use crate::command::{Args, Fault, Outcome, Reply, Session, Shared, table};
use crate::database::now_ms;

pub(super) fn client_info(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    let mut line = describe(&session.client);
    line.push('\n');
    Ok(Reply::verbatim(line))
}

pub(super) fn client_list(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
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
    Ok(Reply::verbatim(lines))
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

/// A connection as CLIENT LIST shows it.
fn describe(client: &Client) -> String {
    let ClientDetails {
        name,
        library_name,
        library_version,
    } = client.details.lock().clone();
    let address = |a: Option<SocketAddr>| a.map_or("?:0".to_owned(), |a| a.to_string());
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

pub(super) fn client_kill(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
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
    let same = |wanted: Option<&[u8]>, has: Option<SocketAddr>| {
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
