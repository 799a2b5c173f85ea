//! The state of one connection ([`Session`]), owned by its task.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::clients::Client;
use super::hub::Listening;
use super::monitors::{Monitoring, ScriptLines};
use super::table::CommandEntry;
use super::tally::Tally;
use super::tracking::Tracks;
use crate::acl::{Account, Context, Users};
use crate::database::Pace;
use crate::database::consistency::Consistency;
use crate::database::watch::{Changed, Found};
use crate::database::write::Outstanding;
use crate::resp::Version;

/// One connection's state, owned by its task.
pub struct Session {
    pub client: Arc<Client>,
    pub database: u16,
    pub version: Version,
    /// Whose rights hold: the default user's, or those of the user of the client's certificate,
    /// until another one logs in.
    pub user: Arc<Account>,
    /// It needs not log in any more, whatever becomes of the default user.
    pub authenticated: bool,
    pub outstanding: Arc<Outstanding>,
    pub multi: Option<Multi>,
    pub watch: Option<Watch>,
    pub replies: Replies,
    /// What the connection listens to, if anything.
    pub listening: Option<Box<Listening>>,
    /// How the keys are tracked that the connection reads, if they are.
    pub tracks: Option<Box<Tracks>>,
    /// The connection is in the MONITOR mode.
    pub monitoring: Option<Monitoring>,
    /// What the script under way executes, for MONITOR.
    pub script_lines: ScriptLines,
    /// Whether pushes reach the client at all.
    pub takes_pushes: bool,
    /// Set by a command that ends pushes or changes their form: those that wait go out before its
    /// reply.
    pub pushes_first: bool,
    /// A command that EXEC runs is under way.
    pub in_exec: bool,
    pub reads: ReadPolicy,
    pub tally: Tally,
    /// How the command under way is computed.
    pub pace: Pace,
    /// Set when a login failed: the connection waits this long before it answers.
    pub delay: Option<Duration>,
    /// When the command under way began to wait for something.
    pub waits_since: Option<Instant>,
    /// A command may wait for elements, however long.
    pub may_block: bool,
    /// Set by QUIT and the like: close after this reply.
    pub close: bool,
}

/// Commands queued since MULTI.
#[derive(Default)]
pub struct Multi {
    pub queued: Vec<Queued>,
    /// Arguments of all queued commands, and the memory that they take.
    pub args: usize,
    pub bytes: usize,
    /// A command could not be queued, so EXEC will refuse.
    pub aborted: bool,
}

#[derive(Clone)]
pub struct Queued {
    pub command: &'static CommandEntry,
    pub args: Vec<Bytes>,
}

/// Watched keys, and the flag that is raised when one of them changes.
#[derive(Default)]
pub struct Watch {
    pub changed: Arc<Changed>,
    /// Each key with what WATCH found. `None` while WATCH waits for an earlier write of the key.
    pub keys: HashMap<(u16, Bytes), Option<Found>>,
    /// Bytes of their names.
    pub bytes: usize,
}

/// CLIENT REPLY: which requests are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// No request is answered.
    pub off: bool,
    /// The request under way is not answered.
    pub skip: bool,
    /// The next request is not answered.
    pub skip_next: bool,
}

impl Replies {
    /// Whether the request under way is answered.
    pub fn are_sent(self) -> bool {
        !self.off && !self.skip
    }

    /// Called when a request is over, also an empty one.
    pub fn next(&mut self) {
        self.skip = std::mem::take(&mut self.skip_next);
    }
}

/// How new the reads of a connection must be.
pub struct ReadPolicy {
    /// The mode that HIGHWATER CONSISTENCY set; `None`: the server's own.
    pub chosen: Option<Consistency>,
    /// When the requests that are being executed arrived.
    pub arrived: Instant,
}

impl Default for ReadPolicy {
    fn default() -> Self {
        ReadPolicy {
            chosen: None,
            arrived: Instant::now(),
        }
    }
}

impl Session {
    pub fn new(client: Arc<Client>, users: &Users) -> Self {
        let outstanding = Arc::new(Outstanding::in_order(client.id));
        let by_certificate = client.by_certificate.get().cloned();
        Session {
            client,
            database: 0,
            version: Version::Resp2,
            authenticated: by_certificate.is_some() || users.needs_no_login(),
            user: by_certificate.unwrap_or_else(|| users.default_account().clone()),
            outstanding,
            multi: None,
            watch: None,
            replies: Replies::default(),
            listening: None,
            tracks: None,
            monitoring: None,
            script_lines: ScriptLines::default(),
            takes_pushes: false,
            pushes_first: false,
            in_exec: false,
            reads: ReadPolicy::default(),
            tally: Tally::default(),
            pace: Pace::default(),
            delay: None,
            waits_since: None,
            may_block: false,
            close: false,
        }
    }

    /// The session is that of one call. Others on the same connection have users of their own.
    pub fn act_for(&mut self, user: Arc<Account>) {
        self.user = user;
        self.authenticated = true;
    }

    /// Makes this the user of the connection.
    pub fn log_in(&mut self, user: Arc<Account>) {
        self.client.details.lock().user = Some(user.clone());
        self.act_for(user);
    }

    /// The connection has the default user again, as a new one.
    pub fn log_out(&mut self, users: &Users) {
        self.log_in(users.default_account().clone());
        self.authenticated = users.needs_no_login();
    }

    /// Whether commands are served without a login.
    pub fn is_authenticated(&self, users: &Users) -> bool {
        self.authenticated || users.needs_no_login()
    }

    /// Where a command of the client itself comes from.
    pub fn context(&self) -> Context {
        match self.multi.is_some() || self.in_exec {
            true => Context::Multi,
            false => Context::TopLevel,
        }
    }

    /// Chooses the database.
    pub fn select(&mut self, database: u16) {
        self.database = database;
        self.client.database.store(database as usize, Ordering::Relaxed);
    }

    /// Leaves MULTI and forgets watched keys.
    pub fn end_transaction(&mut self) {
        self.multi = None;
        self.watch = None;
        self.client.queued.store(usize::MAX, Ordering::Relaxed);
        self.client.queued_bytes.store(0, Ordering::Relaxed);
        self.client.watching.store(0, Ordering::Relaxed);
        self.client.watched_bytes.store(0, Ordering::Relaxed);
    }
}
