//! The state of one connection ([`Session`]) and what all connections share ([`Shared`]).

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::consistency::ReadPolicy;
use super::table::Entry;
use super::tally::Tally;
use crate::config::Config;
use crate::database::watch::{Changed, Found};
use crate::database::write::Outstanding;
use crate::database::{Pace, Service, Turn, now_ms};
use crate::resp::Version;
use crate::telemetry::Stats;

/// Instead of a command's number: no command has come yet, or it is unknown.
pub const NO_COMMAND: u32 = u32::MAX;

/// What all connections share.
pub struct Shared {
    pub service: Arc<Service>,
    pub config: Arc<Config>,
    pub clients: Clients,
    pub stats: Stats,
    pub pause: Pause,
    pub turns: Turns,
    pub shutdown: Shutdown,
    pub started: Instant,
    /// Milliseconds since the epoch.
    pub started_at: u64,
    /// 40 hex digits, new at every start.
    pub run_id: String,
}

/// Bounds how many long commands run at one time, so that other commands find a free core.
pub struct Turns {
    /// For commands that take a fraction of a second. They do not wait for longer ones.
    large: Semaphore,
    long: Semaphore,
}

/// One connection's state, owned by its task.
pub struct Session {
    pub client: Arc<Client>,
    pub database: u16,
    pub version: Version,
    pub authenticated: bool,
    pub outstanding: Arc<Outstanding>,
    pub multi: Option<Multi>,
    pub watch: Option<Watch>,
    pub replies: Replies,
    pub reads: ReadPolicy,
    pub tally: Tally,
    /// How the command under way is computed.
    pub pace: Pace,
    /// Set when a login failed: the connection waits this long before it answers.
    pub delay: Option<Duration>,
    /// When the command under way began to wait for something.
    pub waits_since: Option<Instant>,
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
    pub command: &'static Entry,
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

/// What other connections may know of a connection (CLIENT LIST), and how they end it.
pub struct Client {
    pub id: u64,
    pub address: Option<SocketAddr>,
    pub local_address: Option<SocketAddr>,
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
    /// A command waits for the end of CLIENT PAUSE, or is one that blocks (WAIT).
    pub blocked: AtomicBool,
    /// The flag that is raised when a watched key changes.
    pub watch: Mutex<Weak<Changed>>,
    pub no_evict: AtomicBool,
    pub no_touch: AtomicBool,
    /// Failed logins since the last successful one.
    pub failed_logins: AtomicU32,
    /// Bytes in the read buffer, and bytes of replies that wait to be sent.
    pub input_bytes: AtomicUsize,
    pub output_bytes: AtomicUsize,
    /// Bytes of queued commands, and of watched keys.
    pub queued_bytes: AtomicUsize,
    pub watched_bytes: AtomicUsize,
    pub details: Mutex<ClientDetails>,
    killed: AtomicBool,
    /// Wakes the task that serves the connection.
    task: Waker,
}

#[derive(Default, Clone)]
pub struct ClientDetails {
    pub name: Bytes,
    pub library_name: Bytes,
    pub library_version: Bytes,
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

/// A connection's place among [`Clients`]. Dropping it frees the place.
pub struct Connected {
    pub client: Arc<Client>,
    shared: Arc<Shared>,
}

/// The state of CLIENT PAUSE.
#[derive(Default)]
pub struct Pause {
    state: RwLock<Option<Paused>>,
    active: AtomicBool,
    ended: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// Milliseconds since the epoch.
    pub until: u64,
    /// Only commands that may write wait.
    pub writes_only: bool,
}

/// Asks the whole server to stop.
#[derive(Default)]
pub struct Shutdown {
    asked: AtomicBool,
    notify: Notify,
}

impl Turns {
    /// `each`: how many commands of each kind run at one time.
    pub fn new(each: usize) -> Self {
        Turns {
            large: Semaphore::new(each),
            long: Semaphore::new(each),
        }
    }

