//! Every setting once: its name, the values it may have, whether it can change while the server
//! runs, and what it does.
//!
//! Names and defaults that Redis has too are those of Redis 7.0 and 7.2 (facts, see
//! <https://redis.io/docs/latest/operate/oss_and_stack/management/config/>). Those that have no
//! meaning here are in [`super::without_effect`].

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use super::checks;
use super::kind::{COUNT, Kind, LARGE, MEMORY, MODES, PORT};
use super::{http, tls, without_effect};

/// One setting.
#[derive(Clone, Copy)]
pub struct Setting {
    pub name: &'static str,
    /// Older names of the setting in Redis.
    pub aliases: &'static [&'static str],
    /// Its letter on the command line.
    pub short: Option<char>,
    pub kind: Kind,
    pub default: &'static str,
    pub change: Change,
    pub group: Group,
    pub effect: Effect,
    /// If the setting is given several times, the values add up.
    pub adds_up: bool,
    pub secret: bool,
    /// What it does, for people.
    pub summary: &'static str,
}

/// Whether CONFIG SET may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Yes.
    Any,
    /// Only at start. Setting the current value is allowed.
    AtStart,
    /// Only at start. Redis refuses it whatever the value.
    Immutable,
    /// As `Immutable`, with Redis's other text.
    Protected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Works,
    /// Accepted and returned, but without effect; with the reason.
    None(&'static str),
    /// Ignoring it could do harm, so only the default is accepted; with the reason.
    OnlyDefault(&'static str),
}

/// Headings of `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Server,
    Tls,
    Log,
    Kafka,
    Store,
    Limits,
    Logging,
    Types,
    WithoutEffect,
}

impl Group {
    pub fn heading(self) -> &'static str {
        match self {
            Group::Server => "Server",
            Group::Tls => "TLS",
            Group::Log => "Log",
            Group::Kafka => "Kafka",
            Group::Store => "Store",
            Group::Limits => "Limits",
            Group::Logging => "Logging and statistics",
            Group::Types => "Data types",
            Group::WithoutEffect => "Without effect",
        }
    }
}

impl Setting {
    /// The defaults of the fields that rows leave out.
    pub const DEFAULT: Setting = Setting {
        name: "",
        aliases: &[],
        short: None,
        kind: Kind::Text,
        default: "",
        change: Change::Any,
        group: Group::Server,
        effect: Effect::Works,
        adds_up: false,
        secret: false,
        summary: "",
    };

    /// Its environment variable.
    pub fn variable(&self) -> String {
        variable(self.name)
    }

    /// All its names, the proper one first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// The environment variable of a setting of this name.
pub fn variable(name: &str) -> String {
    format!("HIGHWATER_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Every setting: those with an effect, then the others.
pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    EFFECTIVE
        .iter()
        .chain(tls::SETTINGS)
        .chain(http::SETTINGS)
        .chain(without_effect::SETTINGS)
        .copied()
        .collect()
});

/// Index in [`SETTINGS`] by name and alias, in lower case.
static PLACES: LazyLock<HashMap<&'static str, usize>> = LazyLock::new(|| {
    let named = SETTINGS.iter().enumerate();
    named
        .flat_map(|(at, setting)| setting.names().map(move |name| (name, at)))
        .collect()
});

/// Index of a setting, by its name in any case.
pub fn place(name: &str) -> Option<usize> {
    PLACES
        .get(name)
        .or_else(|| PLACES.get(name.to_ascii_lowercase().as_str()))
        .copied()
}

/// The name that is most similar to this one, if any is similar enough.
pub fn nearest(name: &str) -> Option<&'static str> {
    const ALIKE: f64 = 0.8;
    let name = name.to_ascii_lowercase();
    let likeness = |known: &&'static str| strsim::jaro_winkler(&name, known);
    PLACES
        .keys()
        .copied()
        .map(|known| (likeness(&known), known))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, known)| known)
}

const D: Setting = Setting::DEFAULT;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOUR: Duration = Duration::from_secs(3_600);

