//! Tests of how new reads are, and of digests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::database::consistency::Scope;
use crate::database::digest::PartitionDigest;
use crate::model::Control;

fn scope() -> Scope {
    Scope::Partitions([HERE].into_iter().collect())
}

fn text<T>(outcome: Result<T, Fault>) -> String {
    match outcome {
        Err(Fault::Error(text)) => String::from_utf8_lossy(&text).into_owned(),
        _ => panic!("no error"),
    }
}

#[tokio::test]
async fn a_fresh_read_sees_what_others_wrote_before_it_came() {
    let f = Fixture::new(false);
    for n in 0..200 {
        f.log.foreign("k", &n.to_string());
        let came = Instant::now();
        f.service
            .fresh(&scope(), came)
            .await
            .unwrap_or_else(|_| panic!("no answer"));
        assert!(f.service.is_fresh(&scope(), came));
        assert!(
            !f.service.is_fresh(&scope(), Instant::now()),
            "an older question says nothing"
        );
        assert_eq!(f.get("k"), Some(n.to_string()));
    }
}

#[tokio::test]
async fn reads_that_wait_share_questions() {
    let f = Fixture::new(false);
    let before = f.log.asked.load(Ordering::SeqCst);
    let came = Instant::now();
    let readers: Vec<_> = (0..500)
        .map(|_| {
            let service = f.service.clone();
            tokio::spawn(async move { service.fresh(&scope(), came).await.is_ok() })
        })
        .collect();
    for reader in readers {
        assert!(reader.await.expect("a reader"));
    }
    let asked = f.log.asked.load(Ordering::SeqCst) - before;
    assert!(asked < 20, "{asked} questions for 500 reads");
}

#[tokio::test]
async fn with_one_writer_nothing_is_asked() {
    let f = Fixture::new(true);
    let before = f.log.asked.load(Ordering::SeqCst);
    assert!(f.service.is_fresh(&scope(), Instant::now()));
    assert!(f.service.is_within(&scope(), Duration::ZERO));
    assert!(
        f.log.asked.load(Ordering::SeqCst) <= before + 1,
        "the applier alone asks"
    );
}

#[tokio::test]
async fn a_node_that_does_not_learn_the_end_answers_stale() {
    let f = Fixture::new(false);
    f.service.settings.write_timeout_ms.store(1_000, Ordering::Relaxed);
    let lag = Duration::from_millis(200);
    f.service
        .within(&scope(), lag)
        .await
        .unwrap_or_else(|_| panic!("it is new enough"));
    f.log.mute.store(true, Ordering::SeqCst);
    let error = text(f.service.fresh(&scope(), Instant::now()).await);
    assert_eq!(error, "STALE the log did not tell its end within 1 s: the log is mute");
    let error = text(f.service.within(&scope(), lag).await);
    assert!(error.starts_with("STALE this node is "), "{error}");
    assert!(
        error.ends_with(" ms behind the log, more than the 200 ms allowed: the log is mute"),
        "{error}"
    );
    f.log.mute.store(false, Ordering::SeqCst);
    f.service
        .fresh(&scope(), Instant::now())
        .await
        .unwrap_or_else(|_| panic!("it answers again"));
    f.service
        .within(&scope(), lag)
        .await
        .unwrap_or_else(|_| panic!("it is new enough again"));
}

#[tokio::test]
async fn a_group_that_is_not_whole_holds_the_position() {
    let f = Fixture::new(false);
    // As long as the log does not report its end, the rest of the group may be in it.
    f.log.mute.store(true, Ordering::SeqCst);
    f.log.foreign("before", "1");
    f.log.member("left", "1", 7);
    let waited = tokio::time::timeout(Duration::from_millis(100), f.service.applied_to(HERE, 2)).await;
    assert!(waited.is_err(), "half a group was told to be visible");
    f.service.applied_to(HERE, 1).await;
    assert_eq!((f.get("before").as_deref(), f.get("left")), (Some("1"), None));
    let stored = |f: &Fixture| f.service.database(0).partitions()[0].stored.load(Ordering::SeqCst);
    f.wait(|f| stored(f) == 1);
    f.log.member("right", "1", 7);
    f.service.applied_to(HERE, 3).await;
    assert_eq!(
        (f.get("left").as_deref(), f.get("right").as_deref()),
        (Some("1"), Some("1"))
    );
}

/// The node does not serve with half of a group, and shows both records once the other has come.
fn serves_when_the_other_member_comes(f: &Fixture) {
    let until = Instant::now() + Duration::from_millis(100);
    while Instant::now() < until {
        assert!(!f.service.is_serving(), "half a group is shown");
        std::thread::sleep(Duration::from_millis(1));
    }
    f.log.member("right", "1", 7);
    f.wait(|f| f.service.is_serving());
    assert_eq!(
        (f.get("left").as_deref(), f.get("right").as_deref()),
        (Some("1"), Some("1"))
    );
}

