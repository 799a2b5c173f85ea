//! Settings of Redis that have no meaning here. They are accepted and returned, so that a
//! redis.conf, a tool or a test suite that sets them keeps working. Each says why it has no effect.
//! Those that would do harm if they were ignored accept only their default.

use super::checks;
use super::kind::{COUNT, Kind, LARGE, MEMORY, MODES, PORT};
use super::table::{Change, Effect, Group, Setting};

const CLUSTER: &str = "there is no Redis Cluster: every node has all keys";
const MODULES: &str = "there are no modules";
const ENCODINGS: &str = "values have one encoding";
const COPIES: &str = "how many copies a write has before it is answered OK is up to the topic: min.insync.replicas";
const EVICTION: &str = "no key is ever evicted: memory is a cache of what is on disk";
const EXPIRY: &str = "expired keys are deleted at a steady pace in the background";
const FREEING: &str = "memory is always freed without holding up commands";
const LISTEN: &str = "sockets are not marked";
const PERSISTENCE: &str = "the log is the persistence: there are no append-only files and no snapshots";
const PROCESS: &str = "left to the system and its service manager";
const REPLICATION: &str = "nodes follow the log; there is no replication between them";
const SCRIPTS: &str = "scripts compare strings byte by byte";
const OTHERS: &str = "no connections are made to other servers of this kind";

const YES_NO: Kind = Kind::YesNo;
const TEXT: Kind = Kind::Text;
const SHUTDOWN: Kind = Kind::Choice(&["default", "save", "nosave", "now", "force"]);
const INT: Kind = Kind::Integer {
    min: i32::MIN as i64,
    max: i32::MAX as i64,
};
const POSITIVE: Kind = Kind::Integer {
    min: 1,
    max: i32::MAX as i64,
};
const DEFRAG_CYCLE: Kind = Kind::Integer { min: 1, max: 99 };
const DEFRAG_THRESHOLD: Kind = Kind::Integer { min: 0, max: 1_000 };
const POLICIES: Kind = Kind::Choice(&[
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "noeviction",
]);
const FACILITIES: Kind = Kind::Choice(&[
    "user", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
]);

const fn row(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default,
        group: Group::WithoutEffect,
        effect: Effect::None(why),
        summary: why,
        ..Setting::DEFAULT
    }
}

impl Setting {
    /// Redis's older name.
    const fn also(self, aliases: &'static [&'static str]) -> Setting {
        Setting { aliases, ..self }
    }

    const fn immutable(self) -> Setting {
        Setting {
            change: Change::Immutable,
            ..self
        }
    }

    const fn protected(self) -> Setting {
        Setting {
            change: Change::Protected,
            ..self
        }
    }

    const fn secret(self) -> Setting {
        Setting { secret: true, ..self }
    }

    const fn adding_up(self) -> Setting {
        Setting { adds_up: true, ..self }
    }

    /// Anything but the default is refused.
    const fn refused(self) -> Setting {
        Setting {
            effect: Effect::OnlyDefault(self.summary),
            ..self
        }
    }
}

