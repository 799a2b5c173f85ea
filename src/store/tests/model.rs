//! Random changes against a plain map, with clean and unclean restarts.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::model::{Control, Field, Fields};
use crate::store::entry::Head;
use crate::store::sled_engine::position::PositionFile;

on_every_engine!(
    behaves_like_a_map_through_restarts,
    keeps_what_is_hidden_through_restarts,
    killed_child,
    survives_kill_9
);

const PARTITIONS: u32 = 3;

/// What the store should hold, and the log it comes from.
#[derive(Default)]
pub(in crate::store) struct Model {
    pub entries: BTreeMap<Bytes, Entry>,
    /// Offsets of keys that flushes have hidden and that have no later record. `None`: the store
    /// does not keep them.
    hidden: Option<BTreeMap<Bytes, u64>>,
    log: Vec<Change>,
    next_offset: [u64; PARTITIONS as usize],
    /// A flush that arrives after a record with a higher offset, as one between the records of a
    /// group does.
    late: Option<Change>,
}

impl Model {
    /// Makes up the next change, takes it in, and returns it. Every key has its home partition.
    pub fn next_change(&mut self, rng: &mut StdRng, keys: u32) -> Change {
        if let Some(late) = self.late.take_if(|_| rng.random_bool(0.3)) {
            self.take_in(&late);
            return late;
        }
        let key = Bytes::from(format!("key-{}", rng.random_range(0..keys)));
        let partition = (key_hash(&key) % u64::from(PARTITIONS)) as u32;
        let next = &mut self.next_offset[partition as usize];
        let skipped = rng.random_range(0..2);
        *next += skipped + 1;
        let offset = *next - 1;
        if skipped == 1 && self.late.is_none() && rng.random_range(0..1000) == 0 {
            self.late = Some(flush(partition, offset - 1));
        }
        let change = match rng.random_range(0..1000) {
            0 => flush(partition, offset),
            1..200 => delete(&key, partition, offset),
            _ => {
                let expire_at = rng.random_bool(0.3).then(|| rng.random_range(0..1000));
                let length = match rng.random_range(0..100) {
                    0..2 => rng.random_range(0..60_000),
                    2..10 => rng.random_range(5_000..8_000),
                    _ => rng.random_range(0..100),
                };
                let bytes = Bytes::from(vec![rng.random::<u8>(); length]);
                let value = match rng.random_bool(0.2) {
                    true => hash_of(bytes, rng.random_bool(0.7).then(|| rng.random_range(0..1000))),
                    false => Value::String(bytes),
                };
                let meta = Meta {
                    partition,
                    offset,
                    timestamp: rng.random(),
                    expire_at,
                };
                Change::of_key(0, partition, offset, key, Some(Entry { meta, value }))
            }
        };
        self.take_in(&change);
        change
    }

    fn take_in(&mut self, change: &Change) {
        if let Some(hidden) = &mut self.hidden {
            match change.payload {
                Payload::Key(_) => drop(hidden.remove(&change.key)),
                Payload::Control(Control::Features(_) | Control::Function(_) | Control::Passed | Control::Unknown) => {}
                Payload::Control(Control::Flush) => {
                    let goes = self.entries.iter().filter(|(_, entry)| is_hidden_by(change, entry));
                    hidden.extend(goes.map(|(key, entry)| (key.clone(), entry.meta.offset)));
                }
            }
        }
        match (change.entry(), &change.payload) {
            (Some(entry), _) => drop(self.entries.insert(change.key.clone(), entry)),
            (None, Payload::Key(_)) => drop(self.entries.remove(&change.key)),
            (
                None,
                Payload::Control(Control::Features(_) | Control::Function(_) | Control::Passed | Control::Unknown),
            ) => {}
            (None, Payload::Control(Control::Flush)) => self.entries.retain(|_, entry| !is_hidden_by(change, entry)),
        }
        self.log.push(change.clone());
    }

    pub fn checkpoint(&self) -> Checkpoint {
        let partitions = (0..PARTITIONS).zip(self.next_offset);
        let partitions = partitions.map(|(partition, next_offset)| {
            let late = self.late.as_ref().filter(|late| late.partition == partition);
            (
                partition,
                PartitionPosition {
                    next_offset: late.map_or(next_offset, |late| late.offset),
                    as_of: 1,
                    mark: None,
                },
            )
        });
        let database = DatabaseCheckpoint {
            features: BTreeMap::new(),
            functions: BTreeMap::new(),
            source: "model".to_owned(),
            partitions: partitions.collect(),
        };
        Checkpoint {
            databases: BTreeMap::from([(0, database)]),
        }
    }

    /// Applies the log from the checkpoint on, as a follower of the log would.
    pub fn replay(&self, store: &dyn Store, checkpoint: &Checkpoint) {
        self.try_replay(store, checkpoint).unwrap();
    }

