//! A copy of the files of a log that is written and compacted meanwhile.

use super::*;
use crate::log::embedded::frozen::{Frozen, freeze};

/// Writes the files to another directory, as far as they count.
fn copy_to(frozen: &Frozen, target: &Path) {
    for (name, file, bytes) in &frozen.files {
        use std::os::unix::fs::FileExt as _;
        let mut contents = vec![0; usize::try_from(*bytes).expect("is small")];
        file.read_exact_at(&mut contents, 0).expect("is as long as it was");
        std::fs::write(target.join(name), contents).expect("is written");
    }
}

/// Tells a thread to stop, also when a test fails.
struct Stops<'f>(&'f std::sync::atomic::AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn files_of_one_moment_are_a_log() {
    let temp = tempfile::tempdir().expect("a directory");
    let options = EmbeddedOptions {
        segment_bytes: 4096,
        compaction: CompactionOptions {
            enabled: false,
            ..Default::default()
        },
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(&temp.path().join("log"), options.clone()).expect("opens");
    assert_eq!(freeze(&temp.path().join("none")).err().map(|_| ()), Some(()));
    let (stop, newest) = (std::sync::atomic::AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                let text = n.to_string();
                let records = ["a", "b"].map(|key| put(0, key, text.as_bytes()));
                written(
                    &log,
                    [&records[..], &[put(1, &format!("k{}", n % 9), &[7; 300])]].concat(),
                );
                newest.store(n, Ordering::Release);
                if n % 5 == 0 {
                    compact(&log);
                }
                if stop.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        let _stops = Stops(&stop);
        for round in 0..60 {
            wait_until("more is written", || newest.load(Ordering::Acquire) > round);
            let least = newest.load(Ordering::Acquire);
            let frozen = freeze(&temp.path().join("log")).expect("is readable");
            let copy = tempfile::tempdir().expect("a directory");
            copy_to(&frozen, copy.path());
            let copied = EmbeddedLog::open(copy.path(), options.clone()).expect("is a log");
            let ends = copied.ends(PATIENCE).expect("has an end");
            assert!(ends.values().all(|end| *end == frozen.end), "{ends:?} {}", frozen.end);
            let id = copied.identity(0).expect("is there").id;
            assert!(
                id.starts_with(&frozen.id) && frozen.id.len() == 32,
                "{id} {}",
                frozen.id
            );
            let mut last = BTreeMap::new();
            for record in read_all(&copied) {
                if let Payload::Key(Some(State {
                    value: Value::String(value),
                    ..
                })) = record.payload
                {
                    last.insert(record.key, value);
                }
            }
            let number = |key: &'static str| -> u64 {
                let value = &last[&Bytes::from_static(key.as_bytes())];
                std::str::from_utf8(value).expect("digits").parse().expect("a number")
            };
            assert_eq!(number("a"), number("b"), "the group is there as a whole");
            assert!(number("a") >= least, "{} of {least}", number("a"));
        }
    });
}

#[test]
fn a_damaged_log_is_no_shorter_one() {
    let temp = tempfile::tempdir().expect("a directory");
    let path = temp.path().join("log");
    let log = EmbeddedLog::open(&path, EmbeddedOptions::default()).expect("opens");
    for n in 0..20 {
        written(&log, vec![put(0, "k", &[n; 500])]);
    }
    assert_eq!(freeze(&path).expect("is right").end, 20);
    let segment = path.join("00000000000000000000.segment");
    let mut bytes = std::fs::read(&segment).expect("is there");
    bytes[5000] ^= 1;
    std::fs::write(&segment, &bytes).expect("is written");
    let damaged = |what: &str| {
        let told = freeze(&path).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told.contains("the log is damaged"), "{what}: {told}");
    };
    damaged("the mark knows of more");
    std::fs::remove_file(path.join("mark")).expect("is removed");
    damaged("later frames know of more");
}
