//! HyperLogLogs: <https://redis.io/docs/latest/commands/?group=hyperloglog>.
//!
//! They are strings with the bytes that Redis has ([`sketch`]). One difference is meant: PFCOUNT
//! does not write the count that it computed into the string, for a read must not cost a record of
//! the log. It takes a count that Redis has written.

mod sketch;

use bytes::Bytes;

use super::args::{is, text};
use super::key_specs::access::{self, READS};
use super::{Args, Command, Compatibility, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use sketch::{Corrupted, REGISTERS, Registers, Sketch, View};

/// What PFSELFTEST costs, as bytes to go through.
const SELF_TEST: usize = 64 << 20;
/// It always adds the same elements: a handler may be computed again.
const SELF_TEST_SEED: u64 = 0x48_59_4c_4c;

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["hyperloglog"],
    group: "hyperloglog",
    since: "2.8.9",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "pfadd",
        arity: -2,
        flags: flag::WRITE | flag::DENYOOM | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::INSERT)],
        complexity: "O(N), N being the number of elements.",
        summary: "Adds elements.",
        run: Run::Data(pfadd),
        ..ROW
    },
    Command {
        name: "pfcount",
        arity: -2,
        flags: flag::READONLY,
        keys: &[KeySpec::from(1, access::RW | access::ACCESS)],
        complexity: "O(N), N being the number of keys.",
        summary: "Estimates the number of distinct elements.",
        compatibility: Compatibility::Partial("does not keep the count in the string, so that GET may differ after it"),
        run: Run::Data(pfcount),
        ..ROW
    },
    Command {
        name: "pfdebug",
        arity: 3,
        flags: flag::WRITE | flag::DENYOOM | flag::ADMIN,
        keys: &[KeySpec::at(2, access::RW | access::ACCESS)],
        complexity: "N/A",
        summary: "For tests of the implementation.",
        run: Run::Data(pfdebug),
        ..ROW
    },
    Command {
        name: "pfmerge",
        arity: -2,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[
            KeySpec::at(1, access::RW | access::ACCESS | access::INSERT),
            KeySpec::from(2, READS),
        ],
        complexity: "O(N), N being the number of keys.",
        summary: "Merges several into one.",
        run: Run::Data(pfmerge),
        ..ROW
    },
    Command {
        name: "pfselftest",
        arity: 1,
        flags: flag::ADMIN,
        complexity: "N/A",
        summary: "For tests of the implementation.",
        compatibility: Compatibility::Partial("adds fewer elements"),
        run: Run::Data(pfselftest),
        ..ROW
    },
];

impl From<Corrupted> for Fault {
    fn from(_: Corrupted) -> Self {
        "INVALIDOBJ Corrupted HLL object detected".into()
    }
}

fn view(value: &Bytes) -> Result<View<'_>, Fault> {
    View::new(value).ok_or_else(|| "WRONGTYPE Key is not a valid HyperLogLog string value.".into())
}

/// A HyperLogLog that a command changes. Its expiry stays.
struct Current {
    sketch: Sketch,
    expire_at: Option<u64>,
}

/// `None` if the key is missing.
fn current(data: &mut Data, key: &[u8]) -> Result<Option<Current>, Fault> {
    let Some(string) = data.current_string(key)? else {
        return Ok(None);
    };
    data.transaction.works(string.value.len())?;
    Ok(Some(Current {
        sketch: view(&string.value)?.into(),
        expire_at: string.expire_at,
    }))
}

fn put(data: &mut Data, key: &[u8], current: Current) {
    data.set(key, current.sketch.into_bytes().into(), current.expire_at);
}

impl Current {
    fn empty() -> Self {
        Current {
            sketch: Sketch::empty(),
            expire_at: None,
        }
    }
}

fn pfadd(data: &mut Data, args: Args) -> Outcome {
    let most_sparse = data.config.hll_sparse_max_bytes();
    let found = current(data, args[1])?;
    let mut changed = found.is_none();
    let mut current = found.unwrap_or_else(Current::empty);
    for element in &args[2..] {
        data.transaction.works(element.len() + current.sketch.work())?;
        changed |= current.sketch.add(element, most_sparse)?;
    }
    if changed {
        current.sketch.forget_count();
        put(data, args[1], current);
    }
    Ok(Reply::Int(changed.into()))
}

/// The highest value of each register in several HyperLogLogs, and whether one of them is dense.
fn merged(data: &mut Data, keys: &[&[u8]]) -> Result<(Registers, bool), Fault> {
    let (mut registers, mut dense) = (Registers::default(), false);
    for key in keys {
        let Some(value) = data.read_string(key)? else {
            continue;
        };
        data.transaction.works(value.len() + REGISTERS)?;
        let view = view(&value)?;
        view.merge_into(&mut registers)?;
        dense |= view.is_dense();
    }
    Ok((registers, dense))
}

fn pfcount(data: &mut Data, args: Args) -> Outcome {
    let [key] = args[1..] else {
        let (registers, _) = merged(data, &args[1..])?;
        return Ok(Reply::Int(registers.count()));
    };
    let Some(value) = data.get_string(key)? else {
        return Ok(Reply::Int(0));
    };
    data.transaction.works(value.len() + REGISTERS)?;
    Ok(Reply::Int(view(&value)?.count()?))
}

fn pfmerge(data: &mut Data, args: Args) -> Outcome {
    let most_sparse = data.config.hll_sparse_max_bytes();
    let (registers, dense) = merged(data, &args[1..])?;
    let mut current = current(data, args[1])?.unwrap_or_else(Current::empty);
    if dense {
        current.sketch.make_dense()?;
    }
    for (register, value) in registers.0.into_iter().enumerate().filter(|(_, value)| *value > 0) {
        data.transaction.works(current.sketch.work())?;
        current.sketch.raise(register, value, most_sparse)?;
    }
    current.sketch.forget_count();
    put(data, args[1], current);
    Ok(Reply::Ok)
}

fn pfdebug(data: &mut Data, args: Args) -> Outcome {
    let mut current = current(data, args[2])?.ok_or("ERR The specified key does not exist")?;
    let was_dense = current.sketch.view().is_dense();
    let reply = match args[1] {
        word if is(word, "encoding") => return Ok(Reply::simple(if was_dense { "dense" } else { "sparse" })),
        word if is(word, "decode") && was_dense => return Err("ERR HLL encoding is not sparse".into()),
        word if is(word, "decode") => return Ok(Reply::bulk(current.sketch.view().describe()?)),
        word if is(word, "getreg") => {
            let registers = current.sketch.registers()?.0.into_iter();
            Reply::Array(registers.map(|value| Reply::Int(value.into())).collect())
        }
        word if is(word, "todense") => Reply::Int((!was_dense).into()),
        word => {
            return Err(Fault::error(format!("ERR Unknown PFDEBUG subcommand '{}'", text(word))));
        }
    };
    if !was_dense {
        current.sketch.make_dense()?;
        put(data, args[2], current);
    }
    Ok(reply)
}

fn pfselftest(data: &mut Data, _: Args) -> Outcome {
    data.transaction.works(SELF_TEST)?;
    match sketch::self_test(SELF_TEST_SEED) {
        Ok(()) => Ok(Reply::Ok),
        Err(problem) => Err(problem.into()),
    }
}
