//! Starts every thread and every task, and notices when one dies. `clippy.toml` refuses all other
//! ways to start one.
//!
//! [`ROLES`] is the register: each thread and task by name, and what its death means ([`Death`]). A
//! thread dies when it panics, or when it makes no progress for [`STALLED`] while it has work to
//! do. For the latter it reports to the watchdog: [`busy`] when it begins a piece of work, [`beat`]
//! as it makes progress, [`idle`] before it waits for more work.
//!
//! When this process cannot go on ([`fail`]), the hook of [`on_failure`] is called, and ends it.

use std::any::Any;
use std::cell::OnceCell;
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::error;

/// A thread without progress for this long, with work to do, counts as dead.
const STALLED: Duration = Duration::from_secs(30);
/// The watchdog looks this many times in [`STALLED`].
const LOOKS: u32 = 30;
/// Pause before a thread or task that panicked is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// What a thread or task is for.
pub struct Role {
    pub name: &'static str,
    pub death: Death,
}

/// What the death of a thread or task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// This node cannot go on: it answers with the reason, and the process ends.
    NodeFails,
    /// Its owner starts the work again. For a task [`task_again`] does that; the owner of a thread
    /// has to see to it (`Tail::watch`, `compaction::caught`). If it stalls instead, the node
    /// fails.
    StartsAgain,
    /// One connection, one answer or one attempt is lost.
    CostsOne,
}

macro_rules! roles {
    ($($(#[$doc:meta])* $role:ident = $name:literal, $death:ident;)+) => {
        $($(#[$doc])* pub static $role: Role = Role { name: $name, death: Death::$death };)+
        /// All roles.
        pub static ROLES: &[&Role] = &[$(&$role),+];
    };
}

roles! {
    /// Follows the log.
    APPLIER = "applier", NodeFails;
    /// Writes to the store what was applied.
    STORE_WRITER = "store-writer", NodeFails;
    /// Reads the store into memory after a start.
    PRELOAD = "preload", CostsOne;
    /// Closes a damaged store.
    STORE_CLOSER = "store-closer", CostsOne;

    /// Appends to the embedded log.
    LOG_WRITER = "log-writer", NodeFails;
    /// Fsyncs the embedded log with `--fsync everysec`.
    LOG_FSYNC = "log-fsync", NodeFails;
    LOG_COMPACTION = "log-compaction", StartsAgain;

    /// Passes a producer's delivery reports to the writes that wait for them.
    KAFKA_REPORTS = "kafka-reports", NodeFails;
    /// Looks at the topics, and replaces broken producers.
    KAFKA_WATCH = "kafka-watch", NodeFails;
    /// Commits groups of the transaction lane.
    TRANSACTIONS = "transactions", NodeFails;
    /// Reads what other writers wrote before a group.
    TRANSACTIONS_TAIL = "transactions-tail", StartsAgain;
    /// Ends a transaction that another transactional id left unfinished.
    TRANSACTION_END = "transaction-end", CostsOne;
    /// Reads messages between nodes.
    PUBSUB_READER = "pubsub-reader", NodeFails;
    /// Finds or creates the topic of messages between nodes.
    PUBSUB_TOPIC = "pubsub-topic", CostsOne;
    /// Waits for the end of a producer.
    PRODUCER_END = "producer-end", CostsOne;

    /// Looks for stalled threads.
    WATCHDOG = "watchdog", NodeFails;
    /// Ends the process after a failure.
    ENDING = "ending", CostsOne;

    /// Accepts connections of Redis clients, or of HTTP clients.
    LISTENER = "listener", NodeFails;
    CONNECTION = "connection", CostsOne;
    /// Accepts connections of gRPC clients, and reports to the health service whether this node
    /// serves.
    GRPC = "grpc", NodeFails;
    /// Answers one request of a gRPC client.
    GRPC_REQUEST = "grpc-request", CostsOne;
    /// Handles signals.
    SIGNALS = "signals", NodeFails;
    /// Samples rates, and enforces the bound of what clients hold.
    NODE_WATCH = "node-watch", StartsAgain;
    /// Shows the progress of loading.
    PROGRESS = "progress", CostsOne;
    /// Tells many connections of one change.
    INVALIDATIONS = "invalidations", StartsAgain;
    /// Delivers keyspace events that were put off.
    EVENTS = "keyspace-events", StartsAgain;
    /// Deletes expired and flushed keys.
    SWEEP = "sweep", StartsAgain;
    SWEEP_LOOK = "sweep-look", CostsOne;

    /// Opens the log and the store.
    OPEN = "open", CostsOne;
    /// Starts the applier.
    START = "start", CostsOne;
    /// Stops the log and the applier.
    STOP = "stop", CostsOne;
    CREATE_DATABASE = "create-database", CostsOne;
    DIGEST = "digest", CostsOne;
    /// Asks the log for its ends, for reads that must be new.
    LOG_ENDS = "log-ends", CostsOne;
}

impl Role {
    /// Reports a panic, and does what it means for this role.
    fn panicked(&self, panic: &(dyn Any + Send)) {
        let (name, text) = (self.name, panic_text(panic));
        match self.death {
            Death::NodeFails => fail(format!("go on: '{name}' panicked: {text}")),
            Death::StartsAgain => error!("'{name}' panicked and is started again: {text}"),
            Death::CostsOne => error!("'{name}' panicked: {text}"),
        }
    }
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or(panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// Starts a thread. Its result is `None` after a panic, which has then been reported.
pub fn thread<T: Send + 'static>(
    role: &'static Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<Option<T>>> {
    #[allow(clippy::disallowed_methods, reason = "the one place that starts threads")]
    std::thread::Builder::new().name(role.name.into()).spawn(move || {
        Pulse::start(role);
        let body = || {
            inject_panic(role);
            body()
        };
        let ended = catch_unwind(AssertUnwindSafe(body));
        ended.map_err(|panic| role.panicked(&*panic)).ok()
    })
}

/// Starts a task. Its result is `None` after a panic, which has then been reported.
#[allow(clippy::disallowed_methods, reason = "the one place that starts tasks")]
pub fn task<T: Send + 'static>(
    role: &'static Role,
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<Option<T>> {
    tokio::spawn(caught(role, task))
}

/// Starts a task of a set.
#[allow(clippy::disallowed_methods, reason = "the one place that starts tasks")]
pub fn task_of<T: Send + 'static>(
    set: &mut JoinSet<Option<T>>,
    role: &'static Role,
    task: impl Future<Output = T> + Send + 'static,
) {
    set.spawn(caught(role, task));
}

/// Starts a task that is started again when it panics.
#[allow(clippy::disallowed_methods, reason = "the one place that starts tasks")]
pub fn task_again<F: Future<Output = ()> + Send + 'static>(
    role: &'static Role,
    start: impl Fn() -> F + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while caught(role, start()).await.is_none() {
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Runs blocking work beside the tasks. The error says that it panicked.
#[allow(clippy::disallowed_methods, reason = "the one place that starts tasks")]
pub async fn blocking<T: Send + 'static>(
    role: &'static Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let ended = tokio::task::spawn_blocking(move || {
        caught_once(role, || {
            inject_panic(role);
            body()
        })
    });
    ended.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The same for work that is not waited for.
pub fn start_blocking(role: &'static Role, body: impl FnOnce() + Send + 'static) {
    #[allow(clippy::disallowed_methods, reason = "the one place that starts tasks")]
    tokio::task::spawn_blocking(move || caught_once(role, body));
}

fn caught_once<T>(role: &'static Role, body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        role.panicked(&*panic);
        format!("'{}' panicked: {}", role.name, panic_text(&*panic))
    })
}

fn caught<T>(role: &'static Role, task: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    let mut task = Box::pin(task);
    poll_fn(move |context| {
        let poll = || {
            inject_panic(role);
            task.as_mut().poll(context)
        };
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Err(panic) => {
                role.panicked(&*panic);
                Poll::Ready(None)
            }
        }
    })
}