/// The first record of the group is below the end that the log had at the start. The second is read
/// when that end is reached.
#[test]
fn nothing_is_served_before_groups_that_were_loaded_in_part_are_whole() {
    let log = Arc::new(ScriptedLog::default());
    log.member("left", "1", 7);
    // The other record is in the log when the first is read, but takes its time to come.
    log.told_ends.lock().extend([1].into_iter().chain([2; 10_000]));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let f = Fixture::starting(log, directory, 1);
    f.wait(|f| f.log.told_ends.lock().len() < 9_999);
    serves_when_the_other_member_comes(&f);
}

/// The group begins after the end that the log had at the start, so it is shown completely or not
/// at all.
#[test]
fn a_group_that_is_met_on_the_way_to_a_later_goal_is_waited_for() {
    const TOLD: usize = 10_000;
    let log = Arc::new(ScriptedLog::default());
    log.foreign("before", "1");
    log.member("left", "1", 7);
    *log.withheld.lock() = Some(1);
    log.told_ends.lock().extend([1].into_iter().chain([2; TOLD - 1]));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let f = Fixture::starting(log, directory, 1);
    // The log is asked at the start, for what is known of the log, and for the second goal.
    f.wait(|f| f.log.told_ends.lock().len() <= TOLD - 3);
    *f.log.withheld.lock() = None;
    serves_when_the_other_member_comes(&f);
}

