//! Typed getters: what the server reads of its settings. Those of hot paths are atomics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::checks::{self, Mapping, OutputLimits};
use super::tls::TlsSettings;
use super::{Config, machine};
use crate::model::{SPLIT, class};

/// The settings that are read at every command or connection.
pub(super) struct Hot {
    proto_max_bulk_len: AtomicUsize,
    client_query_buffer_limit: AtomicUsize,
    output_limits: ArcSwap<OutputLimits>,
    protected_mode: AtomicBool,
    maxclients: AtomicUsize,
    timeout_seconds: AtomicU64,
    tcp_keepalive: AtomicU64,
    slowlog_log_slower_than: AtomicI64,
    slowlog_max_len: AtomicUsize,
    latency_monitor_threshold: AtomicU64,
    latency_tracking: AtomicBool,
    tracking_table_max_keys: AtomicUsize,
    notify_classes: AtomicU32,
    databases: AtomicUsize,
    max_packed_bytes: AtomicUsize,
    max_packed_elements: AtomicUsize,
}

impl Default for Hot {
    fn default() -> Self {
        Hot {
            proto_max_bulk_len: AtomicUsize::default(),
            client_query_buffer_limit: AtomicUsize::default(),
            output_limits: ArcSwap::from_pointee(OutputLimits::default()),
            protected_mode: AtomicBool::default(),
            maxclients: AtomicUsize::default(),
            timeout_seconds: AtomicU64::default(),
            tcp_keepalive: AtomicU64::default(),
            slowlog_log_slower_than: AtomicI64::default(),
            slowlog_max_len: AtomicUsize::default(),
            latency_monitor_threshold: AtomicU64::default(),
            latency_tracking: AtomicBool::default(),
            tracking_table_max_keys: AtomicUsize::default(),
            notify_classes: AtomicU32::default(),
            databases: AtomicUsize::default(),
            max_packed_bytes: AtomicUsize::default(),
            max_packed_elements: AtomicUsize::default(),
        }
    }
}

/// The classes of events that the letters of `notify-keyspace-events` name. 0 if no channel gets
/// them, or none is named.
fn classes(letters: &str) -> u32 {
    let known = |letter| class::LETTERS.iter().find(|(known, _)| *known == letter);
    let named = letters
        .chars()
        .filter_map(known)
        .fold(0, |named, (_, class)| named | class);
    let channels = named & (class::TO_KEY | class::TO_EVENT);
    if channels == 0 || channels == named { 0 } else { named }
}

/// Getters of hot paths.
impl Config {
    /// Longest string, bytes.
    pub fn proto_max_bulk_len(&self) -> usize {
        self.hot.proto_max_bulk_len.load(Ordering::Relaxed)
    }

    /// Longest request, bytes.
    pub fn client_query_buffer_limit(&self) -> usize {
        self.hot.client_query_buffer_limit.load(Ordering::Relaxed)
    }

    pub fn output_limits(&self) -> OutputLimits {
        **self.hot.output_limits.load()
    }

    pub fn protected_mode(&self) -> bool {
        self.hot.protected_mode.load(Ordering::Relaxed)
    }

    pub fn maxclients(&self) -> usize {
        self.hot.maxclients.load(Ordering::Relaxed)
    }

    /// Time after which an idle connection is closed.
    pub fn timeout(&self) -> Option<Duration> {
        match self.hot.timeout_seconds.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }

    /// Seconds. 0 is off.
    pub fn tcp_keepalive(&self) -> u64 {
        self.hot.tcp_keepalive.load(Ordering::Relaxed)
    }

    /// Microseconds. Negative is off.
    pub fn slowlog_log_slower_than(&self) -> i64 {
        self.hot.slowlog_log_slower_than.load(Ordering::Relaxed)
    }

    pub fn slowlog_max_len(&self) -> usize {
        self.hot.slowlog_max_len.load(Ordering::Relaxed)
    }

    /// Milliseconds. 0 is off.
    pub fn latency_monitor_threshold(&self) -> u64 {
        self.hot.latency_monitor_threshold.load(Ordering::Relaxed)
    }

    /// The classes of keyspace events ([`class`]); 0 if there is nothing to tell of them.
    pub fn notify_classes(&self) -> u32 {
        self.hot.notify_classes.load(Ordering::Relaxed)
    }