    fn try_replay(&self, store: &dyn Store, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let database = checkpoint.databases.get(&0).cloned().unwrap_or_default();
        let is_new = |change: &&Change| {
            database
                .partitions
                .get(&change.partition)
                .is_none_or(|position| change.offset >= position.next_offset)
        };
        let changes: Vec<Change> = self.log.iter().filter(is_new).cloned().collect();
        changes.chunks(100).try_for_each(|batch| store.apply(batch))
    }

    pub fn assert_same(&self, store: &dyn Store) {
        self.try_same(store).unwrap();
    }

    /// Panics if the store returns anything else than this model. An error is the store's own.
    fn try_same(&self, store: &dyn Store) -> Result<(), StoreError> {
        assert_eq!(store.count(0)?, self.entries.len() as u64, "count");
        let expiring = self.entries.values().filter(|entry| entry.meta.expire_at.is_some());
        assert_eq!(
            store.count_expiring(0)?,
            expiring.clone().count() as u64,
            "count of expiring keys"
        );
        let mut keys: Vec<&Bytes> = self.entries.keys().collect();
        keys.sort_by_key(|key| (key_hash(key), *key));
        let (mut seen, mut from) = (Vec::new(), Some(0));
        while let Some(hash) = from {
            from = store.scan(0, hash, 17, &mut |scanned| {
                seen.push(Bytes::copy_from_slice(scanned.key))
            })?;
        }
        assert!(seen.iter().eq(keys), "scan");
        for (key, entry) in &self.entries {
            assert!(store.get(0, key)?.as_ref() == Some(entry), "{key:?}");
        }
        let due = expiring
            .filter(|entry| entry.meta.expire_at.is_some_and(|at| at <= 500))
            .count();
        assert_eq!(store.expired(0, 500, usize::MAX)?.len(), due, "expired");
        let is_due = |entry: &&Entry| Head::new(entry.meta, &entry.value).due.is_some_and(|at| at <= 500);
        let due = self.entries.values().filter(is_due).count();
        assert_eq!(store.due(0, 500, usize::MAX)?.len(), due, "due");
        if let Some(hidden) = &self.hidden {
            assert_eq!(store.count_hidden(0)?, hidden.len() as u64, "count of hidden entries");
            assert_eq!(
                scan_all_hidden(store, 17).into_iter().collect::<BTreeMap<_, _>>(),
                *hidden
            );
        }
        Ok(())
    }

    /// Like [`Model::try_same`] after catching up from the checkpoint.
    pub fn compare(&self, store: &dyn Store, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.try_replay(store, checkpoint)?;
        self.try_same(store)
    }

    pub fn add_put(&mut self, key: &[u8], store: &dyn Store) {
        let key = Bytes::copy_from_slice(key);
        let partition = (key_hash(&key) % u64::from(PARTITIONS)) as u32;
        let offset = self.next_offset[partition as usize];
        self.next_offset[partition as usize] += 1;
        let entry = Entry {
            meta: Meta {
                partition,
                ..meta(offset)
            },
            value: Value::String(Bytes::new()),
        };
        let change = Change::of_key(0, partition, offset, key, Some(entry));
        self.take_in(&change);
        store.apply(&[change]).unwrap();
    }
}

/// A hash of one field with this value, which may expire.
pub(in crate::store) fn hash_of(value: Bytes, expire_at: Option<u64>) -> Value {
    let field = (Bytes::from_static(b"field"), Field { value, expire_at });
    Value::Packed(Fields([field].into_iter().collect()).pack().expect("a field"))
}

fn is_hidden_by(flush: &Change, entry: &Entry) -> bool {
    entry.meta.partition == flush.partition && entry.meta.offset < flush.offset
}

pub(in crate::store) fn copy(from: &Path, to: &Path) {
    try_copy(from, to).unwrap();
}

fn try_copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => try_copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// Copies the directory of an open store as it is: what a kill would leave. Engines work in the
/// background; what a kill during that work costs is not tested here.
pub(in crate::store) fn copy_open(store: &dyn Store, from: &Path, to: &Path) {
    // sled then writes the shorter length of its data file to the position file.
    let settle = || {
        store.sweep(1).unwrap();
    };
    copy_while_open(&settle, from, to);
}

/// `settle` is called before each attempt.
pub(in crate::store) fn copy_while_open(settle: &dyn Fn(), from: &Path, to: &Path) {
    let stable_parts = || -> (Option<PositionFile>, Vec<u8>) {
        (
            PositionFile::read(&from.join("position")).unwrap(),
            fs::read(from.join("fjall/keyspaces/1/current")).unwrap_or_default(),
        )
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        settle();
        let before = stable_parts();
        let copied = try_copy(from, to);
        let after = stable_parts();
        let length = fs::metadata(to.join("sled/db")).map_or(u64::MAX, |data| data.len());
        let is_shortened = after.0.as_ref().is_some_and(|position| position.length > length);
        if copied.is_ok() && before == after && !is_shortened {
            return;
        }
        assert!(Instant::now() < deadline, "no quiet moment to copy: {copied:?}");
        fs::remove_dir_all(to).unwrap();
    }
}

