//! Assembly: configuration → data directory, log, store, service, applier, listeners; and the same
//! in reverse when the server stops.
//!
//! Whatever prevents a start is reported in one line: what could not be done, why, and what to do.

mod changes;
mod listen;
mod signals;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use self::listen::{Listeners, warn_of_strangers};
use self::signals::{Signals, ignore_signals};
use crate::acl::Users;
use crate::command::Shared;
use crate::command::broadcasts::PubSub;
use crate::command::publish::{Receiving, close_overdue};
use crate::command::shared::Turns;
use crate::command::{acl, invalidations, notify, rights};
use crate::config::{COMMIT, Config, VERSION, warn_of_exposed};
use crate::database::consistency::Consistency;
use crate::database::usable::NO_SNAPSHOT;
use crate::database::{Service, Settings, Status, applier, now_ms, source};
use crate::datadir::{self, DataDir};
use crate::log::broadcast::Broadcast;
use crate::log::kafka::KafkaLog;
use crate::log::{Log, LogError};
use crate::open::{Parts, open, owner};
use crate::store::{Checkpoint, Opened, Store};
use crate::telemetry::logging::{self, Logging};
use crate::telemetry::progress::Progress;
use crate::telemetry::{SAMPLE_INTERVAL, Stats, process};
use crate::{grpc, http, server, snapshot, supervise, sweep};

/// Descriptors besides those of clients: files of the log and the store, listeners, Kafka's
/// connections.
const OTHER_FILES: u64 = 512;
/// Where stale reads are wanted, a start waits this long for Kafka before it serves what the store
/// has.
const BEFORE_STALE: Duration = Duration::from_secs(3);
/// How long threads that still wait for something may hold up the end of the process.
const LEFTOVERS: Duration = Duration::from_secs(1);
/// How long a node that has failed tells its clients the reason before it ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long it may then take to stop in good order: the stop may wait for something that is dead.
const STOPPING: Duration = Duration::from_secs(12);

/// What cannot be done, why, and what to do. Shown after "highwater: cannot".
type Problem = String;
type Servers = JoinSet<Option<Result<(), String>>>;

/// Runs the server until it is asked to stop.
pub fn run(config: Config) -> Result<(), Problem> {
    ignore_signals();
    let logging = Arc::new(logging::start(&config)?);
    let directory = DataDir::open(&config.dir())?;
    info!(
        "highwater {VERSION} ({}), process {}",
        if COMMIT.is_empty() { "commit unknown" } else { COMMIT },
        std::process::id()
    );
    let ignored = config.given_without_effect();
    if !ignored.is_empty() {
        info!("settings that have no effect here: {}", ignored.join(" "));
    }
    warn_of_exposed(config.exposed_files());
    warn_of_misunderstandings(&config);
    provide_files(&config);
    supervise::start_watchdog().map_err(|e| format!("start the watchdog: {e}"))?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(config.threads())
        .thread_name("worker")
        .enable_all()
        .build()
        .map_err(|e| format!("start the worker threads: {e}"))?;
    let outcome = runtime.block_on(serve(Arc::new(config), directory, logging));
    runtime.shutdown_timeout(LEFTOVERS);
    outcome
}

/// Warns where a redis.conf or an old directory may raise wrong expectations.
fn warn_of_misunderstandings(config: &Config) {
    if let Some(policy) = config.eviction_policy() {
        warn!(
            "maxmemory-policy {policy} has no effect: keys are never evicted; they go when they are deleted or expire, and maxmemory bounds \
             only what is kept in memory of them"
        );
    }
    for path in config.redis_files().iter().filter(|path| path.exists()) {
        warn!(
            "{} is data of Redis, which is not read: the keys in it are not here; start redis-server on it and move them over (MIGRATE)",
            path.display()
        );
    }
}

/// Warns if `partitions` was given and an existing topic has another number: the setting applies
/// only to topics that are created.
fn warn_of_other_partitions(config: &Config, log: &dyn Log) {
    let mapped = config.database_topics();
    let own = (0..config.databases()).filter(|number| !mapped.contains_key(number));
    for topic in own.filter_map(|number| log.identity(number)) {
        if config.is_given("partitions") && topic.partitions != config.partitions() {
            warn!(
                "--partitions {} holds for topics that are created: topic {} was there, with {}; highwater copy moves data to a topic with another number",
                config.partitions(),
                topic.topic,
                topic.partitions
            );
        }
    }
}

/// Raises the limit of open files to what the settings need, or says how many clients it is enough
/// for.
fn provide_files(config: &Config) {
    let wanted = config.maxclients() as u64 + OTHER_FILES;
    let allowed = process::raise_open_files(wanted);
    if allowed < wanted {
        let clients = allowed.saturating_sub(OTHER_FILES);
        warn!(
            "only {allowed} open files are allowed: enough for {clients} clients, not {}; raise ulimit -n",
            config.maxclients()
        );
    }
}

