//! What all connections share ([`Shared`]): the service, the settings, the clients, and what
//! pauses, delays or stops them.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::broadcasts::PubSub;
use super::clients::{Address, Client, Clients};
use super::monitors::Monitors;
use super::tracking::Tracking;
use crate::acl::Users;
use crate::config::Config;
use crate::database::{Service, Turn, now_ms};
use crate::script::Engine;
use crate::telemetry::Stats;

/// What all connections share.
pub struct Shared {
    pub service: Arc<Service>,
    pub config: Arc<Config>,
    pub clients: Clients,
    pub users: Users,
    pub pubsub: PubSub,
    pub monitors: Arc<Monitors>,
    /// Who tracks which keys.
    pub tracking: Arc<Tracking>,
    pub stats: Stats,
    pub pause: Pause,
    pub turns: Turns,
    pub scripts: Engine,
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
    /// For scripts that have run for longer than that. They may never end.
    scripts: Semaphore,
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
    /// For connections, which look at it after each burst of requests. A look at the token locks a
    /// mutex (`docs/decisions/dependencies.md`).
    asked: AtomicBool,
    token: CancellationToken,
}

/// A connection's place among [`Clients`]. Dropping it frees the place.
pub struct Connected {
    pub client: Arc<Client>,
    shared: Arc<Shared>,
}

impl Turns {
    /// `each`: how many commands of each kind run at one time.
    pub fn new(each: usize) -> Self {
        Turns {
            large: Semaphore::new(each),
            long: Semaphore::new(each),
            scripts: Semaphore::new(each),
        }
    }

    /// Waits for a turn, which ends when the returned permit is dropped. Short commands need none.
    pub async fn take(&self, turn: Turn) -> Option<SemaphorePermit<'_>> {
        let turns = match turn {
            Turn::Short => return None,
            Turn::Large => &self.large,
            Turn::Long => &self.long,
            Turn::Script => &self.scripts,
        };
        // The semaphores are never closed. A closed one would let every command run.
        turns.acquire().await.ok()
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
        self.token.cancel();
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    pub async fn asked(&self) {
        self.token.cancelled().await;
    }
}

impl Connected {
    /// `task` wakes the task that serves the connection. `descriptor`: the socket's.
    pub fn new(
        shared: &Arc<Shared>,
        task: &Waker,
        (address, local_address): (Option<Address>, Option<Address>),
        descriptor: RawFd,
    ) -> Self {
        Connected {
            client: shared.clients.add(task, address, local_address, descriptor),
            shared: shared.clone(),
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.shared.clients.remove(self.client.id);
    }
}