type Hook = Box<dyn Fn(&str) + Send>;

static FAILURE: OnceLock<String> = OnceLock::new();
static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

/// Called when this process cannot go on. `problem` follows the word "cannot". Only the first call
/// counts.
pub fn fail(problem: String) {
    error!("cannot {problem}");
    let hook = HOOK.lock();
    if FAILURE.set(problem).is_ok()
        && let (Some(hook), Some(problem)) = (&*hook, FAILURE.get())
    {
        hook(problem);
    }
}

/// Ends a process that cannot go on.
pub fn end_now(problem: &str) {
    tell(problem);
    exit(1);
}

/// Reports on standard error what could not be done.
pub fn tell(problem: &str) {
    // If this fails, there is no other place to report it.
    let _ = writeln!(io::stderr(), "highwater: cannot {problem}");
}

/// Why this process cannot go on.
pub fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

/// Sets the hook that is called once this process cannot go on; at once if that is already so.
pub fn on_failure(hook: impl Fn(&str) + Send + 'static) {
    let mut current = HOOK.lock();
    failure().into_iter().for_each(&hook);
    *current = Some(Box::new(hook));
}

/// What a thread reports to the watchdog.
struct Pulse {
    role: &'static Role,
    /// Grows with each report.
    beats: AtomicU64,
    /// Milliseconds that the work under way may take beyond [`STALLED`]. [`IDLE`]: there is no
    /// work.
    more: AtomicU64,
}

const IDLE: u64 = u64::MAX;

static PULSES: Mutex<Vec<Weak<Pulse>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: OnceCell<Arc<Pulse>> = const { OnceCell::new() };
}

impl Pulse {
    /// Gives this thread a pulse.
    fn start(role: &'static Role) {
        let pulse = Arc::new(Pulse {
            role,
            beats: AtomicU64::new(0),
            more: AtomicU64::new(IDLE),
        });
        let mut pulses = PULSES.lock();
        pulses.retain(|pulse| pulse.strong_count() > 0);
        pulses.push(Arc::downgrade(&pulse));
        // This cannot fail: a new thread has none yet.
        let _ = OWN.with(|own| own.set(pulse));
    }

