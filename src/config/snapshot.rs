//! The options of `highwater snapshot` and `highwater restore`, besides the settings.

use clap::{Args, Command};

use super::Config;
use super::cli;
use super::copy::CopyOptions;

/// The subcommands' names.
pub const SNAPSHOT: &str = "snapshot";
pub const RESTORE: &str = "restore";

const ABOUT_SNAPSHOT: &str = "\
Writes a snapshot of a topic, or of a node's embedded log, to a file.

Of a topic: follows it to its end, as a node does, in a data directory of its own (--dir), which makes the next snapshot faster. Nodes go on \
meanwhile. Of an embedded log: copies the files of the data directory --dir, also while its node runs. The snapshot appears under \
its name once it is whole. It has every database, with expiry times and functions, up to one position of each partition.";
const EXAMPLES_SNAPSHOT: &str = "\
Examples:
  highwater snapshot --bootstrap-servers 127.0.0.1:9092 --topic kv --dir ./snapshots/kv --to kv.snapshot
  highwater snapshot --dir ./data --to data.snapshot
  highwater snapshot --dir ./data --to - | zstd | aws s3 cp - s3://backups/data.snapshot.zst";

const ABOUT_RESTORE: &str = "\
Takes a snapshot back.

Into an empty data directory (--dir): a node that is started there goes on from the snapshot, and reads from the topic what came after it. \
If the topic is gone: into a new topic (--to-topic), or into a new embedded log (--embedded). Such a log begins with the snapshot, \
and what was written after it is lost.";
const EXAMPLES_RESTORE: &str = "\
Examples:
  highwater restore kv.snapshot --dir ./data
  highwater restore kv.snapshot --dir ./scratch --to-bootstrap-servers 127.0.0.1:9092 --to-topic kv-new --yes
  highwater restore kv.snapshot --dir ./data --embedded --yes";

/// The settings that have a meaning for a snapshot.
const SETTINGS: &[&str] = &[
    "dir",
    "databases",
    "bootstrap-servers",
    "topic",
    "database",
    "partitioner",
    "kafka-property",
    "kafka-properties-file",
    "startup-timeout",
    "store",
    "store-cache",
    "maxmemory",
    "loglevel",
    "logfile",
    "log-format",
];
/// Those that have one when it is taken back.
const SETTINGS_RESTORE: &[&str] = &[
    "dir",
    "databases",
    "replication-factor",
    "partitioner",
    "kafka-property",
    "kafka-properties-file",
    "write-timeout",
    "startup-timeout",
    "store-cache",
    "loglevel",
    "logfile",
    "log-format",
];

/// Where to.
#[derive(Args, Clone)]
#[command(next_help_heading = "The snapshot")]
pub struct SnapshotOptions {
    /// The file to write, `-` for standard output. A snapshot that is there is replaced.
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub to: String,
}

/// What, and where to.
#[derive(Args, Clone)]
#[command(next_help_heading = "The snapshot")]
pub struct RestoreOptions {
    /// The snapshot, `-` for standard input.
    #[arg(value_name = "SNAPSHOT", default_value = "", hide_default_value = true)]
    pub from: String,
    /// Make a new embedded log of the snapshot of a topic.
    #[arg(long)]
    embedded: bool,
    /// Yes, begin a new log: the topic is gone, or is to be left as it is.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    to: CopyOptions,
}

/// Where a snapshot goes.
pub enum RestoreTarget<'o> {
    /// The data directory: a node goes on from there.
    Directory,
    /// A new log in the data directory.
    EmbeddedLog,
    /// A new topic.
    Topic(&'o CopyOptions),
}

/// The command lines of the subcommands.
pub fn snapshot_command() -> Command {
    SnapshotOptions::augment_args(Command::new(SNAPSHOT))
        .about("Write a snapshot of a topic, or of a node's embedded log, to a file")
        .long_about(ABOUT_SNAPSHOT)
        .override_usage("highwater snapshot [SETTING OF A NODE]... --to FILE")
        .after_help(EXAMPLES_SNAPSHOT)
        .arg(cli::config_file())
        .args(cli::flags(|name| SETTINGS.contains(&name)))
}

pub fn restore_command() -> Command {
    RestoreOptions::augment_args(Command::new(RESTORE))
        .about("Take a snapshot back: into a data directory, a new topic or a new embedded log")
        .long_about(ABOUT_RESTORE)
        .override_usage("highwater restore SNAPSHOT --dir DIR [--to-topic TO | --embedded] [--NAME VALUE]...")
        .after_help(EXAMPLES_RESTORE)
        .arg(cli::config_file())
        .args(cli::flags(|name| SETTINGS_RESTORE.contains(&name)))
}

impl SnapshotOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.to.is_empty() {
            true => Err(
                "highwater snapshot has to know where to: name a file with --to FILE, or --to - for standard output"
                    .into(),
            ),
            false => Ok(()),
        }
    }
}

impl RestoreOptions {
    pub(super) fn check_alone(&self) -> Result<(), String> {
        if self.from.is_empty() {
            return Err("highwater restore has to know what: name a file that highwater snapshot wrote".into());
        }
        let to_topic = self.copy().is_some();
        if to_topic && self.embedded {
            return Err("--to-topic and --embedded are two logs: name one".into());
        }
        if (to_topic || self.embedded) && !self.yes {
            return Err(
                "this begins a new log with what the snapshot has: what was written after it is not there, and nodes of the old \
                 log do not follow the new one; say --yes if that is what you want"
                    .into(),
            );
        }
        Ok(())
    }

    pub fn target(&self) -> RestoreTarget<'_> {
        match self.copy() {
            _ if self.embedded => RestoreTarget::EmbeddedLog,
            Some(to) => RestoreTarget::Topic(to),
            None => RestoreTarget::Directory,
        }
    }

    /// The copy that it makes, if it goes to a topic.
    pub(super) fn copy(&self) -> Option<&CopyOptions> {
        Some(&self.to).filter(|to| !to.to_topic.is_empty())
    }

    /// Checks that what is required is there and fits the settings.
    pub(super) fn check(&self, config: &Config) -> Result<(), String> {
        self.copy().map_or(Ok(()), |copy| copy.check(config))
    }
}
