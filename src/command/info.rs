//! INFO: <https://redis.io/docs/latest/commands/info/>. A section is a list of named values, which
//! INFO renders as text. Sections and fields have Redis's names, so that its tools read them. The
//! section `Kafka` is about the log behind the databases. A field of something that does not exist
//! here is left out, or 0.

mod log;

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::args::is;
use super::pushes::Kind;
use super::shared::Shared;
use super::table::{self, CommandEntry};
use super::{Args, Fault, Outcome, REDIS_VERSION, Reply, Session};
use crate::acl::Reason;
use crate::config::{COMMIT, TARGET, VERSION, machine};
use crate::database::{Status, now_ms};
use crate::store::{Store, key_hash};
use crate::telemetry::process;

type Section = fn(&Shared, &mut Fields) -> Result<(), Fault>;

/// The named values of a section, in their order.
#[derive(Default)]
struct Fields(Vec<(Cow<'static, str>, String)>);

impl Fields {
    /// A value is one line: line ends in it become spaces.
    fn add(&mut self, name: impl Into<Cow<'static, str>>, value: impl Display) {
        let mut value = value.to_string();
        if value.contains(['\r', '\n']) {
            value = value.replace(['\r', '\n'], " ");
        }
        self.0.push((name.into(), value));
    }

    /// As INFO shows them.
    fn render(&self, text: &mut String) {
        for (name, value) in &self.0 {
            text.extend([&**name, ":", value, "\r\n"]);
        }
    }
}

/// Sections in their order; true if INFO without arguments shows them.
const SECTIONS: &[(&str, bool, Section)] = &[
    ("Server", true, server),
    ("Clients", true, clients),
    ("Memory", true, memory),
    ("Persistence", true, persistence),
    ("Stats", true, stats),
    ("Replication", true, replication),
    ("CPU", true, cpu),
    ("Modules", true, modules),
    ("Commandstats", false, commandstats),
    ("Errorstats", true, errorstats),
    ("Latencystats", false, latencystats),
    ("Cluster", true, cluster),
    ("Kafka", true, log::kafka),
    ("Keyspace", true, keyspace),
];

pub fn info(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let asked = &args[1..];
    let all = asked
        .iter()
        .any(|section| is(section, "all") || is(section, "everything"));
    let usual = asked.is_empty() || asked.iter().any(|section| is(section, "default"));
    let mut text = String::new();
    for (name, by_default, section) in SECTIONS {
        if all || (usual && *by_default) || asked.iter().any(|asked| is(asked, name)) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            text.extend(["# ", name, "\r\n"]);
            let mut fields = Fields::default();
            section(shared, &mut fields)?;
            fields.render(&mut text);
        }
    }
    Ok(Reply::verbatim(text))
}

/// Whether an INFO with these arguments looks at the store.
pub fn tells_of_keys(args: Args) -> bool {
    let words = ["keyspace", "default", "all", "everything"];
    args.len() == 1 || args[1..].iter().any(|asked| words.iter().any(|word| is(asked, word)))
}

/// Adds fields.
macro_rules! fields {
    ($to:expr, $($name:literal: $value:expr),+ $(,)?) => {{
        $( $to.add($name, &$value); )+
    }};
}
use fields;

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn used(counter: &AtomicUsize) -> u64 {
    counter.load(Ordering::Relaxed) as u64
}

/// Bytes in a form that is easy to read, as Redis shows them.
fn humane(bytes: u64) -> String {
    const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];
    if bytes < 1_024 {
        return format!("{bytes}B");
    }
    let mut amount = bytes as f64 / 1_024.0;
    let mut unit = 0;
    while amount >= 1_024.0 && unit + 1 < UNITS.len() {
        amount /= 1_024.0;
        unit += 1;
    }
    format!("{amount:.2}{}", UNITS[unit])
}

fn setting(shared: &Shared, name: &str) -> String {
    let found = shared.config.get(|known| known == name);
    found.into_iter().next().map_or(String::new(), |(_, value)| value)
}

