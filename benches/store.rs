//! Figures for `docs/decisions/store-sled.md`: `cargo bench --profile dev --bench store -- <apply|large|open|batches|flush> [number] [size]`.
//! Each takes less than a minute; they are for decisions, not for comparison between commits.

#![allow(clippy::disallowed_methods, reason = "a tool of one thread or two")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater::model::{Change, Entry, Meta, Payload, Value};
use highwater::store::{self, Checkpoint, EngineKind, Options, Store, key_hash};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (what, records) = (
        arguments.next(),
        arguments.next().and_then(|records| records.parse().ok()),
    );
    match what.as_deref() {
        Some("apply") => apply(records.unwrap_or(3_000_000)),
        Some("large") => large(
            records.unwrap_or(5),
            arguments.next().and_then(|size| size.parse().ok()),
        ),
        Some("open") => open_time(records.unwrap_or(5_000_000)),
        Some("batches") => batches(records.unwrap_or(500_000)),
        Some("sustained") => {
            let mut number = || arguments.next().and_then(|number| number.parse().ok());
            let (batch, seconds) = (number().unwrap_or(100_000), number().unwrap_or(10));
            sustained(records.unwrap_or(1_000_000), batch, seconds)
        }
        Some("flush") => flush(records.unwrap_or(1_000_000)),
        _ => println!("say one of: apply large open batches flush sustained"),
    }
}

/// sled, or fjall if the environment says `STORE=fjall`.
fn open(directory: &Path) -> std::sync::Arc<dyn Store> {
    let started = Instant::now();
    let engine = match std::env::var("STORE").as_deref() {
        Ok("fjall") => EngineKind::Fjall,
        _ => EngineKind::Sled,
    };
    let opened = store::open(
        engine,
        directory,
        &Options {
            cache_bytes: 256 << 20,
            databases: 16,
            keeps_hidden: false,
        },
    )
    .expect("opens");
    println!("open: {:?}, rebuilt {:?}", started.elapsed(), opened.rebuilt);
    opened.store
}

/// A small generator of numbers that look random.
fn scatter(number: u64) -> u64 {
    key_hash(&number.to_le_bytes())
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key:{number:020}"))
}

fn put(key: Bytes, offset: u64, size: usize) -> Change {
    let mut value = vec![offset as u8; size];
    value[..8.min(size)].copy_from_slice(&scatter(offset).to_le_bytes()[..8.min(size)]);
    let meta = Meta {
        partition: 0,
        offset,
        timestamp: 1_700_000_000_000 + offset as i64,
        expire_at: None,
    };
    let entry = Entry {
        meta,
        value: Value::String(Bytes::from(value)),
    };
    Change::of_key(0, 0, offset, key, Some(entry))
}

/// Applies records with offsets after `from`, to keys in random order.
fn fill(store: &dyn Store, from: u64, records: u64, keys: u64, sorted: bool) {
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut last = (started, 0);
    for batch in 0..records / 1_000 {
        let offsets = from + batch * 1_000 + 1..=from + (batch + 1) * 1_000;
        let mut changes: Vec<Change> = offsets
            .map(|offset| put(key(scatter(offset) % keys), offset, 64))
            .collect();
        if sorted {
            changes.sort_by_key(|change| key_hash(&change.key));
        }
        store.apply(&changes).expect("applies");
        if last.0.elapsed() > Duration::from_secs(5) {
            let done = (batch + 1) * 1_000;
            println!(
                "  at {done}: {:.0} records/s",
                (done - last.1) as f64 / last.0.elapsed().as_secs_f64()
            );
            last = (Instant::now(), done);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "applied {records} (sorted: {sorted}): {:.0} records/s, CPU {:?} each",
        records as f64 / seconds,
        (cpu_time() - cpu) / records as u32
    );
}

/// Reads random keys until told to stop; prints rate and latencies.
fn read_until(stop: &AtomicBool, keys: u64, mut read: impl FnMut(Bytes)) {
    let (started, mut latencies) = (Instant::now(), Vec::new());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let before = Instant::now();
        read(key(scatter(number) % keys));
        latencies.push(before.elapsed());
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "reader: {:.0} gets/s, p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
        latencies.len() as f64 / started.elapsed().as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn beside_reader(keys: u64, read: impl FnMut(Bytes) + Send, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| read_until(&stop, keys, read));
        work();
        stop.store(true, Ordering::Relaxed);
    });
}