    /// Waits for a turn, which ends when the returned permit is dropped. Short commands need none.
    pub async fn take(&self, turn: Turn) -> Option<SemaphorePermit<'_>> {
        let turns = match turn {
            Turn::Short => return None,
            Turn::Large => &self.large,
            Turn::Long => &self.long,
        };
        // The semaphores are never closed. A closed one would let every command run.
        turns.acquire().await.ok()
    }
}

impl Session {
    pub fn new(client: Arc<Client>, authenticated: bool) -> Self {
        Session {
            client,
            database: 0,
            version: Version::Resp2,
            authenticated,
            outstanding: Arc::new(Outstanding::in_order()),
            multi: None,
            watch: None,
            replies: Replies::default(),
            reads: ReadPolicy::default(),
            tally: Tally::default(),
            pace: Pace::default(),
            delay: None,
            waits_since: None,
            close: false,
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

impl Client {
    /// Notes the number of the command that has come, and the time (milliseconds since the epoch).
    pub fn came_with(&self, command: u32, at: u64) {
        self.last_command.store(command, Ordering::Relaxed);
        self.last_command_at.store(at, Ordering::Relaxed);
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

    /// Whether the connection comes from this machine.
    pub fn is_local(&self) -> bool {
        self.address
            .is_some_and(|address| address.ip().to_canonical().is_loopback())
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
        size_of::<Client>() + held + self.details.lock().bytes()
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

impl Connected {
    /// `task` wakes the task that serves the connection.
    pub fn new(shared: &Arc<Shared>, task: &Waker, stream: &TcpStream) -> Self {
        let (address, local_address) = (stream.peer_addr().ok(), stream.local_addr().ok());
        Connected {
            client: shared.clients.add(task, address, local_address, stream.as_raw_fd()),
            shared: shared.clone(),
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.shared.clients.remove(self.client.id);
    }
}

impl Clients {
    /// Adds a connection. `task` wakes the task that serves it.
    pub fn add(
        &self,
        task: &Waker,
        address: Option<SocketAddr>,
        local_address: Option<SocketAddr>,
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
            watch: Mutex::default(),
            no_evict: AtomicBool::new(false),
            no_touch: AtomicBool::new(false),
            failed_logins: AtomicU32::new(0),
            input_bytes: AtomicUsize::new(0),
            output_bytes: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            watched_bytes: AtomicUsize::new(0),
            details: Mutex::default(),
            killed: AtomicBool::new(false),
            task: task.clone(),
        });
        self.connected.lock().insert(client.id, client.clone());
        client
    }

    pub fn remove(&self, id: u64) {
        self.connected.lock().remove(&id);
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

impl Pause {
    /// Pauses until this time (milliseconds since the epoch). Of two pauses, the later end and the
    /// stricter kind hold.
    pub fn pause(&self, until: u64, writes_only: bool) {
        let mut state = self.state.write();
        *state = Some(match *state {
            Some(old) if old.until > now_ms() => Paused {
                until: until.max(old.until),
                writes_only: writes_only && old.writes_only,
            },
            _ => Paused { until, writes_only },
        });
        self.active.store(true, Ordering::Release);
    }

    pub fn unpause(&self) {
        *self.state.write() = None;
        self.active.store(false, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// The pause in force.
    pub fn current(&self) -> Option<Paused> {
        if !self.active.load(Ordering::Acquire) {
            return None;
        }
        let paused = (*self.state.read()).filter(|p| p.until > now_ms());
        if paused.is_none() {
            self.unpause();
        }
        paused
    }

    /// Waits until the pause in force ends or changes.
    pub async fn ended(&self) {
        let ended = self.ended.notified();
        if let Some(paused) = self.current() {
            let left = Duration::from_millis(paused.until.saturating_sub(now_ms()) + 1);
            let _ = tokio::time::timeout(left, ended).await;
        }
    }
}

impl Shutdown {
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    pub async fn asked(&self) {
        loop {
            let notified = self.notify.notified();
            if self.is_asked() {
                return;
            }
            notified.await;
        }
    }
}
