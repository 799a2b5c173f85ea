//! CLIENT INFO, LIST and KILL: what is known of the connections, and which of them are closed.

use std::sync::Arc;

use crate::acl::Account;
use crate::command::args::{SYNTAX, is, parse_int, text};
use crate::command::clients::{Address, Client};
use crate::command::{Args, Fault, Outcome, Reply, Session, Shared};

pub(super) fn client_info(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    let mut line = session.client.describe();
    line.push('\n');
    Ok(Reply::verbatim(line))
}

pub(super) fn client_list(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let mut ids = None;
    let mut wanted = None;
    match &args[2..] {
        [] => {}
        [option, kind] if is(option, "type") => wanted = Some(client_type(kind)?),
        [option, list @ ..] if is(option, "id") && !list.is_empty() => {
            let parsed: Option<Vec<i64>> = list.iter().map(|id| parse_int(id)).collect();
            ids = Some(parsed.ok_or("ERR Invalid client ID")?);
        }
        _ => return Err(SYNTAX.into()),
    }
    let mut lines = String::new();
    for client in shared.clients.list() {
        if wanted.is_none_or(|wanted| wanted.is(&client))
            && ids.as_ref().is_none_or(|ids| ids.contains(&(client.id as i64)))
        {
            lines.push_str(&client.describe());
            lines.push('\n');
        }
    }
    Ok(Reply::verbatim(lines))
}

/// A type of clients, as CLIENT LIST and CLIENT KILL name it.
#[derive(Clone, Copy)]
enum ClientType {
    Normal,
    PubSub,
    /// A master or a replica: there are none.
    Replica,
}

impl ClientType {
    fn is(self, client: &Client) -> bool {
        match self {
            ClientType::Normal => !client.pushes.listens(),
            ClientType::PubSub => client.pushes.listens(),
            ClientType::Replica => false,
        }
    }
}

fn client_type(kind: &[u8]) -> Result<ClientType, Fault> {
    match () {
        () if is(kind, "normal") => Ok(ClientType::Normal),
        () if is(kind, "pubsub") => Ok(ClientType::PubSub),
        () if ["master", "slave", "replica"].iter().any(|k| is(kind, k)) => Ok(ClientType::Replica),
        () => Err(Fault::error(format!("ERR Unknown client type '{}'", text(kind)))),
    }
}

/// Which connections CLIENT KILL means.
#[derive(Default)]
struct Victims<'a> {
    id: Option<i64>,
    address: Option<&'a [u8]>,
    local_address: Option<&'a [u8]>,
    kind: Option<ClientType>,
    user: Option<Arc<Account>>,
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
            () if is(option, "type") => victims.kind = Some(client_type(value)?),
            () if is(option, "addr") => victims.address = Some(value),
            () if is(option, "laddr") => victims.local_address = Some(value),
            () if is(option, "user") => {
                let user = shared.users.get(value);
                let unknown = || Fault::error(format!("ERR No such user '{}'", text(value)));
                victims.user = Some(user.ok_or_else(unknown)?);
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
    let same = |wanted: Option<&[u8]>, has: &Option<Address>| {
        wanted.is_none_or(|w| has.as_ref().is_some_and(|a| a.to_string().as_bytes() == w))
    };
    let mut killed = 0;
    for client in shared.clients.list() {
        let own = client.id == session.client.id;
        if victims.kind.is_some_and(|kind| !kind.is(&client))
            || (own && victims.spare_caller)
            || victims.id.is_some_and(|id| id != client.id as i64)
            || !same(victims.address, &client.address)
            || !same(victims.local_address, &client.local_address)
            || victims.user.as_ref().is_some_and(|user| !client.is_of(user))
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
