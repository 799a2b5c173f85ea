//! MEMORY: what takes memory. What `maxmemory` bounds counts as allocated, as in INFO: keys and
//! values. Everything else is in the resident set only.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::observe::number;
use crate::command::args::{SYNTAX, int, is};
use crate::command::key_specs::access;
use crate::command::{
    Args, Command, Compatibility, Data, KeySpec, Outcome, Reads, Reply, Run, Session, Shared, flag, help_of,
};
use crate::config::machine;
use crate::database::hot::SLOT_OVERHEAD;
use crate::telemetry::{allocator, process};

const ROW: Command = Command {
    group: "server",
    since: "4.0.0",
    ..Command::DEFAULT
};

pub const MEMORY: &[Command] = &[
    Command {
        name: "memory|doctor",
        arity: 2,
        summary: "Tells in words how memory is used.",
        run: Run::Session(doctor),
        ..ROW
    },
    Command {
        name: "memory|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        summary: "Lists the subcommands.",
        run: Run::Session(help),
        ..ROW
    },
    Command {
        name: "memory|malloc-stats",
        arity: 2,
        complexity: "Depends on how much memory is allocated; could be slow.",
        summary: "Tells what the allocator knows.",
        compatibility: Compatibility::Partial(
            "settings and arenas of jemalloc alone: it is built without its counters",
        ),
        run: Run::Session(malloc_stats),
        ..ROW
    },
    Command {
        name: "memory|purge",
        arity: 2,
        complexity: "Depends on how much memory is allocated; could be slow.",
        summary: "Gives free memory back to the system.",
        run: Run::Session(purge),
        ..ROW
    },
    Command {
        name: "memory|stats",
        arity: 2,
        summary: "Tells what memory is used for.",
        compatibility: Compatibility::Partial(
            "keys and values in memory count as allocated, and bytes-per-key is those by the number of all keys, in memory or not; all that is resident counts as the allocator's, so fragmentation is 1",
        ),
        reads: Reads::Store,
        run: Run::Session(stats),
        ..ROW
    },
    Command {
        name: "memory|usage",
        arity: -3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        summary: "Returns the bytes that a key takes in memory.",
        run: Run::Data(usage),
        ..ROW
    },
];

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("memory", MEMORY))
}

fn usage(data: &mut Data, args: Args) -> Outcome {
    let mut options = &args[3..];
    while let [option, samples, rest @ ..] = options
        && is(option, "samples")
    {
        if int(samples)? < 0 {
            return Err(SYNTAX.into());
        }
        options = rest;
    }
    if !options.is_empty() {
        return Err(SYNTAX.into());
    }
    let database = data.database;
    let Some(entry) = data.transaction.peek(database, args[2])? else {
        return Ok(Reply::Null);
    };
    let taken = data.transaction.take(database, args[2], entry)?;
    let bytes = SLOT_OVERHEAD * taken.records() + args[2].len() + taken.bytes();
    Ok(number(bytes as u64))
}