/// Settings with an effect, in the order of `--help`.
const EFFECTIVE: &[Setting] = &[
    // Server
    Setting {
        name: "port",
        kind: PORT,
        default: "6379",
        change: Change::AtStart,
        summary: "Port for Redis clients; 0 for none.",
        ..D
    },
    Setting {
        name: "unixsocket",
        kind: Kind::Text,
        default: "",
        change: Change::AtStart,
        summary: "Path of a Unix socket for Redis clients; empty for none.",
        ..D
    },
    Setting {
        name: "unixsocketperm",
        kind: Kind::Checked(checks::PERMISSIONS),
        default: "0",
        change: Change::AtStart,
        summary: "Permissions of the Unix socket's file, as for chmod; 0 for the usual ones.",
        ..D
    },
    Setting {
        name: "bind",
        kind: Kind::Words,
        default: "127.0.0.1 -::1",
        change: Change::AtStart,
        summary: "Addresses to listen on; one with a leading - may be missing on this machine; * is every IPv4 address, ::* every IPv6 address.",
        ..D
    },
    Setting {
        name: "dir",
        default: "./data",
        change: Change::Protected,
        summary: "Data directory; made if it is not there.",
        ..D
    },
    Setting {
        name: "snapshot",
        change: Change::AtStart,
        summary: "Begin from this file of highwater snapshot if dir is empty; else it is not read.",
        ..D
    },
    Setting {
        name: "databases",
        kind: Kind::Integer { min: 1, max: 1_024 },
        default: "16",
        change: Change::Immutable,
        summary: "Number of databases for SELECT.",
        ..D
    },
    Setting {
        name: "requirepass",
        secret: true,
        summary: "Password of the default user, which clients must give with AUTH or HELLO.",
        ..D
    },
    Setting {
        name: "ping-user",
        summary: "User of --ping, who may run PING; empty for the default user, with requirepass.",
        ..D
    },
    Setting {
        name: "ping-password",
        secret: true,
        summary: "Password of this user.",
        ..D
    },
    Setting {
        name: "aclfile",
        change: Change::Immutable,
        summary: "File of users, for ACL LOAD and SAVE; relative to dir.",
        ..D
    },
    Setting {
        name: "acl-pubsub-default",
        kind: Kind::Choice(&["allchannels", "resetchannels"]),
        default: "resetchannels",
        summary: "Whether new users may use all channels or none.",
        ..D
    },
    Setting {
        name: "acllog-max-len",
        kind: LARGE,
        default: "128",
        summary: "Entries that ACL LOG keeps at most.",
        ..D
    },
    Setting {
        name: "protected-mode",
        kind: Kind::YesNo,
        default: "yes",
        summary: "Without a password, take connections from this machine only.",
        ..D
    },
    Setting {
        name: "enable-debug-command",
        kind: MODES,
        default: "no",
        change: Change::Immutable,
        summary: "Who may run DEBUG: nobody, local clients, or all.",
        ..D
    },
    Setting {
        name: "grpc-port",
        kind: PORT,
        default: "0",
        change: Change::AtStart,
        summary: "Port for gRPC clients (kvs2, health, reflection); 0 for none.",
        ..D
    },
    Setting {
        name: "threads",
        kind: Kind::Integer { min: 0, max: 1_024 },
        default: "0",
        change: Change::AtStart,
        summary: "Threads that serve connections; 0 for one per core.",
        ..D
    },
    Setting {
        name: "read-consistency",
        kind: Kind::Choice(&["session", "eventual", "linearizable", "max-lag"]),
        default: "session",
        summary: "What reads may miss. session: nothing that their connection wrote or saw; eventual: that too; linearizable: nothing that was acknowledged anywhere before; max-lag: nothing older than max-lag-ms.",
        ..D
    },
    Setting {
        name: "max-lag-ms",
        kind: Kind::Integer { min: 1, max: 3_600_000 },
        default: "1000",
        summary: "With read-consistency max-lag: reads on a node that is further behind the log, in milliseconds, are answered STALE.",
        ..D
    },
    Setting {
        name: "pubsub",
        kind: Kind::Choice(&["topic", "node"]),
        default: "topic",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "How far messages of PUBLISH go. topic: to all nodes, by the topic NAME.pubsub; node: to subscribers of this node only, as always without Kafka.",
        ..D
    },
    Setting {
        name: "active-expire",
        kind: Kind::YesNo,
        default: "yes",
        summary: "Delete expired keys in the background (they are never shown, either way).",
        ..D
    },
    // Log
    Setting {
        name: "fsync",
        aliases: &["appendfsync"],
        kind: Kind::Choice(&["everysec", "always", "no"]),
        default: "always",
        change: Change::AtStart,
        group: Group::Log,
        summary: "When the embedded log is flushed to disk: always (before OK), everysec or no (a power failure can lose what was answered OK).",
        ..D
    },
    Setting {
        name: "segment-bytes",
        kind: Kind::Memory {
            min: 64 * KIB,
            max: 2 * GIB,
        },
        default: "67108864",
        change: Change::AtStart,
        group: Group::Log,
        summary: "Size of the embedded log's files; a 32nd of the disk at most.",
        ..D
    },
    Setting {
        name: "write-timeout",
        kind: Kind::Time {
            min: Duration::from_secs(1),
            max: HOUR,
        },
        default: "5s",
        change: Change::AtStart,
        group: Group::Log,
        summary: "Longest time between a write and its reply, OK or error.",
        ..D
    },
    Setting {
        name: "startup-timeout",
        kind: Kind::Time {
            min: Duration::from_secs(1),
            max: HOUR,
        },
        default: "1m",
        change: Change::AtStart,
        group: Group::Log,
        summary: "How long a start may take to reach the log before it is given up.",
        ..D
    },
    // Kafka
    Setting {
        name: "bootstrap-servers",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "Kafka brokers, HOST:PORT,HOST:PORT; without them the embedded log is used.",
        ..D
    },
    Setting {
        name: "topic",
        default: "highwater",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "Topic of database 0; database N is TOPIC.dbN.",
        ..D
    },
    Setting {
        name: "database",
        kind: Kind::Checked(checks::DATABASES),
        adds_up: true,
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "Shows another topic as database N; may be given several times.",
        ..D
    },
    Setting {
        name: "create-databases",
        kind: Kind::YesNo,
        default: "yes",
        group: Group::Kafka,
        summary: "Create the topic of a database at its first write. With no, a client cannot make topics by choosing databases: those that have a topic can be written, and database 0.",
        ..D
    },
    Setting {
        name: "max-features",
        kind: Kind::Checked(checks::FEATURES),
        default: checks::ALL_FEATURES,
        group: Group::Kafka,
        summary: "Features of the topic's format (bounds, function, hash, list, set, split, stream, zset) that this node may begin to use in a topic: all, none, or names with commas, as hash,zset. While older nodes follow a topic, leave out what they do not know.",
        ..D
    },
    Setting {
        name: "partitions",
        kind: Kind::Integer { min: 1, max: 10_000 },
        default: "1",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "Partitions of topics that are created; writes are in order within each.",
        ..D
    },
    Setting {
        name: "replication-factor",
        kind: Kind::Integer { min: 0, max: 100 },
        default: "0",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "Replicas of topics that are created; 0 for the broker's default.",
        ..D
    },
    Setting {
        name: "partitioner",
        kind: Kind::Choice(&["murmur2", "crc32"]),
        default: "murmur2",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "How keys go to partitions: murmur2 as the Java client does, crc32 as librdkafka and kcat do by default.",
        ..D
    },
    Setting {
        name: "kafka-property",
        short: Some('X'),
        kind: Kind::Checked(checks::PROPERTIES),
        adds_up: true,
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "Any librdkafka property (TLS, SASL, ...), as often as needed; in the environment one a line.",
        ..D
    },
    Setting {
        name: "kafka-properties-file",
        short: Some('F'),
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "File with one PROPERTY=VALUE a line, as kcat takes it; the right place for secrets.",
        ..D
    },
    Setting {
        name: "serve-stale-at-start",
        kind: Kind::YesNo,
        default: "no",
        change: Change::AtStart,
        group: Group::Kafka,
        summary: "While Kafka is away at the start, answer reads from the local store.",
        ..D
    },
    // Store
    Setting {
        name: "store",
        kind: Kind::Choice(&["sled", "fjall"]),
        default: "sled",
        change: Change::AtStart,
        group: Group::Store,
        summary: "Engine of the local store: sled, or fjall (quicker to write at many millions of keys). Another one than before: a rebuild.",
        ..D
    },
    Setting {
        name: "store-cache",
        kind: Kind::Memory {
            min: 1 << 20,
            max: u64::MAX,
        },
        default: "8388608",
        change: Change::AtStart,
        group: Group::Store,
        summary: "Memory that the local store caches its pages in, beside maxmemory. More than that makes reads of keys quicker that are not in memory: the first one of each after a start, and all where they do not fit.",
        ..D
    },
    Setting {
        name: "checkpoint-interval",
        kind: Kind::Time {
            min: Duration::from_millis(100),
            max: HOUR,
        },
        default: "5s",
        group: Group::Store,
        summary: "Time between checkpoints of the local store: about so much of the log is read again after a crash.",
        ..D
    },
    // Limits
    Setting {
        name: "maxmemory",
        kind: MEMORY,
        default: "0",
        group: Group::Limits,
        summary: "Memory for keys and values in front of the local store; never deletes a key; 0 for a quarter of the machine's.",
        ..D
    },
    Setting {
        name: "maxclients",
        kind: Kind::Integer {
            min: 1,
            max: u32::MAX as i64,
        },
        default: "10000",
        group: Group::Limits,
        summary: "Connections at one time.",
        ..D
    },
    Setting {
        name: "maxmemory-clients",
        kind: Kind::MemoryOrPercent,
        default: "0",
        group: Group::Limits,
        summary: "Memory for what connections hold (requests, replies, queued commands), or percent of maxmemory: above, those that hold most are closed. 0 for a quarter of the machine's.",
        ..D
    },
    Setting {
        name: "timeout",
        kind: COUNT,
        default: "0",
        group: Group::Limits,
        summary: "Seconds after which an idle connection is closed; 0 for never.",
        ..D
    },
    Setting {
        name: "tcp-keepalive",
        kind: COUNT,
        default: "300",
        group: Group::Limits,
        summary: "Seconds after which a silent peer is probed; 0 for never. Holds for new connections.",
        ..D
    },
    Setting {
        name: "tcp-backlog",
        kind: COUNT,
        default: "511",
        change: Change::Immutable,
        group: Group::Limits,
        summary: "Connections that may wait to be taken.",
        ..D
    },
    Setting {
        name: "proto-max-bulk-len",
        kind: Kind::Memory {
            min: MIB,
            max: i64::MAX as u64,
        },
        default: "536870912",
        group: Group::Limits,
        summary: "Longest string of a request, and longest value.",
        ..D
    },
    Setting {
        name: "client-query-buffer-limit",
        kind: Kind::Memory {
            min: MIB,
            max: i64::MAX as u64,
        },
        default: "1073741824",
        group: Group::Limits,
        summary: "Longest request.",
        ..D
    },
    Setting {
        name: "client-output-buffer-limit",
        kind: Kind::Checked(checks::OUTPUT_LIMITS),
        default: "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
        group: Group::Limits,
        summary: "Replies that may wait for a client that does not read, before it is disconnected; classes normal and pubsub.",
        ..D
    },
    // Logging and statistics
    Setting {
        name: "loglevel",
        kind: Kind::Choice(&["debug", "verbose", "notice", "warning", "nothing"]),
        default: "notice",
        group: Group::Logging,
        summary: "How much is logged.",
        ..D
    },
    Setting {
        name: "logfile",
        change: Change::Immutable,
        group: Group::Logging,
        summary: "File for the log lines instead of standard error.",
        ..D
    },
    Setting {
        name: "log-format",
        kind: Kind::Choice(&["text", "json"]),
        default: "text",
        change: Change::AtStart,
        group: Group::Logging,
        summary: "Log lines for people, or one JSON object a line.",
        ..D
    },
    Setting {
        name: "notify-keyspace-events",
        kind: Kind::Checked(checks::EVENTS),
        default: "",
        group: Group::Limits,
        summary: "Classes of events about changed keys that are published on this node, as in Redis.",
        ..D
    },
    Setting {
        name: "tracking-table-max-keys",
        kind: LARGE,
        default: "1000000",
        group: Group::Limits,
        summary: "Keys that are remembered for CLIENT TRACKING; above that, clients are told that some have changed. 0 for any number (at most 512 MB).",
        ..D
    },
    Setting {
        name: "slowlog-log-slower-than",
        kind: Kind::Integer { min: -1, max: i64::MAX },
        default: "10000",
        group: Group::Logging,
        summary: "Microseconds from which the wait for a command is noted for SLOWLOG; -1 for never.",
        ..D
    },
    Setting {
        name: "slowlog-max-len",
        kind: LARGE,
        default: "128",
        group: Group::Logging,
        summary: "Entries that SLOWLOG keeps.",
        ..D
    },
    Setting {
        name: "latency-monitor-threshold",
        kind: LARGE,
        default: "0",
        group: Group::Logging,
        summary: "Milliseconds from which an event is noted for LATENCY; 0 for never.",
        ..D
    },
    Setting {
        name: "latency-tracking",
        kind: Kind::YesNo,
        default: "yes",
        group: Group::Logging,
        summary: "Count how long clients wait for each command, for LATENCY HISTOGRAM and INFO latencystats.",
        ..D
    },
    Setting {
        name: "latency-tracking-info-percentiles",
        kind: Kind::Checked(checks::PERCENTILES),
        default: "50 99 99.9",
        group: Group::Logging,
        summary: "Percentiles that INFO latencystats tells.",
        ..D
    },
    Setting {
        name: "split-collections",
        kind: Kind::YesNo,
        default: "yes",
        group: Group::Types,
        summary: "Give each element of a large hash, set, sorted set or list a record of its own. With no, a collection stays one record, for consumers that know only those; it is then at most as large as a record.",
        ..D
    },
    Setting {
        name: "max-packed-bytes",
        kind: MEMORY,
        default: "4096",
        group: Group::Types,
        summary: "A hash, set, sorted set or list of more bytes is split: each element gets a record of its own.",
        ..D
    },
    Setting {
        name: "max-packed-elements",
        kind: LARGE,
        default: "512",
        group: Group::Types,
        summary: "A hash, set, sorted set or list of more elements is split: each of them gets a record of its own.",
        ..D
    },
    Setting {
        name: "stream-node-max-entries",
        kind: LARGE,
        default: "100",
        group: Group::Types,
        summary: "An approximate trim (~) of a stream removes blocks of so many entries.",
        ..D
    },
    Setting {
        name: "hash-max-listpack-entries",
        aliases: &["hash-max-ziplist-entries"],
        kind: LARGE,
        default: "512",
        group: Group::Types,
        summary: "OBJECT ENCODING tells listpack of a hash of up to so many fields.",
        ..D
    },
    Setting {
        name: "hash-max-listpack-value",
        aliases: &["hash-max-ziplist-value"],
        kind: MEMORY,
        default: "64",
        group: Group::Types,
        summary: "OBJECT ENCODING tells listpack of a hash whose names and values have up to so many bytes.",
        ..D
    },
    Setting {
        name: "busy-reply-threshold",
        aliases: &["lua-time-limit"],
        kind: LARGE,
        default: "5000",
        group: Group::Types,
        summary: "Milliseconds after which SCRIPT KILL may stop a script, and commands that wait for its keys get an error.",
        ..D
    },
    Setting {
        name: "hll-sparse-max-bytes",
        kind: MEMORY,
        default: "3000",
        group: Group::Types,
        summary: "A HyperLogLog of more bytes has the dense form.",
        ..D
    },
    Setting {
        name: "set-max-intset-entries",
        kind: LARGE,
        default: "512",
        group: Group::Types,
        summary: "OBJECT ENCODING tells intset of a set of up to so many integers.",
        ..D
    },
    Setting {
        name: "set-max-listpack-entries",
        kind: LARGE,
        default: "128",
        group: Group::Types,
        summary: "OBJECT ENCODING tells listpack of a set of up to so many members.",
        ..D
    },
    Setting {
        name: "set-max-listpack-value",
        kind: MEMORY,
        default: "64",
        group: Group::Types,
        summary: "OBJECT ENCODING tells listpack of a set whose members have up to so many bytes.",
        ..D
    },
    Setting {
        name: "zset-max-listpack-entries",
        aliases: &["zset-max-ziplist-entries"],
        kind: LARGE,
        default: "128",
        group: Group::Types,
        summary: "OBJECT ENCODING tells listpack of a sorted set of up to so many members.",
        ..D
    },
    Setting {
        name: "zset-max-listpack-value",
        aliases: &["zset-max-ziplist-value"],
        kind: MEMORY,
        default: "64",
        group: Group::Types,
        summary: "OBJECT ENCODING tells listpack of a sorted set whose members have up to so many bytes.",
        ..D
    },
];