fn server(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let uptime = shared.started.elapsed().as_secs();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let executable = std::env::current_exe().unwrap_or_default();
    fields!(to,
        "redis_version": REDIS_VERSION,
        "redis_git_sha1": "00000000",
        "redis_git_dirty": 0,
        "redis_build_id": "0",
        "redis_mode": "standalone",
        "highwater_version": VERSION,
        "highwater_git_sha1": COMMIT,
        "highwater_target": TARGET,
        "os": format_args!("{} {} {}", "Linux", kernel.trim(), std::env::consts::ARCH),
        "arch_bits": usize::BITS,
        "multiplexing_api": "epoll",
        "process_id": std::process::id(),
        "process_supervised": "no",
        "run_id": shared.run_id,
        "tcp_port": shared.config.port(),
        "server_time_usec": now.as_micros(),
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime / 86_400,
        "hz": setting(shared, "hz"),
        "configured_hz": setting(shared, "hz"),
        "lru_clock": now.as_secs() & 0xff_ffff,
        "executable": executable.display(),
        "config_file": shared.config.file().unwrap_or(std::path::Path::new("")).display(),
        // The threads of io-threads, a setting without effect.
        "io_threads_active": 0,
    );
    Ok(())
}

fn clients(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let clients = shared.clients.list();
    let most =
        |bytes: fn(&super::clients::Client) -> &AtomicUsize| clients.iter().map(|c| used(bytes(c))).max().unwrap_or(0);
    fields!(to,
        // Killed connections are left out: their tasks are about to end.
        "connected_clients": clients.iter().filter(|client| !client.is_killed()).count(),
        "cluster_connections": 0,
        "maxclients": shared.config.maxclients(),
        "client_recent_max_input_buffer": most(|client| &client.input_bytes),
        "client_recent_max_output_buffer": most(|client| &client.output_bytes),
        "blocked_clients": clients.iter().filter(|client| client.blocked.load(Ordering::Relaxed)).count(),
        "tracking_clients": shared.tracking.clients(),
        "clients_in_timeout_table": 0,
    );
    Ok(())
}

fn memory(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let resident = process::resident_bytes();
    // What maxmemory bounds.
    let data = used(&shared.service.memory.used);
    let peak = shared.stats.peak_memory.fetch_max(data, Ordering::Relaxed).max(data);
    let total = machine::memory();
    let limit: u64 = setting(shared, "maxmemory").parse().unwrap_or(0);
    let (scripts, texts) = shared.scripts.scripts.size();
    let (texts, lua) = (texts as u64, shared.scripts.memory() as u64);
    let databases = 0..shared.service.database_count();
    let overhead = databases
        .map(|n| shared.service.database(n).slot_bytes())
        .sum::<u64>()
        .min(data);
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
    fields!(to,
        "used_memory": data,
        "used_memory_human": humane(data),
        "used_memory_rss": resident,
        "used_memory_rss_human": humane(resident),
        "used_memory_peak": peak,
        "used_memory_peak_human": humane(peak),
        "used_memory_peak_perc": format_args!("{:.2}%", percent(data, peak)),
        "used_memory_overhead": overhead,
        "used_memory_startup": 0,
        "used_memory_dataset": data - overhead,
        "used_memory_dataset_perc": format_args!("{:.2}%", percent(data - overhead, data)),
        "total_system_memory": total,
        "total_system_memory_human": humane(total),
        "used_memory_lua": lua,
        "used_memory_lua_human": humane(lua),
        "number_of_cached_scripts": scripts,
        "number_of_functions": 0,
        "number_of_libraries": 0,
        "used_memory_scripts": texts,
        "used_memory_scripts_human": humane(texts),
        "maxmemory": limit,
        "maxmemory_human": humane(limit),
        "maxmemory_policy": setting(shared, "maxmemory-policy"),
        "mem_fragmentation_ratio": "1.00",
        "mem_fragmentation_bytes": 0,
        "mem_clients_slaves": 0,
        "mem_clients_normal": shared.clients.memory(),
        "mem_aof_buffer": 0,
        "mem_allocator": crate::ALLOCATOR,
        "active_defrag_running": 0,
        "lazyfree_pending_objects": 0,
        "lazyfreed_objects": 0,
    );
    Ok(())
}

