//! MODULE: there are none.

use std::sync::Arc;

use crate::command::{Args, Command, Compatibility, Outcome, Reply, Run, Session, Shared, flag, help_of};

const ROW: Command = Command {
    flags: flag::ADMIN | flag::NOSCRIPT | flag::NO_ASYNC_LOADING,
    group: "server",
    since: "4.0.0",
    compatibility: Compatibility::Partial("always an error: there are no modules"),
    run: Run::Session(no_modules),
    ..Command::DEFAULT
};

pub const MODULE: &[Command] = &[
    Command {
        name: "module|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        since: "5.0.0",
        summary: "Lists the subcommands.",
        compatibility: Compatibility::Full,
        run: Run::Session(help),
        ..ROW
    },
    Command {
        name: "module|list",
        arity: 2,
        flags: flag::ADMIN | flag::NOSCRIPT,
        summary: "Lists the modules: none.",
        compatibility: Compatibility::Full,
        run: Run::Session(list),
        ..ROW
    },
    Command {
        name: "module|load",
        arity: -3,
        summary: "Would load a module.",
        ..ROW
    },
    Command {
        name: "module|loadex",
        arity: -3,
        since: "7.0.0",
        summary: "Would load a module with settings.",
        ..ROW
    },
    Command {
        name: "module|unload",
        arity: 3,
        summary: "Would unload a module.",
        ..ROW
    },
];

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("module", MODULE))
}

fn list(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Array(Vec::new()))
}

fn no_modules(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    // `enable-module-command` is always no.
    Err("ERR MODULE command not allowed. If the enable-module-command option is set to \"local\", you can run it from a \
         local connection, otherwise you need to set this option in the configuration file, and then restart the server."
        .into())
}
