//! Every setting once: command line over environment over file, CONFIG GET and CONFIG SET.
//!
//! [`table`] has the rows, [`kind`] and [`checks`] say what a value may be, [`sources`] and [`cli`]
//! read them, [`values`] decides which value a setting gets, [`rewrite`] writes them into their
//! file. [`Config`] is what the server reads, through typed getters ([`getters`]). It knows nothing
//! of its readers. Code that must act on a change registers with [`Config::on_change`].
//!
//! Secrets leave this module only through the getters that say so, and into the file of settings:
//! they are not in `Debug` and not in errors. CONFIG GET shows Redis's own (`requirepass`) as Redis
//! does, since a client that may run it has given the password. Those of Kafka reach beyond this
//! server and are never shown.

pub mod checks;
pub mod cli;
pub mod copy;
pub mod export;
mod getters;
mod http;
pub mod import;
pub mod kind;
pub mod machine;
mod rewrite;
pub mod snapshot;
mod sources;
pub mod table;
pub mod tls;
mod values;
mod without_effect;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tracing::warn;

use cli::Program;
use copy::CopyOptions;
use export::ExportOptions;
use getters::Hot;
use import::ImportOptions;
use snapshot::{RestoreOptions, SnapshotOptions};
pub use sources::UserLine;
use sources::{FromFile, Given};
use table::{Change, Effect, Group, SETTINGS};
use tls::TlsSettings;
use values::{check_changeable, complete, new_value, of_file, shown, start_value};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built. Empty if it is not known.
pub const COMMIT: &str = env!("BUILD_COMMIT");
pub const PROFILE: &str = env!("BUILD_PROFILE");
pub const TARGET: &str = env!("BUILD_TARGET");

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
/// Prepares other settings of TLS. They are in force once the result is called.
type Trial = Box<dyn Fn(&TlsSettings) -> Result<Box<dyn FnOnce()>, String> + Send + Sync>;
/// The same for other users.
type UsersTrial = Box<dyn Fn(&[UserLine]) -> Result<Box<dyn FnOnce()>, String> + Send + Sync>;

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
    program: Option<Program>,
    exposed_files: Vec<PathBuf>,
    users: Vec<UserLine>,
    hot: Hot,
    /// Held while values change, so that hooks run in the order of the changes.
    hooks: Mutex<Vec<(usize, Hook)>>,
    /// Where clients are served over TLS.
    tls_trial: OnceLock<Trial>,
    users_trial: OnceLock<UsersTrial>,
}

