//! The options of `highwater import`, and the names of servers.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Command};

use super::cli;

/// The subcommand's name.
pub const NAME: &str = "import";

const ABOUT: &str = "\
Copies what an RDB file, or a running Redis or Valkey, holds into a running server.

Keys go there with their values, their expiry and their database, and libraries of functions. The target can be Highwater or any server \
with RESTORE. Stop what writes to the source first: what is changed after it was read is not copied again, except with --follow-changes. \
One value at a time is in memory. In the end the keys are counted on both sides, and a sample of values is compared.";
const EXAMPLES: &str = "\
Examples:
  highwater import dump.rdb --to redis://127.0.0.1:6379
  highwater import redis://:password@10.0.0.7:6379 --to redis://127.0.0.1:6379
  highwater import redis://10.0.0.7:6379/3 --to redis://127.0.0.1:6379     database 3 alone
  highwater import redis://10.0.0.7:6379 --follow-changes 5 --to redis://127.0.0.1:6379     until nothing has changed for 5 s
  highwater import rediss://user:password@HOST --to redis://127.0.0.1:6379     over TLS";
/// The settings that have a meaning here.
const SETTINGS: &[&str] = &["loglevel", "logfile", "log-format"];

/// From where and to where, and how.
#[derive(Args, Clone)]
#[command(next_help_heading = "The import")]
pub struct ImportOptions {
    /// An RDB file (version 5 to 12, or of Valkey 9), `-` for standard input, or a server.
    #[arg(
        value_name = "FILE or redis[s]://[USER:PASSWORD@]HOST[:PORT][/DATABASE]",
        default_value = "",
        hide_default_value = true
    )]
    source: String,
    /// The running server to write to.
    #[arg(
        long,
        value_name = "redis[s]://[USER:PASSWORD@]HOST[:PORT]",
        default_value = "",
        hide_default_value = true
    )]
    to: String,
    /// Write to databases that have keys already: those that the source has too are overwritten.
    #[arg(long)]
    pub into_existing: bool,
    /// Go on where an import of the same source stopped: it said where.
    #[arg(long, value_name = "DATABASE:PLACE", value_parser = parse_place)]
    pub resume: Option<(u64, u64)>,
    /// Copy again what changes at the source meanwhile, until nothing has changed there for so
    /// long, at least 1. Its notify-keyspace-events must contain AE.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    follow_changes: Option<u64>,
    #[command(flatten)]
    pub trust: Trust,
}

/// Which servers are trusted over TLS, and what they are shown.
#[derive(Args, Clone, Debug)]
pub struct Trust {
    /// Certificates of the authorities to trust for rediss://, instead of this machine's.
    #[arg(long = "cacert", value_name = "FILE")]
    pub authorities: Option<PathBuf>,
    /// A certificate to show to servers that ask for one over TLS, with what its chain needs.
    #[arg(long = "cert", value_name = "FILE")]
    pub own_certificate: Option<PathBuf>,
    /// Its private key.
    #[arg(long = "key", value_name = "FILE")]
    pub own_key: Option<PathBuf>,
    /// Do not check who answers over TLS.
    #[arg(long)]
    pub insecure: bool,
}

impl Trust {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.own_certificate.is_some() == self.own_key.is_some() {
            true => Ok(()),
            false => Err("--cert and --key, a certificate and its private key, go together: name both".into()),
        }
    }
}

/// What is read.
pub enum ImportSource {
    /// A file; `-` is standard input.
    File(String),
    Server(Server),
}

/// A server, as a `redis://` or `rediss://` URL names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `rediss://`: over TLS.
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<String>,
    pub database: Option<u64>,
}

/// Without the password.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The command line of the subcommand.
pub fn command() -> Command {
    ImportOptions::augment_args(Command::new(NAME))
        .about("Copy an RDB file, or what a running Redis holds, into a running server")
        .long_about(ABOUT)
        .after_help(EXAMPLES)
        .arg(cli::config_file())
        .args(cli::flags(|name| SETTINGS.contains(&name)))
}

