//! How a script calls commands: each on the script's transaction.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use crate::acl::Context;
use crate::command::admission::{Refusal, Wants, admit};
use crate::command::broadcasts::Need;
use crate::command::checks::{caller, find};
use crate::command::compute::compute;
use crate::command::key_specs::keys_of;
use crate::command::table::{self, CommandEntry};
use crate::command::undeclared::Used;
use crate::command::{
    Args, Command, Fault, Reply, Run, Session, Shared, Transaction, connection, flag, monitor, publish, rights,
};
use crate::database::Wait;
use crate::database::transaction::Posted;
use crate::model::Collection;
use crate::script::{Host, Level};

/// Most errors of commands that are remembered until the script ends.
const MOST_ERRORS: usize = 1_000;

/// Most messages of one transaction.
const MOST_MESSAGES: usize = 10_000;
/// Most bytes of them together.
const MOST_MESSAGE_BYTES: usize = 64 << 20;
/// What a message costs besides its bytes, as bytes to go through.
const MESSAGE: usize = 1 << 10;

const UNKNOWN: &str = "ERR Unknown Redis command called from script";
const ARITY: &str = "ERR Wrong number of args calling Redis command from script";
const NOT_ALLOWED: &str = "ERR This Redis command is not allowed from script";
const READ_ONLY: &str = "ERR Write commands are not allowed from read-only scripts.";

/// What runs the commands of one script.
pub struct Commands<'c, 't, 'k> {
    pub session: &'c mut Session,
    pub shared: &'c Arc<Shared>,
    transaction: &'c mut Transaction<'t>,
    used: &'c mut Used<'k>,
    /// SELECT in a script changes it for the script alone.
    database: u16,
    pub is_read_only: bool,
    /// Why the script cannot go on.
    pub fault: Option<Fault>,
    /// Errors that its commands answered.
    errors: Vec<Bytes>,
    /// The time that TIME answers.
    began: std::time::SystemTime,
}

impl<'c, 't, 'k> Commands<'c, 't, 'k> {
    pub fn new(
        session: &'c mut Session,
        shared: &'c Arc<Shared>,
        transaction: &'c mut Transaction<'t>,
        used: &'c mut Used<'k>,
        database: u16,
    ) -> Self {
        Commands {
            session,
            shared,
            transaction,
            used,
            database,
            is_read_only: false,
            fault: None,
            errors: Vec::new(),
            began: std::time::SystemTime::now(),
        }
    }

    /// Counts the errors that the script's commands answered, but for one that is the script's own
    /// reply: that is counted when it is sent.
    pub fn count_errors(&mut self, own: Option<&Reply>) {
        let mut errors = std::mem::take(&mut self.errors);
        if own.is_some() {
            errors.pop();
        }
        errors.iter().for_each(|error| self.shared.stats.count_error(error));
    }

    /// Gives libraries of functions new texts, or deletes them.
    pub fn put_libraries(&mut self, libraries: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        self.transaction.put_libraries(libraries);
    }

