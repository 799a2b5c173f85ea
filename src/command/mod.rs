//! Commands: one table ([`table`]), one file per family, one function per command.
//!
//! A command is a row (name, arity, flags, keys, …) and a handler. A handler of data works on [`Data`] alone, so it may be
//! computed anew. A handler of the connection works on who asks ([`Session`]) and on what the server knows ([`Shared`]); it runs
//! once. Arity, ACL categories, COMMAND's replies, locks, read consistency and `redis-compat.md` come from the row.
//!
//! To add a command: one row, one function, one line in `tests/it/side_by_side/`.

pub mod admission;
pub mod args;
mod checks;
#[cfg(test)]
mod compat_doc;
mod compute;
pub mod consistency;
mod data;
mod dump;
mod exec;
pub mod execute;
pub mod info;
pub mod key_specs;
pub mod pattern;
pub mod session;
pub mod settle;
pub mod step;
pub mod table;
pub mod tally;

// Families, each with its rows and its functions.
pub mod bits;
pub mod connection;
pub mod highwater;
pub mod introspection;
pub mod keys;
pub mod not_implemented;
pub mod server;
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
pub use data::Data;
pub use key_specs::KeySpec;
pub use session::{Session, Shared};

/// The arguments of a request, the command's name first.
pub type Args<'a> = &'a [&'a [u8]];

/// Bytes of memory that the values in one reply may take.
pub const MAX_REPLY_MEMORY: usize = 1 << 30;

/// What a handler answers.
pub type Outcome = Result<Reply, Fault>;

/// Computes a command about data.
pub type DataHandler = fn(&mut Data<'_, '_>, Args<'_>) -> Outcome;
/// Does something for the connection that asks, or tells of the server.
pub type SessionHandler = fn(&mut Session, &Arc<Shared>, Args<'_>) -> Outcome;
pub type Waiting = Pin<Box<dyn Future<Output = Reply> + Send>>;
/// Starts something that takes time; not allowed inside MULTI.
pub type WaitingHandler = fn(&mut Session, &Arc<Shared>, Args<'_>) -> Result<Waiting, Fault>;

/// How a command is run.
#[derive(Clone, Copy)]
pub enum Run {
    /// Computed at once, in a transaction; computed anew where another writer came first.
    Data(DataHandler),
    /// Done at once, and once only. As a part of EXEC it is done when the commands about data are computed.
    Session(SessionHandler),
    /// SELECT: done as [`Run::Session`]; commands about data behind it in EXEC are computed on what it selects.
    Select,
    /// Answers later; this connection waits, others do not. Not allowed inside MULTI.
    Later(WaitingHandler),
    /// EXEC: runs the queued commands in one transaction (see [`exec`]).
    Exec,
    /// Only its subcommands are run.
    Container,
    /// Not there yet: answered as an unknown command; listed in `redis-compat.md`.
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

/// What a command reads of the data, which this node must have read from the log before: see [`consistency`].
#[derive(Clone, Copy)]
pub enum Reads {
    /// Its keys, if it has any.
    Keys,
    /// Its keys, unless this says of its arguments that it writes without reading.
    KeysUnless(fn(Args<'_>) -> bool),
    /// Keys of other databases too.
    OtherDatabases,
    /// The whole store, which must first take in what was acknowledged.
    Store,
    /// The whole store, if this says so of its arguments.
    StoreIf(fn(Args<'_>) -> bool),
}

/// One row of the table. Facts of Redis 7.2's own table (https://redis.io/docs/latest/commands/), summaries in our words.
pub struct Command {
    /// Lower case; a subcommand has its full name: `client|list`.
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least so many.
    pub arity: i32,
    /// [`flag`]s as COMMAND tells them, and our own.
    pub flags: u32,
    pub keys: &'static [KeySpec],
    /// What a request does with its keys ([`key_specs::access`]), where its other arguments say so.
    pub access: Option<fn(Args<'_>) -> u16>,
    pub reads: Reads,
    /// Which arguments are secrets, which SLOWLOG must not show.
    pub secrets: Option<fn(Args<'_>) -> Vec<usize>>,
    /// ACL categories without `@`, besides those that follow from the flags.
    pub categories: &'static [&'static str],
    /// `string`, `generic`, `connection`, `server`, `transactions`, `bitmap`, …
    pub group: &'static str,
    pub since: &'static str,
    pub complexity: &'static str,
    pub summary: &'static str,
    pub compatibility: Compatibility,
    pub run: Run,
    pub subcommands: &'static [Command],
}

/// What `INFO commandstats` tells of one command, since start or CONFIG RESETSTAT.
#[derive(Default)]
pub struct CommandStats {
    pub calls: AtomicU64,
    /// Time of computing it (waiting for the log not included), nanoseconds.
    pub nanoseconds: AtomicU64,
    /// Time that clients waited for it (for the log too), nanoseconds.
    pub waited: AtomicU64,
    /// The same, by length.
    pub waits: Histogram,
    /// Refused before it was computed (arity, authentication, …).
    pub rejected: AtomicU64,
    /// Computed to an error.
    pub failed: AtomicU64,
}

impl Command {
    /// What rows leave out.
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
        subcommands: &[],
    };

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether a request looks at the whole store; without its arguments, whether it may.
    pub fn looks_at_store(&self, args: Option<Args<'_>>) -> bool {
        match (self.reads, args) {
            (Reads::Store, _) | (Reads::StoreIf(_), None) => true,
            (Reads::StoreIf(looks), Some(args)) => looks(args),
            _ => false,
        }
    }
}

/// Flags of a command. Those up to `NO_MULTI` are Redis's (<https://redis.io/docs/latest/commands/command/>).
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

    /// Ours: runs at once between MULTI and EXEC instead of being queued.
    pub const IN_MULTI: u32 = 1 << 24;
    /// Ours: every key may be meant (SWAPDB, FLUSHALL): all are locked.
    pub const ALL_KEYS: u32 = 1 << 25;
    /// Ours: the connection goes on only when its writes are acknowledged (flushes).
    pub const BARRIER: u32 = 1 << 26;
    /// Ours: may take long, so few run at one time.
    pub const LONG: u32 = 1 << 27;
    /// Ours: allowed only where `enable-debug-command` says so.
    pub const DEBUG: u32 = 1 << 28;

    /// Names as COMMAND INFO tells them.
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
        (MAY_REPLICATE, "may_replicate"),
        (NO_ASYNC_LOADING, "no_async_loading"),
        (NO_MULTI, "no_multi"),
        (MOVABLEKEYS, "movablekeys"),
        (ALLOW_BUSY, "allow_busy"),
    ];
}