async fn serve(config: Arc<Config>, mut directory: DataDir, logging: Arc<Logging>) -> Result<(), Problem> {
    // Bound first: a port in use is reported before anything else is touched, and clients get
    // answers while the data is loaded.
    let listeners = Listeners::open(&config).await?;
    let addresses = listeners.addresses();
    let mut signals = Signals::new(&config, &logging)?;
    let (opening, logger) = (config.clone(), logging.clone());
    let opened = supervise::blocking(&supervise::OPEN, move || {
        if let Some(path) = opening.snapshot() {
            snapshot::begin_from(&path, &mut directory, &opening, &logger)?;
        }
        open(&opening, &mut directory).map(|opened| (opened, directory))
    });
    let (opened, directory) = tokio::select! {
        opened = opened => opened.map_err(|e| format!("open the log: {e}"))??,
        _ = signals.next() => {
            info!("asked to stop before the log was open");
            return Ok(());
        }
    };
    let Parts { log, kafka, store } = opened;
    let Opened {
        store,
        checkpoint,
        rebuilt,
    } = store;
    let topic = kafka
        .as_ref()
        .filter(|_| config.pubsub_by_topic())
        .map(|kafka| kafka.broadcasts());
    let shared = share(config, log, store, topic)?;
    warn_of_strangers(&shared, &listeners);
    info!(
        "{}; data directory {}; {} MB of memory for keys and values",
        shared.service.log.describe(),
        shared.config.dir().display(),
        shared.config.memory_limit() >> 20
    );
    if directory.is_from_snapshot() {
        if let Some(reason) = rebuilt {
            return Err(format!(
                "use the snapshot that this node began from: {reason}; {NO_SNAPSHOT}"
            ));
        }
        shared.service.settings.refuses_rebuild.store(true, Ordering::Relaxed);
    }
    if let Some(reason) = rebuilt {
        warn!(reason, "the local store cannot be used; building it anew from the log");
        shared.service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
    }
    end_when_failed(&shared);
    supervise::task(&supervise::SIGNALS, signals.watch(shared.clone()));
    let servers = start_servers(&shared, listeners);
    info!("listening on {addresses}");
    let (following, refused) = match follow(&shared, kafka, directory, checkpoint).await {
        Some(Ok(following)) => (Some(following), None),
        Some(Err(problem)) => (None, Some(problem)),
        None => (None, None),
    };
    // The directory belongs to this node until the end.
    let (applier, _directory) = following.unzip();
    match applier {
        Some(_) => drop(supervise::task(
            &supervise::PROGRESS,
            tell_progress(shared.clone(), logging),
        )),
        None => shared.shutdown.ask(),
    }
    let served = servers_ended(servers, &shared).await;
    let stopped = stop_all(&shared, applier).await;
    refused.map_or(served.and(stopped), Err)
}

/// Starts to follow the log, which may mean a long wait for it. `None` if the server was asked to
/// stop meanwhile.
async fn follow(
    shared: &Arc<Shared>,
    kafka: Option<Arc<KafkaLog>>,
    mut directory: DataDir,
    checkpoint: Checkpoint,
) -> Option<Result<(JoinHandle<Option<()>>, DataDir), Problem>> {
    let sharing = shared.clone();
    let starting = supervise::blocking(&supervise::START, move || {
        if let Some(kafka) = kafka {
            reach(&sharing, &kafka, &checkpoint)?;
            sharing.service.stop_stale().map_err(|e| format!("read the log: {e}"))?;
            directory.claim(owner(&sharing.config, kafka.identity(0)))?;
            warn_of_other_partitions(&sharing.config, &*kafka);
        }
        let started = applier::start(sharing.service.clone(), &checkpoint);
        started
            .map(|applier| (applier, directory))
            .map_err(|e| format!("read the log: {e}"))
    });
    tokio::select! {
        started = starting => Some(started.map_err(|e| format!("read the log: {e}")).flatten()),
        () = shared.shutdown.asked() => None,
    }
}

