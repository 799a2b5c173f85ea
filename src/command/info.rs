//! INFO: Redis's sections and field names (<https://redis.io/docs/latest/commands/info/>), with what is true here, and one
//! section of ours, `Kafka`, about the log.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::args::is;
use super::connection::REDIS_VERSION;
use super::{Args, Context, Fault, Outcome, Reply, Shared, table};
use crate::database::{Status, Transaction, now_ms};
use crate::telemetry::process;

/// Sections in the order they are told; those with `false` only on demand.
const SECTIONS: &[(&str, bool)] = &[
    ("Server", true),
    ("Clients", true),
    ("Memory", true),
    ("Persistence", true),
    ("Stats", true),
    ("Replication", true),
    ("CPU", true),
    ("Modules", true),
    ("Commandstats", false),
    ("Errorstats", true),
    ("Cluster", true),
    ("Keyspace", true),
    ("Kafka", true),
];

struct Source<'s, 't> {
    shared: &'s Shared,
    transaction: &'s mut Transaction<'t>,
}

pub fn info(context: &mut Context, args: Args) -> Outcome {
    let wanted = |name: &str, default: bool| {
        let all = |arg: &&[u8]| is(arg, "all") || is(arg, "everything");
        let defaults = args.len() == 1 || args[1..].iter().any(|arg| is(arg, "default"));
        (default && defaults) || args[1..].iter().any(|arg| all(arg) || is(arg, name))
    };
    let shared = context.shared.clone();
    let mut source = Source {
        shared: &shared,
        transaction: context.transaction,
    };
    let mut text = String::new();
    for (name, default) in SECTIONS {
        if wanted(name, *default) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let _ = write!(text, "# {name}\r\n");
            section(name, &mut source, &mut text)?;
        }
    }
    Ok(Reply::Verbatim {
        format: *b"txt",
        text: text.into(),
    })
}

/// `name:value` lines. Writing to a `String` cannot fail.
macro_rules! fields {
    ($out:expr, $($name:literal: $value:expr),+ $(,)?) => {
        { $(let _ = write!($out, concat!($name, ":{}\r\n"), $value);)+ }
    };
}

fn section(name: &str, source: &mut Source, out: &mut String) -> Result<(), Fault> {
    match name {
        "Server" => server(source.shared, out),
        "Clients" => clients(source.shared, out),
        "Memory" => memory(source.shared, out),
        "Persistence" => persistence(source.shared, out),
        "Stats" => stats(source.shared, out),
        "Replication" => replication(source.shared, out),
        "CPU" => {
            let (system, user) = process::cpu_times();
            fields!(out,
                "used_cpu_sys": format_args!("{:.6}", system.as_secs_f64()),
                "used_cpu_user": format_args!("{:.6}", user.as_secs_f64()),
            );
        }
        "Commandstats" => command_stats(out),
        "Errorstats" => {
            for (kind, count) in source.shared.stats.errors() {
                let _ = write!(out, "errorstat_{kind}:count={count}\r\n");
            }
        }
        "Cluster" => fields!(out, "cluster_enabled": 0),
        "Keyspace" => keyspace(source, out)?,
        "Kafka" => log(source.shared, out),
        _ => {}
    }
    Ok(())
}

fn server(shared: &Shared, out: &mut String) {
    let up = shared.started.elapsed().as_secs();
    fields!(out,
        "redis_version": REDIS_VERSION,
        "redis_mode": "standalone",
        "highwater_version": crate::config::VERSION,
        "highwater_build": crate::config::COMMIT,
        "os": format_args!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "arch_bits": usize::BITS,
        "process_id": std::process::id(),
        "run_id": shared.run_id,
        "tcp_port": shared.config.port(),
        "server_time_usec": now_ms() * 1_000,
        "uptime_in_seconds": up,
        "uptime_in_days": up / 86_400,
        "hz": 10,
        "executable": std::env::current_exe().unwrap_or_default().display(),
        "config_file": shared.config.file().map_or(String::new(), |f| f.display().to_string()),
    );
}

