//! FUNCTION: there are no functions yet, so there is nothing to list and nothing to remove.

use std::sync::Arc;

use super::HELP;
use crate::command::args::{is, text, unknown_subcommand};
use crate::command::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, Session, Shared, flag, help_of};

const FUNCTIONS: Command = Command {
    flags: flag::NOSCRIPT,
    categories: &["scripting"],
    group: "scripting",
    since: "7.0.0",
    ..Command::DEFAULT
};

pub(super) const FUNCTION: &[Command] = &[
    Command {
        name: "function|flush",
        arity: -2,
        flags: flag::WRITE | flag::NOSCRIPT,
        summary: "Removes all libraries; there are none.",
        run: Run::Session(function_flush),
        ..FUNCTIONS
    },
    Command {
        name: "function|help",
        arity: 2,
        flags: HELP,
        summary: "Lists the subcommands.",
        run: Run::Session(function_help),
        ..FUNCTIONS
    },
    Command {
        name: "function|list",
        arity: -2,
        summary: "Lists the libraries; there are none.",
        run: Run::Session(function_list),
        ..FUNCTIONS
    },
    not_yet("function|delete", 3, "Removes a library."),
    not_yet("function|dump", 2, "Returns all libraries as bytes."),
    not_yet("function|kill", 2, "Ends the function that is running."),
    not_yet("function|load", -3, "Creates a library."),
    not_yet("function|restore", -3, "Takes in what DUMP returned."),
    not_yet("function|stats", 2, "Tells which function is running."),
];

const fn not_yet(name: &'static str, arity: i32, summary: &'static str) -> Command {
    Command {
        name,
        arity,
        summary,
        compatibility: Compatibility::NotYet,
        ..FUNCTIONS
    }
}

fn function_flush(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match &args[2..] {
        [] => Ok(Reply::Ok),
        [mode] if is(mode, "sync") || is(mode, "async") => Ok(Reply::Ok),
        [_, _, ..] => Err(unknown_subcommand("function", args[1])),
        _ => Err("ERR FUNCTION FLUSH only supports SYNC|ASYNC option".into()),
    }
}

fn function_list(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let mut options = args[2..].iter();
    while let Some(option) = options.next() {
        if is(option, "libraryname") {
            options.next().ok_or("ERR library name argument was not given")?;
        } else if !is(option, "withcode") {
            return Err(Fault::error(format!("ERR Unknown argument {}", text(option))));
        }
    }
    Ok(Reply::Array(Vec::new()))
}

fn function_help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("function", FUNCTION))
}
