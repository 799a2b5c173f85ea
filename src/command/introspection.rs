//! COMMAND and help: what the table says of itself. <https://redis.io/docs/latest/commands/command/>

mod docs;
mod facts;

use super::args::{SYNTAX, is, text};
use super::pattern;
use super::table::{self, Entry};
use super::{Args, Command, Compatibility, Context, Fault, Outcome, Reply, Run, flag};
use docs::document;
use facts::KeySpec;

/// ACL categories in Redis's order.
pub const CATEGORIES: &[&str] = &[
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

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
    run: Run::Now(command),
    subcommands: SUBCOMMANDS,
    ..ROW
}];

const SUBCOMMANDS: &[Command] = &[
    Command {
        name: "command|count",
        arity: 2,
        complexity: "O(1)",
        summary: "Returns the number of commands.",
        run: Run::Now(count),
        ..ROW
    },
    Command {
        name: "command|docs",
        arity: -2,
        since: "7.0.0",
        summary: "Returns documentation of commands.",
        compatibility: Compatibility::Partial("summaries and history are in words of our own"),
        run: Run::Now(docs),
        ..ROW
    },
    Command {
        name: "command|getkeys",
        arity: -4,
        complexity: "O(N), N being the number of arguments.",
        summary: "Finds the keys among the arguments of a command.",
        run: Run::Now(getkeys),
        ..ROW
    },
    Command {
        name: "command|getkeysandflags",
        arity: -4,
        since: "7.0.0",
        complexity: "O(N), N being the number of arguments.",
        summary: "Finds the keys among the arguments of a command, and what it does with them.",
        run: Run::Now(getkeysandflags),
        ..ROW
    },
    Command {
        name: "command|help",
        arity: 2,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Lists the subcommands.",
        run: Run::Now(help),
        ..ROW
    },
    Command {
        name: "command|info",
        arity: -2,
        summary: "Returns arity, flags, keys and categories of commands.",
        run: Run::Now(info),
        ..ROW
    },
    Command {
        name: "command|list",
        arity: -2,
        since: "7.0.0",
        summary: "Returns the names of commands.",
        run: Run::Now(list),
        ..ROW
    },
];

/// The reply of a container's HELP: its subcommands with their summaries.
pub fn help_of(container: &str, subcommands: &[Command]) -> Reply {
    let mut lines = vec![Reply::simple(format!(
        "{} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        container.to_ascii_uppercase()
    ))];
    for command in subcommands.iter().filter(|c| c.compatibility != Compatibility::NotYet) {
        lines.push(Reply::simple(own_name(command.name).to_ascii_uppercase()));
        lines.push(Reply::simple(format!("    {}", command.summary)));
    }
    Reply::Array(lines)
}

/// Whether a row is a command, or only told of in `redis-compat.md`.
pub fn is_there(command: &Command) -> bool {
    !matches!(command.run, Run::NotYet)
}

/// ACL categories of a command: those of its row, and those that follow from its flags.
pub fn categories(command: &Command) -> Vec<&'static str> {
    let implied = |category: &str| match category {
        "read" => command.has(flag::READONLY),
        "write" => command.has(flag::WRITE),
        "admin" => command.has(flag::ADMIN),
        "dangerous" => command.has(flag::ADMIN),
        "pubsub" => command.has(flag::PUBSUB),
        "fast" => command.has(flag::FAST),
        "slow" => !command.has(flag::FAST),
        "blocking" => command.has(flag::BLOCKING),
        _ => false,
    };
    let is_one = |category: &&str| implied(category) || command.categories.contains(category);
    CATEGORIES.iter().copied().filter(is_one).collect()
}

fn own_name(name: &'static str) -> &'static str {
    name.split_once('|').map_or(name, |(_, own)| own)
}

fn there() -> impl Iterator<Item = &'static Entry> {
    table::all().iter().filter(|entry| is_there(entry))
}

fn subcommands_there(entry: &'static Entry) -> impl Iterator<Item = &'static Entry> {
    entry.subcommands.iter().filter(|entry| is_there(entry))
}

/// A command by its full name (`config|get`), in any case.
pub fn find(name: &[u8]) -> Option<&'static Entry> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let command = table::find(parts.next()?)?;
    let found = match parts.next() {
        Some(own) => table::find_subcommand(command, own)?,
        None => command,
    };
    is_there(found).then_some(found)
}

fn command(_: &mut Context, _: Args) -> Outcome {
    Ok(Reply::Array(there().map(describe).collect()))
}

fn count(_: &mut Context, _: Args) -> Outcome {
    Ok(Reply::Int(there().count() as i64))
}

fn info(_: &mut Context, args: Args) -> Outcome {
    let replies = match &args[2..] {
        [] => there().map(describe).collect(),
        names => names
            .iter()
            .map(|name| find(name).map_or(Reply::Null, describe))
            .collect(),
    };
    Ok(Reply::Array(replies))
}

fn help(_: &mut Context, _: Args) -> Outcome {
    Ok(help_of("command", SUBCOMMANDS))
}