/// Reaches Kafka. Meanwhile serves what the store has, if that is wanted. Blocking.
fn reach(shared: &Shared, kafka: &KafkaLog, checkpoint: &Checkpoint) -> Result<(), Problem> {
    let (config, service) = (&shared.config, &shared.service);
    let patience = config.startup_timeout();
    let failed = |e| format!("open the log: {e}");
    if !config.serve_stale_at_start() {
        return kafka.reach(patience).map_err(failed);
    }
    let mut reached = kafka.reach(patience.min(BEFORE_STALE));
    if let Err(LogError::Unreachable(cause)) = &reached {
        let databases = checkpoint.databases.iter();
        kafka.remember(databases.filter_map(|(database, known)| {
            let (id, partitions, starts) = source::topic_in(&known.source)?;
            Some((*database, id, partitions, starts))
        }));
        match service.serve_stale(checkpoint) {
            Ok(()) => warn!(cause, "serving what the local store has until Kafka is reached"),
            Err(reason) => warn!(cause, reason, "cannot serve what the local store has"),
        }
    }
    while let Err(LogError::Unreachable(_)) = reached
        && !shared.shutdown.is_asked()
    {
        reached = kafka.reach(patience);
    }
    reached.map_err(failed)
}

/// Assembles what all connections share, and registers what must follow changes of settings.
fn share(
    config: Arc<Config>,
    log: Arc<dyn Log>,
    store: Arc<dyn Store>,
    topic: Option<Arc<dyn Broadcast>>,
) -> Result<Arc<Shared>, Problem> {
    let service = Service::new(log, store, config.databases(), Settings::default());
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let to = service.clone();
    config.on_change("maxmemory", move |config| {
        to.memory.limit.store(config.memory_limit(), Ordering::Relaxed);
        let unstored = unstored_bound(config.memory_limit());
        to.settings.max_unstored_bytes.store(unstored, Ordering::Relaxed);
    });
    service
        .settings
        .write_timeout_ms
        .store(millis(config.write_timeout()), Ordering::Relaxed);
    let to = service.clone();
    config.on_change("checkpoint-interval", move |config| {
        to.settings
            .checkpoint_interval_ms
            .store(millis(config.checkpoint_interval()), Ordering::Relaxed);
    });
    let to = service.clone();
    config.on_change("active-expire", move |config| {
        to.settings
            .active_expire
            .store(config.active_expire(), Ordering::Relaxed);
    });
    for setting in ["read-consistency", "max-lag-ms"] {
        let to = service.clone();
        config.on_change(setting, move |config| {
            if let Some(mode) = Consistency::named(&config.read_consistency(), config.max_lag()) {
                to.reads.set_default_mode(mode);
            }
        });
    }
    let turns = (config.threads() / 2).max(1);
    let pubsub = PubSub {
        topic,
        ..PubSub::default()
    };
    let shared = Arc::new(Shared {
        service,
        config,
        clients: Default::default(),
        users: Users::new(&rights::CATALOGUE),
        pubsub,
        monitors: Default::default(),
        tracking: Default::default(),
        stats: Stats::default(),
        turns: Turns::new(turns),
        scripts: crate::script::Engine::new(crate::command::REDIS_VERSION),
        pause: Default::default(),
        shutdown: Default::default(),
        started: Instant::now(),
        started_at: now_ms(),
        run_id: format!("{:032x}{:08x}", rand::random::<u128>(), rand::random::<u32>()),
    });
    changes::follow(&shared);
    changes::follow_users(&shared);
    acl::load(&shared)?;
    shared.pubsub.receiver.get_or_init(|| Arc::new(Receiving::new(&shared)));
    Ok(shared)
}

/// How much may be acknowledged but not in the store yet. The more it is, the more often a key is
/// written again before the store gets it. Commands that look at the whole store wait for all of
/// it, so it is not more than the store takes in within seconds.
fn unstored_bound(memory_limit: usize) -> u64 {
    (memory_limit as u64 / 4).clamp(64 << 20, 512 << 20)
}

fn start_servers(shared: &Arc<Shared>, listeners: Listeners) -> Servers {
    let mut servers = JoinSet::new();
    for listener in listeners.redis {
        let shared = shared.clone();
        supervise::task_of(&mut servers, &supervise::LISTENER, async move {
            server::serve(listener, shared).await;
            Ok(())
        });
    }
    for listener in listeners.http {
        let shared = shared.clone();
        supervise::task_of(&mut servers, &supervise::LISTENER, async move {
            http::serve(listener, shared).await;
            Ok(())
        });
    }
    for listener in listeners.grpc {
        supervise::task_of(&mut servers, &supervise::GRPC, grpc::serve(listener, shared.clone()));
    }
    let sweeping = shared.clone();
    supervise::task_again(&supervise::SWEEP, move || {
        let shared = sweeping.clone();
        sweep::run(sweeping.service.clone(), move |feature| shared.config.may_use(feature))
    });
    let telling = shared.clone();
    supervise::task_again(&supervise::INVALIDATIONS, move || invalidations::run(telling.clone()));
    let telling = shared.clone();
    supervise::task_again(&supervise::EVENTS, move || notify::run(telling.clone()));
    let shared = shared.clone();
    supervise::task_again(&supervise::NODE_WATCH, move || watch(shared.clone()));
    servers
}

