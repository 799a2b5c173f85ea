//! The rows of ACL's subcommands.

use super::{cat, deluser, dryrun, file, genpass, getuser, help, list, log, setuser, users, whoami};
use crate::command::{Command, Run, flag};

const FLAGS: u32 = flag::NOSCRIPT | flag::LOADING | flag::STALE;
const ADMIN: u32 = FLAGS | flag::ADMIN;

const ROW: Command = Command {
    flags: FLAGS,
    group: "server",
    since: "6.0.0",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[Command {
    name: "acl",
    arity: -2,
    flags: 0,
    complexity: "Depends on the subcommand.",
    summary: "Commands about users.",
    run: Run::Container,
    subcommands: ACL,
    ..ROW
}];

pub(super) const ACL: &[Command] = &[
    Command {
        name: "acl|cat",
        arity: -2,
        summary: "Lists the categories of commands, or the commands of one.",
        run: Run::Session(cat),
        ..ROW
    },
    Command {
        name: "acl|deluser",
        arity: -3,
        flags: ADMIN,
        summary: "Removes users, and closes their connections.",
        run: Run::Session(deluser),
        ..ROW
    },
    Command {
        name: "acl|dryrun",
        arity: -4,
        flags: ADMIN,
        since: "7.0.0",
        summary: "Tells whether a user may run a command.",
        run: Run::Session(dryrun),
        ..ROW
    },
    Command {
        name: "acl|genpass",
        arity: -2,
        summary: "Makes up a password.",
        run: Run::Session(genpass),
        ..ROW
    },
    Command {
        name: "acl|getuser",
        arity: 3,
        flags: ADMIN,
        summary: "Tells what a user may do.",
        run: Run::Session(getuser),
        ..ROW
    },
    Command {
        name: "acl|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        summary: "Lists the subcommands.",
        run: Run::Session(help),
        ..ROW
    },
    Command {
        name: "acl|list",
        arity: 2,
        flags: ADMIN,
        summary: "Lists users with their rules.",
        run: Run::Session(list),
        ..ROW
    },
    Command {
        name: "acl|load",
        arity: 2,
        flags: ADMIN,
        summary: "Reads the users' file again.",
        run: Run::Session(file::acl_load),
        ..ROW
    },
    Command {
        name: "acl|log",
        arity: -2,
        flags: ADMIN,
        summary: "Lists what users were refused.",
        run: Run::Session(log),
        ..ROW
    },
    Command {
        name: "acl|save",
        arity: 2,
        flags: ADMIN,
        summary: "Writes the users' file.",
        run: Run::Session(file::acl_save),
        ..ROW
    },
    Command {
        name: "acl|setuser",
        arity: -3,
        flags: ADMIN,
        summary: "Creates a user or changes what it may do.",
        secrets: Some(|args| (2..args.len()).collect()),
        run: Run::Session(setuser),
        ..ROW
    },
    Command {
        name: "acl|users",
        arity: 2,
        flags: ADMIN,
        summary: "Lists the names of users.",
        run: Run::Session(users),
        ..ROW
    },
    Command {
        name: "acl|whoami",
        arity: 2,
        summary: "Returns the user of this connection.",
        run: Run::Session(whoami),
        ..ROW
    },
];