#[tokio::test]
async fn a_group_whose_rest_is_not_in_the_log_is_shown_and_those_behind_it_stay_whole() {
    let f = Fixture::new(false);
    f.log.mute.store(true, Ordering::SeqCst);
    for (key, group) in [
        ("forged", 1),
        ("left", 2),
        ("also forged", 3),
        ("right", 2),
        ("late", 4),
    ] {
        f.log.member(key, "1", group);
    }
    let waited = tokio::time::timeout(Duration::from_millis(50), f.service.applied_to(HERE, 1)).await;
    assert!(waited.is_err(), "half a group was told to be visible");
    let both = || (f.get("left"), f.get("right"));
    assert_eq!(both(), (None, None));
    f.log.mute.store(false, Ordering::SeqCst);
    f.service.applied_to(HERE, 5).await;
    assert_eq!(both(), (Some("1".into()), Some("1".into())));
    assert_eq!(f.get("forged").as_deref(), Some("1"));
    assert_eq!(f.get("late").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_token_is_reached_when_its_session_can_be_seen() {
    let f = Fixture::new(false);
    let write = f.set(&Arc::default(), "k", "1");
    f.log.acknowledge();
    assert_eq!(write.outcome(), Some(&Ok(())));
    let token = f.service.token();
    assert_eq!(token, "hw1~0:1:1");
    let second = Duration::from_secs(1);
    f.service
        .reach(&token, second)
        .await
        .unwrap_or_else(|_| panic!("not reached"));
    let wait = Duration::from_millis(20);
    assert!(text(f.service.reach("hw1~0:2:1", wait).await).starts_with("STALE "));
    assert!(text(f.service.reach("hw1~0:1:2", wait).await).starts_with("ERR the token is of another topic"));
    assert!(text(f.service.reach("hw1~7:1:1", wait).await).starts_with("ERR the token is about database 7"));
    f.log.foreign("k", "2");
    f.service
        .reach("hw1~0:2:1", second)
        .await
        .unwrap_or_else(|_| panic!("not reached"));
    assert_eq!(f.get("k").as_deref(), Some("2"));
}

/// Two keys are written together while a command computes on them.
#[test]
fn a_long_computation_holds_up_no_group_and_sees_none_of_it() {
    let f = Fixture::new(false);
    let set_both = |value: &'static str| {
        written(
            f.service
                .transact(&Arc::default(), Keys::Some(&[b"a", b"b"]), View::Update, |t| {
                    t.set(0, b"a", value.into(), None);
                    t.set(0, b"b", value.into(), None);
                    Ok(())
                }),
        )
    };
    set_both("1");
    f.log.acknowledge();
    let write = set_both("2");
    let computed = f.service.transact(
        &Arc::default(),
        Keys::Together(&[(0, b"a"), (0, b"b")]),
        View::Committed,
        |t| {
            let first = t.get_string(0, b"a")?;
            // The command computes for long.
            std::thread::scope(|scope| {
                scope.spawn(|| f.log.acknowledge());
                f.wait(|_| write.outcome().is_some());
            });
            Ok([first, t.get_string(0, b"b")?, t.get_string(0, b"a")?])
        },
    );
    let Ok(computed) = computed else {
        panic!("it does not wait")
    };
    assert_eq!(
        computed.value,
        ["1", "1", "1"].map(|value| Some(Bytes::from_static(value.as_bytes())))
    );
    assert_eq!(f.get("a").as_deref(), Some("2"));
}

#[test]
fn a_group_is_shown_at_once_to_a_strict_read_of_one_key() {
    let f = Arc::new(Fixture::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (f, stop) = (f.clone(), stop.clone());
        std::thread::spawn(move || {
            let read = |key: &str| {
                let value = f
                    .service
                    .transact(
                        &Arc::default(),
                        Keys::Together(&[(0, key.as_bytes())]),
                        View::Committed,
                        |t| t.get_string(0, key.as_bytes()),
                    )
                    .unwrap_or_else(|_| panic!("reading {key} failed"));
                value
                    .value
                    .map_or(0, |v| String::from_utf8_lossy(&v).parse::<u64>().expect("a number"))
            };
            while !stop.load(Ordering::Relaxed) {
                let first = read("first");
                let last = read("last");
                assert!(last >= first, "{first} was seen of one key, then {last} of the other");
            }
        })
    };
    for n in 0..2_000_u32 {
        let end = {
            let mut records = f.log.records.lock();
            for key in ["first", "middle", "last"] {
                let offset = records.len() as u64;
                records.push(LogRecord {
                    at: HERE,
                    offset,
                    timestamp: 1,
                    key: Bytes::from_static(key.as_bytes()),
                    payload: Payload::string(n.to_string().into(), None),
                    group: Some(crate::log::Group {
                        id: u128::from(n),
                        records: 3,
                    }),
                });
            }
            records.len() as u64
        };
        f.wait(|f| f.service.database(0).partitions()[0].applied.load(Ordering::SeqCst) >= end);
    }
    stop.store(true, Ordering::Relaxed);
    reader.join().expect("the reader");
}

/// The digest of the records below a position, computed in another way than a node does.
fn expected(f: &Fixture, position: u64) -> PartitionDigest {
    let mut keys = BTreeMap::new();
    for record in &f.log.records.lock()[..position as usize] {
        match (&record.payload, record.payload.state().map(|state| &state.value)) {
            (_, Some(Value::String(value))) => drop(keys.insert(record.key.clone(), value.clone())),
            (Payload::Control(Control::Flush), _) => keys.clear(),
            (Payload::Control(Control::Features(_) | Control::Function(_) | Control::Passed | Control::Unknown), _) => {
            }
            (Payload::Key(_), _) => drop(keys.remove(&record.key)),
        }
    }
    let hash = |(key, value): (&Bytes, &Bytes)| {
        let length = (key.len() as u64).to_le_bytes();
        xxhash_rust::xxh3::xxh3_128(&[&length[..], key, &[0, 0], value].concat())
    };
    PartitionDigest {
        position,
        keys: keys.len() as u64,
        sum: keys.iter().map(hash).fold(0, u128::wrapping_add),
    }
}

async fn digest(f: &Fixture) -> Vec<PartitionDigest> {
    match f.service.digest(0).await {
        Ok(digest) => digest,
        failed => panic!("no digest: {}", text(failed)),
    }
}

fn write_something(f: &Fixture, random: &mut StdRng) {
    let key = format!("k{}", random.random_range(0..3_000));
    let value = random.random::<u32>().to_string();
    let (key, payload) = match random.random_range(0..20_000) {
        0 => (Bytes::from_static(crate::log::record::FLUSH_KEY), Payload::FLUSH),
        1..4_000 => (key.into(), Payload::TOMBSTONE),
        _ => {
            let value = value.into();
            (key.into(), Payload::string(value, None))
        }
    };
    f.log.foreign_record(key, payload, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_is_that_of_its_position_while_records_come_in() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let f = Arc::new(Fixture::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (f, stop) = (f.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            for n in 0.. {
                write_something(&f, &mut random);
                if n > 5_000 && n % 20 == 0 {
                    std::thread::sleep(Duration::from_micros(500));
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    f.service.applied_to(HERE, 100).await;
    let mut positions: Vec<u64> = Vec::new();
    let end = Instant::now() + Duration::from_secs(30);
    let is_enough = |seen: &[u64]| seen.len() >= 20 && seen.first() < seen.last();
    while !is_enough(&positions) && Instant::now() < end {
        let digest = digest(&f).await;
        assert_eq!(digest[0], expected(&f, digest[0].position));
        positions.push(digest[0].position);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer");
    assert!(
        positions.first() < positions.last(),
        "nothing was written meanwhile: {positions:?}"
    );
    let end = f.log.records.lock().len() as u64;
    f.service.applied_to(HERE, end).await;
    let digest = digest(&f).await;
    assert_eq!(digest[0], expected(&f, end));
}

/// The applier passes the own record over while the group is not complete. So the applier hands
/// over nothing more of it when the group is complete.
#[test]
fn an_own_record_behind_a_group_that_is_waited_for_comes_into_the_store_with_it() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    let applied = |count| f.wait(|f| f.service.counters.records_applied.load(Ordering::SeqCst) == count);
    f.set(&owner, "first", "1");
    f.log.acknowledge();
    applied(1);
    let _hurry = f.service.behind.hurry();
    let next_poll = || std::thread::sleep(Duration::from_millis(20));
    for round in 0..10 {
        next_poll();
        f.log.member("one", "1", round.into());
        f.set(&owner, &format!("own {round}"), "1");
        f.log.acknowledge();
        applied(round * 3 + 2);
        // From now on records are not left in memory for the writer. It has found meanwhile that it
        // has to wait for this one.
        let _exactly = f.service.digests.exactly();
        next_poll();
        f.log.member("other", "1", round.into());
        applied(round * 3 + 4);
        assert_eq!(count_when_caught_up(&f), round + 4);
    }
}