/// CPU time of this thread: on a machine that does other things too, the better measure.
fn cpu_time() -> Duration {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = schedule.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or("VmRSS unknown")
        .to_owned()
}

/// New keys, then overwrites beside a reader, then the same sorted by hash within each batch.
fn apply(records: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let keys = records / 3;
    let read = |key: Bytes| drop(store.get(0, &key).expect("reads"));
    for (round, sorted) in [true, false, true].into_iter().enumerate() {
        let from = round as u64 * records / 3;
        beside_reader(keys, read, || fill(&*store, from, records / 3, keys, sorted));
    }
    let started = Instant::now();
    store.checkpoint(&Checkpoint::default()).expect("checkpoint");
    println!(
        "checkpoint: {:?}; disk {} MB; {}",
        started.elapsed(),
        store.disk_bytes() >> 20,
        resident()
    );
}

/// Records over random keys in batches of some size, newest per key only and sorted by hash, as the write-behind gives them;
/// then gets without another cache, closing and opening.
fn sustained(keys: u64, batch: u64, seconds: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let (mut offset, mut stored) = (0, 0);
    for phase in ["fill", "overwrite"] {
        let (started, first, stored_first, mut busy) = (Instant::now(), offset, stored, Duration::ZERO);
        let mut cpu = Duration::ZERO;
        while match phase {
            "fill" => offset < keys,
            _ => started.elapsed() < Duration::from_secs(seconds),
        } {
            let mut newest = std::collections::BTreeMap::new();
            for offset in offset + 1..=offset + batch {
                let key = match phase {
                    "fill" => key(offset - 1),
                    _ => key(scatter(offset) % keys),
                };
                newest.insert(key_hash(&key), put(key, offset, 64));
            }
            offset += batch;
            let changes: Vec<Change> = newest.into_values().collect();
            stored += changes.len();
            let (apply, before) = (Instant::now(), cpu_time());
            for changes in changes.chunks(1_000) {
                store.apply(changes).expect("applies");
            }
            busy += apply.elapsed();
            cpu += cpu_time() - before;
        }
        let (records, stored) = (offset - first, stored - stored_first);
        println!(
            "{phase}: {records} records, {stored} after dedup; {:.0} records/s, {:.0} stored/s, CPU {:?} each; disk {} MB; {}",
            records as f64 / busy.as_secs_f64(),
            stored as f64 / busy.as_secs_f64(),
            cpu / stored as u32,
            store.disk_bytes() >> 20,
            resident()
        );
    }
    let (started, cpu) = (Instant::now(), cpu_time());
    const GETS: u64 = 500_000;
    for number in 0..GETS {
        store
            .get(0, &key(scatter(number) % keys))
            .expect("reads")
            .expect("is there");
    }
    println!(
        "gets: {:.0}/s, CPU {:?} each",
        GETS as f64 / started.elapsed().as_secs_f64(),
        (cpu_time() - cpu) / GETS as u32
    );
    let started = Instant::now();
    store.checkpoint(&Checkpoint::default()).expect("checkpoint");
    println!("checkpoint: {:?}", started.elapsed());
    drop(store);
    println!("close: {:?}", started.elapsed());
    let store = open(directory.path());
    println!("count {}; {}", store.count(0).expect("counts"), resident());
}

/// Overwrites of 20 MB of large values in random order, for some seconds each; then reads of them and of the keys alone.
fn large(seconds: u64, only: Option<usize>) {
    let sizes = [5_000, 20_000, 100_000, 200_000, 1_000_000];
    for size in sizes.into_iter().filter(|size| only.is_none_or(|only| only == *size)) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(directory.path());
        let keys = 20_000_000 / size as u64;
        let (started, cpu, mut most, mut puts) = (Instant::now(), cpu_time(), 0, 0u64);
        while started.elapsed() < Duration::from_secs(seconds) {
            let changes: Vec<Change> = (1..=20)
                .map(|next| put(key(scatter(puts + next) % keys), puts + next, size))
                .collect();
            store.apply(&changes).expect("applies");
            puts += 20;
            most = most.max(store.disk_bytes());
        }
        let megabytes = (puts * size as u64) as f64 / 1e6 / started.elapsed().as_secs_f64();
        let cpu = (cpu_time() - cpu) / puts as u32;
        let get = cpu_time();
        for number in 0..1_000 {
            store.get(0, &key(scatter(number) % keys)).expect("reads");
        }
        let get = (cpu_time() - get) / 1_000;
        let scan = cpu_time();
        let mut seen = 0;
        store.scan(0, 0, usize::MAX, &mut |_| seen += 1).expect("scans");
        let scan = (cpu_time() - scan) / seen;
        let blobs = std::fs::read_dir(directory.path().join("sled/blobs")).map_or(0, |files| files.count());
        let ratio = |bytes: u64| bytes as f64 / 20e6;
        println!(
            "{size} B: {megabytes:.0} MB/s, CPU per put {cpu:?}, get {get:?}, scanned key {scan:?}; disk at most {:.1} x live, at last {:.1}, {blobs} blob files",
            ratio(most),
            ratio(store.disk_bytes())
        );
    }
}