fn behaves_like_a_map_through_restarts(engine: EngineKind) {
    go_through_restarts(engine, false);
}

fn keeps_what_is_hidden_through_restarts(engine: EngineKind) {
    go_through_restarts(engine, true);
}

fn go_through_restarts(engine: EngineKind, keeps_hidden: bool) {
    let options = Options {
        keeps_hidden,
        ..options()
    };
    let open = |engine, directory: &Path| crate::store::open(engine, directory, &options).unwrap();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model {
        hidden: keeps_hidden.then(BTreeMap::new),
        ..Model::default()
    };
    let directories = tempfile::tempdir().unwrap();
    let mut generation = 0;
    let path = |generation: u32| directories.path().join(generation.to_string());
    let mut store = open(engine, &path(0)).store;
    for _ in 0..400 {
        match rng.random_range(0..100) {
            0..60 => {
                let length = rng.random_range(1..60);
                let changes: Vec<Change> = (0..length).map(|_| model.next_change(&mut rng, 300)).collect();
                store.apply(&changes).unwrap();
            }
            60..70 => drop(store.sweep(rng.random_range(1..200)).unwrap()),
            70..80 => store.checkpoint(&model.checkpoint()).unwrap(),
            80..90 => model.assert_same(&*store),
            90..95 => {
                drop(store);
                let opened = open(engine, &path(generation));
                assert_eq!(opened.rebuilt, None, "after a clean stop");
                store = opened.store;
                model.replay(&*store, &opened.checkpoint);
                model.assert_same(&*store);
            }
            _ => {
                copy_open(&*store, &path(generation), &path(generation + 1));
                drop(store);
                generation += 1;
                let opened = open(engine, &path(generation));
                assert_eq!(opened.rebuilt, None, "after a crash");
                store = opened.store;
                let step = rng.random_range(1..100);
                if rng.random_bool(0.5) {
                    store.sweep(step).unwrap();
                }
                model.replay(&*store, &opened.checkpoint);
                model.assert_same(&*store);
            }
        }
    }
    model.assert_same(&*store);
}

/// The only reason for which an undamaged store may be rebuilt: sled had just shortened its file.
fn is_shortened(opened: &Opened) -> bool {
    if let Some(reason) = &opened.rebuilt {
        assert!(reason.contains("bytes where"), "{reason}");
    }
    opened.rebuilt.is_some()
}

/// Environment variables that make [`killed_child`] do its work: directory and seed.
const CHILD_DIRECTORY: &str = "HIGHWATER_TEST_CHILD_DIRECTORY";
const CHILD_SEED: &str = "HIGHWATER_TEST_CHILD_SEED";

/// The process that [`survives_kill_9`] kills. Does nothing when run as a test of its own. Reports
/// how many changes it has applied.
fn killed_child(engine: EngineKind) {
    let (Ok(directory), Ok(seed)) = (std::env::var(CHILD_DIRECTORY), std::env::var(CHILD_SEED)) else {
        return;
    };
    let mut rng = StdRng::seed_from_u64(seed.parse().unwrap());
    let mut model = Model::default();
    let opened = open(engine, Path::new(&directory));
    for batch in 1u64.. {
        let changes: Vec<Change> = (0..50).map(|_| model.next_change(&mut rng, 3_000)).collect();
        opened.store.apply(&changes).unwrap();
        if batch % 40 == 0 {
            opened.store.checkpoint(&model.checkpoint()).unwrap();
        }
        println!("\napplied {}", batch * 50);
    }
}

fn survives_kill_9(engine: EngineKind) {
    let child = match engine {
        EngineKind::Sled => "store::tests::model::sled::killed_child",
        EngineKind::Fjall => "store::tests::model::fjall::killed_child",
    };
    let (mut checkpoints, mut rebuilds) = (0, 0);
    for _ in 0..4 {
        let seed = rand::random::<u64>();
        println!("seed {seed}");
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", child, "--nocapture"])
            .env(CHILD_DIRECTORY, directory.path())
            .env(CHILD_SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let deadline = Instant::now() + Duration::from_millis(500 + seed % 1500);
        let mut applied = 0;
        for line in lines {
            if let Some(number) = line.unwrap().strip_prefix("applied ") {
                applied = number.parse().unwrap();
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();

        let opened = open(engine, directory.path());
        println!(
            "applied {applied}, rebuilt {:?}, {:?}",
            opened.rebuilt, opened.checkpoint
        );
        rebuilds += u32::from(is_shortened(&opened));
        checkpoints += opened.checkpoint.databases.len();
        // The last batch may have been applied without being reported. Replaying more than that
        // makes it right.
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Model::default();
        for _ in 0..applied + 100 {
            model.next_change(&mut rng, 3_000);
        }
        model.replay(&*opened.store, &opened.checkpoint);
        model.assert_same(&*opened.store);
    }
    assert!(checkpoints > 0, "no run reached a checkpoint");
    assert!(rebuilds <= 1, "{rebuilds} rebuilds");
}
