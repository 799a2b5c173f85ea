//! Strings: <https://redis.io/docs/latest/commands/?group=string>.

use super::args::{self, SYNTAX};
use super::{Args, Command, Compatibility, Context, Keys, Outcome, Reply, Run, flag};

const ONE_KEY: Keys = Keys::Range { first: 1, last: 1, step: 1 };

pub static COMMANDS: &[Command] = &[
    Command {
        name: "get",
        arity: 2,
        flags: flag::READONLY | flag::FAST,
        keys: ONE_KEY,
        categories: &["string"],
        group: "string",
        summary: "Returns the string at a key.",
        run: Run::Now(get),
        ..Command::DEFAULT
    },
    Command {
        name: "set",
        arity: -3,
        flags: flag::WRITE | flag::DENYOOM,
        keys: ONE_KEY,
        categories: &["string"],
        group: "string",
        summary: "Gives a key a string, whatever it held before.",
        compatibility: Compatibility::Full,
        run: Run::Now(set),
        ..Command::DEFAULT
    },
];

fn get(context: &mut Context, args: Args) -> Outcome {
    let database = context.database();
    Ok(context.transaction.get_string(database, args[1])?.into())
}

fn set(context: &mut Context, args: Args) -> Outcome {
    if args.len() > 3 {
        return Err(SYNTAX.into());
    }
    let database = context.database();
    context.transaction.set(database, args[1], crate::database::hot::own(args[2]), None);
    let _ = args::int;
    Ok(Reply::Ok)
}