impl Config {
    /// Reads the command line (with the program's name), the environment, and the file that the
    /// command line names.
    pub fn load(
        arguments: impl Iterator<Item = OsString>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Refused> {
        let line = cli::parse(arguments)?;
        let FromFile { mut given, users } = match &line.file {
            Some(file) => sources::from_file(file).map_err(Refused::Wrong)?,
            None => FromFile::default(),
        };
        given.extend(sources::from_environment(environment).map_err(Refused::Wrong)?);
        given.extend(line.given);
        let mut config = Config::from_given(&given, line.file, line.program).map_err(Refused::Wrong)?;
        config.exposed_files = sources::exposed_files(&given, &users, config.acl_file());
        config.users = users;
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
    fn from_given(given: &[Given], file: Option<PathBuf>, program: Option<Program>) -> Result<Config, String> {
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
            program,
            exposed_files: Vec::new(),
            users: Vec::new(),
            hot: Hot::default(),
            hooks: Mutex::default(),
            tls_trial: OnceLock::new(),
            users_trial: OnceLock::new(),
        };
        config.refresh();
        config.check_as_a_whole()?;
        config.copy().map_or(Ok(()), |copy| copy.check(&config))?;
        config.restore().map_or(Ok(()), |restore| restore.check(&config))?;
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
            let copies = self.copy().is_some() || self.restore().is_some_and(|restore| restore.copy().is_some());
            let of_copy = copies && !matches!(setting, "topic" | "database");
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
        // Also without a change: the file of that name may be another one.
        let mut of_tls = None;
        for (place, name, value) in changes {
            let value = new_value(&SETTINGS[place], value, &values[place]).map_err(|reason| SetError::Failed {
                name: name.clone(),
                reason,
            })?;
            if let Some(value) = value {
                values[place] = value.into();
                changed.push(place);
            }
            if SETTINGS[place].group == Group::Tls {
                of_tls.get_or_insert(name);
            }
        }
        let tls = of_tls.map(|name| {
            self.try_tls(&values).map_err(|cause| {
                warn!(cause, "the settings of TLS stay as they are");
                let reason = "Unable to update TLS configuration. Check server logs.".to_owned();
                SetError::Failed { name, reason }
            })
        });
        let tls = tls.transpose()?.flatten();
        self.take_over(&hooks, values, &changed);
        tls.into_iter().for_each(|take_over| take_over());
        Ok(())
    }

    /// Prepares what these values mean for TLS. `None`: nobody is served over TLS.
    fn try_tls(&self, values: &Values) -> Result<Option<Box<dyn FnOnce()>>, String> {
        let prepare = |trial: &Trial| trial(&TlsSettings::read(|name| values[place_of(name)].clone()));
        self.tls_trial.get().map(prepare).transpose()
    }

    /// Reads the files of TLS again, which may be others under the same names.
    pub fn reload_tls(&self) -> Result<(), String> {
        let _one_at_a_time = self.hooks.lock();
        let values = Vec::clone(&self.values.load());
        self.try_tls(&values)?.into_iter().for_each(|take_over| take_over());
        Ok(())
    }

    /// From now on `trial` prepares what the settings of TLS become. If it fails, they stay.
    pub fn on_tls_change(
        &self,
        trial: impl Fn(&TlsSettings) -> Result<Box<dyn FnOnce()>, String> + Send + Sync + 'static,
    ) {
        let is_first = self.tls_trial.set(Box::new(trial)).is_ok();
        debug_assert!(is_first, "one part of the server has TLS");
    }

    /// From now on `trial` prepares the users that the file defines when it is read again. If it
    /// fails, nothing of the file is applied.
    pub fn on_users_change(
        &self,
        trial: impl Fn(&[UserLine]) -> Result<Box<dyn FnOnce()>, String> + Send + Sync + 'static,
    ) {
        let is_first = self.users_trial.set(Box::new(trial)).is_ok();
        debug_assert!(is_first, "one part of the server has users");
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
    /// or a user that the file does not name any more.
    pub fn reload(&self) -> Result<Reloaded, String> {
        let Some(file) = &self.file else {
            return Ok(Reloaded::default());
        };
        let FromFile { given, users } = sources::from_file(file)?;
        let mut wanted = of_file(&given)?;
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
        // The files may be others under the same names.
        let tls = self.try_tls(&values)?;
        let users = self.users_trial.get().map(|trial| trial(&users)).transpose()?;
        self.take_over(&hooks, values, &changed);
        tls.into_iter().chain(users).for_each(|take_over| take_over());
        Ok(reloaded)
    }

    /// Gives the file that was read at start the values that hold now (CONFIG REWRITE). `users`:
    /// their lines, as ACL LIST shows them; none if `aclfile` has them. `write` gives the file this
    /// text. The error says what failed; nothing was written then.
    pub fn rewrite(&self, users: &[String], write: impl FnOnce(&Path, &str) -> io::Result<()>) -> Result<(), String> {
        let file = self.file.as_deref().ok_or("there is no file of settings")?;
        let _no_change_meanwhile = self.hooks.lock();
        let old = match file.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            _ => sources::read_text(file)?,
        };
        let text = rewrite::rewritten(file, &old, &self.to_be_written(), users)?;
        write(file, &text).map_err(|error| {
            // As Redis tells it: without the number.
            let told = error.to_string();
            told.split(" (os error ").next().unwrap_or_default().to_owned()
        })?;
        let FromFile { given, users } = sources::from_text(file, &text)?;
        warn_of_exposed(&sources::exposed_files(&given, &users, None));
        Ok(())
    }

    /// The values that a start has to be given so that it has those that hold now.
    fn to_be_written(&self) -> Values {
        let values = self.values.load();
        let mut written = self.started.clone();
        for (place, setting) in SETTINGS.iter().enumerate() {
            // A relative directory is that of the start; a line of the file stays as it is.
            let is_own_dir = setting.name == "dir" && self.above_file[place];
            // What cannot change may have been completed by other settings. They are written.
            if setting.change == Change::Any || is_own_dir {
                written[place] = values[place].clone();
            }
        }
        written
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

    /// The users that the file defines.
    pub fn users(&self) -> &[UserLine] {
        &self.users
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
        match &self.program {
            Some(Program::Copy(options)) => Some(options),
            _ => None,
        }
    }

    /// `highwater snapshot`: write a snapshot instead of being a server.
    pub fn snapshot_options(&self) -> Option<&SnapshotOptions> {
        match &self.program {
            Some(Program::Snapshot(options)) => Some(options),
            _ => None,
        }
    }

    /// `highwater restore`: take a snapshot back instead of being a server.
    pub fn restore(&self) -> Option<&RestoreOptions> {
        match &self.program {
            Some(Program::Restore(options)) => Some(options),
            _ => None,
        }
    }

    /// `highwater import`: import data instead of being a server.
    pub fn import(&self) -> Option<&ImportOptions> {
        match &self.program {
            Some(Program::Import(options)) => Some(options),
            _ => None,
        }
    }

    /// `highwater export`: export data instead of being a server.
    pub fn export(&self) -> Option<&ExportOptions> {
        match &self.program {
            Some(Program::Export(options)) => Some(options),
            _ => None,
        }
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
}

impl Default for Config {
    fn default() -> Self {
        Config::from_given(&[], None, None).expect("the defaults fit together")
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

/// Warns of these files with passwords, which everybody can read.
pub fn warn_of_exposed(files: &[PathBuf]) {
    for file in files {
        let file = file.display();
        warn!("every user of this machine can read the password in {file}: chmod 640 {file}");
    }
}

fn place_of(name: &str) -> usize {
    table::place(name).unwrap_or_else(|| panic!("'{name}' has no row in the table of settings"))
}