#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    // Memory
    row("active-defrag-cycle-max", DEFRAG_CYCLE, "25", FREEING),
    row("active-defrag-cycle-min", DEFRAG_CYCLE, "1", FREEING),
    row("active-defrag-ignore-bytes", MEMORY, "104857600", FREEING),
    row("active-defrag-max-scan-fields", Kind::Integer { min: 1, max: i64::MAX }, "1000", FREEING),
    row("active-defrag-threshold-lower", DEFRAG_THRESHOLD, "10", FREEING),
    row("active-defrag-threshold-upper", DEFRAG_THRESHOLD, "100", FREEING),
    row("activedefrag", YES_NO, "no", FREEING),
    row("activerehashing", YES_NO, "yes", FREEING),
    row("jemalloc-bg-thread", YES_NO, "yes", FREEING),
    row("lazyfree-lazy-eviction", YES_NO, "no", FREEING),
    row("lazyfree-lazy-expire", YES_NO, "no", FREEING),
    row("lazyfree-lazy-server-del", YES_NO, "no", FREEING),
    row("lazyfree-lazy-user-del", YES_NO, "no", FREEING),
    row("lazyfree-lazy-user-flush", YES_NO, "no", FREEING),
    row("lfu-decay-time", COUNT, "1", EVICTION),
    row("lfu-log-factor", COUNT, "10", EVICTION),
    row("maxmemory-eviction-tenacity", Kind::Integer { min: 0, max: 100 }, "10", EVICTION),
    row("maxmemory-policy", POLICIES, "noeviction", EVICTION),
    row("maxmemory-samples", POSITIVE, "5", EVICTION),
    // Expiry and background work
    row("active-expire-effort", Kind::Integer { min: 1, max: 10 }, "1", EXPIRY),
    row("dynamic-hz", YES_NO, "yes", EXPIRY),
    row("hz", COUNT, "10", EXPIRY),
    // Persistence
    row("aof-disable-auto-gc", YES_NO, "no", PERSISTENCE),
    row("aof-load-truncated", YES_NO, "yes", PERSISTENCE),
    row("aof-rewrite-incremental-fsync", YES_NO, "yes", PERSISTENCE),
    row("aof-timestamp-enabled", YES_NO, "no", PERSISTENCE),
    row("aof-use-rdb-preamble", YES_NO, "yes", PERSISTENCE),
    row("appenddirname", TEXT, "appendonlydir", PERSISTENCE).immutable(),
    row("appendfilename", TEXT, "appendonly.aof", PERSISTENCE).immutable(),
    row("appendonly", YES_NO, "no", PERSISTENCE),
    row("auto-aof-rewrite-min-size", MEMORY, "67108864", PERSISTENCE),
    row("auto-aof-rewrite-percentage", COUNT, "100", PERSISTENCE),
    row("dbfilename", TEXT, "dump.rdb", PERSISTENCE).protected(),
    row("no-appendfsync-on-rewrite", YES_NO, "no", PERSISTENCE),
    row("rdb-del-sync-files", YES_NO, "no", PERSISTENCE),
    row("rdb-save-incremental-fsync", YES_NO, "yes", PERSISTENCE),
    row("rdbchecksum", YES_NO, "yes", PERSISTENCE).immutable(),
    row("rdbcompression", YES_NO, "yes", PERSISTENCE),
    row("sanitize-dump-payload", Kind::Choice(&["no", "yes", "clients"]), "no", PERSISTENCE),
    row("save", Kind::Checked(checks::SAVE), "", PERSISTENCE).adding_up(),
    row("shutdown-on-sigint", SHUTDOWN, "default", PERSISTENCE),
    row("shutdown-on-sigterm", SHUTDOWN, "default", PERSISTENCE),
    row("shutdown-timeout", COUNT, "10", "a stop waits for the writes under way, at most write-timeout"),
    row("stop-writes-on-bgsave-error", YES_NO, "yes", PERSISTENCE),
    // Cluster
    row("cluster-allow-pubsubshard-when-down", YES_NO, "yes", CLUSTER),
    row("cluster-allow-reads-when-down", YES_NO, "no", CLUSTER),
    row("cluster-allow-replica-migration", YES_NO, "yes", CLUSTER),
    row("cluster-announce-bus-port", PORT, "0", CLUSTER),
    row("cluster-announce-hostname", Kind::Checked(checks::HOST_NAME), "", CLUSTER),
    row("cluster-announce-human-nodename", Kind::Checked(checks::HOST_NAME), "", CLUSTER),
    row("cluster-announce-ip", TEXT, "", CLUSTER),
    row("cluster-announce-port", PORT, "0", CLUSTER),
    row("cluster-announce-tls-port", PORT, "0", CLUSTER),
    row("cluster-config-file", TEXT, "nodes.conf", CLUSTER).immutable(),
    row("cluster-enabled", YES_NO, "no", CLUSTER).immutable().refused(),
    row("cluster-link-sendbuf-limit", MEMORY, "0", CLUSTER),
    row("cluster-migration-barrier", COUNT, "1", CLUSTER),
    row("cluster-node-timeout", LARGE, "15000", CLUSTER),
    row("cluster-port", PORT, "0", CLUSTER).immutable(),
    row("cluster-preferred-endpoint-type", Kind::Choice(&["ip", "hostname", "unknown-endpoint"]), "ip", CLUSTER),
    row("cluster-replica-no-failover", YES_NO, "no", CLUSTER).also(&["cluster-slave-no-failover"]),
    row("cluster-replica-validity-factor", COUNT, "10", CLUSTER).also(&["cluster-slave-validity-factor"]),
    row("cluster-require-full-coverage", YES_NO, "yes", CLUSTER),
    // Replication
    row("masterauth", TEXT, "", REPLICATION).secret(),
    row("masteruser", TEXT, "", REPLICATION),
    row("min-replicas-max-lag", COUNT, "10", REPLICATION).also(&["min-slaves-max-lag"]),
    row("min-replicas-to-write", COUNT, "0", COPIES).also(&["min-slaves-to-write"]).refused(),
    row("propagation-error-behavior", Kind::Choice(&["ignore", "panic", "panic-on-replicas"]), "ignore", REPLICATION),
    row("repl-backlog-size", MEMORY, "1048576", REPLICATION),
    row("repl-backlog-ttl", LARGE, "3600", REPLICATION),
    row("repl-disable-tcp-nodelay", YES_NO, "no", REPLICATION),
    row("repl-diskless-load", Kind::Choice(&["disabled", "on-empty-db", "swapdb"]), "disabled", REPLICATION),
    row("repl-diskless-sync", YES_NO, "yes", REPLICATION),
    row("repl-diskless-sync-delay", COUNT, "5", REPLICATION),
    row("repl-diskless-sync-max-replicas", COUNT, "0", REPLICATION),
    row("repl-ping-replica-period", POSITIVE, "10", REPLICATION).also(&["repl-ping-slave-period"]),
    row("repl-timeout", POSITIVE, "60", REPLICATION),
    row("replica-announce-ip", TEXT, "", REPLICATION).also(&["slave-announce-ip"]),
    row("replica-announce-port", PORT, "0", REPLICATION).also(&["slave-announce-port"]),
    row("replica-announced", YES_NO, "yes", REPLICATION),
    row("replica-ignore-disk-write-errors", YES_NO, "no", REPLICATION),
    row("replica-ignore-maxmemory", YES_NO, "yes", REPLICATION).also(&["slave-ignore-maxmemory"]),
    row("replica-lazy-flush", YES_NO, "no", REPLICATION).also(&["slave-lazy-flush"]),
    row("replica-priority", COUNT, "100", REPLICATION).also(&["slave-priority"]),
    row("replica-read-only", YES_NO, "yes", REPLICATION).also(&["slave-read-only"]),
    row("replica-serve-stale-data", YES_NO, "yes", REPLICATION).also(&["slave-serve-stale-data"]),
    row("replicaof", Kind::Words, "", REPLICATION).also(&["slaveof"]).immutable().refused(),
    // Encodings of values
    row("list-compress-depth", COUNT, "0", ENCODINGS),
    row("list-max-listpack-size", INT, "-2", ENCODINGS).also(&["list-max-ziplist-size"]),
    row("stream-node-max-bytes", MEMORY, "4096", ENCODINGS),
    // Scripts, messages, tracking
    row("locale-collate", TEXT, "", SCRIPTS),
    row("enable-module-command", MODES, "no", MODULES).immutable(),
    row("enable-protected-configs", MODES, "no", "dir and dbfilename cannot change while the server runs").immutable(),
    // TLS and listening
    row("bind-source-addr", TEXT, "", OTHERS),
    row("socket-mark-id", COUNT, "0", LISTEN).immutable(),
    row("tls-cluster", YES_NO, "no", OTHERS),
    row("tls-replication", YES_NO, "no", OTHERS),
    // The process
    row("always-show-logo", YES_NO, "no", "there is no logo").immutable(),
    row("aof_rewrite_cpulist", TEXT, "", PROCESS).immutable(),
    row("bgsave_cpulist", TEXT, "", PROCESS).immutable(),
    row("bio_cpulist", TEXT, "", PROCESS).immutable(),
    row("crash-log-enabled", YES_NO, "yes", PROCESS),
    row("crash-memcheck-enabled", YES_NO, "yes", PROCESS),
    row("daemonize", YES_NO, "no", PROCESS).immutable(),
    row("disable-thp", YES_NO, "yes", PROCESS).immutable(),
    row("ignore-warnings", TEXT, "", PROCESS),
    row("io-threads", Kind::Integer { min: 1, max: 128 }, "1", "threads is the setting").immutable(),
    row("io-threads-do-reads", YES_NO, "no", "threads is the setting").immutable(),
    row("oom-score-adj", Kind::Choice(&["no", "yes", "relative", "absolute"]), "no", PROCESS),
    row("oom-score-adj-values", Kind::Checked(checks::OOM_VALUES), "0 200 800", PROCESS),
    row("pidfile", TEXT, "", PROCESS).immutable(),
    row("proc-title-template", TEXT, "{title} {listen-addr} {server-mode}", PROCESS),
    row("server_cpulist", TEXT, "", PROCESS).immutable(),
    row("set-proc-title", YES_NO, "yes", PROCESS).immutable(),
    row("supervised", Kind::Choice(&["upstart", "systemd", "auto", "no"]), "no", PROCESS).immutable(),
    row("syslog-enabled", YES_NO, "no", PROCESS).immutable(),
    row("syslog-facility", FACILITIES, "local0", PROCESS).immutable(),
    row("syslog-ident", TEXT, "redis", PROCESS).immutable(),
];
