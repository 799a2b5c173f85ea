//! Every setting once: command line over environment over file, CONFIG GET and CONFIG SET.
//!
//! [`table`] has the rows, [`kind`] and [`checks`] say what a value may be, [`sources`] and [`cli`]
//! read them. [`Config`] is what the server reads: typed getters, those of hot paths as atomics. It
//! knows nothing of its readers. Code that must act on a change registers with
//! [`Config::on_change`].
//!
//! Secrets leave this module only through the getters that say so: they are not in `Debug` and not
//! in errors. CONFIG GET shows Redis's own (`requirepass`) as Redis does, since a client that may
//! run it has given the password. Those of Kafka reach beyond this server and are never shown.

pub mod checks;
pub mod cli;
pub mod copy;
pub mod kind;
pub mod machine;
mod sources;
pub mod table;
mod without_effect;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use checks::{Mapping, OutputLimits};
use copy::CopyOptions;
use sources::Given;
use table::{Change, Effect, SETTINGS, Setting};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built. Empty if it is not known.
pub const COMMIT: &str = env!("BUILD_COMMIT");
pub const PROFILE: &str = env!("BUILD_PROFILE");
pub const TARGET: &str = env!("BUILD_TARGET");

/// Shown in the place of a secret.
const HIDDEN: &str = "";

/// Why there is no configuration.
pub enum Refused {
    /// `--help` or `--version` was asked for.
    Shown(Box<clap::Error>),
    /// One line: where, what, and what would be right.
    Wrong(String),
}

/// The result of reading the file again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that have another value now.
    pub changed: Vec<&'static str>,
    /// Settings that will have another value after a restart.
    pub at_next_start: Vec<&'static str>,
}

/// Why CONFIG SET refuses. Shown as Redis's error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    #[error("ERR Unknown option or number of arguments for CONFIG SET - '{0}'")]
    Unknown(String),
    #[error("ERR CONFIG SET failed (possibly related to argument '{name}') - {reason}")]
    Failed { name: String, reason: String },
}

/// The values of all settings, in the order of the table.
type Values = Vec<Arc<str>>;
type Hook = Box<dyn Fn(&Config) + Send + Sync>;

/// The configuration of the server.
pub struct Config {
    values: ArcSwap<Values>,
    /// Which settings were given at start.
    is_given: Vec<bool>,
    file: Option<PathBuf>,
    /// The values that were given at start: the base of what is derived from them.
    started: Values,
    /// Settings given on the command line or in the environment, which take precedence over the
    /// file.
    above_file: Vec<bool>,
    ping: bool,
    copy: Option<CopyOptions>,
    exposed_files: Vec<PathBuf>,
    hot: Hot,
    /// Held while values change, so that hooks run in the order of the changes.
    hooks: Mutex<Vec<(usize, Hook)>>,
}

/// The settings that are read at every command or connection.
struct Hot {
    proto_max_bulk_len: AtomicUsize,
    client_query_buffer_limit: AtomicUsize,
    output_limits: ArcSwap<OutputLimits>,
    requirepass: ArcSwap<Option<Arc<str>>>,
    protected_mode: AtomicBool,
    maxclients: AtomicUsize,
    timeout_seconds: AtomicU64,
    tcp_keepalive: AtomicU64,
    slowlog_log_slower_than: AtomicI64,
    slowlog_max_len: AtomicUsize,
    latency_monitor_threshold: AtomicU64,
    latency_tracking: AtomicBool,
    databases: AtomicUsize,
}

