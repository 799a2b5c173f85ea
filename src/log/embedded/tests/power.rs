//! Power failures: what was acknowledged is there afterwards, and what failed is not.

use super::*;

/// Batch `i` has `i % 3 + 1` records, so that it can be seen whether it is there as a whole.
fn numbered(i: usize, rng: &mut StdRng) -> Vec<Record> {
    let value = vec![i as u8; rng.random_range(0..700)];
    (0..i % 3 + 1)
        .map(|part| put(part as u16, &format!("{i}"), &value))
        .collect()
}

/// The numbers of the batches that are there; each must be there as a whole.
fn numbers(records: &[LogRecord]) -> Vec<usize> {
    let mut numbers: Vec<usize> = Vec::new();
    let mut rest = records;
    while let Some(first) = rest.first() {
        let i: usize = std::str::from_utf8(&first.key)
            .expect("digits")
            .parse()
            .expect("a number");
        let (batch, others) = rest.split_at_checked(i % 3 + 1).expect("a whole batch");
        assert!(batch.iter().all(|r| r.key == first.key), "batch {i} is torn");
        numbers.push(i);
        rest = others;
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order: {numbers:?}");
    numbers
}

/// What the producer of a crash test knows: per batch, how it ended (if it did).
type Known = Arc<Mutex<Vec<Option<Outcome>>>>;

struct Noted(Known, usize);

impl Completion for Noted {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let slot = &mut self.0.lock()[self.1];
        assert!(slot.is_none(), "told twice");
        *slot = Some(outcome.map(<[Appended]>::to_vec));
    }
}

fn run_until_power_fails(seed: u64, fsync: Fsync) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = FaultDisk::new();
    let known: Known = Arc::default();
    for round in 0..4 {
        let options = EmbeddedOptions { fsync, ..options() };
        let log = open(&disk, options).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let present = numbers(&read_all(&log));
        for (i, outcome) in known.lock().iter().enumerate() {
            match outcome {
                Some(Ok(_)) if fsync == Fsync::Always => {
                    assert!(
                        present.contains(&i),
                        "seed {seed}, round {round}: acknowledged batch {i} is lost"
                    )
                }
                Some(Err(ProduceError::NotWritten(_))) => {
                    assert!(
                        !present.contains(&i),
                        "seed {seed}, round {round}: failed batch {i} came back"
                    )
                }
                _ => {}
            }
        }
        for _ in 0..rng.random_range(1..80) {
            let i = known.lock().len();
            known.lock().push(None);
            let completion = Arc::new(Noted(known.clone(), i));
            let records = SmallVec::from_vec(numbered(i, &mut rng));
            log.produce(
                Batch {
                    records,
                    condition: None,
                    completion,
                },
                log.epoch(),
            );
            match rng.random_range(0..20) {
                0 => disk.set_faults(Faults {
                    capacity: Some(disk.used() + rng.random_range(0..900)),
                    ..Faults::default()
                }),
                1 => disk.set_faults(Faults {
                    short_writes: Some(100),
                    ..Faults::default()
                }),
                2..5 => disk.set_faults(Faults::default()),
                5 => std::thread::sleep(Duration::from_micros(rng.random_range(0..300))),
                _ => {}
            }
        }
        // What was reported before the power failed holds afterwards. What is reported later says
        // nothing.
        let told = known.lock().clone();
        let after = disk.after_power_failure(rng.random());
        drop(log);
        disk = after;
        *known.lock() = told;
    }
}

#[test]
fn what_was_acknowledged_survives_power_failures_and_what_failed_stays_away() {
    let seed: u64 = rand::random();
    for i in 0..60 {
        run_until_power_fails(seed.wrapping_add(i), Fsync::Always);
    }
}

#[test]
fn without_fsync_a_power_failure_leaves_whole_batches_in_order() {
    let seed: u64 = rand::random();
    for i in 0..60 {
        run_until_power_fails(seed.wrapping_add(i), [Fsync::EverySecond, Fsync::No][i as usize % 2]);
    }
}

#[test]
fn stores_are_rebuilt_if_what_readers_saw_may_be_lost() {
    for (fsync, power_fails, same) in [
        (Fsync::Always, true, true),
        (Fsync::EverySecond, false, true),
        (Fsync::EverySecond, true, false),
        (Fsync::No, true, false),
    ] {
        let disk = FaultDisk::new();
        let options = || EmbeddedOptions { fsync, ..options() };
        let log = open(&disk, options()).expect("open");
        written(&log, vec![put(0, "k", b"v")]);
        let identity = log.identity(0);
        let after = if power_fails {
            disk.after_power_failure(1)
        } else {
            disk.after_kill()
        };
        drop(log);
        let closed = open(&disk.after_power_failure(2), options()).expect("open").identity(0);
        assert_eq!(closed, identity, "{fsync:?}: closed in order");
        let crashed = open(&after, options()).expect("open").identity(0);
        assert_eq!(crashed == identity, same, "{fsync:?}, power failure {power_fails}");
    }
}

/// Holds up the thread that completes it.
struct Blocking(Mutex<mpsc::Receiver<()>>);

impl Completion for Blocking {
    fn complete(self: Arc<Self>, _: Result<&[Appended], ProduceError>) {
        let _ = self.0.lock().recv();
    }
}

#[test]
fn what_failed_does_not_come_back_after_a_power_failure() {
    let disk = FaultDisk::new();
    let log = open(
        &disk,
        EmbeddedOptions {
            segment_bytes: 1 << 30,
            ..options()
        },
    )
    .expect("open");
    // Two frames are written at once, for the writer is held up until both are queued.
    let (go_on, wait) = mpsc::channel();
    let completion = Arc::new(Blocking(Mutex::new(wait)));
    log.produce(
        Batch {
            condition: None,
            records: [put(0, "before", b"v")].into(),
            completion,
        },
        log.epoch(),
    );
    wait_until("the first is written", || log.status().end == 1);
    let large = vec![b'x'; 1_500_000];
    let outcomes = ["a", "b"].map(|key| submit(&log, vec![put(0, key, &large)], log.epoch()));
    // Room for the first of them.
    disk.set_faults(Faults {
        capacity: Some(disk.used() + 1_000_000),
        ..Faults::default()
    });
    go_on.send(()).expect("the writer waits");
    for outcome in outcomes {
        let outcome = outcome.recv_timeout(PATIENCE).expect("completed");
        assert!(matches!(outcome, Err(ProduceError::NotWritten(_))), "{outcome:?}");
    }
    for seed in 0..30 {
        let read = open_and_read(&disk.after_power_failure(seed)).expect("opens");
        assert_eq!(read.len(), 1, "seed {seed}");
    }
}