fn clients(shared: &Shared, out: &mut String) {
    let list = shared.clients.list();
    let largest = |of: fn(&super::session::Client) -> usize| list.iter().map(|c| of(c)).max().unwrap_or(0);
    fields!(out,
        "connected_clients": list.len(),
        "cluster_connections": 0,
        "maxclients": shared.config.maxclients(),
        "client_recent_max_input_buffer": largest(|c| c.input_bytes.load(Relaxed)),
        "client_recent_max_output_buffer": largest(|c| c.output_bytes.load(Relaxed)),
        "blocked_clients": 0,
        "tracking_clients": 0,
    );
}

fn memory(shared: &Shared, out: &mut String) {
    let used = process::resident_bytes();
    let budget = &shared.service.memory;
    let limit = budget.limit.load(Relaxed) as u64;
    fields!(out,
        "used_memory": used,
        "used_memory_human": human(used),
        "used_memory_rss": used,
        "used_memory_rss_human": human(used),
        "used_memory_peak": process::peak_resident_bytes(),
        "used_memory_peak_human": human(process::peak_resident_bytes()),
        "used_memory_dataset": budget.used.load(Relaxed),
        "maxmemory": limit,
        "maxmemory_human": human(limit),
        "maxmemory_policy": "noeviction",
        "hot_tier_bytes": budget.used.load(Relaxed),
        "hot_tier_unstored_bytes": budget.unstored.load(Relaxed),
        "mem_fragmentation_ratio": "1.00",
        "mem_allocator": "libc",
    );
}

fn persistence(shared: &Shared, out: &mut String) {
    let status = shared.service.status();
    let counters = &shared.service.counters;
    fields!(out,
        "loading": i32::from(!shared.service.is_serving()),
        "async_loading": 0,
        "rdb_changes_since_last_save": 0,
        "rdb_bgsave_in_progress": 0,
        "rdb_last_save_time": counters.last_checkpoint_ms.load(Relaxed) / 1_000,
        "rdb_last_bgsave_status": "ok",
        "aof_enabled": 0,
        "aof_rewrite_in_progress": 0,
    );
    if let Status::Loading { applied, total, .. } = &*status {
        fields!(out,
            "loading_start_time": shared.started_at / 1_000,
            "loading_total_records": total,
            "loading_loaded_records": applied,
            "loading_loaded_perc": format_args!("{:.2}", *applied as f64 * 100.0 / (*total).max(1) as f64),
        );
    }
}

fn stats(shared: &Shared, out: &mut String) {
    let (stats, service) = (&shared.stats, &shared.service);
    let rates = stats.rates();
    let calls: u64 = every_entry().map(|entry| entry.stats.calls.load(Relaxed)).sum();
    fields!(out,
        "total_connections_received": stats.connections_received.load(Relaxed),
        "total_commands_processed": calls,
        "instantaneous_ops_per_sec": rates.commands,
        "total_net_input_bytes": stats.input_bytes.load(Relaxed),
        "total_net_output_bytes": stats.output_bytes.load(Relaxed),
        "instantaneous_input_kbps": format_args!("{:.2}", rates.input_kib),
        "instantaneous_output_kbps": format_args!("{:.2}", rates.output_kib),
        "rejected_connections": stats.connections_rejected.load(Relaxed),
        "expired_keys": service.counters.expired.load(Relaxed),
        // Keys never go for want of memory; the hot tier only forgets what the store has.
        "evicted_keys": 0,
        "keyspace_hits": service.counters.hits.load(Relaxed),
        "keyspace_misses": service.counters.misses.load(Relaxed),
        "pubsub_channels": 0,
        "pubsub_patterns": 0,
        "latest_fork_usec": 0,
        "total_error_replies": stats.error_replies.load(Relaxed),
        "client_query_buffer_limit_disconnections": stats.query_limit_disconnections.load(Relaxed),
        "client_output_buffer_limit_disconnections": stats.output_limit_disconnections.load(Relaxed),
        "hot_tier_evictions": service.memory.evicted.load(Relaxed),
        "store_reads": service.counters.store_reads.load(Relaxed),
    );
}