impl Config {
    /// Reads the command line (with the program's name), the environment, and the file that the
    /// command line names.
    pub fn load(
        arguments: impl Iterator<Item = OsString>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Refused> {
        let line = cli::parse(arguments)?;
        let mut given = match &line.file {
            Some(file) => sources::from_file(file).map_err(Refused::Wrong)?,
            None => Vec::new(),
        };
        given.extend(sources::from_environment(environment).map_err(Refused::Wrong)?);
        given.extend(line.given);
        let mut config = Config::from_given(&given, line.file, line.copy).map_err(Refused::Wrong)?;
        config.exposed_files = exposed_files(&given);
        config.ping = line.ping;
        Ok(config)
    }

    /// The defaults, except for these values: for tests and tools.
    pub fn with(settings: &[(&str, &str)]) -> Result<Config, String> {
        let given = |&(name, value): &(&str, &str)| {
            let place = sources::Place::Flag(format!("--{name}"));
            let setting = table::place(name).ok_or_else(|| sources::unknown(&place, name))?;
            Ok(Given {
                setting,
                words: vec![value.to_string()],
                place,
            })
        };
        let given: Vec<Given> = settings.iter().map(given).collect::<Result<_, String>>()?;
        Config::from_given(&given, None, None)
    }

    /// `given` is in ascending precedence.
    fn from_given(given: &[Given], file: Option<PathBuf>, copy: Option<CopyOptions>) -> Result<Config, String> {
        let mut values: Values = SETTINGS.iter().map(|setting| setting.default.into()).collect();
        let mut is_given = vec![false; values.len()];
        let mut above_file = is_given.clone();
        for one in given {
            above_file[one.setting] |= !matches!(one.place, sources::Place::Line(..));
            let setting = &SETTINGS[one.setting];
            let value = start_value(setting, one, &values[one.setting], is_given[one.setting])?;
            values[one.setting] = value.into();
            is_given[one.setting] = true;
        }
        let started = values.clone();
        complete(&mut values)?;
        let config = Config {
            values: ArcSwap::from_pointee(values),
            started,
            above_file,
            is_given,
            file: file.map(|file| std::path::absolute(&file).unwrap_or(file)),
            ping: false,
            copy,
            exposed_files: Vec::new(),
            hot: Hot::default(),
            hooks: Mutex::default(),
        };
        config.refresh();
        config.check_as_a_whole()?;
        config.copy.as_ref().map_or(Ok(()), |copy| copy.check(&config))?;
        Ok(config)
    }

    /// Checks what must fit together.
    fn check_as_a_whole(&self) -> Result<(), String> {
        let kafka = !self.bootstrap_servers().is_empty();
        for setting in [
            "topic",
            "database",
            "partitions",
            "replication-factor",
            "partitioner",
            "kafka-property",
        ] {
            // A copy goes to Kafka in any case, and these settings apply to that side too.
            let of_copy = self.copy.is_some() && !matches!(setting, "topic" | "database");
            if !kafka && !of_copy && self.is_given(setting) {
                return Err(format!(
                    "--{setting} means nothing without Kafka; name its brokers with --bootstrap-servers HOST:PORT"
                ));
            }
        }
        let last = self.databases() - 1;
        if let Some(number) = self.database_topics().keys().find(|&&number| number > last) {
            return Err(format!(
                "--database {number}=...: the last database is {last}; raise --databases"
            ));
        }
        Ok(())
    }

    /// Settings whose name matches, with their values, as CONFIG GET shows them.
    pub fn get(&self, matches: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let values = self.values.load();
        let mut found = Vec::new();
        for (setting, value) in SETTINGS.iter().zip(values.iter()) {
            for name in setting.names().filter(|name| matches(name)) {
                let value = match setting.name {
                    "kafka-property" => checks::without_secrets(value),
                    _ => value.to_string(),
                };
                found.push((name.to_string(), value));
            }
        }
        found
    }

    /// Sets all of these, or none.
    pub fn set(&self, pairs: &[(&[u8], &[u8])]) -> Result<(), SetError> {
        let hooks = self.hooks.lock();
        let mut values: Values = Vec::clone(&self.values.load());
        let mut changes: Vec<(usize, String, &[u8])> = Vec::new();
        for &(name, value) in pairs {
            let name = String::from_utf8_lossy(name).into_owned();
            let Some(place) = table::place(&name) else {
                return Err(SetError::Unknown(name));
            };
            let twice = changes.iter().any(|(_, other, _)| other.eq_ignore_ascii_case(&name));
            check_changeable(&SETTINGS[place], twice).map_err(|reason| SetError::Failed {
                name: name.clone(),
                reason,
            })?;
            changes.push((place, name, value));
        }
        let mut changed = Vec::new();
        for (place, name, value) in changes {
            let value = new_value(&SETTINGS[place], value, &values[place])
                .map_err(|reason| SetError::Failed { name, reason })?;
            if let Some(value) = value {
                values[place] = value.into();
                changed.push(place);
            }
        }
        self.take_over(&hooks, values, &changed);
        Ok(())
    }

    fn take_over(&self, hooks: &[(usize, Hook)], values: Values, changed: &[usize]) {
        self.values.store(Arc::new(values));
        self.refresh();
        for (_, hook) in hooks.iter().filter(|(place, _)| changed.contains(place)) {
            hook(self);
        }
    }

    /// Applies the current contents of the file, as CONFIG SET would: all or, after an error,
    /// nothing. Values from the command line or the environment stay as they are. So does a setting
    /// that the file does not name any more.
    pub fn reload(&self) -> Result<Reloaded, String> {
        let Some(file) = &self.file else {
            return Ok(Reloaded::default());
        };
        let mut wanted: BTreeMap<usize, String> = BTreeMap::new();
        for one in &sources::from_file(file)? {
            let setting = &SETTINGS[one.setting];
            let before = wanted.get(&one.setting);
            let current = before.map_or(setting.default, String::as_str);
            let value = start_value(setting, one, current, before.is_some())?;
            wanted.insert(one.setting, value);
        }
        wanted.retain(|place, _| !self.above_file[*place]);
        let hooks = self.hooks.lock();
        let mut values: Values = Vec::clone(&self.values.load());
        let (mut changed, mut reloaded) = (Vec::new(), Reloaded::default());
        for (place, value) in wanted {
            let setting = &SETTINGS[place];
            match setting.change {
                Change::Any if *values[place] != *value => {
                    values[place] = value.into();
                    changed.push(place);
                    reloaded.changed.push(setting.name);
                }
                Change::Any => {}
                _ if *self.started[place] != *value => reloaded.at_next_start.push(setting.name),
                _ => {}
            }
        }
        self.take_over(&hooks, values, &changed);
        Ok(reloaded)
    }

    /// Runs `hook` now, and whenever CONFIG SET gives this setting a value. The hook must not
    /// change settings.
    pub fn on_change(&self, name: &str, hook: impl Fn(&Config) + Send + Sync + 'static) {
        let mut hooks = self.hooks.lock();
        hook(self);
        hooks.push((place_of(name), Box::new(hook)));
    }

    /// Whether the setting was given at start, even if its value is the default.
    pub fn is_given(&self, name: &str) -> bool {
        self.is_given[place_of(name)]
    }

    /// The eviction policy, if one is set.
    pub fn eviction_policy(&self) -> Option<Arc<str>> {
        Some(self.value("maxmemory-policy")).filter(|policy| &**policy != "noeviction")
    }

    /// Where Redis would keep its files in the data directory.
    pub fn redis_files(&self) -> [PathBuf; 2] {
        ["dbfilename", "appenddirname"].map(|name| self.dir().join(&*self.value(name)))
    }

    /// Settings of Redis that were given a value other than their default but have no effect here.
    pub fn given_without_effect(&self) -> Vec<&'static str> {
        let values = self.values.load();
        let given = SETTINGS.iter().zip(values.iter());
        given
            .filter(|(setting, value)| matches!(setting.effect, Effect::None(_)) && setting.default != &***value)
            .map(|(setting, _)| setting.name)
            .collect()
    }