/// Opening many keys, closed in order, and then as a kill leaves them.
fn open_time(records: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    for batch in 0..records / 1_000 {
        let offsets = batch * 1_000 + 1..=(batch + 1) * 1_000;
        let changes: Vec<Change> = offsets.map(|offset| put(key(offset), offset, 64)).collect();
        store.apply(&changes).expect("applies");
    }
    store.checkpoint(&Checkpoint::default()).expect("checkpoint");
    println!("disk {} MB; {}", store.disk_bytes() >> 20, resident());
    let started = Instant::now();
    drop(store);
    println!("close: {:?}", started.elapsed());
    for _ in 0..2 {
        let store = open(directory.path());
        store.apply(&[put(key(1), u64::from(u32::MAX), 64)]).expect("applies");
        drop(store);
    }
    let store = open(directory.path());
    let started = Instant::now();
    println!("counted {} in {:?}", store.count(0).expect("counts"), started.elapsed());
    let started = Instant::now();
    while store.sweep(1_000).expect("sweeps") {}
    println!("rest of the walk: {:?}; {}", started.elapsed(), resident());
}

/// Plain sled: single inserts, get and insert, and batches of 1,000, on time and on a reader's latency; each fills an
/// engine of its own with new keys and then overwrites them.
fn batches(records: u64) {
    for way in ["insert", "get and insert", "batch"] {
        let directory = tempfile::tempdir().expect("a directory");
        let db = sled::Config::new()
            .path(directory.path())
            .cache_capacity(256 << 20)
            .open()
            .expect("opens");
        let stored = |key: Bytes| [&key_hash(&key).to_be_bytes()[..], &key].concat();
        let keys = records / 2;
        let read = |key: Bytes| drop(db.get(stored(key)).expect("reads"));
        beside_reader(keys, read, || {
            let (started, cpu) = (Instant::now(), cpu_time());
            for batch in 0..records / 1_000 {
                let puts = (batch * 1_000..(batch + 1) * 1_000).map(|number| stored(key(scatter(number) % keys)));
                if way == "batch" {
                    let mut changes = sled::Batch::default();
                    puts.for_each(|key| changes.insert(key, &[7; 80][..]));
                    db.apply_batch(changes).expect("applies");
                    continue;
                }
                for key in puts {
                    if way == "get and insert" {
                        db.get(&key).expect("gets");
                    }
                    db.insert(key, &[7; 80][..]).expect("inserts");
                }
            }
            println!(
                "{way}: {:.0} records/s, CPU {:?} each",
                records as f64 / started.elapsed().as_secs_f64(),
                (cpu_time() - cpu) / records as u32
            );
        });
    }
}

/// Time of a flush that hides all, and of dropping what it hid.
fn flush(records: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    fill(&*store, 0, records, records, false);
    let flush = |offset| Change {
        database: 0,
        partition: 0,
        offset,
        timestamp: 0,
        key: Bytes::from_static(b"flush"),
        payload: Payload::FLUSH,
    };
    let started = Instant::now();
    store.apply(&[flush(records + 1)]).expect("flushes");
    println!(
        "flush: {:?}, count {}",
        started.elapsed(),
        store.count(0).expect("counts")
    );
    let (started, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let step = Instant::now();
        let more = store.sweep(1_000).expect("sweeps");
        longest = longest.max(step.elapsed());
        if !more {
            break;
        }
    }
    println!(
        "sweep: {:?}, longest step {longest:?}, disk {} MB",
        started.elapsed(),
        store.disk_bytes() >> 20
    );
}