fn persistence(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let status = shared.service.status();
    let loading = matches!(*status, Status::Loading { .. });
    fields!(to, "loading": u8::from(loading), "async_loading": 0);
    if let Status::Loading { applied, total, .. } = *status {
        let seconds = shared.started.elapsed().as_secs_f64().max(0.001);
        let left = total.saturating_sub(applied);
        let eta = if applied == 0 {
            -1
        } else {
            (left as f64 * seconds / applied as f64) as i64
        };
        fields!(to,
            "loading_start_time": shared.started_at / 1_000,
            "loading_total_bytes": 0,
            "loading_rdb_used_mem": 0,
            "loading_loaded_bytes": 0,
            "loading_loaded_perc": format_args!("{:.2}", applied.min(total) as f64 * 100.0 / total.max(1) as f64),
            "loading_eta_seconds": eta,
            "loading_loaded_records": applied,
            "loading_total_records": total,
        );
    }
    fields!(to,
        "current_cow_peak": 0,
        "current_cow_size": 0,
        "current_cow_size_age": 0,
        "current_fork_perc": "0.00",
        "current_save_keys_processed": 0,
        "current_save_keys_total": 0,
        // Everything acknowledged is in the log.
        "rdb_changes_since_last_save": 0,
        "rdb_bgsave_in_progress": 0,
        "rdb_last_save_time": now_ms() / 1_000,
        "rdb_last_bgsave_status": "ok",
        "rdb_last_bgsave_time_sec": 0,
        "rdb_current_bgsave_time_sec": -1,
        "rdb_saves": 0,
        "rdb_last_cow_size": 0,
        "rdb_last_load_keys_expired": 0,
        "rdb_last_load_keys_loaded": 0,
        "aof_enabled": u8::from(shared.config.appendonly()),
        "aof_rewrite_in_progress": 0,
        "aof_rewrite_scheduled": 0,
        "aof_last_rewrite_time_sec": -1,
        "aof_current_rewrite_time_sec": -1,
        "aof_last_bgrewrite_status": "ok",
        "aof_rewrites": 0,
        "aof_rewrites_consecutive_failures": 0,
        "aof_last_write_status": if matches!(*status, Status::Failed(_)) { "err" } else { "ok" },
        "aof_last_cow_size": 0,
        "module_fork_in_progress": 0,
        "module_fork_last_cow_size": 0,
    );
    Ok(())
}

