//! The connections as others see them: what CLIENT LIST shows, what each holds, how they are ended.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use super::args::text;
use super::pushes::{Kind, Pushes};
use super::table;
use super::tracking_modes::{Modes, mode};
use crate::acl::{Account, DEFAULT, Refusals};
use crate::database::now_ms;
use crate::database::watch::Changed;

/// Instead of a command's number: no command has come yet, or it is unknown.
pub const NO_COMMAND: u32 = u32::MAX;

/// States of [`Client::unblock`].
const NOT_BLOCKED: u8 = 0;
const BLOCKED: u8 = 1;
const TIMED_OUT: u8 = 2;
const WITH_ERROR: u8 = 3;

/// How CLIENT UNBLOCK ends a command that blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unblocked {
    /// As if its timeout had passed.
    TimedOut,
    WithError,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(Arc<str>),
}

impl Address {
    /// Whether it is this machine's.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Address::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "{path}:0"),
        }
    }
}

/// What other connections may know of a connection (CLIENT LIST), and how they end it.
pub struct Client {
    pub id: u64,
    pub address: Option<Address>,
    pub local_address: Option<Address>,
    /// The socket's file descriptor, as CLIENT LIST shows it.
    pub descriptor: i32,
    pub connected_at: Instant,
    /// Milliseconds since the epoch of the last command.
    pub last_command_at: AtomicU64,
    /// Number of the last command (`table::name_of`), or [`NO_COMMAND`].
    pub last_command: AtomicU32,
    pub database: AtomicUsize,
    pub resp3: AtomicBool,
    /// Commands queued since MULTI; `usize::MAX` when there is no MULTI.
    pub queued: AtomicUsize,
    pub watching: AtomicUsize,
    /// A command waits for the end of CLIENT PAUSE, or is one that blocks (BLPOP, WAIT).
    pub blocked: AtomicBool,
    /// The command that blocks has taken elements, and its reply waits for the log: pushes come
    /// after it.
    pub has_taken: AtomicBool,
    /// How CLIENT UNBLOCK may end, or has ended, the command that blocks.
    unblock: AtomicU8,
    /// The flag that is raised when a watched key changes.
    pub watch: Mutex<Weak<Changed>>,
    pub no_evict: AtomicBool,
    pub no_touch: AtomicBool,
    /// Failed logins so far.
    pub failed_logins: AtomicU32,
    /// What the script or transaction under way was refused so far.
    pub refusals: Mutex<Refusals>,
    /// Bytes in the read buffer, and bytes of replies that wait to be sent.
    pub input_bytes: AtomicUsize,
    pub output_bytes: AtomicUsize,
    /// Bytes of queued commands, and of watched keys.
    pub queued_bytes: AtomicUsize,
    pub watched_bytes: AtomicUsize,
    /// What waits to be pushed to it.
    pub pushes: Pushes,
    /// It is in the MONITOR mode.
    pub monitors: AtomicBool,
    /// How its keys are tracked.
    pub tracking: Modes,
    pub details: Mutex<ClientDetails>,
    /// The user that its certificate gave it.
    pub by_certificate: OnceLock<Arc<Account>>,
    killed: AtomicBool,
    /// Wakes the task that serves the connection.
    task: Waker,
}

#[derive(Default, Clone)]
pub struct ClientDetails {
    pub name: Bytes,
    pub library_name: Bytes,
    pub library_version: Bytes,
    /// Its user; `None` before one has logged in. Where each call has its own (gRPC): the user of
    /// the last call.
    pub user: Option<Arc<Account>>,
}

impl ClientDetails {
    fn bytes(&self) -> usize {
        self.name.len() + self.library_name.len() + self.library_version.len()
    }
}

/// All connections, by id.
#[derive(Default)]
pub struct Clients {
    next_id: AtomicU64,
    connected: Mutex<BTreeMap<u64, Arc<Client>>>,
}

impl Client {
    /// Notes the number of the command that has come, and the time (milliseconds since the epoch).
    pub fn came_with(&self, command: u32, at: u64) {
        self.last_command.store(command, Ordering::Relaxed);
        self.last_command_at.store(at, Ordering::Relaxed);
    }

    /// Its line in CLIENT LIST.
    pub fn describe(&self) -> String {
        let user = self.details.lock().user.clone();
        self.describe_for(user.as_ref().map_or(DEFAULT, |user| user.name()))
    }