    fn report(&self, more: u64) {
        self.more.store(more, Ordering::Relaxed);
        self.beat();
    }

    fn beat(&self) {
        // Only this thread writes it.
        self.beats
            .store(self.beats.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

fn own(report: impl FnOnce(&Pulse)) {
    // A thread that was not started here, or that is ending, has none.
    let _ = OWN.try_with(|own| own.get().map(|own| report(own)));
}

/// This thread has made progress with its work.
pub fn beat() {
    own(|pulse| {
        pulse.beat();
        inject(pulse.role);
    });
}

/// This thread begins work. A step of it may take `more` than the usual time.
pub fn busy(more: Duration) {
    own(|pulse| {
        pulse.report(u64::try_from(more.as_millis()).unwrap_or(IDLE));
        inject(pulse.role);
    });
}

/// This thread begins to wait, for work or for another thread.
pub fn idle() {
    own(|pulse| pulse.report(IDLE));
}

/// How long writing so many bytes to a slow disk may take.
pub fn disk_time(bytes: u64) -> Duration {
    const SLOW_DISK: u64 = 4 << 20;
    Duration::from_secs(bytes / SLOW_DISK)
}

/// Starts the thread that looks for stalled threads.
pub fn start_watchdog() -> io::Result<()> {
    thread(&WATCHDOG, watch).map(drop)
}

fn watch() {
    let limit = stalled_after();
    let (pause, scale) = (limit / LOOKS, limit.as_secs_f64() / STALLED.as_secs_f64());
    // Looks are counted, not time: while the whole process is stopped (SIGSTOP, a paused machine),
    // nothing stalls.
    let mut seen: Vec<(Weak<Pulse>, u64, u32)> = Vec::new();
    loop {
        std::thread::sleep(pause);
        inject(&WATCHDOG);
        let pulses = PULSES.lock().clone();
        let last = std::mem::take(&mut seen);
        for weak in pulses {
            let Some(pulse) = weak.upgrade() else { continue };
            let (beats, more) = (pulse.beats.load(Ordering::Relaxed), pulse.more.load(Ordering::Relaxed));
            let before = last.iter().find(|(other, ..)| other.ptr_eq(&weak));
            let looks = match before {
                Some((_, then, looks)) if *then == beats => looks + 1,
                _ => 0,
            };
            let silent = pause * looks;
            let patience = || limit + Duration::from_millis(more).mul_f64(scale);
            if more != IDLE && silent >= patience() && failure().is_none() {
                let (name, seconds) = (pulse.role.name, silent.as_secs_f32());
                fail(format!(
                    "go on: '{name}' made no progress for {seconds:.0} s with work to do"
                ));
            }
            seen.push((weak, beats, looks));
        }
    }
}

/// [`STALLED`], or what the environment says in a build for tests.
fn stalled_after() -> Duration {
    let told = std::env::var("HIGHWATER_TEST_STALLED_MS").ok();
    let told = told.filter(|_| cfg!(debug_assertions)).and_then(|ms| ms.parse().ok());
    told.map_or(STALLED, Duration::from_millis)
}

/// In a build for tests, a thread panics or stalls when [`is_injected`] says so.
fn inject(role: &Role) {
    inject_panic(role);
    if is_injected("stall", role.name) {
        loop {
            std::thread::park();
        }
    }
}

/// In a build for tests, panics when [`is_injected`] says so. Threads and tasks need not call it:
/// it is called at each [`beat`] and poll.
pub fn inject_panic(role: &Role) {
    if is_injected("panic", role.name) {
        panic!("injected");
    }
}

/// In a build for tests: true once, after the file that HIGHWATER_TEST_FAULT names was written with
/// this fault and place.
pub fn is_injected(fault: &str, place: &str) -> bool {
    static FILE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("HIGHWATER_TEST_FAULT").ok());
    if !cfg!(debug_assertions) {
        return false;
    }
    let Some(file) = FILE.as_ref() else {
        return false;
    };
    let says = std::fs::read_to_string(file).is_ok_and(|text| text.trim() == format!("{fault} {place}"));
    // Only the caller that removes the file gets true.
    says && std::fs::remove_file(file).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_ends_with_nothing_and_another_is_unharmed() {
        let died = thread(&PRELOAD, || -> u8 { panic!("injected") }).expect("starts");
        let lived = thread(&PRELOAD, || 7).expect("starts");
        assert_eq!(died.join().expect("caught"), None);
        assert_eq!(lived.join().expect("caught"), Some(7));
    }

    #[tokio::test]
    async fn a_task_that_panics_is_started_again() {
        let tries = Arc::new(AtomicU64::new(0));
        let counted = tries.clone();
        let again = task_again(&SWEEP, move || {
            let tries = counted.clone();
            async move { assert!(tries.fetch_add(1, Ordering::Relaxed) > 0, "injected") }
        });
        again.await.expect("caught");
        assert_eq!(tries.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn names_fit_into_a_register() {
        let names: std::collections::BTreeSet<&str> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
    }
}