fn stats(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let hub = &shared.pubsub.hub;
    let (stats, counters, rates) = (&shared.stats, &shared.service.counters, shared.stats.rates());
    let unexpected = get(&counters.writes_refused) + get(&counters.writes_uncertain);
    fields!(to,
        "total_connections_received": get(&stats.connections_received),
        "total_commands_processed": stats.traffic.sum(|t| &t.commands),
        "instantaneous_ops_per_sec": rates.commands,
        "total_net_input_bytes": stats.traffic.sum(|t| &t.input_bytes),
        "total_net_output_bytes": stats.traffic.sum(|t| &t.output_bytes),
        "total_net_repl_input_bytes": 0,
        "total_net_repl_output_bytes": 0,
        "instantaneous_input_kbps": format_args!("{:.2}", rates.input_kib),
        "instantaneous_output_kbps": format_args!("{:.2}", rates.output_kib),
        "instantaneous_input_repl_kbps": "0.00",
        "instantaneous_output_repl_kbps": "0.00",
        "rejected_connections": get(&stats.connections_rejected),
        "sync_full": 0,
        "sync_partial_ok": 0,
        "sync_partial_err": 0,
        "expired_keys": get(&counters.expired),
        "expired_stale_perc": "0.00",
        "expired_time_cap_reached_count": 0,
        "expire_cycle_cpu_milliseconds": 0,
        // Keys leave memory but never the database.
        "evicted_keys": 0,
        "evicted_clients": get(&stats.evicted_clients),
        "total_eviction_exceeded_time": 0,
        "current_eviction_exceeded_time": 0,
        "keyspace_hits": counters.lookups.sum(|l| &l.hits),
        "keyspace_misses": counters.lookups.sum(|l| &l.misses),
        "pubsub_channels": hub.count(Kind::Channel),
        "pubsub_patterns": hub.count(Kind::Pattern),
        "pubsubshard_channels": hub.count(Kind::Shard),
        "latest_fork_usec": 0,
        "total_forks": 0,
        "migrate_cached_sockets": 0,
        "slave_expires_tracked_keys": 0,
        "active_defrag_hits": 0,
        "active_defrag_misses": 0,
        "active_defrag_key_hits": 0,
        "active_defrag_key_misses": 0,
        "total_active_defrag_time": 0,
        "current_active_defrag_time": 0,
        "tracking_total_keys": shared.tracking.keys(),
        "tracking_total_items": shared.tracking.items(),
        "tracking_total_prefixes": shared.tracking.prefixes(),
        "acl_access_denied_auth": shared.users.denials.count(Reason::LogIn),
        "acl_access_denied_cmd": shared.users.denials.count(Reason::Command),
        "acl_access_denied_key": shared.users.denials.count(Reason::Key),
        "acl_access_denied_channel": shared.users.denials.count(Reason::Channel),
        "acl_access_denied_tls_cert": shared.users.denials.count(Reason::Certificate),
        "unexpected_error_replies": unexpected,
        "total_error_replies": get(&stats.error_replies),
        "dump_payload_sanitizations": 0,
        "client_query_buffer_limit_disconnections": get(&stats.query_limit_disconnections),
        "client_output_buffer_limit_disconnections": get(&stats.output_limit_disconnections),
    );
    Ok(())
}

fn replication(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    fields!(to,
        "role": "master",
        "connected_slaves": 0,
        "master_failover_state": "no-failover",
        "master_replid": shared.run_id,
        "master_replid2": "0000000000000000000000000000000000000000",
        "master_repl_offset": 0,
        "second_repl_offset": -1,
        "repl_backlog_active": 0,
        "repl_backlog_size": setting(shared, "repl-backlog-size"),
        "repl_backlog_first_byte_offset": 0,
        "repl_backlog_histlen": 0,
    );
    Ok(())
}

fn cpu(_: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let (system, user) = process::cpu_times();
    fields!(to,
        "used_cpu_sys": format_args!("{:.6}", system.as_secs_f64()),
        "used_cpu_user": format_args!("{:.6}", user.as_secs_f64()),
        "used_cpu_sys_children": "0.000000",
        "used_cpu_user_children": "0.000000",
    );
    Ok(())
}

fn modules(_: &Shared, _: &mut Fields) -> Result<(), Fault> {
    Ok(())
}

fn commandstats(_: &Shared, to: &mut Fields) -> Result<(), Fault> {
    fn line(entry: &CommandEntry, to: &mut Fields) {
        let stats = &entry.stats;
        let (calls, nanoseconds) = (stats.sum(|s| &s.calls), stats.sum(|s| &s.nanoseconds));
        let (rejected, failed) = (stats.sum(|s| &s.rejected), stats.sum(|s| &s.failed));
        if calls + rejected + failed == 0 {
            return;
        }
        let microseconds = nanoseconds / 1_000;
        let each = |nanoseconds: u64| nanoseconds as f64 / 1_000.0 / calls.max(1) as f64;
        let each_computed = each(nanoseconds);
        to.add(
            format!("cmdstat_{}", entry.name),
            format_args!(
                "calls={calls},usec={microseconds},usec_per_call={each_computed:.2},rejected_calls={rejected},failed_calls={failed}"
            ),
        );
        // On its own line: tools find the fields of the other line by their positions.
        let waited = stats.sum(|s| &s.waited);
        if calls > 0 {
            to.add(
                format!("cmdwait_{}", entry.name),
                format_args!(
                    "calls={calls},usec={},usec_per_call={:.2}",
                    waited / 1_000,
                    each(waited)
                ),
            );
        }
    }
    for entry in table::all() {
        line(entry, to);
        entry.subcommands.iter().for_each(|sub| line(sub, to));
    }
    Ok(())
}

