//! Figures for `docs/decisions/embedded-log.md`: `cargo run --example embedded_log_speed -- DIR [SECONDS]`.

#![allow(clippy::disallowed_methods, reason = "a tool of one thread or two")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater::log::embedded::{EmbeddedLog, EmbeddedOptions, Fsync};
use highwater::log::{Appended, Batch, Completion, Log, Positions, ProduceError, Record, TopicPartition};
use highwater::model::Payload;

const KEYS: u64 = 1_000_000;
const WINDOW: u64 = 5_000;

/// Counts acknowledgements, for a producer that keeps a window of batches in flight.
#[derive(Default)]
struct Acks {
    done: Mutex<u64>,
    more: Condvar,
    failed: AtomicU64,
}

impl Completion for Acks {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        if outcome.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        *self.done.lock().expect("not poisoned") += 1;
        self.more.notify_one();
    }
}

impl Acks {
    fn wait_for(&self, count: u64) {
        let mut done = self.done.lock().expect("not poisoned");
        while *done < count {
            done = self.more.wait(done).expect("not poisoned");
        }
    }
}

fn batch(key: u64, acks: &Arc<Acks>) -> Batch {
    let record = Record {
        to: TopicPartition {
            database: 0,
            partition: 0,
        },
        key: Bytes::from(format!("key:{key:012}")),
        payload: Payload::string(Bytes::from_static(&[b'v'; 64]), None),
    };
    Batch {
        condition: None,
        records: [record].into(),
        completion: acks.clone(),
    }
}

fn one_at_a_time(dir: &Path, fsync: Fsync, seconds: Duration) {
    let log = EmbeddedLog::open(
        dir,
        EmbeddedOptions {
            fsync,
            ..EmbeddedOptions::default()
        },
    )
    .expect("open");
    let mut follower = log.follow(&log.ends(seconds).expect("ends")).expect("follow");
    let (mut acked, mut followed, began) = (Vec::new(), Vec::new(), Instant::now());
    let (acks, mut out) = (Arc::new(Acks::default()), Vec::new());
    while began.elapsed() < seconds {
        let start = Instant::now();
        log.produce(batch(rand::random_range(0..KEYS), &acks), log.epoch());
        acks.wait_for(acked.len() as u64 + 1);
        acked.push(start.elapsed());
        while out.is_empty() {
            follower.poll(&mut out, Duration::from_secs(1)).expect("poll");
        }
        out.clear();
        followed.push(start.elapsed());
    }
    let rate = acked.len() as f64 / began.elapsed().as_secs_f64();
    acked.sort();
    followed.sort();
    let at = |sorted: &[Duration], share: usize| sorted[sorted.len() * share / 100];
    println!(
        "{:9} one at a time: {rate:.0}/s; acknowledged p50 {:?} p99 {:?}; followed p50 {:?} p99 {:?}",
        fsync.name(),
        at(&acked, 50),
        at(&acked, 99),
        at(&followed, 50),
        at(&followed, 99)
    );
}

fn many(dir: &Path, fsync: Fsync, seconds: Duration) {
    let log = EmbeddedLog::open(
        dir,
        EmbeddedOptions {
            fsync,
            ..EmbeddedOptions::default()
        },
    )
    .expect("open");
    let (before, began) = (log.status(), Instant::now());
    let acks = Arc::new(Acks::default());
    let mut follower = log.follow(&log.ends(seconds).expect("ends")).expect("follow");
    let (mut sent, mut peak, mut shown) = (0, 0, 0);
    let followed = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut out, mut count) = (Vec::new(), 0);
            while began.elapsed() < seconds {
                follower.poll(&mut out, Duration::from_millis(10)).expect("poll");
                count += out.drain(..).len();
            }
            count
        });
        while began.elapsed() < seconds {
            for _ in 0..WINDOW / 5 {
                log.produce(batch(rand::random_range(0..KEYS), &acks), log.epoch());
            }
            sent += WINDOW / 5;
            acks.wait_for(sent.saturating_sub(WINDOW));
            peak = peak.max(log.disk_bytes());
            if began.elapsed().as_secs() / 5 > shown {
                shown += 1;
                println!(
                    "  {:?}: {sent} sent, {} MB on disk",
                    began.elapsed(),
                    log.disk_bytes() >> 20
                );
            }
        }
        acks.wait_for(sent);
        reader.join().expect("reader")
    });
    let (rate, after) = (sent as f64 / began.elapsed().as_secs_f64(), log.status());
    println!(
        "{:9} {WINDOW} in flight: {rate:.0} records/s, {} followed, {} failed, {} fsyncs, {} compactions, peak {} MB",
        fsync.name(),
        followed,
        acks.failed.load(Ordering::Relaxed),
        after.fsyncs - before.fsyncs,
        after.compactions - before.compactions,
        peak >> 20
    );
}

fn reopen(dir: &Path) {
    let began = Instant::now();
    let log = EmbeddedLog::open(dir, EmbeddedOptions::default()).expect("open");
    let opened = began.elapsed();
    let (ends, began) = (log.ends(opened).expect("ends"), Instant::now());
    let (mut follower, mut out, mut count) = (log.follow(&Positions::new()).expect("follow"), Vec::new(), 0);
    while follower.positions() != ends {
        follower.poll(&mut out, opened).expect("poll");
        count += out.drain(..).len();
    }
    let mb = log.disk_bytes() >> 20;
    println!(
        "opened {mb} MB in {opened:?}, read {count} records in {:?}",
        began.elapsed()
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().expect("a directory"));
    let seconds = Duration::from_secs(arguments.next().map_or(10, |s| s.parse().expect("seconds")));
    for fsync in [Fsync::Always, Fsync::EverySecond] {
        let dir = dir.join(fsync.name());
        one_at_a_time(&dir, fsync, seconds / 4);
        many(&dir, fsync, seconds);
        reopen(&dir);
    }
}
