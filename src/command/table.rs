//! The table of all commands: every row of every family, found by name.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::LazyLock;

use super::{
    Command, CommandStats, acl, bits, cluster, connection, dump, functions, geo, hashes, highwater, hyperloglog,
    introspection, keys, lists, monitor, not_implemented, pubsub, replication, scripts, server, sets, sort,
    sorted_sets, streams, strings, transactions, wait,
};
use crate::striped::Striped;
use crate::telemetry::histogram::Times;

/// In the order of `redis-compat.md`.
pub static FAMILIES: &[(&str, &[Command])] = &[
    ("Strings", strings::COMMANDS),
    ("Bits", bits::COMMANDS),
    ("Hashes", hashes::COMMANDS),
    ("Expiry of fields", hashes::expiry::COMMANDS),
    ("Lists", lists::COMMANDS),
    ("Waiting for items of lists", lists::blocking::COMMANDS),
    ("Sets", sets::COMMANDS),
    ("Sorted sets", sorted_sets::COMMANDS),
    ("Waiting for members of sorted sets", sorted_sets::blocking::COMMANDS),
    ("Streams", streams::COMMANDS),
    ("Geo", geo::COMMANDS),
    ("HyperLogLog", hyperloglog::COMMANDS),
    ("Keys", keys::COMMANDS),
    ("Dumped values", dump::COMMANDS),
    ("Sorting", sort::COMMANDS),
    ("Transactions", transactions::COMMANDS),
    ("Pub/sub", pubsub::COMMANDS),
    ("Scripts", scripts::COMMANDS),
    ("Functions", functions::COMMANDS),
    ("Connection", connection::COMMANDS),
    ("Server", server::COMMANDS),
    ("Replication", replication::COMMANDS),
    ("Cluster", cluster::COMMANDS),
    ("Users", acl::COMMANDS),
    ("Introspection", introspection::COMMANDS),
    ("Monitoring", monitor::COMMANDS),
    ("Waiting", wait::COMMANDS),
    ("Highwater", highwater::COMMANDS),
    ("Not yet", not_implemented::COMMANDS),
];

/// Longest name of a command that is looked up.
const MAX_NAME: usize = 32;

/// A row at run time: the command with its counters.
pub struct CommandEntry {
    pub command: &'static Command,
    pub stats: Striped<CommandStats>,
    /// Its place in [`NAMES`].
    pub number: u32,
    pub subcommands: Vec<CommandEntry>,
}

impl CommandEntry {
    /// How long it was computed.
    pub fn computations(&self) -> Times {
        Times::of(self.stats.all().map(|stats| &stats.computations))
    }

    /// How long clients waited for it.
    pub fn waits(&self) -> Times {
        Times::of(self.stats.all().map(|stats| &stats.waits))
    }
}

impl Deref for CommandEntry {
    type Target = Command;

    fn deref(&self) -> &Command {
        self.command
    }
}

static ENTRIES: LazyLock<Vec<CommandEntry>> = LazyLock::new(|| {
    fn entry(command: &'static Command, next: &mut u32) -> CommandEntry {
        let number = *next;
        *next += 1;
        CommandEntry {
            command,
            stats: Striped::default(),
            number,
            subcommands: command.subcommands.iter().map(|sub| entry(sub, next)).collect(),
        }
    }
    let mut next = 0;
    let commands = FAMILIES.iter().flat_map(|(_, commands)| commands.iter());
    commands.map(|command| entry(command, &mut next)).collect()
});

static BY_NAME: LazyLock<HashMap<&'static [u8], &'static CommandEntry, rustc_hash::FxBuildHasher>> =
    LazyLock::new(|| ENTRIES.iter().map(|entry| (entry.name.as_bytes(), entry)).collect());

/// Names of all commands and subcommands, by [`CommandEntry::number`].
static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| with_subcommands().map(|entry| entry.name).collect());

/// The name of the command or subcommand with this [`CommandEntry::number`].
pub fn name_of(number: u32) -> Option<&'static str> {
    NAMES.get(number as usize).copied()
}

/// Forgets the counters of all commands (CONFIG RESETSTAT).
pub fn reset_stats() {
    for entry in with_subcommands() {
        entry
            .stats
            .reset(|s| [&s.calls, &s.nanoseconds, &s.waited, &s.rejected, &s.failed]);
        entry.stats.all().for_each(|stats| {
            stats.waits.reset();
            stats.computations.reset();
        });
    }
}

/// Every command; subcommands are in [`CommandEntry::subcommands`].
pub fn all() -> &'static [CommandEntry] {
    &ENTRIES
}

/// Every command, each followed by its subcommands.
pub fn with_subcommands() -> impl Iterator<Item = &'static CommandEntry> {
    ENTRIES
        .iter()
        .flat_map(|entry| std::iter::once(entry).chain(&entry.subcommands))
}

/// The command of this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static CommandEntry> {
    let mut lower = [0; MAX_NAME];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    BY_NAME.get(&*lower).copied()
}

/// The subcommand of this name (without its container's), in any case.
pub fn find_subcommand(container: &'static CommandEntry, name: &[u8]) -> Option<&'static CommandEntry> {
    let mut subcommands = container.subcommands.iter();
    subcommands.find(|command| name.eq_ignore_ascii_case(command.own_name().as_bytes()))
}

/// An implemented command by its full name (`config|get`), in any case.
pub fn find_there(name: &[u8]) -> Option<&'static CommandEntry> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let command = find(parts.next()?)?;
    let found = match parts.next() {
        Some(own) => find_subcommand(command, own)?,
        None => command,
    };
    found.is_there().then_some(found)
}

/// Every command that is implemented.
pub fn there() -> impl Iterator<Item = &'static CommandEntry> {
    ENTRIES.iter().filter(|entry| entry.is_there())
}

/// The subcommands of a container that are implemented.
pub fn subcommands_there(entry: &'static CommandEntry) -> impl Iterator<Item = &'static CommandEntry> {
    entry.subcommands.iter().filter(|entry| entry.is_there())
}

/// Names of the implemented commands and subcommands that are meant.
pub fn names(is_meant: impl Fn(&CommandEntry) -> bool) -> impl Iterator<Item = &'static str> {
    let all = there().flat_map(|entry| std::iter::once(entry).chain(subcommands_there(entry)));
    all.filter(move |entry| is_meant(entry)).map(|entry| entry.name)
}