    /// The same for a command of this user.
    pub fn describe_for(&self, user: &[u8]) -> String {
        let client = self;
        let ClientDetails {
            name,
            library_name,
            library_version,
            user: _,
        } = client.details.lock().clone();
        let address = |a: &Option<Address>| a.as_ref().map_or("?:0".to_owned(), |a| a.to_string());
        let last_command = table::name_of(client.last_command.load(Ordering::Relaxed)).unwrap_or("NULL");
        let queued = client.queued.load(Ordering::Relaxed);
        let input = client.input_bytes.load(Ordering::Relaxed);
        let output = client.output_bytes.load(Ordering::Relaxed);
        let mut flags = String::new();
        let redirect = match client.tracking.has(mode::ON) {
            true => client.tracking.redirect().map_or(0, |id| id as i64),
            false => -1,
        };
        for (set, letter) in [
            (client.monitors.load(Ordering::Relaxed), 'O'),
            (client.pushes.listens(), 'P'),
            (queued != usize::MAX, 'x'),
            (client.blocked.load(Ordering::Relaxed), 'b'),
            (client.tracking.has(mode::ON), 't'),
            (client.tracking.has(mode::BROKEN), 'R'),
            (client.tracking.has(mode::BCAST), 'B'),
            (client.has_lost_its_watch(), 'd'),
            (client.is_killed(), 'A'),
            (client.no_evict.load(Ordering::Relaxed), 'e'),
            (client.no_touch.load(Ordering::Relaxed), 'T'),
            (matches!(client.address, Some(Address::Unix(_))), 'U'),
        ] {
            if set {
                flags.push(letter);
            }
        }
        if flags.is_empty() {
            flags.push('N');
        }
        format!(
            "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={} db={} sub={} psub={} ssub={} multi={} qbuf={} \
             qbuf-free=0 argv-mem=0 multi-mem={} rbs=0 rbp=0 obl={} oll={} omem={} tot-mem={} events=r cmd={} user={} redir={} \
             resp={} lib-name={} lib-ver={}",
            client.id,
            address(&client.address),
            address(&client.local_address),
            client.descriptor,
            text(&name),
            client.connected_at.elapsed().as_secs(),
            now_ms().saturating_sub(client.last_command_at.load(Ordering::Relaxed)) / 1000,
            flags,
            client.database.load(Ordering::Relaxed),
            client.pushes.listens_to(Kind::Channel),
            client.pushes.listens_to(Kind::Pattern),
            client.pushes.listens_to(Kind::Shard),
            if queued == usize::MAX { -1 } else { queued as i64 },
            input,
            client.queued_bytes.load(Ordering::Relaxed),
            output,
            client.pushes.len(),
            output + client.pushes.bytes(),
            client.memory(),
            last_command,
            text(user),
            redirect,
            if client.resp3.load(Ordering::Relaxed) { 3 } else { 2 },
            text(&library_name),
            text(&library_version),
        )
    }

    /// Whether this is its user.
    pub fn is_of(&self, user: &Arc<Account>) -> bool {
        match &self.details.lock().user {
            Some(own) => Arc::ptr_eq(own, user),
            None => user.name() == DEFAULT,
        }
    }

    /// Whether a watched key has changed.
    pub fn has_lost_its_watch(&self) -> bool {
        let flag = self.watch.lock().upgrade();
        flag.is_some_and(|changed| changed.load(Ordering::SeqCst))
    }

    /// Asks the connection to end. It ends at its next step.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the connection's task, which then checks whether the connection is killed and whether
    /// the server has to stop. A connection that waits does not register for these.
    pub fn wake(&self) {
        self.task.wake_by_ref();
    }

