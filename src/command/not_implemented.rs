//! Commands of Redis 7.2 that are not implemented: answered as unknown, and listed in
//! `redis-compat.md`. A command that is implemented gets a row in its family's file and loses its
//! line here.

use super::{Command, Compatibility};

pub static COMMANDS: &[Command] = &[Command {
    name: "migrate",
    arity: -6,
    group: "generic",
    since: "2.6.0",
    summary: "Moves keys to another server.",
    compatibility: Compatibility::NotYet,
    ..Command::DEFAULT
}];
