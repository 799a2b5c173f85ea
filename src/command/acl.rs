//! ACL: users and their rights (<https://redis.io/docs/latest/commands/?group=server>). What they
//! mean is in [`crate::acl`]; what a request needs of them is in [`super::rights`].

mod file;
mod rows;
mod shown;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::args::{int, is, text, unknown_subcommand};
use super::categories::{CATEGORIES, categories};
use super::clients::Client;
use super::pushes::Kind;
use super::rights::{self, Lack};
use super::{Args, Fault, Outcome, Reply, Session, Shared, checks, help_of, table};
use crate::acl::Account;
pub use file::{load, prepare};
pub use rows::COMMANDS;

fn whoami(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::bulk(session.user.name()))
}

fn users(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let accounts = shared.users.list();
    Ok(Reply::Array(
        accounts.iter().map(|account| Reply::bulk(account.name())).collect(),
    ))
}

fn list(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let accounts = shared.users.list();
    Ok(Reply::Array(
        accounts.iter().map(|account| Reply::bulk(account.describe())).collect(),
    ))
}

fn getuser(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let account = shared.users.get(args[2]);
    Ok(account.map_or(Reply::Null, |account| shown::user(&account.user())))
}

fn setuser(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let set = shared.users.set(args[2], &args[3..]);
    let account = set.map_err(|error| Fault::error(format!("ERR {error}")))?;
    close(session, shared, &deaf(shared, &account));
    Ok(Reply::Ok)
}

/// The connections of a user that listen to what the user may not listen to any more, be it a
/// channel or what MONITOR shows.
fn deaf(shared: &Shared, account: &Arc<Account>) -> Vec<Arc<Client>> {
    let user = account.user();
    let is_deaf = |kind, name: &[u8]| !user.allows_channel(name, kind == Kind::Pattern);
    let hub = &shared.pubsub.hub;
    let mut deaf = hub.listeners_where(|client, kind, name| client.is_of(account) && is_deaf(kind, name));
    let may_monitor =
        table::find(b"monitor").is_some_and(|monitor| rights::check(&user, monitor, &[b"monitor"]).is_ok());
    if !may_monitor {
        deaf.extend(of(shared, account).filter(|client| client.monitors.load(Ordering::Relaxed)));
    }
    deaf
}

/// The connections of a user.
fn of(shared: &Shared, account: &Arc<Account>) -> impl Iterator<Item = Arc<Client>> {
    let clients = shared.clients.list().into_iter();
    clients.filter(move |client| client.is_of(account))
}

/// Closes connections. The caller's own one still gets its reply.
fn close(session: &mut Session, shared: &Shared, clients: &[Arc<Client>]) {
    for client in clients {
        match client.id == session.client.id {
            true => session.close = true,
            false => end(shared, client),
        }
    }
}

/// Closes a connection, which is listed no more.
fn end(shared: &Shared, client: &Client) {
    client.kill();
    shared.clients.remove(client.id);
}

fn deluser(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let names = &args[2..];
    if names.contains(&crate::acl::DEFAULT) {
        return Err("ERR The 'default' user cannot be removed".into());
    }
    let mut count = 0;
    for account in names.iter().filter_map(|name| shared.users.remove(name)) {
        let clients: Vec<_> = of(shared, &account).collect();
        close(session, shared, &clients);
        count += 1;
    }
    Ok(Reply::Int(count))
}

fn cat(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let wanted = match args {
        [_, _] => return Ok(Reply::Array(CATEGORIES.iter().map(Reply::bulk).collect())),
        [_, _, category] => category,
        _ => return Err(unknown_subcommand("acl", args[1])),
    };
    let Some(category) = CATEGORIES.iter().find(|known| is(wanted, known)) else {
        let shown = text(&wanted[..wanted.len().min(128)]);
        return Err(Fault::error(format!("ERR Unknown category '{shown}'")));
    };
    let commands = table::names(|entry| categories(entry).contains(category));
    Ok(Reply::Array(commands.map(Reply::bulk).collect()))
}

fn genpass(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    /// Bits of a password, by default and at most.
    const USUAL: i64 = 256;
    const MOST: i64 = 4_096;
    let bits = match &args[2..] {
        [] => USUAL,
        [bits] => int(bits)?,
        _ => return Err(unknown_subcommand("acl", args[1])),
    };
    if !(1..=MOST).contains(&bits) {
        return Err(
            "ERR ACL GENPASS argument must be the number of bits for the output password, a positive number up to 4096"
                .into(),
        );
    }
    let digits = (bits as usize).div_ceil(4);
    let password: String = (0..digits)
        .filter_map(|_| char::from_digit(rand::random_range(0..16), 16))
        .collect();
    Ok(Reply::bulk(password))
}

fn log(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    /// Entries, unless the request says how many.
    const USUAL: usize = 10;
    let denials = &shared.users.denials;
    let most = match &args[2..] {
        [] => USUAL,
        [reset] if is(reset, "reset") => {
            denials.forget();
            return Ok(Reply::Ok);
        }
        [count] => usize::try_from(int(count)?).unwrap_or(0),
        _ => return Err(unknown_subcommand("acl", args[1])),
    };
    Ok(Reply::Array(denials.newest(most).iter().map(shown::denial).collect()))
}

/// Whether a user may run a command, which is not run.
fn dryrun(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let (name, request) = (args[2], &args[3..]);
    let account = shared.users.get(name);
    let account = account.ok_or_else(|| Fault::error(format!("ERR User '{}' not found", text(name))))?;
    let unknown = |_| Fault::error(format!("ERR Command '{}' not found", text(request[0])));
    let command = checks::find(request).map_err(unknown)?;
    if !command.takes(request.len()) {
        let wrong = format!("ERR wrong number of arguments for '{}' command", command.name);
        return Err(Fault::error(wrong));
    }
    let may_not = |what: String| Reply::bulk(format!("User {} has no permissions to {what}", text(name)));
    Ok(match rights::check(&account.user(), command, request) {
        Ok(()) | Err(Lack::OtherKeys(_)) => Reply::Ok,
        Err(Lack::Command) => may_not(format!("run the '{}' command", command.name)),
        Err(Lack::Key(key)) => may_not(format!("access the '{}' key", text(key))),
        Err(Lack::Channel(channel)) => may_not(format!("access the '{}' channel", text(channel))),
    })
}

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("acl", rows::ACL))
}
