//! COMMAND and help: what the table says about itself.
//! <https://redis.io/docs/latest/commands/command/>

mod docs;
mod facts;

use std::sync::Arc;

use super::args::{SYNTAX, is};
use super::categories::categories;
use super::key_specs::{Begin, Find, KeySpec, access, range_of};
use super::table::{self, CommandEntry, find_there, subcommands_there, there};
use super::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, Session, Shared, flag, help_of};
use crate::glob;
use docs::document;

const ROW: Command = Command {
    flags: flag::LOADING | flag::STALE,
    categories: &["connection"],
    group: "server",
    since: "2.8.13",
    complexity: "O(N), N being the number of commands.",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[Command {
    name: "command",
    arity: -1,
    summary: "Returns what the server knows of its commands.",
    run: Run::Session(command),
    subcommands: SUBCOMMANDS,
    ..ROW
}];

const SUBCOMMANDS: &[Command] = &[
    Command {
        name: "command|count",
        arity: 2,
        complexity: "O(1)",
        summary: "Returns the number of commands.",
        run: Run::Session(count),
        ..ROW
    },
    Command {
        name: "command|docs",
        arity: -2,
        since: "7.0.0",
        summary: "Returns documentation of commands.",
        compatibility: Compatibility::Partial("summaries and history are in words of our own"),
        run: Run::Session(docs),
        ..ROW
    },
    Command {
        name: "command|getkeys",
        arity: -4,
        complexity: "O(N), N being the number of arguments.",
        summary: "Finds the keys among the arguments of a command.",
        run: Run::Session(getkeys),
        ..ROW
    },
    Command {
        name: "command|getkeysandflags",
        arity: -4,
        since: "7.0.0",
        complexity: "O(N), N being the number of arguments.",
        summary: "Finds the keys among the arguments of a command, and what it does with them.",
        run: Run::Session(getkeysandflags),
        ..ROW
    },
    Command {
        name: "command|help",
        arity: 2,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Lists the subcommands.",
        run: Run::Session(help),
        ..ROW
    },
    Command {
        name: "command|info",
        arity: -2,
        summary: "Returns arity, flags, keys and categories of commands.",
        run: Run::Session(info),
        ..ROW
    },
    Command {
        name: "command|list",
        arity: -2,
        since: "7.0.0",
        summary: "Returns the names of commands.",
        run: Run::Session(list),
        ..ROW
    },
];

fn command(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Array(there().map(describe).collect()))
}

fn count(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Int(there().count() as i64))
}

fn info(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let replies = match &args[2..] {
        [] => there().map(describe).collect(),
        names => names
            .iter()
            .map(|name| find_there(name).map_or(Reply::Null, describe))
            .collect(),
    };
    Ok(Reply::Array(replies))
}

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("command", SUBCOMMANDS))
}

/// The ten elements of COMMAND INFO.
fn describe(entry: &'static CommandEntry) -> Reply {
    let specs = entry.keys;
    let (first, last, step) = range_of(specs);
    let flags = flag::NAMES.iter().filter(|(flag, _)| entry.has(*flag));
    Reply::Array(vec![
        Reply::bulk(entry.name),
        Reply::Int(entry.arity.into()),
        Reply::Set(flags.map(|(_, name)| Reply::simple(*name)).collect()),
        Reply::Int(first.into()),
        Reply::Int(last.into()),
        Reply::Int(step.into()),
        Reply::Set(
            categories(entry)
                .iter()
                .map(|name| Reply::simple(format!("@{name}")))
                .collect(),
        ),
        Reply::Set(facts::tips(entry.name).iter().map(Reply::bulk).collect()),
        Reply::Set(specs.iter().map(describe_spec).collect()),
        subcommands(entry),
    ])
}

/// As in Redis: a set if there are none, an array if there are some.
fn subcommands(entry: &'static CommandEntry) -> Reply {
    let described: Vec<Reply> = subcommands_there(entry).map(describe).collect();
    match described.is_empty() {
        true => Reply::Set(described),
        false => Reply::Array(described),
    }
}

