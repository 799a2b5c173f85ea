//! The command line: one flag for each setting, made from the table, and the texts of `--help` and
//! `--version`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::Refused;
use super::copy::{self, CopyOptions};
use super::export::{self, ExportOptions};
use super::import::{self, ImportOptions};
use super::kind::{Kind, parse_memory};
use super::snapshot::{self, RestoreOptions, SnapshotOptions};
use super::sources::{Given, Place, unknown};
use super::table::{Effect, Group, SETTINGS, Setting};
use super::tls;

const ABOUT: &str = "A Redis-protocol server whose data lives in a compacted Kafka topic or, without Kafka, in a durable log on local disk.";
const EXAMPLES: &str = "\
Examples:
  highwater                                                   embedded log in ./data, port 6379
  highwater --bootstrap-servers 127.0.0.1:9092 --topic kv     the compacted topic kv
  highwater my.conf --port 7000                               settings from a file, one overridden
  highwater copy --help                                       how to move the data to another topic
  highwater import --help                                     how to take over the data of a Redis
  highwater export --help                                     how to write the data into an RDB file
  highwater snapshot --help                                   how to make a backup, and a fast start of new nodes";
const SOURCES: &str = "\
Every setting can be given on the command line (--port 7000), in the environment (HIGHWATER_PORT=7000), and in FILE in redis.conf \
syntax (port 7000); the first of these that has it holds. SIGHUP makes a running server read FILE again, as CONFIG SET would, and go on in \
a new log file if the one so far was moved away; SIGTERM and SIGINT stop it in good order, SIGUSR1 and SIGUSR2 are ignored.";
/// Settings that few need: `--help` has them, `-h` does not.
const RARE: &[&str] = &[
    "acl-pubsub-default",
    "acllog-max-len",
    "active-expire",
    "enable-debug-command",
    "http-tls-port",
    "metrics-open",
    "ping-password",
    "ping-user",
    "ready-max-lag",
    "ready-without-log",
    "unixsocketperm",
];
const FILE: &str = "FILE";
const CONFIG: &str = "config";
const PING: &str = "ping";

/// What the command line says.
pub struct CommandLine {
    pub file: Option<PathBuf>,
    pub given: Vec<Given>,
    /// Ask a running server instead of being one.
    pub ping: bool,
    /// Another program than the server.
    pub program: Option<Program>,
}

/// What a subcommand names.
pub enum Program {
    Copy(CopyOptions),
    Import(ImportOptions),
    Export(ExportOptions),
    Snapshot(SnapshotOptions),
    Restore(RestoreOptions),
}

/// The whole command line, for parsing and for `--help`.
pub fn command() -> Command {
    let command =
        Command::new("highwater")
            .about(ABOUT)
            .version(version())
            .override_usage("highwater [FILE] [--NAME VALUE]...")
            .max_term_width(120)
            .next_line_help(true)
            .after_help(format!("{EXAMPLES}\n\n{SOURCES}"))
            .after_long_help(format!("{EXAMPLES}\n\n{SOURCES}\n\n{}", without_effect()))
            .arg(path(Arg::new(FILE).help("Settings in redis.conf syntax")))
            .arg(config_file().help("The same, as a flag").conflicts_with(FILE))
            .arg(Arg::new(PING).long(PING).action(ArgAction::SetTrue).help(
                "Ask the server on this machine with these settings whether it serves, and exit (for healthchecks)",
            ));
    command
        .args(flags(|_| true))
        .subcommand(copy::command())
        .subcommand(import::command())
        .subcommand(export::command())
        .subcommand(snapshot::snapshot_command())
        .subcommand(snapshot::restore_command())
        .disable_help_subcommand(true)
}

/// The flags of all settings; `--help` shows those with these names.
pub(super) fn flags(shown: impl Fn(&str) -> bool) -> impl Iterator<Item = Arg> {
    let hidden = move |setting: &Setting| setting.group == Group::WithoutEffect || !shown(setting.name);
    SETTINGS.iter().map(move |setting| {
        let is_rare = setting.group == Group::Types || tls::is_rare(setting.name) || RARE.contains(&setting.name);
        flag(setting).hide(hidden(setting)).hide_short_help(is_rare)
    })
}

/// Names the file with the settings.
pub(super) fn config_file() -> Arg {
    let arg = Arg::new(CONFIG).long(CONFIG).value_name(FILE);
    path(arg.help("Settings in redis.conf syntax"))
}

/// Version, build, librdkafka.
pub fn version() -> String {
    format!(
        "{} ({}, {} build for {})\nlibrdkafka {}",
        super::VERSION,
        if super::COMMIT.is_empty() {
            "commit unknown"
        } else {
            super::COMMIT
        },
        super::PROFILE,
        super::TARGET,
        rdkafka::util::get_rdkafka_version().1,
    )
}

/// The options of a subcommand, if `check` finds nothing wrong with them.
pub(super) fn checked<T: FromArgMatches>(
    matches: &ArgMatches,
    check: impl FnOnce(&T) -> Result<(), String>,
) -> Result<T, Refused> {
    let options = T::from_arg_matches(matches).map_err(|error| Refused::Wrong(error.to_string()))?;
    check(&options).map_err(Refused::Wrong)?;
    Ok(options)
}

pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<CommandLine, Refused> {
    let matches = command().try_get_matches_from(arguments).map_err(refusal)?;
    let ping = matches.get_flag(PING);
    let program = match matches.subcommand() {
        Some((copy::NAME, matches)) => {
            let check = |_: &CopyOptions| copy::check_source(matches);
            Some(Program::Copy(checked(matches, check)?))
        }
        Some((import::NAME, matches)) => Some(Program::Import(checked(matches, ImportOptions::check)?)),
        Some((export::NAME, matches)) => Some(Program::Export(checked(matches, ExportOptions::check)?)),
        Some((snapshot::SNAPSHOT, matches)) => Some(Program::Snapshot(checked(matches, SnapshotOptions::check)?)),
        Some((snapshot::RESTORE, matches)) => Some(Program::Restore(checked(matches, RestoreOptions::check_alone)?)),
        _ => None,
    };
    let of_program = matches.subcommand().map(|(_, matches)| matches);
    // What comes before the subcommand counts too, but what comes after it takes precedence.
    let (mut file, mut given) = (None, Vec::new());
    for matches in [of_program, Some(&matches)].into_iter().flatten() {
        let named = |id: &&str| matches.try_get_one::<PathBuf>(id).ok().flatten().cloned();
        file = file.or_else(|| [FILE, CONFIG].iter().find_map(named));
    }
    for matches in [Some(&matches), of_program].into_iter().flatten() {
        for (place, setting) in SETTINGS.iter().enumerate() {
            given.extend(of_setting(matches, place, setting));
        }
    }
    Ok(CommandLine {
        file,
        given,
        ping,
        program,
    })
}

fn of_setting(matches: &ArgMatches, setting: usize, row: &Setting) -> Vec<Given> {
    let occurrences = matches.get_occurrences::<String>(row.name).into_iter().flatten();
    occurrences
        .map(|words| Given {
            setting,
            words: words.cloned().collect(),
            place: Place::Flag(format!("--{}", row.name)),
        })
        .collect()
}

fn path(arg: Arg) -> Arg {
    arg.value_parser(ValueParser::path_buf())
}

fn flag(setting: &Setting) -> Arg {
    let default = match (setting.default, setting.kind) {
        ("", _) => String::new(),
        (default, Kind::Memory { .. }) => format!(" [default: {}]", show_memory(default)),
        (default, _) => format!(" [default: {default}]"),
    };
    let mut arg = Arg::new(setting.name)
        .long(setting.name)
        .aliases(setting.aliases)
        .value_name(setting.kind.placeholder())
        .help(format!("{}{default}", setting.summary))
        .help_heading(setting.group.heading())
        .allow_negative_numbers(true)
        .action(ArgAction::Append);
    if let Some(letter) = setting.short {
        arg = arg.short(letter);
    }
    if setting.kind.takes_words() && setting.short.is_none() {
        arg.num_args(1..)
    } else {
        arg.num_args(1)
    }
}

/// Bytes in the largest unit that fits.
fn show_memory(bytes: &str) -> String {
    let number = parse_memory(bytes).unwrap_or_default();
    let units = [(30, "gb"), (20, "mb"), (10, "kb")];
    let fitting = units
        .iter()
        .find(|(bits, _)| number > 0 && number.is_multiple_of(1 << bits));
    fitting.map_or(bytes.to_string(), |(bits, unit)| format!("{}{unit}", number >> bits))
}

/// The settings that have no meaning here, by reason.
fn without_effect() -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for setting in SETTINGS.iter() {
        let (Effect::None(why) | Effect::OnlyDefault(why)) = setting.effect else {
            continue;
        };
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(setting.name),
            None => reasons.push((why, vec![setting.name])),
        }
    }
    let mut text = String::from(
        "Settings of Redis that are accepted without effect, so that a redis.conf can be used as it is:\n",
    );
    for (why, names) in reasons {
        text.push_str(&format!("  {}\n    ({why})\n", names.join(" ")));
    }
    text.trim_end().to_string()
}

/// Help and version are shown as they are. Everything else becomes one line.
fn refusal(error: clap::Error) -> Refused {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refused::Shown(Box::new(error)),
        ErrorKind::UnknownArgument => match argument.strip_prefix("--") {
            Some(name) => Refused::Wrong(unknown(&Place::Flag(argument.clone()), name)),
            None => Refused::Wrong(format!(
                "'{argument}' is one argument too many; highwater --help says what there is"
            )),
        },
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            let flag = argument.split(' ').next().unwrap_or_default();
            Refused::Wrong(format!("{flag}: a value is missing"))
        }
        ErrorKind::InvalidUtf8 => Refused::Wrong("the command line is not UTF-8".into()),
        ErrorKind::ArgumentConflict => {
            Refused::Wrong("two files of settings are given; one can include the other".into())
        }
        _ => Refused::Wrong(error.to_string().lines().next().unwrap_or_default().to_string()),
    }
}