    /// `--ping`: ask a running server instead of being one.
    pub fn ping(&self) -> bool {
        self.ping
    }

    /// `highwater copy`: copy data instead of being a server.
    pub fn copy(&self) -> Option<&CopyOptions> {
        self.copy.as_ref()
    }

    /// Files that contain a password and that every user of this machine can read.
    pub fn exposed_files(&self) -> &[PathBuf] {
        &self.exposed_files
    }

    /// The file that was read at start.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    fn value(&self, name: &str) -> Arc<str> {
        self.values.load()[place_of(name)].clone()
    }

    fn number(&self, name: &str) -> u64 {
        self.value(name).parse().expect("checked when it was set")
    }

    fn time(&self, name: &str) -> Duration {
        kind::parse_time(&self.value(name)).expect("checked when it was set")
    }

    fn is(&self, name: &str, value: &str) -> bool {
        *self.value(name) == *value
    }

    fn refresh(&self) {
        let hot = &self.hot;
        let size = |name| usize::try_from(self.number(name)).unwrap_or(usize::MAX);
        let slower_than = self
            .value("slowlog-log-slower-than")
            .parse()
            .expect("checked when it was set");
        let limits = OutputLimits::parse(&self.value("client-output-buffer-limit")).expect("checked when it was set");
        let password = self.value("requirepass");
        hot.proto_max_bulk_len
            .store(size("proto-max-bulk-len"), Ordering::Relaxed);
        hot.client_query_buffer_limit
            .store(size("client-query-buffer-limit"), Ordering::Relaxed);
        hot.output_limits.store(Arc::new(limits));
        hot.requirepass
            .store(Arc::new(Some(password).filter(|p| !p.is_empty())));
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
        hot.databases.store(size("databases"), Ordering::Relaxed);
    }
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

    /// The password, if there is one. Do not compare with `==`: see [`Config::password_is`].
    pub fn requirepass(&self) -> Option<Arc<str>> {
        Option::clone(&self.hot.requirepass.load())
    }

    /// True if this is the password, or if there is none. Takes the same time wherever the first
    /// difference is.
    pub fn password_is(&self, given: &[u8]) -> bool {
        let Some(password) = self.requirepass() else {
            return true;
        };
        let password = password.as_bytes();
        let differences = given
            .iter()
            .enumerate()
            .fold(password.len() ^ given.len(), |found, (at, byte)| {
                found | usize::from(byte ^ password[at % password.len()])
            });
        std::hint::black_box(differences) == 0
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

    pub fn latency_tracking(&self) -> bool {
        self.hot.latency_tracking.load(Ordering::Relaxed)
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

    pub fn dir(&self) -> PathBuf {
        PathBuf::from(&*self.value("dir"))
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

impl Default for Config {
    fn default() -> Self {
        Config::from_given(&[], None, None).expect("the defaults fit together")
    }
}

impl Default for Hot {
    fn default() -> Self {
        Hot {
            proto_max_bulk_len: AtomicUsize::default(),
            client_query_buffer_limit: AtomicUsize::default(),
            output_limits: ArcSwap::from_pointee(OutputLimits::default()),
            requirepass: ArcSwap::from_pointee(None),
            protected_mode: AtomicBool::default(),
            maxclients: AtomicUsize::default(),
            timeout_seconds: AtomicU64::default(),
            tcp_keepalive: AtomicU64::default(),
            slowlog_log_slower_than: AtomicI64::default(),
            slowlog_max_len: AtomicUsize::default(),
            latency_monitor_threshold: AtomicU64::default(),
            latency_tracking: AtomicBool::default(),
            databases: AtomicUsize::default(),
        }
    }
}

/// The settings that differ from the defaults, without secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.load();
        let mut map = f.debug_map();
        for (setting, value) in SETTINGS.iter().zip(values.iter()) {
            if setting.default != &**value {
                map.entry(&setting.name, &shown(setting, value));
            }
        }
        map.finish()
    }
}

/// See [`Config::exposed_files`].
fn exposed_files(given: &[Given]) -> Vec<PathBuf> {
    let has_secret = |properties: &str| {
        let properties = checks::parse_properties(properties).unwrap_or_default();
        properties.iter().any(|(name, _)| checks::is_secret_property(name))
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for Given { setting, words, place } in given {
        let setting = &SETTINGS[*setting];
        let value = words.join(" ");
        if setting.name == "kafka-properties-file"
            && sources::properties_file(Path::new(&value)).is_ok_and(|properties| has_secret(&properties))
        {
            files.push(value.into());
        } else if let sources::Place::Line(file, _) = place
            && !value.is_empty()
            && (setting.secret || (setting.name == "kafka-property" && has_secret(&value)))
        {
            files.push(file.clone());
        }
    }
    let everybody_reads =
        |file: &PathBuf| std::fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o004 != 0);
    files.retain(everybody_reads);
    files.sort_unstable();
    files.dedup();
    files
}

fn place_of(name: &str) -> usize {
    table::place(name).unwrap_or_else(|| panic!("'{name}' has no row in the table of settings"))
}

/// The value as logs and errors may show it.
fn shown(setting: &Setting, value: &str) -> String {
    match setting.name {
        _ if setting.secret => HIDDEN.into(),
        "kafka-property" => checks::without_secrets(value),
        _ => value.into(),
    }
}

/// The value of a setting after one more place has given it.
fn start_value(setting: &Setting, given: &Given, current: &str, again: bool) -> Result<String, String> {
    let place = &given.place;
    let named = match place {
        sources::Place::Line(..) => format!("{place}: {}", setting.name),
        place => place.to_string(),
    };
    if given.words.len() > 1 && !setting.kind.takes_words() {
        return Err(format!("{named} takes one value: {}", setting.kind.hint()));
    }
    let value = given.words.join(" ");
    let joined = match setting.adds_up && again && !value.is_empty() && !current.is_empty() {
        true if setting.name == "kafka-property" => format!("{current}\n{value}"),
        true => format!("{current} {value}"),
        false => value.clone(),
    };
    let echoed = if setting.secret || setting.name == "kafka-property" {
        String::new()
    } else {
        format!(" '{value}'")
    };
    let value = setting.kind.normalise(&joined, current).map_err(|reason| {
        let reason = match setting.kind.hint_tells_all() {
            true => String::new(),
            false => format!("{reason}; "),
        };
        format!(
            "{named}{echoed}: {reason}{} takes {}",
            setting.name,
            setting.kind.hint()
        )
    })?;
    match setting.effect {
        Effect::OnlyDefault(why) if value != setting.default => Err(format!(
            "{named}{echoed}: not supported: {why}; leave {} out",
            setting.name
        )),
        _ => Ok(value),
    }
}

/// Computes values that depend on others: the properties file, Kafka's brokers among the
/// properties, the absolute directory.
fn complete(values: &mut Values) -> Result<(), String> {
    let properties = place_of("kafka-property");
    let file = values[place_of("kafka-properties-file")].clone();
    if !file.is_empty() {
        let from_file = sources::properties_file(Path::new(&*file))?;
        let all = format!("{from_file}\n{}", values[properties]);
        values[properties] = SETTINGS[properties].kind.normalise(&all, "")?.into();
    }
    let brokers = place_of("bootstrap-servers");
    let is_brokers = |name: &str| matches!(name, "bootstrap.servers" | "metadata.broker.list");
    let (named, rest): (Vec<_>, Vec<_>) = checks::parse_properties(&values[properties])?
        .into_iter()
        .partition(|(name, _)| is_brokers(name));
    values[properties] = checks::show_properties(&rest).into();
    if let Some((_, value)) = named.into_iter().next()
        && values[brokers].is_empty()
    {
        values[brokers] = value.into();
    }
    let dir = place_of("dir");
    let absolute = std::path::absolute(&*values[dir]).map_err(|e| format!("--dir {}: {e}", values[dir]))?;
    values[dir] = absolute.to_string_lossy().into();
    Ok(())
}

fn check_changeable(setting: &Setting, twice: bool) -> Result<(), String> {
    match setting.change {
        Change::Immutable => Err("can't set immutable config".into()),
        Change::Protected => Err("can't set protected config".into()),
        _ if twice => Err("duplicate parameter".into()),
        Change::Any | Change::AtStart => Ok(()),
    }
}

/// The new value after CONFIG SET. `None` if the value does not change.
fn new_value(setting: &Setting, value: &[u8], current: &str) -> Result<Option<String>, String> {
    let value = std::str::from_utf8(value).map_err(|_| "argument is not UTF-8".to_string())?;
    if setting.change == Change::AtStart && value == shown(setting, current) {
        return Ok(None);
    }
    let value = setting.kind.normalise(value, current)?;
    match (setting.change, setting.effect) {
        (_, Effect::OnlyDefault(why)) if value != setting.default => Err(format!("not supported: {why}")),
        (Change::AtStart, _) if value != current => Err("can only be set when the server is started".into()),
        _ => Ok(Some(value)),
    }
}