    /// Ends the command that blocks, from another connection. False if none does.
    pub fn unblock(&self, how: Unblocked) -> bool {
        let to = match how {
            Unblocked::TimedOut => TIMED_OUT,
            Unblocked::WithError => WITH_ERROR,
        };
        let state = &self.unblock;
        let ends = state
            .compare_exchange(BLOCKED, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        if ends {
            self.wake();
        }
        ends
    }

    /// A command begins, or ends, to block in a way that CLIENT UNBLOCK can end.
    pub(super) fn may_be_unblocked(&self, may: bool) {
        let state = if may { BLOCKED } else { NOT_BLOCKED };
        self.unblock.store(state, Ordering::SeqCst);
    }

    /// How the command that blocks was ended by another connection.
    pub(super) fn unblocked(&self) -> Option<Unblocked> {
        match self.unblock.load(Ordering::SeqCst) {
            TIMED_OUT => Some(Unblocked::TimedOut),
            WITH_ERROR => Some(Unblocked::WithError),
            _ => None,
        }
    }

    /// Bytes of replies that wait, if they count with its pushes: in a connection that listens to
    /// channels they are the same thing.
    pub fn listener_output(&self) -> usize {
        match self.pushes.listens() {
            true => self.output_bytes.load(Ordering::Relaxed),
            false => 0,
        }
    }

    /// Whether the connection comes from this machine.
    pub fn is_local(&self) -> bool {
        self.address.as_ref().is_some_and(Address::is_local)
    }

    /// Bytes that this connection holds.
    pub fn memory(&self) -> usize {
        let held = [
            &self.input_bytes,
            &self.output_bytes,
            &self.queued_bytes,
            &self.watched_bytes,
        ];
        let held: usize = held.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum();
        let pushed = self.pushes.bytes() + self.pushes.names.load(Ordering::Relaxed);
        size_of::<Client>() + held + pushed + self.details.lock().bytes()
    }

    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Waits until the connection is killed.
    pub async fn killed(&self) {
        self.killed_or(|| false).await;
    }

    /// Waits until the connection is killed, or `ended` holds. Only the task that serves the
    /// connection may await it. The code that makes `ended` true must call [`Client::wake`], as
    /// [`Client::kill`] does.
    pub async fn killed_or(&self, ended: impl Fn() -> bool) {
        poll_fn(|_| match self.is_killed() || ended() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

impl Clients {
    /// Adds a connection. `task` wakes the task that serves it.
    pub fn add(
        &self,
        task: &Waker,
        address: Option<Address>,
        local_address: Option<Address>,
        descriptor: i32,
    ) -> Arc<Client> {
        let client = Arc::new(Client {
            id: self.next_id.fetch_add(1, Ordering::Relaxed) + 1,
            address,
            local_address,
            descriptor,
            connected_at: Instant::now(),
            last_command_at: AtomicU64::new(now_ms()),
            last_command: AtomicU32::new(NO_COMMAND),
            database: AtomicUsize::new(0),
            resp3: AtomicBool::new(false),
            queued: AtomicUsize::new(usize::MAX),
            watching: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            has_taken: AtomicBool::new(false),
            unblock: AtomicU8::new(NOT_BLOCKED),
            watch: Mutex::default(),
            no_evict: AtomicBool::new(false),
            no_touch: AtomicBool::new(false),
            failed_logins: AtomicU32::new(0),
            refusals: Mutex::default(),
            input_bytes: AtomicUsize::new(0),
            output_bytes: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            watched_bytes: AtomicUsize::new(0),
            pushes: Pushes::default(),
            monitors: AtomicBool::new(false),
            tracking: Modes::default(),
            details: Mutex::default(),
            by_certificate: OnceLock::new(),
            killed: AtomicBool::new(false),
            task: task.clone(),
        });
        self.connected.lock().insert(client.id, client.clone());
        client
    }

    pub fn remove(&self, id: u64) {
        self.connected.lock().remove(&id);
    }

    pub fn get(&self, id: u64) -> Option<Arc<Client>> {
        self.connected.lock().get(&id).cloned()
    }

    pub fn len(&self) -> usize {
        self.connected.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that all connections hold.
    pub fn memory(&self) -> usize {
        self.connected.lock().values().map(|client| client.memory()).sum()
    }

    /// Kills the connections that hold most memory, until the others together hold at most `limit`.
    /// Returns how many were killed.
    pub fn shrink_to(&self, limit: usize) -> u64 {
        if self.memory() <= limit {
            return 0;
        }
        let mut clients = self.list();
        clients.retain(|client| !client.is_killed());
        let mut held: usize = clients.iter().map(|client| client.memory()).sum();
        let mut victims: Vec<_> = clients
            .iter()
            .filter(|client| !client.no_evict.load(Ordering::Relaxed))
            .map(|client| (client.memory(), client))
            .collect();
        victims.sort_unstable_by_key(|(memory, _)| std::cmp::Reverse(*memory));
        let mut killed = 0;
        for (memory, client) in victims {
            if held <= limit {
                break;
            }
            client.kill();
            held -= memory.min(held);
            killed += 1;
        }
        killed
    }

    /// All connections, oldest first.
    pub fn list(&self) -> Vec<Arc<Client>> {
        self.connected.lock().values().cloned().collect()
    }
}
