//! The options of `highwater export`.

use clap::{Args, Command};

use super::cli;
use super::import::{Server, Trust};

/// The subcommand's name.
pub const NAME: &str = "export";
/// Names standard output instead of a file.
pub const STANDARD_OUTPUT: &str = "-";

const ABOUT: &str = "\
Writes what a running Highwater, Redis or Valkey holds into an RDB file, which Redis loads and highwater import reads.

Keys go there with their values, their expiry and their database, and libraries of functions. The server is asked by SCAN and DUMP: \
the file is no snapshot of one moment. What is written to the server meanwhile may or may not be in it; each key is there as it was at some moment \
of the export. One value at a time is in memory. The file gets its name when it is whole and on disk.";
const EXAMPLES: &str = "\
Examples:
  highwater export redis://127.0.0.1:6379 dump.rdb
  highwater export redis://127.0.0.1:6379/3 dump.rdb     database 3 alone
  highwater export rediss://user:password@HOST - | ssh BACKUP 'cat > dump.rdb'";
/// The settings that have a meaning here.
const SETTINGS: &[&str] = &["loglevel", "logfile", "log-format"];

/// From where and to where, and how.
#[derive(Args, Clone)]
#[command(next_help_heading = "The export")]
pub struct ExportOptions {
    /// The running server to read.
    #[arg(
        value_name = "redis[s]://[USER:PASSWORD@]HOST[:PORT][/DATABASE]",
        default_value = "",
        hide_default_value = true
    )]
    source: String,
    /// The file to write, in the place of an older one; `-` for standard output.
    #[arg(value_name = "TO", default_value = "", hide_default_value = true)]
    to: String,
    /// The newest version of the format to use: 10 (Redis 7.0), 11 (7.2) or 12 (7.4 and 8). A file
    /// gets the lowest that its values fit into, standard output exactly this one [default: 12 for
    /// a file, 10 for standard output].
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u16).range(10..=12))]
    rdb_version: Option<u16>,
    #[command(flatten)]
    pub trust: Trust,
}

/// The command line of the subcommand.
pub fn command() -> Command {
    ExportOptions::augment_args(Command::new(NAME))
        .about("Write what a running server holds into an RDB file")
        .long_about(ABOUT)
        .after_help(EXAMPLES)
        .arg(cli::config_file())
        .args(cli::flags(|name| SETTINGS.contains(&name)))
}

impl ExportOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        self.source()?;
        self.trust.check()?;
        match self.to.is_empty() {
            true => Err("highwater export has to know where to: name a file, or - for standard output".into()),
            false => Ok(()),
        }
    }

    pub fn source(&self) -> Result<Server, String> {
        match self.source.is_empty() {
            true => Err("highwater export has to know what to read: name a server as redis://HOST:PORT".into()),
            false => Server::parse(&self.source),
        }
    }

    /// The name of the file.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// The newest version that the file may have.
    pub fn newest_version(&self) -> u16 {
        let is_file = self.to != STANDARD_OUTPUT;
        self.rdb_version.unwrap_or(if is_file { 12 } else { 10 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Refused;
    use super::*;

    fn options(arguments: &[&str]) -> Result<ExportOptions, String> {
        let all = [&[NAME][..], arguments].concat();
        let matches = command().try_get_matches_from(all).map_err(|error| error.to_string())?;
        cli::checked(&matches, ExportOptions::check).map_err(|refused| match refused {
            Refused::Wrong(reason) => reason,
            Refused::Shown(text) => text.to_string(),
        })
    }

    #[test]
    fn the_version_depends_on_where_to() {
        for (arguments, expected) in [
            (&["redis://h", "dump.rdb"][..], 12),
            (&["redis://h", "-"], 10),
            (&["redis://h", "-", "--rdb-version", "12"], 12),
            (&["redis://h", "dump.rdb", "--rdb-version", "11"], 11),
        ] {
            let version = options(arguments).map(|options| options.newest_version());
            assert_eq!(version, Ok(expected), "{arguments:?}");
        }
        for wrong in [
            &[][..],
            &["redis://h"],
            &["dump.rdb", "redis://h"],
            &["redis://h", "dump.rdb", "--rdb-version", "9"],
        ] {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
    }
}
