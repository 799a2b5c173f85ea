//! The table of all commands: every row of every family, found by name.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::LazyLock;

use super::{Command, CommandStats, bits, connection, introspection, keys, pending, server, strings, transactions};

/// In the order of `redis-compat.md`.
pub static FAMILIES: &[(&str, &[Command])] = &[
    ("Strings", strings::COMMANDS),
    ("Bits", bits::COMMANDS),
    ("Keys", keys::COMMANDS),
    ("Transactions", transactions::COMMANDS),
    ("Connection", connection::COMMANDS),
    ("Server", server::COMMANDS),
    ("Introspection", introspection::COMMANDS),
    ("Not yet", pending::COMMANDS),
];

/// Longest name of a command that is looked up.
const MAX_NAME: usize = 32;

/// A row at run time: the command with its counters.
pub struct Entry {
    pub command: &'static Command,
    pub stats: CommandStats,
    pub subcommands: Vec<Entry>,
}

impl Deref for Entry {
    type Target = Command;

    fn deref(&self) -> &Command {
        self.command
    }
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    fn entry(command: &'static Command) -> Entry {
        Entry {
            command,
            stats: CommandStats::default(),
            subcommands: command.subcommands.iter().map(entry).collect(),
        }
    }
    FAMILIES.iter().flat_map(|(_, commands)| commands.iter()).map(entry).collect()
});

static BY_NAME: LazyLock<HashMap<&'static [u8], &'static Entry, rustc_hash::FxBuildHasher>> =
    LazyLock::new(|| ENTRIES.iter().map(|entry| (entry.name.as_bytes(), entry)).collect());

/// Every command; subcommands are in [`Entry::subcommands`].
pub fn all() -> &'static [Entry] {
    &ENTRIES
}

/// The command of this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Entry> {
    let mut lower = [0; MAX_NAME];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    BY_NAME.get(&*lower).copied()
}

/// The subcommand of this name (without its container's), in any case.
pub fn find_subcommand(container: &'static Entry, name: &[u8]) -> Option<&'static Entry> {
    container.subcommands.iter().find(|command| {
        let own = command.name.split_once('|').map_or(command.name, |(_, sub)| sub);
        name.eq_ignore_ascii_case(own.as_bytes())
    })
}
