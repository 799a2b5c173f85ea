//! Commands: one table ([`table`]), one file per family, one function per command.
//!
//! A command is a row (name, arity, flags, keys, …) and a handler. A data handler works on [`Data`]
//! alone, so it may be computed again. A session handler works on the connection ([`Session`]) and
//! on what all connections share ([`Shared`]); it runs once. Arity, ACL categories, COMMAND's
//! replies, locks, read consistency and `redis-compat.md` come from the row.
//!
//! To add a command: one row, one function, one line in `tests/it/side_by_side/`.
//!
//! The modules form no circle, but for one: the table names every family, and a command that is
//! about commands (COMMAND, INFO, LATENCY, …) looks into the table. What several families need is
//! in [`args`], [`data`] or here, never in one of them.

pub mod admission;
pub mod args;
pub mod blocked;
pub mod blocking;
pub mod broadcasts;
pub mod categories;
mod changing;
mod checks;
pub mod clients;
#[cfg(test)]
mod compat_doc;
mod compute;
pub mod consistency;
mod data;
pub mod event_queue;
mod events;
mod exec;
pub mod execute;
mod float;
pub mod hub;
pub mod info;
pub mod invalidations;
pub mod key_specs;
pub mod monitors;
pub mod notify;
pub mod publish;
pub mod pushes;
pub mod rights;
pub mod session;
pub mod settle;
pub mod shared;
mod sorted;
pub mod step;
pub mod table;
pub mod tally;
pub mod tracking;
pub mod tracking_modes;
pub mod undeclared;

// Families, each with its rows and its functions.
pub mod acl;
pub mod bits;
pub mod cluster;
mod collections;
pub mod connection;
pub mod dump;
pub mod functions;
pub mod geo;
pub mod hashes;
pub mod highwater;
pub mod hyperloglog;
pub mod introspection;
pub mod keys;
pub mod lists;
pub mod monitor;
pub mod not_implemented;
pub mod pubsub;
pub mod replication;
pub mod scripts;
pub mod server;
pub mod sets;
pub mod sort;
pub mod sorted_sets;
pub mod streams;
pub mod strings;
pub mod transactions;
pub mod wait;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use crate::database::{Fault, Transaction};
pub use crate::resp::Reply;
use crate::telemetry::histogram::Histogram;
pub use blocking::Blocking;
pub use data::Data;
pub use key_specs::KeySpec;
pub use session::Session;
pub use shared::Shared;

/// The Redis version whose commands and replies are implemented. Clients look at it.
pub const REDIS_VERSION: &str = "7.2.0";