    /// Keys in the table of CLIENT TRACKING; 0 for any number.
    pub fn tracking_table_max_keys(&self) -> usize {
        self.hot.tracking_table_max_keys.load(Ordering::Relaxed)
    }

    pub fn latency_tracking(&self) -> bool {
        self.hot.latency_tracking.load(Ordering::Relaxed)
    }

    /// The most bytes, and the most elements, of a collection that is one record. What is larger is
    /// split, if it may be.
    pub fn packed_limits(&self) -> (usize, usize) {
        let Hot {
            max_packed_bytes,
            max_packed_elements,
            ..
        } = &self.hot;
        (
            max_packed_bytes.load(Ordering::Relaxed),
            max_packed_elements.load(Ordering::Relaxed),
        )
    }

    /// True if large and contended collections are split.
    pub fn may_split(&self) -> bool {
        self.packed_limits().1 < usize::MAX
    }

    pub fn databases(&self) -> u16 {
        self.hot.databases.load(Ordering::Relaxed) as u16
    }
}

/// Getters for the start, and for code that acts on a change.
impl Config {
    pub fn port(&self) -> u16 {
        self.number("port") as u16
    }

    /// Addresses to listen on. True where a missing one is not an error.
    pub fn bind(&self) -> Vec<(String, bool)> {
        let value = self.value("bind");
        let address = |word: &str| match word.strip_prefix('-') {
            Some(optional) => (optional.to_string(), true),
            None => (word.to_string(), false),
        };
        value.split_ascii_whitespace().map(address).collect()
    }

    pub fn tcp_backlog(&self) -> u32 {
        self.number("tcp-backlog").clamp(1, i32::MAX as u64) as u32
    }

    pub fn grpc_port(&self) -> u16 {
        self.number("grpc-port") as u16
    }

    pub fn http_port(&self) -> u16 {
        self.number("http-port") as u16
    }

    /// Whether metrics are shown without a user.
    pub fn metrics_open(&self) -> bool {
        self.is("metrics-open", "yes")
    }

    /// How far a node may be behind the log and still be ready.
    pub fn ready_max_lag(&self) -> Duration {
        self.time("ready-max-lag")
    }

    /// Whether a node is ready while the log does not answer.
    pub fn ready_without_log(&self) -> bool {
        self.is("ready-without-log", "yes")
    }

    /// The path of the Unix socket to listen on.
    pub fn unixsocket(&self) -> Option<String> {
        Some(self.value("unixsocket").to_string()).filter(|path| !path.is_empty())
    }

    /// The permissions of its file; 0 for those that the process gives to files.
    pub fn unixsocketperm(&self) -> u32 {
        u32::from_str_radix(&self.value("unixsocketperm"), 8).unwrap_or(0)
    }

    pub fn tls_port(&self) -> u16 {
        self.number("tls-port") as u16
    }

    pub fn grpc_tls_port(&self) -> u16 {
        self.number("grpc-tls-port") as u16
    }

    pub fn http_tls_port(&self) -> u16 {
        self.number("http-tls-port") as u16
    }

    pub fn tls(&self) -> TlsSettings {
        TlsSettings::read(|name| self.value(name))
    }

    /// Whether the common name in its certificate gives a client its user.
    pub fn users_by_common_name(&self) -> bool {
        *self.value("tls-auth-clients-user") == *"CN"
    }

    pub fn dir(&self) -> PathBuf {
        PathBuf::from(&*self.value("dir"))
    }

    /// The snapshot to begin from, if one is named.
    pub fn snapshot(&self) -> Option<Arc<str>> {
        Some(self.value("snapshot")).filter(|path| !path.is_empty())
    }

    /// Threads that serve connections.
    pub fn threads(&self) -> usize {
        match self.number("threads") {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            threads => threads as usize,
        }
    }

    /// `eventual`, `session`, `linearizable` or `max-lag`.
    pub fn read_consistency(&self) -> Arc<str> {
        self.value("read-consistency")
    }

    /// Whether messages go to all nodes.
    pub fn pubsub_by_topic(&self) -> bool {
        self.is("pubsub", "topic")
    }

    pub fn max_lag(&self) -> Duration {
        Duration::from_millis(self.number("max-lag-ms"))
    }

    pub fn active_expire(&self) -> bool {
        self.is("active-expire", "yes")
    }