fn replication(shared: &Shared, out: &mut String) {
    let offset: u64 = partitions(shared).map(|(_, _, p)| p.acknowledged.load(Relaxed).max(p.stored.load(Relaxed))).sum();
    fields!(out,
        "role": "master",
        "connected_slaves": 0,
        "master_failover_state": "no-failover",
        "master_replid": shared.run_id,
        "master_repl_offset": offset,
    );
}

fn every_entry() -> impl Iterator<Item = &'static table::Entry> {
    table::all().iter().flat_map(|entry| std::iter::once(entry).chain(&entry.subcommands))
}

fn command_stats(out: &mut String) {
    for entry in every_entry() {
        let calls = entry.stats.calls.load(Relaxed);
        let rejected = entry.stats.rejected.load(Relaxed);
        if calls + rejected == 0 {
            continue;
        }
        let micros = entry.stats.nanoseconds.load(Relaxed) / 1_000;
        let _ = write!(
            out,
            "cmdstat_{}:calls={calls},usec={micros},usec_per_call={:.2},rejected_calls={rejected},failed_calls={}\r\n",
            entry.name,
            micros as f64 / calls.max(1) as f64,
            entry.stats.failed.load(Relaxed),
        );
    }
}

fn keyspace(source: &mut Source, out: &mut String) -> Result<(), Fault> {
    if !source.shared.service.is_serving() {
        return Ok(());
    }
    for database in 0..source.shared.service.database_count() {
        if source.shared.service.database(database).partitions().is_empty() {
            continue;
        }
        let keys = source.transaction.count(database)?;
        if keys > 0 {
            let expiring = source.shared.service.store.count_expiring(database)?;
            let _ = write!(out, "db{database}:keys={keys},expires={expiring},avg_ttl=0\r\n");
        }
    }
    Ok(())
}

fn partitions(shared: &Shared) -> impl Iterator<Item = (u16, usize, &crate::database::Partition)> {
    (0..shared.service.database_count()).flat_map(move |database| {
        let partitions = shared.service.database(database).partitions().iter().enumerate();
        partitions.map(move |(number, partition)| (database, number, partition))
    })
}

fn log(shared: &Shared, out: &mut String) {
    let service = &shared.service;
    let counters = &service.counters;
    fields!(out,
        "log": service.log.kind(),
        "log_description": service.log.describe(),
        "status": match &*service.status() {
            Status::Serving => "serving".to_owned(),
            Status::Loading { rebuilding: Some(reason), .. } => format!("rebuilding: {reason}"),
            Status::Loading { .. } => "loading".to_owned(),
            Status::Failed(reason) => format!("failed: {reason}"),
        },
        "records_applied": counters.records_applied.load(Relaxed),
        "records_skipped": counters.records_skipped.load(Relaxed),
        "writes_refused": counters.writes_refused.load(Relaxed),
        "writes_uncertain": counters.writes_uncertain.load(Relaxed),
        "rebuilds": counters.rebuilds.load(Relaxed),
        "last_checkpoint_time": counters.last_checkpoint_ms.load(Relaxed) / 1_000,
        "last_checkpoint_records": counters.last_checkpoint_records.load(Relaxed),
        "store_bytes_on_disk": service.store.disk_bytes(),
    );
    for database in 0..service.database_count() {
        if let Some(topic) = service.log.identity(database) {
            let used = service.database(database).partitions().iter().any(|p| p.stored.load(Relaxed) > 0);
            if database == 0 || used {
                let mode = if topic.read_only { ",readonly" } else { "" };
                let _ = write!(out, "db{database}:topic={},id={},partitions={}{mode}\r\n", topic.topic, topic.id, topic.partitions);
            }
        }
    }
    for (database, number, partition) in partitions(shared) {
        let stored = partition.stored.load(Relaxed);
        let end = partition.end.load(Relaxed).max(stored);
        if database != 0 && end == 0 {
            continue;
        }
        let age = now_ms().saturating_sub(partition.as_of.load(Relaxed) as u64);
        let _ = write!(
            out,
            "db{database}_partition{number}:next_offset={stored},end={end},lag={},as_of_age_ms={age}\r\n",
            end - stored
        );
    }
}

/// A number of bytes as Redis shows it.
fn human(bytes: u64) -> String {
    let units = [(1u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, letter)) => format!("{:.2}{letter}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}
