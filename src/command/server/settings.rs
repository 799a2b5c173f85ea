//! CONFIG: settings of the running server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::{ADMIN, HELP, ROW};
use crate::command::args::{SYNTAX, text};
use crate::command::{Args, Command, Fault, Outcome, Reply, Run, Session, Shared, help_of, table};
use crate::config::table as settings;
use crate::{files, glob};

pub(super) const CONFIG: &[Command] = &[
    Command {
        name: "config|get",
        arity: -3,
        flags: ADMIN,
        since: "2.0.0",
        complexity: "O(N), N being the number of settings.",
        summary: "Returns settings whose names match patterns.",
        run: Run::Session(config_get),
        ..ROW
    },
    Command {
        name: "config|help",
        arity: 2,
        flags: HELP,
        since: "5.0.0",
        summary: "Lists the subcommands.",
        run: Run::Session(config_help),
        ..ROW
    },
    Command {
        name: "config|resetstat",
        arity: 2,
        flags: ADMIN,
        since: "2.0.0",
        summary: "Sets the counters of INFO to zero.",
        run: Run::Session(config_resetstat),
        ..ROW
    },
    Command {
        name: "config|rewrite",
        arity: 2,
        flags: ADMIN,
        since: "2.8.0",
        summary: "Writes the settings, and the users, to their file.",
        run: Run::Session(config_rewrite),
        ..ROW
    },
    Command {
        name: "config|set",
        arity: -4,
        flags: ADMIN,
        since: "2.0.0",
        complexity: "O(N), N being the number of settings.",
        summary: "Changes settings, all of them or none.",
        secrets: Some(secret_settings),
        run: Run::Session(config_set),
        ..ROW
    },
];

/// The places of the values of secret settings.
fn secret_settings(args: Args) -> Vec<usize> {
    let is_secret = |name: &[u8]| settings::place(&text(name)).is_some_and(|place| settings::SETTINGS[place].secret);
    let names = (2..args.len()).step_by(2).filter(|at| is_secret(args[*at]));
    names.map(|at| at + 1).collect()
}

fn config_get(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let patterns = &args[2..];
    let is_meant = |name: &str| patterns.iter().any(|p| glob::matches_any_case(p, name.as_bytes()));
    let found = shared.config.get(is_meant).into_iter();
    // As in Redis, a setting that was requested by its name is returned with the client's spelling.
    let named = found.map(|(name, value)| {
        let asked = patterns
            .iter()
            .find(|asked| asked.eq_ignore_ascii_case(name.as_bytes()));
        (
            asked.map_or_else(|| Reply::bulk(&name), Reply::bulk),
            Reply::bulk(value),
        )
    });
    Ok(Reply::Map(named.collect()))
}

fn config_set(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let (pairs, rest) = args[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SYNTAX.into());
    }
    let pairs: Vec<(&[u8], &[u8])> = pairs.iter().map(|[name, value]| (*name, *value)).collect();
    shared
        .config
        .set(&pairs)
        .map_err(|error| Fault::error(error.to_string()))?;
    Ok(Reply::Ok)
}

fn config_resetstat(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    shared.stats.reset();
    table::reset_stats();
    shared.users.denials.reset_counts();
    let counters = &shared.service.counters;
    for counter in [
        &counters.expired,
        &counters.flushed,
        &counters.store_reads,
        &counters.writes_refused,
        &counters.writes_uncertain,
        &counters.writes_conflicted,
    ] {
        counter.store(0, Ordering::Relaxed);
    }
    counters.lookups.reset(|l| [&l.hits, &l.misses]);
    Ok(Reply::Ok)
}

fn config_rewrite(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let config = &shared.config;
    let Some(file) = config.file().map(Path::display) else {
        return Err("ERR The server is running without a config file".into());
    };
    let rewritten = users_to_write(shared)
        .and_then(|users| config.rewrite(&users, |file, text| files::rewrite(file, text.as_bytes())));
    match rewritten {
        Ok(()) => {
            info!("CONFIG REWRITE: wrote {file}");
            Ok(Reply::Ok)
        }
        Err(error) => {
            warn!(error, "CONFIG REWRITE: cannot write {file}");
            Err(Fault::error(format!("ERR Rewriting config file: {error}")))
        }
    }
}

/// The lines of the users, unless they have a file of their own.
fn users_to_write(shared: &Shared) -> Result<Vec<String>, String> {
    if shared.config.acl_file().is_some() {
        return Ok(Vec::new());
    }
    let lines = shared
        .users
        .list()
        .into_iter()
        .map(|account| String::from_utf8(account.describe()));
    let lines: Result<Vec<String>, _> = lines.collect();
    lines.map_err(|_| "a user has a name or a rule that is not UTF-8; aclfile can hold it".to_owned())
}

fn config_help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("config", CONFIG))
}