/// When this process cannot go on, clients get the reason for a while. Then it ends, even if
/// something hangs.
fn end_when_failed(shared: &Arc<Shared>) {
    let shared = shared.clone();
    supervise::on_failure(move |problem| {
        shared.service.fail(format!("cannot {problem}"));
        shared.clients.list().iter().for_each(|client| client.wake());
        let (ending, problem) = (shared.clone(), problem.to_owned());
        let end = move || {
            std::thread::sleep(FAREWELL);
            ending.shutdown.ask();
            std::thread::sleep(STOPPING);
            supervise::end_now(&problem);
        };
        if supervise::thread(&supervise::ENDING, end).is_err() {
            shared.shutdown.ask();
        }
    });
}

/// Samples the rates of INFO, and bounds what connections hold.
async fn watch(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        shared.stats.sample(Instant::now());
        let used = shared.service.memory.used.load(Ordering::Relaxed) as u64;
        shared.stats.peak_memory.fetch_max(used, Ordering::Relaxed);
        bound_clients(&shared);
        close_overdue(&shared);
    }
}

/// What each connection may hold is bounded, but there can be thousands of them.
fn bound_clients(shared: &Shared) {
    let limit = shared.config.clients_memory_limit();
    let evicted = shared.clients.shrink_to(limit);
    if evicted > 0 {
        shared.stats.evicted_clients.fetch_add(evicted, Ordering::Relaxed);
        shared.stats.above_limits.warn(|suppressed| {
            warn!(
                evicted,
                limit, suppressed, "connections held more than maxmemory-clients; closing those that held most"
            );
        });
    }
}

/// Waits until all servers have ended. If one ends before it was asked to, all are asked to stop.
async fn servers_ended(mut servers: Servers, shared: &Shared) -> Result<(), Problem> {
    let mut outcome = Ok(());
    while let Some(ended) = servers.join_next().await {
        let reason = match ended {
            Ok(Some(Ok(()))) if shared.shutdown.is_asked() => continue,
            // It has reported its panic, and this node has failed.
            Ok(None) => continue,
            Ok(Some(Ok(()))) => "a listener ended".to_string(),
            Ok(Some(Err(reason))) => reason,
            Err(cancelled) => cancelled.to_string(),
        };
        error!(reason, "cannot go on");
        outcome = Err(format!("go on: {reason}"));
        shared.shutdown.ask();
    }
    outcome
}

/// Called when no connection is open any more: ends the log, then the applier with a last
/// checkpoint.
async fn stop_all(shared: &Arc<Shared>, applier: Option<JoinHandle<Option<()>>>) -> Result<(), Problem> {
    let (service, topic) = (shared.service.clone(), shared.pubsub.topic.clone());
    let stopped = supervise::blocking(&supervise::STOP, move || {
        if let Some(topic) = topic {
            topic.close();
        }
        service.log.close(service.write_timeout());
        service.stop();
        // If it panicked, it has reported that.
        applier.map(JoinHandle::join)
    });
    stopped.await.map_err(|e| format!("stop cleanly: {e}"))?;
    if let Some(problem) = supervise::failure() {
        return Err(problem.to_owned());
    }
    if let Status::Failed(why) = &*shared.service.status() {
        return Err(format!("go on: this node {why}"));
    }
    info!("stopped after {}", humane(shared.started.elapsed()));
    Ok(())
}

/// Shows the progress of loading, and its end.
async fn tell_progress(shared: Arc<Shared>, logging: Arc<Logging>) {
    let service = &shared.service;
    let mut progress = Progress::new(&logging, "loading", "records");
    let status = loop {
        let Status::Loading { applied, total, .. } = *service.status() else {
            break service.status();
        };
        // The status may have changed since it was read: never wait for long.
        let _ = tokio::time::timeout(Duration::from_millis(100), service.changed()).await;
        progress.show(applied, total);
    };
    drop(progress);
    // The applier itself reports why it failed.
    if *status == Status::Serving {
        shared.service.settings.refuses_rebuild.store(false, Ordering::Relaxed);
        datadir::serves(&shared.config.dir());
        match shared.config.port() {
            0 => info!("ready for gRPC on port {}", shared.config.grpc_port()),
            port => info!("ready: redis-cli -p {port}"),
        }
    }
}

fn humane(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 3_600 => format!("{} hours {} minutes", seconds / 3_600, seconds % 3_600 / 60),
        seconds if seconds >= 60 => format!("{} minutes {} seconds", seconds / 60, seconds % 60),
        seconds => format!("{seconds} seconds"),
    }
}