    /// `always`, `everysec` or `no`.
    pub fn fsync(&self) -> Arc<str> {
        self.value("fsync")
    }

    pub fn segment_bytes(&self) -> u64 {
        self.number("segment-bytes")
    }

    pub fn write_timeout(&self) -> Duration {
        self.time("write-timeout")
    }

    pub fn startup_timeout(&self) -> Duration {
        self.time("startup-timeout")
    }

    pub fn serve_stale_at_start(&self) -> bool {
        self.is("serve-stale-at-start", "yes")
    }

    /// Empty for the embedded log.
    pub fn bootstrap_servers(&self) -> Arc<str> {
        self.value("bootstrap-servers")
    }

    pub fn topic(&self) -> Arc<str> {
        self.value("topic")
    }

    /// Databases whose topic has another name.
    pub fn database_topics(&self) -> BTreeMap<u16, Mapping> {
        checks::parse_mappings(&self.value("database")).expect("checked when it was set")
    }

    /// Whether a database's topic is created at its first write.
    pub fn create_databases(&self) -> bool {
        self.is("create-databases", "yes")
    }

    /// Whether this feature of the topic's format may be used in topics that do not use it yet.
    pub fn may_use(&self, feature: &str) -> bool {
        let features = self.value("max-features");
        &*features == checks::ALL_FEATURES || features.split(',').any(|name| name == feature)
    }

    /// The most elements of a collection that Redis keeps as a listpack, and the most bytes of
    /// each; `of` as TYPE names it.
    pub fn listpack_limits(&self, of: &str) -> (usize, usize) {
        let limit = |what: &str| self.number(&format!("{of}-max-listpack-{what}")) as usize;
        (limit("entries"), limit("value"))
    }

    /// How many entries of a stream an approximate trim removes at once.
    pub fn stream_block(&self) -> u64 {
        match self.number("stream-node-max-entries") {
            0 => 100,
            entries => entries,
        }
    }

    /// The most integers of a set that Redis keeps as an intset.
    pub fn intset_limit(&self) -> usize {
        self.number("set-max-intset-entries") as usize
    }

    /// How long a script may run before SCRIPT KILL may stop it, and how long others wait for it.
    pub fn busy_reply_threshold(&self) -> Duration {
        Duration::from_millis(self.number("busy-reply-threshold").max(1))
    }

    /// The most bytes of a HyperLogLog in the sparse form.
    pub fn hll_sparse_max_bytes(&self) -> usize {
        self.number("hll-sparse-max-bytes") as usize
    }

    pub fn partitions(&self) -> u32 {
        self.number("partitions") as u32
    }

    /// `None`: the broker's default.
    pub fn replication_factor(&self) -> Option<u16> {
        Some(self.number("replication-factor") as u16).filter(|&factor| factor > 0)
    }

    /// `murmur2` or `crc32`.
    pub fn partitioner(&self) -> Arc<str> {
        self.value("partitioner")
    }

    /// librdkafka properties, secrets included: only for the Kafka clients.
    pub fn kafka_properties(&self) -> Vec<(String, String)> {
        checks::parse_properties(&self.value("kafka-property")).expect("checked when it was set")
    }

    pub fn store(&self) -> Arc<str> {
        self.value("store")
    }

    pub fn store_cache(&self) -> u64 {
        self.number("store-cache")
    }

    pub fn checkpoint_interval(&self) -> Duration {
        self.time("checkpoint-interval")
    }