fn errorstats(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    for (kind, count) in shared.stats.errors() {
        to.add(format!("errorstat_{kind}"), format_args!("count={count}"));
    }
    Ok(())
}

/// How long clients waited for each command.
fn latencystats(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    if !shared.config.latency_tracking() {
        return Ok(());
    }
    let percentiles = shared.config.latency_percentiles();
    for entry in table::with_subcommands() {
        let waits = entry.waits();
        if waits.total == 0 {
            continue;
        }
        let told = percentiles
            .iter()
            .map(|&percent| format!("p{percent}={:.3}", waits.percentile(percent) as f64 / 1_000.0));
        let told = told.collect::<Vec<_>>().join(",");
        to.add(format!("latency_percentiles_usec_{}", entry.name), told);
    }
    Ok(())
}

fn cluster(_: &Shared, to: &mut Fields) -> Result<(), Fault> {
    fields!(to, "cluster_enabled": 0);
    Ok(())
}

fn keyspace(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let service: &Arc<_> = &shared.service;
    for database in 0..service.database_count() {
        if service.database(database).partitions().is_empty() {
            continue;
        }
        let keys = service.store.count(database)?;
        if keys > 0 {
            let expires = service.store.count_expiring(database)?;
            let ttl = if expires > 0 {
                average_ttl(&*service.store, database)?
            } else {
                0
            };
            to.add(
                format!("db{database}"),
                format_args!("keys={keys},expires={expires},avg_ttl={ttl}"),
            );
        }
    }
    Ok(())
}

/// Average time to live, in milliseconds, of a sample of keys with an expiry. If there are few
/// keys, the sample has all of them.
fn average_ttl(store: &dyn Store, database: u16) -> Result<u64, Fault> {
    /// Keys with an expiry that are enough. Most keys to look at for them, in total and in one
    /// scan.
    const ENOUGH: u64 = 100;
    const MOST: usize = 10_000;
    const PART: usize = 1_000;
    let now = now_ms();
    let (mut found, mut left, mut looked_at) = (0, 0, 0);
    let start: u64 = rand::random();
    // From a random place to the end, then from the beginning to there.
    for (begin, end) in [(start, u64::MAX), (0, start)] {
        let mut from = Some(begin);
        while let Some(hash) = from.filter(|hash| *hash < end && found < ENOUGH && looked_at < MOST) {
            looked_at += PART;
            from = store.scan(database, hash, PART, &mut |key| {
                if let Some(at) = key.meta.expire_at.filter(|_| key_hash(key.key) < end) {
                    found += 1;
                    left += u128::from(at.saturating_sub(now));
                }
            })?;
        }
    }
    Ok((left / u128::from(found.max(1))) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_one_line_whatever_its_value() {
        let (mut fields, mut text) = (Fields::default(), String::new());
        fields.add("cause", "a\r\nb:c");
        fields.add("number", 7);
        fields.render(&mut text);
        assert_eq!(text, "cause:a  b:c\r\nnumber:7\r\n");
    }

    #[test]
    fn bytes_are_shown_as_redis_shows_them() {
        let shown = [0, 1_023, 1_024, 1_536, 990_312, 12_365_824, 25_274_793_984].map(humane);
        assert_eq!(shown, ["0B", "1023B", "1.00K", "1.50K", "967.10K", "11.79M", "23.54G"]);
    }
}
