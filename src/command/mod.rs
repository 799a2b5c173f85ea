//! Commands: one table ([`table`]), one file per family, one function per command.
//!
//! A command is a row (name, arity, flags, keys, …) and a handler over a [`Context`]: who asks ([`Session`]), what
//! the server knows ([`Shared`]), and a transaction over the databases. The handler is pure over its transaction: it may be computed again,
//! also as part of EXEC. Arity, ACL categories, COMMAND's replies and `redis-compat.md` come from the row.
//!
//! To add a command: one row, one function, one line in `tests/it/side_by_side/`.

pub mod admission;
pub mod args;
#[cfg(test)]
mod compat_doc;
pub mod consistency;
mod dump;
pub mod execute;
pub mod info;
pub mod pattern;
pub mod session;
pub mod table;
pub mod tally;

// Families, each with its rows and its functions.
pub mod bits;
pub mod connection;
pub mod highwater;
pub mod introspection;
pub mod keys;
pub mod pending;
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
pub use session::{Session, Shared};

/// The arguments of a request, the command's name first.
pub type Args<'a> = &'a [&'a [u8]];

/// Bytes of memory that the values in one reply may take.
pub const MAX_REPLY_MEMORY: usize = 1 << 30;

/// What a handler answers.
pub type Outcome = Result<Reply, Fault>;

/// What a handler works with.
pub struct Context<'c, 't> {
    pub session: &'c mut Session,
    pub shared: &'c Arc<Shared>,
    pub transaction: &'c mut Transaction<'t>,
}

impl Context<'_, '_> {
    /// The selected database.
    pub fn database(&self) -> u16 {
        self.session.database
    }
}

pub type Handler = fn(&mut Context<'_, '_>, Args<'_>) -> Outcome;
pub type Waiting = Pin<Box<dyn Future<Output = Reply> + Send>>;
/// Starts something that takes time; not allowed inside MULTI.
pub type WaitingHandler = fn(&mut Session, &Arc<Shared>, Args<'_>) -> Result<Waiting, Fault>;

/// How a command is run.
#[derive(Clone, Copy)]
pub enum Run {
    /// Computed at once, in a transaction.
    Now(Handler),
    /// Answers later; this connection waits, others do not.
    Later(WaitingHandler),
    /// EXEC: runs the queued commands in one transaction (see [`execute`]).
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

/// Where a command's keys are among its arguments.
#[derive(Clone, Copy)]
pub enum Keys {
    None,
    /// As COMMAND tells it: first, last (negative: from the end), step.
    Range {
        first: i32,
        last: i32,
        step: i32,
    },
    /// Every key may be meant (SWAPDB): all are locked.
    All,
    /// The number of keys stands at this argument, the keys follow.
    Counted(usize),
}

/// One row of the table. Facts of Redis 7.2's own table (https://redis.io/docs/latest/commands/), summaries in our words.
pub struct Command {
    /// Lower case; a subcommand has its full name: `client|list`.
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least so many.
    pub arity: i32,
    /// [`flag`]s as COMMAND tells them, and our own.
    pub flags: u32,
    pub keys: Keys,
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
        keys: Keys::None,
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
    /// Ours: looks at the whole store (SCAN, DBSIZE, …), which must first take in what was acknowledged.
    pub const WHOLE_STORE: u32 = 1 << 25;
    /// Ours: the connection goes on only when its writes are acknowledged (flushes).
    pub const BARRIER: u32 = 1 << 26;

    /// Ours: may take long, so few run at one time.
    pub const LONG: u32 = 1 << 27;

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