    /// Bytes that keys and values in memory may take (`maxmemory`).
    pub fn memory_limit(&self) -> usize {
        let bytes = match self.number("maxmemory") {
            0 => machine::memory() / 4,
            bytes => bytes,
        };
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Bytes that connections may hold in memory together (`maxmemory-clients`).
    pub fn clients_memory_limit(&self) -> usize {
        let value = self.value("maxmemory-clients");
        let percent = value
            .strip_suffix('%')
            .and_then(|percent| percent.parse::<usize>().ok());
        let bytes = match percent {
            Some(percent) => self.memory_limit() / 100 * percent,
            None => value.parse().unwrap_or(0),
        };
        match bytes {
            0 => usize::try_from(machine::memory() / 4).unwrap_or(usize::MAX),
            bytes => bytes,
        }
    }

    /// Whether the policy would evict keys by how often they are used.
    pub fn policy_is_lfu(&self) -> bool {
        self.value("maxmemory-policy").ends_with("-lfu")
    }

    pub fn appendonly(&self) -> bool {
        self.is("appendonly", "yes")
    }

    pub fn latency_percentiles(&self) -> Vec<f64> {
        let value = self.value("latency-tracking-info-percentiles");
        let percentiles = value.split_ascii_whitespace();
        percentiles
            .map(|word| word.parse().expect("checked when it was set"))
            .collect()
    }

    /// Who may run DEBUG: `no`body, `local` clients, or all: `yes`.
    pub fn enable_debug_command(&self) -> Arc<str> {
        self.value("enable-debug-command")
    }

    /// The password of the default user, if it is set here.
    pub fn requirepass(&self) -> Option<Arc<str>> {
        Some(self.value("requirepass")).filter(|password| !password.is_empty())
    }

    /// The user and the password with which `--ping` logs in, if it has to.
    pub fn ping_login(&self) -> Option<(Arc<str>, Arc<str>)> {
        match self.value("ping-user") {
            user if user.is_empty() => Some(("default".into(), self.requirepass()?)),
            user => Some((user, self.value("ping-password"))),
        }
    }

    /// The file of users.
    pub fn acl_file(&self) -> Option<PathBuf> {
        let file = Some(self.value("aclfile")).filter(|file| !file.is_empty());
        file.map(|file| self.dir().join(&*file))
    }

    /// Whether new users may use every channel.
    pub fn acl_every_channel(&self) -> bool {
        self.is("acl-pubsub-default", "allchannels")
    }

    /// Entries that ACL LOG keeps at most.
    pub fn acllog_max_len(&self) -> usize {
        usize::try_from(self.number("acllog-max-len")).unwrap_or(usize::MAX)
    }

    pub fn loglevel(&self) -> Arc<str> {
        self.value("loglevel")
    }

    pub fn logfile(&self) -> Option<PathBuf> {
        Some(self.value("logfile"))
            .filter(|file| !file.is_empty())
            .map(|file| PathBuf::from(&*file))
    }

    pub fn log_is_json(&self) -> bool {
        self.is("log-format", "json")
    }
}

impl Config {
    /// Takes the values of hot paths over.
    pub(super) fn refresh(&self) {
        let hot = &self.hot;
        let size = |name| usize::try_from(self.number(name)).unwrap_or(usize::MAX);
        let slower_than = self
            .value("slowlog-log-slower-than")
            .parse()
            .expect("checked when it was set");
        let limits = OutputLimits::parse(&self.value("client-output-buffer-limit")).expect("checked when it was set");
        hot.proto_max_bulk_len
            .store(size("proto-max-bulk-len"), Ordering::Relaxed);
        hot.client_query_buffer_limit
            .store(size("client-query-buffer-limit"), Ordering::Relaxed);
        hot.output_limits.store(Arc::new(limits));
        hot.protected_mode
            .store(self.is("protected-mode", "yes"), Ordering::Relaxed);
        hot.maxclients.store(size("maxclients"), Ordering::Relaxed);
        hot.timeout_seconds.store(self.number("timeout"), Ordering::Relaxed);
        hot.tcp_keepalive.store(self.number("tcp-keepalive"), Ordering::Relaxed);
        hot.slowlog_log_slower_than.store(slower_than, Ordering::Relaxed);
        hot.slowlog_max_len.store(size("slowlog-max-len"), Ordering::Relaxed);
        hot.latency_monitor_threshold
            .store(self.number("latency-monitor-threshold"), Ordering::Relaxed);
        hot.latency_tracking
            .store(self.is("latency-tracking", "yes"), Ordering::Relaxed);
        hot.tracking_table_max_keys
            .store(size("tracking-table-max-keys"), Ordering::Relaxed);
        hot.notify_classes
            .store(classes(&self.value("notify-keyspace-events")), Ordering::Relaxed);
        hot.databases.store(size("databases"), Ordering::Relaxed);
        let is_split = self.is("split-collections", "yes") && self.may_use(SPLIT);
        let limit = |name| if is_split { size(name) } else { usize::MAX };
        hot.max_packed_bytes.store(limit("max-packed-bytes"), Ordering::Relaxed);
        hot.max_packed_elements
            .store(limit("max-packed-elements"), Ordering::Relaxed);
    }
}