    /// An error if a script may not call a command.
    fn check(&self, command: &Command, args: Args<'_>) -> Result<(), &'static str> {
        let can_run = matches!(
            command.run,
            Run::Data(_) | Run::Session(_) | Run::Select | Run::Publish { .. }
        );
        match () {
            () if !command.takes(args.len()) => Err(ARITY),
            () if command.has(flag::NOSCRIPT) || !can_run => Err(NOT_ALLOWED),
            () if self.is_read_only && command.has(flag::WRITE | flag::MAY_REPLICATE) => Err(READ_ONLY),
            () => Ok(()),
        }
    }

    /// An error if the user who runs the script may not run a command.
    fn check_rights(&self, command: &CommandEntry, args: Args<'_>) -> Result<(), Bytes> {
        let mut caller = caller(self.session, Context::Script);
        (caller.authenticated, caller.may_repeat) = (true, true);
        admit(self.shared, Wants::Run { caller, command, args }).map_err(|refusal| match refusal {
            Refusal::NotAllowed(_, text) => format!("ERR ACL failure in script: {text}").into(),
            refusal => refusal.text().into_owned().into(),
        })
    }

    /// Notes what a command uses. False if the script has to wait for the store.
    fn uses(&mut self, command: &Command, args: Args<'_>) -> bool {
        if command.has(flag::ALL_KEYS) || command.finds_keys(args) {
            self.used.all_keys();
        }
        if !command.keys.is_empty() {
            keys_of(command.keys, args)
                .into_iter()
                .for_each(|key| self.used.key(key));
        }
        !self.used.is_in_vain() && (!command.looks_at_store(Some(args)) || self.used.whole_store())
    }

    fn run(&mut self, command: &'static CommandEntry, args: Args<'_>) -> Result<Reply, Fault> {
        match command.run {
            Run::Data(_) if waits_for_entries(command, args) => {
                let text = " command is not allowed with BLOCK option from scripts";
                Err(Fault::error([b"ERR ", args[0], text.as_bytes()].concat()))
            }
            Run::Data(handler) => {
                self.transaction.counts = !command.has(flag::WRITE);
                self.session.reads(self.shared, command, args);
                let (shared, database) = (self.shared, self.database);
                self.transaction.whole(|transaction| {
                    let reply = compute((command, handler), shared, database, transaction, args)?;
                    transaction.check_size()?;
                    Ok(reply)
                })
            }
            Run::Select => {
                self.database = connection::selected(self.shared, args)?;
                Ok(Reply::Ok)
            }
            Run::Publish { shard } => self.publish(args, shard),
            Run::Session(_) if command.name == "time" => Ok(self.time()),
            Run::Session(handler) => handler(self.session, self.shared, args),
            _ => Err(NOT_ALLOWED.into()),
        }
    }

    /// The message is sent when the log has what the script writes.
    fn publish(&mut self, args: Args<'_>, shard: bool) -> Result<Reply, Fault> {
        if self.shared.pubsub.lacks(Need::Send) {
            return Err(Fault::Wait(Wait::Messages));
        }
        let [channel, payload] = [args[1], args[2]];
        self.transaction.works(channel.len() + payload.len() + MESSAGE)?;
        self.transaction.message_bytes += channel.len() + payload.len();
        self.transaction.message_count += 1;
        if self.transaction.message_count > MOST_MESSAGES || self.transaction.message_bytes > MOST_MESSAGE_BYTES {
            return Err(Fault::error(format!(
                "ERR a script publishes at most {MOST_MESSAGES} messages of {MOST_MESSAGE_BYTES} bytes together"
            )));
        }
        let [channel, payload] = [channel, payload].map(Bytes::copy_from_slice);
        let message = Posted {
            shard,
            channel,
            payload,
            queued: None,
        };
        let receivers = publish::receivers(self.shared, &message);
        self.transaction.messages.push(message);
        Ok(Reply::Int(receivers as i64))
    }

    /// TIME: the same all through the script.
    fn time(&self) -> Reply {
        let since = self.began.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let parts = [since.as_secs().to_string(), since.subsec_micros().to_string()];
        Reply::Array(parts.into_iter().map(Reply::bulk).collect())
    }

    fn failed(&mut self, error: Bytes) -> Reply {
        if self.errors.len() < MOST_ERRORS {
            self.errors.push(error.clone());
        }
        Reply::Error(error)
    }
}

/// XREAD and XREADGROUP with BLOCK. Other commands that wait act as if their timeout had passed.
fn waits_for_entries(command: &CommandEntry, args: Args<'_>) -> bool {
    let blocks = command.blocks;
    blocks.is_some_and(|blocking| blocking.of == Collection::Stream && blocking.waits(args))
}

impl Host for Commands<'_, '_, '_> {
    fn call(&mut self, args: &[&[u8]]) -> Option<Reply> {
        let Ok(command) = find(args) else {
            // A command that is not implemented: most of these wait, or are about the connection.
            let is_known = table::find(args[0]).is_some_and(|command| !command.is_there());
            return Some(self.failed(if is_known { NOT_ALLOWED } else { UNKNOWN }.into()));
        };
        let stats = command.stats.own();
        let permitted = self.check(command, args).map_err(Bytes::from);
        if let Err(error) = permitted.and_then(|()| self.check_rights(command, args)) {
            stats.rejected.fetch_add(1, Ordering::Relaxed);
            return Some(self.failed(error));
        }
        if !self.uses(command, args) {
            return None;
        }
        monitor::script_executes(self.session, self.shared, self.database, command, args);
        let began = Instant::now();
        let reply = match self.run(command, args) {
            Ok(reply) => reply,
            Err(Fault::Error(error)) => Reply::Error(error),
            Err(fault) => {
                self.fault = Some(fault);
                return None;
            }
        };
        let elapsed = began.elapsed();
        let took = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        if self.shared.config.latency_tracking() {
            stats.computations.add(elapsed);
        }
        stats.calls.fetch_add(1, Ordering::Relaxed);
        stats.nanoseconds.fetch_add(took, Ordering::Relaxed);
        Some(match reply {
            Reply::Error(error) => {
                stats.failed.fetch_add(1, Ordering::Relaxed);
                self.failed(error)
            }
            reply => reply,
        })
    }

    fn is_allowed(&mut self, args: &[&[u8]]) -> Option<bool> {
        let command = find(args).ok().filter(|command| command.takes(args.len()))?;
        Some(rights::allow(&self.session.user, command, args))
    }

    fn log(&mut self, level: Level, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        match level {
            Level::Debug => tracing::trace!(target: "script", "{text}"),
            Level::Verbose => tracing::debug!(target: "script", "{text}"),
            Level::Notice => tracing::info!(target: "script", "{text}"),
            Level::Warning => tracing::warn!(target: "script", "{text}"),
        }
    }
}