impl ImportOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        self.source()?;
        self.target()?;
        self.trust.check()?;
        self.check_following()
    }

    fn check_following(&self) -> Result<(), String> {
        let problem = match (self.follow_changes, self.source()?) {
            (None, _) => return Ok(()),
            (_, ImportSource::File(_)) => "a file does not change: leave it out",
            // It deletes from the target what the source does not have.
            _ if self.into_existing => "the target must be empty: leave --into-existing out",
            _ if self.resume.is_some() => {
                "what changed before --resume is not known: begin again, with an empty target"
            }
            _ => return Ok(()),
        };
        Err(format!("--follow-changes: {problem}"))
    }

    /// How long nothing may have changed at the source, if its changes are to be followed.
    pub fn quiet(&self) -> Option<Duration> {
        self.follow_changes.map(Duration::from_secs)
    }

    pub fn source(&self) -> Result<ImportSource, String> {
        if self.source.is_empty() {
            return Err(
                "highwater import has to know what to read: name an RDB file, or a server as redis://HOST:PORT".into(),
            );
        }
        match self.source.contains("://") {
            true => Server::parse(&self.source).map(ImportSource::Server),
            false => Ok(ImportSource::File(self.source.clone())),
        }
    }

    pub fn target(&self) -> Result<Server, String> {
        if self.to.is_empty() {
            return Err(
                "highwater import has to know where to: name a running server with --to redis://HOST:PORT".into(),
            );
        }
        let server = Server::parse(&self.to).map_err(|problem| format!("--to: {problem}"))?;
        match server.database {
            None => Ok(server),
            Some(_) => Err("--to: keys go to the databases that they are in at the source: name none".into()),
        }
    }
}

fn parse_place(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once(':');
    let parts = parts.and_then(|(database, place)| Some((database.parse().ok()?, place.parse().ok()?)));
    parts.ok_or_else(|| "it is DATABASE:PLACE, two numbers".into())
}

impl Server {
    pub fn parse(url: &str) -> Result<Server, String> {
        let wrong = || {
            "a server is named as redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], or as rediss://… for TLS".to_owned()
        };
        let (tls, rest) = match url.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            _ => return Err(wrong()),
        };
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (Some(login), rest),
            None => (None, rest),
        };
        let (address, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => None,
            number => Some(number.parse().map_err(|_| wrong())?),
        };
        let (host, port) = match address.strip_prefix('[').and_then(|address| address.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        let port = port.map_or(Ok(6379), |port| port.parse().map_err(|_| wrong()))?;
        let (user, password) = match login.map(|login| login.split_once(':')) {
            None => (None, None),
            Some(Some((user, password))) => (Some(user).filter(|user| !user.is_empty()), Some(password)),
            Some(None) => return Err(wrong()),
        };
        if host.is_empty() || host.contains(':') && !address.starts_with('[') {
            return Err(wrong());
        }
        let decoded = |text: Option<&str>| text.map(|text| decode(text).ok_or_else(wrong)).transpose();
        Ok(Server {
            tls,
            host: host.to_owned(),
            port,
            user: decoded(user)?,
            password: decoded(password)?,
            database,
        })
    }
}

/// Replaces `%XX` by the byte that it stands for.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_as_elsewhere() {
        let server = |host: &str, port, user: Option<&str>, password: Option<&str>, database| Server {
            tls: false,
            host: host.into(),
            port,
            user: user.map(Into::into),
            password: password.map(Into::into),
            database,
        };
        for (url, expected) in [
            ("redis://h", server("h", 6379, None, None, None)),
            ("redis://h:7000/3", server("h", 7000, None, None, Some(3))),
            ("redis://:p%40x@h/", server("h", 6379, None, Some("p@x"), None)),
            (
                "redis://u:p:q@10.0.0.1:1",
                server("10.0.0.1", 1, Some("u"), Some("p:q"), None),
            ),
            ("redis://[::1]:7000", server("::1", 7000, None, None, None)),
        ] {
            assert_eq!(Server::parse(url), Ok(expected), "{url}");
        }
        for url in [
            "rediss:/h",
            "http://h",
            "redis://",
            "redis://h:x",
            "redis://h/x",
            "redis://u@h",
            "redis://:%zz@h",
            "redis://::1",
        ] {
            assert!(Server::parse(url).is_err(), "{url}");
        }
        let over_tls = Server::parse("rediss://:p@h").expect("it is one");
        assert!(over_tls.tls);
        assert_eq!((&over_tls.host[..], over_tls.port), ("h", 6379));
        let shown = Server::parse("redis://:secret@[::1]:7").expect("it is one").to_string();
        assert_eq!(shown, "[::1]:7");
    }
}