fn describe_spec(spec: &KeySpec) -> Reply {
    let typed = |kind: &str, spec: Vec<(Reply, Reply)>| {
        Reply::Map(vec![
            (Reply::bulk("type"), Reply::bulk(kind)),
            (Reply::bulk("spec"), Reply::Map(spec)),
        ])
    };
    let number = |name: &str, value: usize| (Reply::bulk(name), Reply::Int(value as i64));
    let begin = match spec.begin {
        Begin::Index(index) => typed("index", vec![number("index", index)]),
        Begin::Keyword(word, from) => typed(
            "keyword",
            vec![(Reply::bulk("keyword"), Reply::bulk(word)), number("startfrom", from)],
        ),
        Begin::LastStore(_) | Begin::Unknown(_) => typed("unknown", Vec::new()),
    };
    let find = match spec.find {
        Find::Range { last, step } => typed(
            "range",
            vec![
                (Reply::bulk("lastkey"), Reply::Int(last.into())),
                number("keystep", step),
                number("limit", 0),
            ],
        ),
        Find::Counted { step } => typed(
            "keynum",
            vec![number("keynumidx", 0), number("firstkey", 1), number("keystep", step)],
        ),
        Find::FirstHalf => typed(
            "range",
            vec![
                (Reply::bulk("lastkey"), Reply::Int(-1)),
                number("keystep", 1),
                number("limit", 2),
            ],
        ),
        Find::Unknown => typed("unknown", Vec::new()),
    };
    let mut described = match spec.begin {
        Begin::LastStore(notes) | Begin::Unknown(notes) => vec![(Reply::bulk("notes"), Reply::bulk(notes))],
        Begin::Index(_) | Begin::Keyword(..) => Vec::new(),
    };
    described.extend([
        (Reply::bulk("flags"), access_names(spec.access)),
        (Reply::bulk("begin_search"), begin),
        (Reply::bulk("find_keys"), find),
    ]);
    Reply::Map(described)
}

fn access_names(flags: u16) -> Reply {
    let names = access::NAMES.iter().filter(|(flag, _)| flags & flag != 0);
    Reply::Set(names.map(|(_, name)| Reply::simple(*name)).collect())
}

fn docs(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let entries: Vec<&'static CommandEntry> = match &args[2..] {
        [] => there().collect(),
        names => names.iter().filter_map(|name| find_there(name)).collect(),
    };
    Ok(Reply::Map(
        entries
            .into_iter()
            .map(|entry| (Reply::bulk(entry.name), document(entry)))
            .collect(),
    ))
}

fn list(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match &args[2..] {
        [] => Ok(Reply::Array(names(|_| true))),
        [filter, kind, by] if is(filter, "filterby") => {
            let found = match () {
                // There are no modules.
                () if is(kind, "module") => Vec::new(),
                () if is(kind, "aclcat") => names(|entry| categories(entry).iter().any(|own| is(by, own))),
                () if is(kind, "pattern") => names(|entry| glob::matches_any_case(by, entry.name.as_bytes())),
                () => return Err(SYNTAX.into()),
            };
            Ok(Reply::Array(found))
        }
        _ => Err(SYNTAX.into()),
    }
}

fn names(is_meant: impl Fn(&CommandEntry) -> bool) -> Vec<Reply> {
    table::names(is_meant).map(Reply::bulk).collect()
}

fn getkeys(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let keys = keys_among(&args[2..])?;
    Ok(Reply::Array(
        keys.into_iter().map(|(key, _)| Reply::bulk(key)).collect(),
    ))
}

fn getkeysandflags(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let keys = keys_among(&args[2..])?;
    let pair = |(key, flags)| Reply::Array(vec![Reply::bulk(key), access_names(flags)]);
    Ok(Reply::Array(keys.into_iter().map(pair).collect()))
}

/// The keys of a request, each with what the command does with it.
fn keys_among<'a>(request: &[&'a [u8]]) -> Result<Vec<(&'a [u8], u16)>, Fault> {
    const NO_SUCH: &str = "ERR Invalid command specified";
    let command = table::find(request[0])
        .filter(|entry| entry.is_there())
        .ok_or(NO_SUCH)?;
    let command = match request.get(1) {
        Some(own) if !command.subcommands.is_empty() => table::find_subcommand(command, own)
            .filter(|entry| entry.is_there())
            .ok_or(NO_SUCH)?,
        _ => command,
    };
    let is_key = |spec: &&KeySpec| spec.access & access::NOT_KEY == 0;
    if !command.keys.iter().any(|spec| is_key(&spec)) {
        return Err("ERR The command has no key arguments".into());
    }
    if !command.takes(request.len()) {
        return Err("ERR Invalid number of arguments specified for command".into());
    }
    if !command.keys.iter().all(|spec| spec.fits(request)) {
        return match command.has(flag::NO_MANDATORY_KEYS) {
            true => Ok(Vec::new()),
            false => Err("ERR Invalid arguments specified for command".into()),
        };
    }
    let of_request = command.access.map(|access| access(request));
    let keys = command.keys.iter().filter(is_key).flat_map(|spec| {
        let access = of_request.unwrap_or(spec.access);
        spec.keys(request).map(move |key| (key, access))
    });
    Ok(keys.collect())
}
