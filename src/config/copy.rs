//! The options of `highwater copy`, besides the settings, which are those of its source.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};

use super::Config;
use super::checks;
use super::cli;

/// The subcommand's name.
pub const NAME: &str = "copy";

const ABOUT: &str = "\
Copies what a topic, or a stopped node's embedded log, shows now into a topic of Kafka.

Per key the newest value goes there, with its expiry. What was deleted, flushed or has expired does not. Every database is copied: database 0 to \
the topic TO, database N to TO.dbN. Stop what writes to the source first: what comes after the start of the copy is not copied. It takes \
up to 200 bytes of memory a key.";
const EXAMPLES: &str = "\
Examples:
  highwater copy --bootstrap-servers 127.0.0.1:9092 --topic kv --to-topic kv-6 --to-partitions 6
  highwater copy --dir ./data --to-bootstrap-servers 127.0.0.1:9092 --to-topic kv";
/// The settings that have a meaning here. The others are accepted too, so that the settings of a
/// node can be given as they are.
const SETTINGS: &[&str] = &[
    "dir",
    "databases",
    "bootstrap-servers",
    "topic",
    "database",
    "replication-factor",
    "partitioner",
    "kafka-property",
    "kafka-properties-file",
    "write-timeout",
    "startup-timeout",
    "loglevel",
    "logfile",
    "log-format",
];

/// Where to, and how.
#[derive(Args, Clone)]
#[command(next_help_heading = "The copy")]
pub struct CopyOptions {
    /// Topic of database 0 of the copy; made, compacted, if it is not there.
    #[arg(long, value_name = "TO", default_value = "", hide_default_value = true)]
    pub to_topic: String,
    /// Kafka brokers of the copy, HOST:PORT,HOST:PORT; without them those of --bootstrap-servers.
    #[arg(long, value_name = "BROKERS", default_value = "", hide_default_value = true)]
    pub to_bootstrap_servers: String,
    /// Partitions of topics that are made; without it as many as the source has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub to_partitions: Option<u32>,
    /// A librdkafka property of the copy's side alone, in the place of that of -X; may be given several times.
    #[arg(long, value_name = "PROPERTY=VALUE")]
    to_kafka_property: Vec<String>,
    /// Copy into topics that have records already: keys of the source are overwritten there, others stay.
    #[arg(long)]
    pub into_existing: bool,
}

/// The command line of the subcommand.
pub fn command() -> Command {
    CopyOptions::augment_args(Command::new(NAME))
        .about("Copy a topic, or a stopped node's embedded log, into another topic")
        .long_about(ABOUT)
        .override_usage("highwater copy [SETTING OF THE SOURCE]... --to-topic TO [--NAME VALUE]...")
        .after_help(EXAMPLES)
        .arg(cli::config_file())
        .args(cli::flags(|name| SETTINGS.contains(&name)))
}

/// Checks that the command line names one source.
pub(super) fn check_source(matches: &ArgMatches) -> Result<(), String> {
    let is_flag = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    match is_flag("dir") && is_flag("bootstrap-servers") {
        false => Ok(()),
        true => Err(
            "--dir and --bootstrap-servers name two sources, and a copy has one: leave --dir out to copy a topic, or name the \
             brokers of the copy with --to-bootstrap-servers"
                .into(),
        ),
    }
}

impl CopyOptions {
    /// librdkafka properties of the copy's side, secrets included, given those of the source.
    pub fn kafka_properties(&self, source: Vec<(String, String)>) -> Result<Vec<(String, String)>, String> {
        let all = format!(
            "{}\n{}",
            checks::show_properties(&source),
            self.to_kafka_property.join("\n")
        );
        checks::parse_properties(&all)
    }

    /// Checks that what is required is there and fits the settings.
    pub(super) fn check(&self, config: &Config) -> Result<(), String> {
        if self.to_topic.is_empty() {
            return Err("highwater copy has to know where to: name the new topic with --to-topic TOPIC".into());
        }
        if self.to_bootstrap_servers.is_empty() && config.bootstrap_servers().is_empty() {
            return Err(
                "highwater copy writes to Kafka: name the brokers with --to-bootstrap-servers HOST:PORT \
                 (and with --bootstrap-servers, if the source is a topic, too)"
                    .into(),
            );
        }
        let properties = self.kafka_properties(Vec::new());
        properties
            .map(drop)
            .map_err(|reason| format!("--to-kafka-property: {reason}"))
    }
}