/// The arguments of a request, the command's name first.
pub type Args<'a> = &'a [&'a [u8]];

/// Most bytes of memory that the values in one reply may take.
pub const MAX_REPLY_MEMORY: usize = 1 << 30;

/// What a handler answers.
pub type Outcome = Result<Reply, Fault>;

/// Computes a command about data.
pub type DataHandler = fn(&mut Data<'_, '_>, Args<'_>) -> Outcome;
/// Acts on the connection, or reports on the server.
pub type SessionHandler = fn(&mut Session, &Arc<Shared>, Args<'_>) -> Outcome;
/// Runs a script, which calls commands on the transaction and on the connection. Computed again as
/// a data handler is.
pub type ScriptHandler =
    fn(&mut Session, &Arc<Shared>, &mut Transaction<'_>, &mut undeclared::Used<'_>, u16, Args<'_>) -> Outcome;
pub type Waiting = Pin<Box<dyn Future<Output = Reply> + Send>>;
/// Starts something that takes time; not allowed inside MULTI.
pub type WaitingHandler = fn(&mut Session, &Arc<Shared>, Args<'_>) -> Result<Waiting, Fault>;

/// How a command is run.
#[derive(Clone, Copy)]
pub enum Run {
    /// Computed at once, in a transaction. Computed again if another writer came first.
    Data(DataHandler),
    /// Done at once, and only once. In EXEC it is done when the commands about data have been
    /// computed.
    Session(SessionHandler),
    /// SELECT: done as [`Run::Session`]. In EXEC, later commands about data use the database that
    /// it selects.
    Select,
    /// A script: computed as [`Run::Data`], with keys that only the computation finds (see
    /// [`undeclared`]).
    Script(ScriptHandler),
    /// Answers later. This connection waits, others do not. Not allowed inside MULTI.
    Later(WaitingHandler),
    /// PUBLISH and SPUBLISH. In EXEC it is done when the log has the transaction.
    Publish { shard: bool },
    /// EXEC: runs the queued commands in one transaction (see [`exec`]).
    Exec,
    /// DEBUG: its arguments decide how it is run. Not allowed inside MULTI.
    By(fn(Args<'_>) -> Run),
    /// Only its subcommands are run.
    Container,
    /// Not implemented: answered as an unknown command, and listed in `redis-compat.md`.
    NotYet,
}

/// How a command compares with Redis 7.2's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compatibility {
    Full,
    /// What is missing or different.
    Partial(&'static str),
    NotYet,
}

/// What a command reads. This node must have applied enough of the log for it: see [`consistency`].
#[derive(Clone, Copy)]
pub enum Reads {
    /// Its keys, if it has any.
    Keys,
    /// Its keys, unless the function says that a request with these arguments writes without
    /// reading.
    KeysUnless(fn(Args<'_>) -> bool),
    /// Its keys, and others that only its computation finds, if the function returns the option of
    /// a request with these arguments that names them.
    KeysAndOthersIf(fn(Args<'_>) -> Option<&'static str>),
    /// Keys of other databases too.
    OtherDatabases,
    /// A script reads its keys, and what else it likes.
    Script,
    /// The whole store, which must first hold everything that was acknowledged.
    Store,
    /// The whole store, if the function says that a request with these arguments reads it.
    StoreIf(fn(Args<'_>) -> bool),
}

/// One row of the table. The facts are those of Redis 7.2's own table
/// (<https://redis.io/docs/latest/commands/>); the summaries are in our words.
pub struct Command {
    /// Lower case; a subcommand has its full name: `client|list`.
    pub name: &'static str,
    /// Number of arguments, the name included. Negative: at least that many.
    pub arity: i32,
    /// [`flag`]s as COMMAND reports them, and our own.
    pub flags: u32,
    pub keys: &'static [KeySpec],
    /// What a request does with its keys ([`key_specs::access`]), if its other arguments decide
    /// that.
    pub access: Option<fn(Args<'_>) -> u16>,
    pub reads: Reads,
    /// Which arguments are secrets. SLOWLOG and MONITOR must not show them.
    pub secrets: Option<fn(Args<'_>) -> Vec<usize>>,
    /// ACL categories without `@`, besides those that the flags imply.
    pub categories: &'static [&'static str],
    /// `string`, `generic`, `connection`, `server`, `transactions`, `bitmap`, …
    pub group: &'static str,
    pub since: &'static str,
    pub complexity: &'static str,
    pub summary: &'static str,
    pub compatibility: Compatibility,
    pub run: Run,
    /// How it waits for elements if there are none, where its client can wait. [`Command::run`] is
    /// what it does where that is impossible, as in EXEC.
    pub blocks: Option<&'static Blocking>,
    pub subcommands: &'static [Command],
}

/// What `INFO commandstats` reports about one command, since start or CONFIG RESETSTAT.
#[derive(Default)]
pub struct CommandStats {
    pub calls: AtomicU64,
    /// Nanoseconds of computing it, without waiting for the log.
    pub nanoseconds: AtomicU64,
    /// Nanoseconds that clients waited for it, also for the log.
    pub waited: AtomicU64,
    /// `waited` as a histogram.
    pub waits: Histogram,
    /// `nanoseconds` as a histogram.
    pub computations: Histogram,
    /// Refused before it was computed (arity, authentication, …).
    pub rejected: AtomicU64,
    /// Its reply was an error.
    pub failed: AtomicU64,
}

impl Command {
    /// The values that rows leave out.
    pub const DEFAULT: Command = Command {
        name: "",
        arity: 0,
        flags: 0,
        keys: &[],
        access: None,
        reads: Reads::Keys,
        secrets: None,
        categories: &[],
        group: "",
        since: "1.0.0",
        complexity: "O(1)",
        summary: "",
        compatibility: Compatibility::Full,
        run: Run::NotYet,
        blocks: None,
        subcommands: &[],
    };

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the command is implemented. Otherwise only `redis-compat.md` lists it.
    pub fn is_there(&self) -> bool {
        !matches!(self.run, Run::NotYet)
    }

    /// How a request is run.
    pub fn run_for(&self, args: Args<'_>) -> Run {
        match self.run {
            Run::By(choose) => choose(args),
            run => run,
        }
    }

    /// The name without its container's: `list` of `client|list`.
    pub fn own_name(&self) -> &'static str {
        self.name.split_once('|').map_or(self.name, |(_, own)| own)
    }

    /// The arguments of a request as SLOWLOG and MONITOR may show them.
    pub fn without_secrets<'a>(&self, args: Args<'a>) -> Vec<&'a [u8]> {
        let mut shown = args.to_vec();
        for at in self.secrets.map_or_else(Vec::new, |secrets| secrets(args)) {
            if let Some(argument) = shown.get_mut(at) {
                *argument = b"(redacted)";
            }
        }
        shown
    }

    /// Whether the command takes this number of arguments, its name included.
    pub fn takes(&self, count: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity >= 0 {
            count == least
        } else {
            count >= least
        }
    }

    /// Whether a request may write. Of a script, only the flag says so that it reads.
    pub fn may_write(&self) -> bool {
        self.has(flag::WRITE) || (matches!(self.reads, Reads::Script) && !self.has(flag::READONLY))
    }

    pub fn is_script(&self) -> bool {
        matches!(self.run, Run::Script(_))
    }

    /// Whether a request reads keys that it does not declare.
    pub fn finds_keys(&self, args: Args<'_>) -> bool {
        matches!(self.reads, Reads::Script) || self.other_keys(args).is_some()
    }

    /// The option of a request that names keys which only its computation finds.
    pub fn other_keys(&self, args: Args<'_>) -> Option<&'static str> {
        match self.reads {
            Reads::KeysAndOthersIf(option) => option(args),
            _ => None,
        }
    }

    /// Whether a request reads the whole store. Without arguments: whether it may.
    pub fn looks_at_store(&self, args: Option<Args<'_>>) -> bool {
        match (self.reads, args) {
            (Reads::Store, _) | (Reads::StoreIf(_) | Reads::Script, None) => true,
            (Reads::StoreIf(looks), Some(args)) => looks(args),
            _ => false,
        }
    }
}

/// The reply of a container's HELP: its subcommands with their summaries.
pub fn help_of(container: &str, subcommands: &[Command]) -> Reply {
    let mut lines = vec![Reply::simple(format!(
        "{} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        container.to_ascii_uppercase()
    ))];
    for command in subcommands.iter().filter(|c| c.compatibility != Compatibility::NotYet) {
        lines.push(Reply::simple(command.own_name().to_ascii_uppercase()));
        lines.push(Reply::simple(format!("    {}", command.summary)));
    }
    Reply::Array(lines)
}

/// Flags of a command. Those up to `NO_MULTI` are Redis's
/// (<https://redis.io/docs/latest/commands/command/>).
pub mod flag {
    pub const WRITE: u32 = 1 << 0;
    pub const READONLY: u32 = 1 << 1;
    pub const DENYOOM: u32 = 1 << 2;
    pub const ADMIN: u32 = 1 << 3;
    pub const PUBSUB: u32 = 1 << 4;
    pub const NOSCRIPT: u32 = 1 << 5;
    pub const LOADING: u32 = 1 << 6;
    pub const STALE: u32 = 1 << 7;
    pub const FAST: u32 = 1 << 8;
    pub const NO_AUTH: u32 = 1 << 9;
    pub const BLOCKING: u32 = 1 << 10;
    pub const SKIP_MONITOR: u32 = 1 << 11;
    pub const SKIP_SLOWLOG: u32 = 1 << 12;
    pub const ASKING: u32 = 1 << 13;
    pub const NO_ASYNC_LOADING: u32 = 1 << 14;
    pub const MAY_REPLICATE: u32 = 1 << 15;
    pub const ALLOW_BUSY: u32 = 1 << 16;
    pub const MOVABLEKEYS: u32 = 1 << 17;
    pub const NO_MULTI: u32 = 1 << 18;
    pub const NO_MANDATORY_KEYS: u32 = 1 << 19;

    /// Ours: runs at once between MULTI and EXEC instead of being queued.
    pub const IN_MULTI: u32 = 1 << 24;
    /// Ours: may concern every key (SWAPDB, FLUSHALL), so all keys are locked.
    pub const ALL_KEYS: u32 = 1 << 25;
    /// Ours: the connection continues only when its writes are acknowledged (flushes).
    pub const BARRIER: u32 = 1 << 26;
    /// Ours: may take long, so only few run at one time.
    pub const LONG: u32 = 1 << 27;
    /// Ours: allowed only where `enable-debug-command` says so.
    pub const DEBUG: u32 = 1 << 28;
    /// Ours: allowed on a RESP2 connection that listens to channels.
    pub const WHILE_LISTENING: u32 = 1 << 30;
    /// Ours: begins to listen to channels.
    pub const LISTENS: u32 = 1 << 31;

    /// Names as COMMAND INFO reports them. Redis hides `MAY_REPLICATE`.
    pub const NAMES: &[(u32, &str)] = &[
        (WRITE, "write"),
        (READONLY, "readonly"),
        (DENYOOM, "denyoom"),
        (ADMIN, "admin"),
        (PUBSUB, "pubsub"),
        (NOSCRIPT, "noscript"),
        (BLOCKING, "blocking"),
        (LOADING, "loading"),
        (STALE, "stale"),
        (SKIP_MONITOR, "skip_monitor"),
        (SKIP_SLOWLOG, "skip_slowlog"),
        (ASKING, "asking"),
        (FAST, "fast"),
        (NO_AUTH, "no_auth"),
        (NO_ASYNC_LOADING, "no_async_loading"),
        (NO_MULTI, "no_multi"),
        (NO_MANDATORY_KEYS, "no_mandatory_keys"),
        (MOVABLEKEYS, "movablekeys"),
        (ALLOW_BUSY, "allow_busy"),
    ];
}