fn stats(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let service = &shared.service;
    let used = service.memory.used.load(Ordering::Relaxed) as u64;
    let peak = shared.stats.peak_memory.fetch_max(used, Ordering::Relaxed).max(used);
    let (_, scripts) = shared.scripts.scripts.size();
    let mut databases = Vec::new();
    let (mut keys, mut overhead) = (0, 0);
    for database in 0..service.database_count() {
        let of_database = service.database(database);
        let count = match of_database.partitions() {
            [] => 0,
            _ => service.store.count(database)?,
        };
        let of_slots = of_database.slot_bytes();
        overhead += of_slots;
        keys += count;
        if count > 0 {
            let parts = [
                ("overhead.hashtable.main", of_slots),
                // The time of expiry is in the slot.
                ("overhead.hashtable.expires", 0),
                ("overhead.hashtable.slot-to-keys", 0),
            ];
            let parts = parts.map(|(name, bytes)| (Reply::bulk(name), number(bytes)));
            databases.push((Reply::bulk(format!("db.{database}")), Reply::Map(parts.into())));
        }
    }
    let mut told = counts(&[
        ("peak.allocated", peak),
        ("total.allocated", used),
        ("startup.allocated", 0),
        ("replication.backlog", 0),
        ("clients.slaves", 0),
        ("clients.normal", shared.clients.memory() as u64),
        ("cluster.links", 0),
        ("aof.buffer", 0),
        ("lua.caches", scripts as u64),
        ("functions.caches", service.bytes_of_libraries() as u64),
    ]);
    told.append(&mut databases);
    let overhead = overhead.min(used);
    told.extend(counts(&[
        ("overhead.total", overhead),
        ("keys.count", keys),
        ("keys.bytes-per-key", used.checked_div(keys).unwrap_or(0)),
        ("dataset.bytes", used - overhead),
    ]));
    let percent = |part: u64, whole: u64| Reply::Double(part as f64 * 100.0 / whole.max(1) as f64);
    told.extend([
        (Reply::bulk("dataset.percentage"), percent(used - overhead, used)),
        (Reply::bulk("peak.percentage"), percent(used, peak)),
    ]);
    told.extend(of_allocator());
    Ok(Reply::Map(told))
}

fn counts(of: &[(&str, u64)]) -> Vec<(Reply, Reply)> {
    of.iter()
        .map(|(name, value)| (Reply::bulk(name), number(*value)))
        .collect()
}

/// The allocator is built without counters of what it gave out.
fn of_allocator() -> Vec<(Reply, Reply)> {
    let resident = process::resident_bytes();
    let mut told = counts(&[
        ("allocator.allocated", resident),
        ("allocator.active", resident),
        ("allocator.resident", resident),
    ]);
    for [ratio, bytes] in [
        ["allocator-fragmentation.ratio", "allocator-fragmentation.bytes"],
        ["allocator-rss.ratio", "allocator-rss.bytes"],
        ["rss-overhead.ratio", "rss-overhead.bytes"],
        ["fragmentation", "fragmentation.bytes"],
    ] {
        told.extend([
            (Reply::bulk(ratio), Reply::Double(1.0)),
            (Reply::bulk(bytes), Reply::Int(0)),
        ]);
    }
    told
}

fn malloc_stats(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::verbatim(allocator::report()))
}

fn purge(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    match allocator::purge() {
        Ok(()) => Ok(Reply::Ok),
        Err(error) => {
            tracing::warn!(%error, "the allocator did not give free memory back");
            Err("ERR Error purging dirty pages".into())
        }
    }
}

fn doctor(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    /// Bytes of a client's buffers, on average, and known scripts: more are worth a word.
    const MUCH: usize = 200 << 10;
    const MANY: usize = 1_000;
    let (used, total) = (process::resident_bytes(), machine::memory());
    let (clients, of_clients) = (shared.clients.len().max(1), shared.clients.memory());
    let (scripts, _) = shared.scripts.scripts.size();
    let mut report = format!("{} MB of {} MB of memory are in use.", used >> 20, total >> 20);
    let findings = [
        (
            used > total / 10 * 9,
            "That is most of it: lower maxmemory or store-cache.",
        ),
        (
            of_clients / clients > MUCH,
            "Buffers of clients take much of it: CLIENT LIST tells which, in tot-mem.",
        ),
        (
            scripts > MANY,
            "More than 1,000 scripts are known: one script with arguments in KEYS and ARGV takes less.",
        ),
    ];
    let found: Vec<&str> = findings.iter().filter(|(is, _)| *is).map(|(_, words)| *words).collect();
    let found = if found.is_empty() {
        vec!["Nothing to say against that."]
    } else {
        found
    };
    for words in found {
        report.extend([" ", words]);
    }
    report.push('\n');
    Ok(Reply::verbatim(report))
}
