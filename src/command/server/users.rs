//! ACL: there is one user, `default`, who may do everything once authenticated.

use std::sync::Arc;

use crate::command::args::{is, parse_int, text, wrong_arity};
use crate::command::categories::{CATEGORIES, categories};
use crate::command::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, Session, Shared, flag, help_of, table};

const FLAGS: u32 = flag::NOSCRIPT | flag::LOADING | flag::STALE;
const ADMIN: u32 = FLAGS | flag::ADMIN;
/// What the user may do, in ACL's rules.
const RULES: &str = "~* &* +@all";
const NO_HASHES: Compatibility = Compatibility::Partial("the password's hash is not shown");

const ROW: Command = Command {
    flags: FLAGS,
    group: "server",
    since: "6.0.0",
    ..Command::DEFAULT
};

const fn not_yet(name: &'static str, arity: i32, since: &'static str, summary: &'static str) -> Command {
    Command {
        name,
        arity,
        flags: ADMIN,
        since,
        summary,
        compatibility: Compatibility::NotYet,
        ..ROW
    }
}

pub const ACL: &[Command] = &[
    Command {
        name: "acl|cat",
        arity: -2,
        summary: "Lists the categories of commands, or the commands of one.",
        run: Run::Session(cat),
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
        compatibility: NO_HASHES,
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
        compatibility: NO_HASHES,
        run: Run::Session(list),
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
    not_yet("acl|deluser", -3, "6.0.0", "Removes users."),
    not_yet("acl|dryrun", -4, "7.0.0", "Tells whether a user may run a command."),
    not_yet("acl|load", 2, "6.0.0", "Reads the users' file again."),
    not_yet("acl|log", -2, "6.0.0", "Lists what users were refused."),
    not_yet("acl|save", 2, "6.0.0", "Writes the users' file."),
    not_yet("acl|setuser", -3, "6.0.0", "Creates a user or changes what it may do."),
];

fn whoami(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::bulk("default"))
}

fn users(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Array(vec![Reply::bulk("default")]))
}

fn has_password(shared: &Shared) -> bool {
    shared.config.requirepass().is_some()
}

fn list(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let password = if has_password(shared) { "" } else { "nopass " };
    Ok(Reply::Array(vec![Reply::bulk(format!(
        "user default on {password}{RULES}"
    ))]))
}

fn getuser(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    if args[2] != b"default" {
        return Ok(Reply::Null);
    }
    let mut flags = vec![Reply::simple("on")];
    if !has_password(shared) {
        flags.push(Reply::simple("nopass"));
    }
    let pair = |name: &str, value: Reply| (Reply::bulk(name), value);
    Ok(Reply::Map(vec![
        pair("flags", Reply::Set(flags)),
        pair("passwords", Reply::Array(Vec::new())),
        pair("commands", Reply::bulk("+@all")),
        pair("keys", Reply::bulk("~*")),
        pair("channels", Reply::bulk("&*")),
        pair("selectors", Reply::Array(Vec::new())),
    ]))
}

fn cat(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match &args[2..] {
        [] => Ok(Reply::Array(CATEGORIES.iter().map(Reply::bulk).collect())),
        [category] => commands_of_category(category),
        _ => Err(wrong_arity("acl|cat")),
    }
}

fn commands_of_category(wanted: &[u8]) -> Outcome {
    let Some(category) = CATEGORIES.iter().find(|known| is(wanted, known)) else {
        return Err(Fault::error(format!("ERR Unknown category '{}'", text(wanted))));
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
        [bits] => parse_int(bits).filter(|bits| (1..=MOST).contains(bits)).ok_or(
            "ERR ACL GENPASS argument must be the number of bits for the output password, a positive number up to 4096",
        )?,
        _ => return Err(wrong_arity("acl|genpass")),
    };
    let digits = (bits as usize).div_ceil(4);
    let password: String = (0..digits)
        .filter_map(|_| char::from_digit(rand::random_range(0..16), 16))
        .collect();
    Ok(Reply::bulk(password))
}

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("acl", ACL))
}