/// The ten elements of COMMAND INFO.
fn describe(entry: &'static Entry) -> Reply {
    let specs = facts::key_specs(entry);
    let (first, last, step) = range_of(&specs);
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

/// Redis says set when there are none and array when there are some.
fn subcommands(entry: &'static Entry) -> Reply {
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
    let number = |name: &str, value: i32| (Reply::bulk(name), Reply::Int(value.into()));
    Reply::Map(vec![
        (Reply::bulk("flags"), spec_flags(spec.flags)),
        (
            Reply::bulk("begin_search"),
            typed("index", vec![number("index", spec.first)]),
        ),
        (
            Reply::bulk("find_keys"),
            typed(
                "range",
                vec![
                    number("lastkey", spec.last),
                    number("keystep", spec.step),
                    number("limit", 0),
                ],
            ),
        ),
    ])
}

fn spec_flags(flags: &'static str) -> Reply {
    Reply::Set(flags.split_ascii_whitespace().map(Reply::simple).collect())
}

/// First key, last key and step over all key specs, as clients that know no key specs are told.
fn range_of(specs: &[KeySpec]) -> (i32, i32, i32) {
    let Some(first) = specs.first() else {
        return (0, 0, 0);
    };
    // A last key counted from the end stays so; of the others the rightmost.
    let last = specs.iter().map(|spec| {
        if spec.last < 0 {
            spec.last
        } else {
            spec.first + spec.last
        }
    });
    let last = last.reduce(|one, other| {
        if one < 0 || other < 0 {
            one.min(other)
        } else {
            one.max(other)
        }
    });
    (first.first, last.unwrap_or(0), first.step)
}

fn docs(_: &mut Context, args: Args) -> Outcome {
    let entries: Vec<&'static Entry> = match &args[2..] {
        [] => there().collect(),
        names => names.iter().filter_map(|name| find(name)).collect(),
    };
    Ok(Reply::Map(
        entries
            .into_iter()
            .map(|entry| (Reply::bulk(entry.name), document(entry)))
            .collect(),
    ))
}

fn list(_: &mut Context, args: Args) -> Outcome {
    match &args[2..] {
        [] => Ok(Reply::Array(names(&|_| true))),
        [filter, kind, by] if is(filter, "filterby") => {
            let found = match () {
                // There are no modules.
                () if is(kind, "module") => Vec::new(),
                () if is(kind, "aclcat") => names(&|entry| categories(entry).iter().any(|own| is(by, own))),
                () if is(kind, "pattern") => names(&|entry| pattern::matches_any_case(by, entry.name.as_bytes())),
                () => return Err(SYNTAX.into()),
            };
            Ok(Reply::Array(found))
        }
        _ => Err(SYNTAX.into()),
    }
}

/// Names of commands and subcommands.
fn names(is_meant: &dyn Fn(&Entry) -> bool) -> Vec<Reply> {
    let all = there().flat_map(|entry| std::iter::once(entry).chain(subcommands_there(entry)));
    all.filter(|entry| is_meant(entry))
        .map(|entry| Reply::bulk(entry.name))
        .collect()
}

fn getkeys(_: &mut Context, args: Args) -> Outcome {
    let keys = keys_among(&args[2..])?;
    Ok(Reply::Array(
        keys.into_iter().map(|(key, _)| Reply::bulk(key)).collect(),
    ))
}

fn getkeysandflags(_: &mut Context, args: Args) -> Outcome {
    let keys = keys_among(&args[2..])?;
    let pair = |(key, flags)| Reply::Array(vec![Reply::bulk(key), spec_flags(flags)]);
    Ok(Reply::Array(keys.into_iter().map(pair).collect()))
}

/// The keys of a request, each with what the command does with it.
fn keys_among<'a>(request: &[&'a [u8]]) -> Result<Vec<(&'a [u8], &'static str)>, Fault> {
    const NO_SUCH: &str = "ERR Invalid command specified";
    let command = table::find(request[0]).filter(|entry| is_there(entry)).ok_or(NO_SUCH)?;
    let command = match request.get(1) {
        Some(own) if !command.subcommands.is_empty() => table::find_subcommand(command, own)
            .filter(|entry| is_there(entry))
            .ok_or(NO_SUCH)?,
        _ => command,
    };
    let specs = facts::key_specs(command);
    if specs.is_empty() {
        return Err("ERR The command has no key arguments".into());
    }
    let count = request.len() as i32;
    if if command.arity >= 0 {
        count != command.arity
    } else {
        count < -command.arity
    } {
        return Err("ERR Invalid number of arguments specified for command".into());
    }
    let mut keys = Vec::new();
    for spec in &specs {
        let last = if spec.last < 0 {
            count + spec.last
        } else {
            spec.first + spec.last
        };
        let places = (spec.first..=last).step_by(spec.step as usize);
        let flags = facts::flags_for(command.name, request).unwrap_or(spec.flags);
        keys.extend(places.filter_map(|at| request.get(at as usize).map(|key| (*key, flags))));
    }
    Ok(keys)
}

/// `ACL CAT category`.
pub fn commands_of_category(wanted: &[u8]) -> Result<Vec<Reply>, Fault> {
    let category = CATEGORIES.iter().find(|known| is(wanted, known));
    match category {
        Some(category) => Ok(names(&|entry| categories(entry).contains(category))),
        None => Err(Fault::error(format!("ERR Unknown category '{}'", text(wanted)))),
    }
}
