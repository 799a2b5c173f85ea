//! Transactions that take long: what others may do meanwhile, and how they end.

use super::*;
use crate::database::SHORT_WORK;
use crate::database::transaction::Moment;
use crate::database::{Pace, Place, Turn};

const UNLOCKED: Pace = Pace {
    turn: Turn::Long,
    locked: false,
};
const LOCKED: Pace = Pace {
    turn: Turn::Long,
    locked: true,
};

impl Fixture {
    /// Copies a value to another key. `meanwhile` is called after the value was read.
    fn copy_at(&self, pace: Pace, from: &str, to: &str, meanwhile: impl FnOnce()) -> Result<Computed<()>, Fault> {
        let keys = [from.as_bytes(), to.as_bytes()];
        let keys = Keys::Some(&keys);
        self.service
            .transact_at(pace, &Arc::default(), keys, View::Update, |t| {
                let value = t.get_string(0, from.as_bytes())?.unwrap_or_default();
                meanwhile();
                t.works(1)?;
                t.set(0, to.as_bytes(), value, None);
                Ok(())
            })
    }

    /// Reads two keys together. `meanwhile` is called between the two.
    fn both_at(
        &self,
        keys: &[Place<'_>],
        pace: Pace,
        meanwhile: impl FnOnce(),
    ) -> Result<(Option<Bytes>, Option<Bytes>), Fault> {
        self.both(Keys::Together(keys), View::Committed, pace, meanwhile)
    }

    fn both(
        &self,
        keys: Keys<'_>,
        view: View,
        pace: Pace,
        meanwhile: impl FnOnce(),
    ) -> Result<(Option<Bytes>, Option<Bytes>), Fault> {
        let computed = self.service.transact_at(pace, &Arc::default(), keys, view, |t| {
            let a = t.get_string(0, b"a")?;
            meanwhile();
            Ok((a, t.get_string(0, b"b")?))
        });
        computed.map(|computed| computed.value)
    }

    fn set_both(&self, value: &'static str) -> Arc<Write> {
        let keys = Keys::Some(&[b"a", b"b"]);
        written(self.service.transact(&Arc::default(), keys, View::Update, |t| {
            t.set(0, b"a", value.into(), None);
            t.set(0, b"b", value.into(), None);
            Ok(())
        }))
    }
}

fn both(value: &'static str) -> (Option<Bytes>, Option<Bytes>) {
    (Some(value.into()), Some(value.into()))
}

#[test]
fn what_takes_long_is_computed_in_vain_if_a_key_that_it_read_changes() {
    for chains in [false, true] {
        let f = Fixture::new(chains);
        f.set(&Arc::default(), "from", "1");
        f.log.acknowledge_all();
        let in_vain = f.copy_at(UNLOCKED, "from", "to", || {
            f.set(&Arc::default(), "from", "2");
        });
        assert!(
            matches!(in_vain, Err(Fault::Wait(Wait::Changed))),
            "its keys are not locked"
        );
        f.log.acknowledge_all();
        assert_eq!(f.get("to"), None);
        let copied = f.copy_at(UNLOCKED, "from", "to", || {
            // The transaction does not read these.
            f.set(&Arc::default(), "to", "3");
            f.set(&Arc::default(), "another", "4");
        });
        written(copied);
        f.log.acknowledge_all();
        assert_eq!(f.get("to").as_deref(), Some("2"));
        assert!(
            f.service.database(0).watches.watched().is_empty(),
            "nothing is left behind"
        );
    }
}

#[test]
fn what_keeps_its_keys_locked_lets_others_wait_without_a_thread() {
    let f = Fixture::new(true);
    f.set(&Arc::default(), "from", "1");
    f.log.acknowledge_all();
    let short = |key: &str| f.copy_at(Pace::default(), "another", key, || {});
    let copied = f.copy_at(LOCKED, "from", "to", || {
        for key in ["from", "to"] {
            assert!(matches!(short(key), Err(Fault::Wait(Wait::Locked(_)))), "{key}");
        }
        written(short("free"));
    });
    written(copied);
    written(short("to"));
}

#[test]
fn keys_that_are_read_together_for_long_are_of_one_moment() {
    let f = Fixture::new(false);
    f.set_both("1");
    // These are more bytes than are kept besides memory.
    let many: Vec<String> = (0..200).map(|n| format!("many-{n}")).collect();
    for key in &many {
        f.set(&Arc::default(), key, "0123456789");
    }
    f.log.acknowledge_all();
    let few: Vec<Place<'_>> = vec![(0, b"a"), (0, b"b")];
    let all: Vec<Place<'_>> = many.iter().map(|key| (0, key.as_bytes())).chain(few.clone()).collect();
    let shown = f.both_at(&few, UNLOCKED, || {
        f.set_both("2");
        // Acknowledgements do not wait for readers.
        f.log.acknowledge_all();
    });
    assert_eq!(shown.ok(), Some(both("1")), "both were taken before");
    let shown = f.both_at(&all, UNLOCKED, || {
        f.set_both("3");
        f.log.acknowledge_all();
    });
    assert!(matches!(shown, Err(Fault::Wait(Wait::Changed))));
    let shown = f.both_at(&all, UNLOCKED, || {
        f.set_both("4");
    });
    assert_eq!(shown.ok(), Some(both("3")), "what is not acknowledged is not seen");
    f.log.acknowledge_all();
    for keys in [&few, &all] {
        assert_eq!(f.both_at(keys, LOCKED, || {}).ok(), Some(both("4")));
    }
}

#[test]
fn keys_that_only_the_computation_finds_are_of_one_moment() {
    let f = Fixture::new(true);
    f.set_both("1");
    f.log.acknowledge_all();
    let (declared, update) = ([&b"to"[..]], View::Update);
    let shown = f.both(Keys::SomeAndFound(&declared), update, UNLOCKED, || {
        f.set_both("2");
    });
    assert!(matches!(shown, Err(Fault::Wait(Wait::Changed))));
    f.log.acknowledge_all();
    let shown = f.both(Keys::SomeAndFound(&declared), update, LOCKED, || {
        let late = f.copy_at(Pace::default(), "another", "b", || {});
        assert!(matches!(late, Err(Fault::Wait(Wait::Locked(_)))));
    });
    assert_eq!(shown.ok(), Some(both("2")));
    let shown = f.both(Keys::FoundReads, View::Committed, UNLOCKED, || {
        f.set_both("3");
        f.log.acknowledge_all();
    });
    assert!(matches!(shown, Err(Fault::Wait(Wait::Changed))));
    for pace in [Pace::default(), LOCKED] {
        let shown = f.both(Keys::FoundReads, View::Committed, pace, || {
            assert!(f.service.groups.is_held(), "no group becomes visible");
        });
        assert_eq!(shown.ok(), Some(both("3")));
    }
}

#[test]
fn what_takes_too_long_for_its_thread_is_refused() {
    let f = Fixture::new(true);
    let works = |pace, bytes| {
        let keys = Keys::Some(&[b"k"]);
        let computed = f
            .service
            .transact_at(pace, &Arc::default(), keys, View::Update, |t| t.works(bytes));
        computed.map(|_| ())
    };
    let large = Pace {
        turn: Turn::Large,
        ..Pace::default()
    };
    assert!(works(Pace::default(), SHORT_WORK).is_ok());
    let refused = works(Pace::default(), SHORT_WORK + 1);
    assert!(matches!(refused, Err(Fault::Wait(Wait::Turn(Turn::Large)))));
    assert!(works(large, SHORT_WORK + 1).is_ok());
    let refused = works(large, 2 << 30);
    assert!(matches!(refused, Err(Fault::Wait(Wait::Turn(Turn::Long)))));
    assert!(works(UNLOCKED, 20 << 30).is_ok());
}

/// A value that is large and not in memory is not read by a thread that has no time for it.
#[test]
fn large_values_in_the_store_are_read_elsewhere() {
    let f = Fixture::new(false);
    let value = "x".repeat(SHORT_WORK + 1);
    f.log.foreign("k", &value);
    f.wait(|f| f.here().stored.load(Ordering::Acquire) == 1);
    f.service.database(0).hot.forget_all();
    let get = |pace| {
        let computed = f
            .service
            .transact_at(pace, &Arc::default(), Keys::Unlocked, View::Committed, |t| {
                t.get_string(0, b"k")
            });
        computed.map(|computed| computed.value)
    };
    assert!(matches!(
        get(Pace::default()),
        Err(Fault::Wait(Wait::Turn(Turn::Large)))
    ));
    assert!(get(UNLOCKED).is_ok_and(|read| read == Some(value.into())));
}

// ---- scripts ----

impl Fixture {
    /// Reads two keys as a script does, the first one twice. `meanwhile` is called between.
    fn scripted(&self, moment: &mut Moment, meanwhile: impl FnOnce()) -> Result<[Option<Bytes>; 3], Fault> {
        let locks = (Keys::Unlocked, View::Committed);
        let pace = Pace::default();
        let computed = self
            .service
            .transact_of_moment(pace, &Arc::default(), locks, Some(moment), |t| {
                let a = t.get_string(0, b"a")?;
                meanwhile();
                Ok([a, t.get_string(0, b"b")?, t.get_string(0, b"a")?])
            });
        computed.map(|computed| computed.value)
    }
}

#[test]
fn what_a_script_reads_is_of_one_moment() {
    let f = Fixture::new(true);
    f.set_both("1");
    f.log.acknowledge_all();
    let seen = |value: &'static str| [(); 3].map(|()| Some(Bytes::from(value)));
    let mut moment = Moment::default();
    let lost = f.scripted(&mut moment, || {
        f.set_both("2");
        // Acknowledgements do not wait for scripts.
        f.log.acknowledge_all();
    });
    assert!(matches!(lost, Err(Fault::Wait(Wait::Changed))));
    assert!(moment.lost);
    // The keys are known now: they are read together, and what changes later does not matter.
    let shown = f.scripted(&mut moment, || {
        f.set(&Arc::default(), "b", "3");
        f.set_both("4");
        f.log.acknowledge_all();
    });
    assert_eq!(shown.ok(), Some(seen("2")));
    assert!(!moment.lost);
    // A single key is one that changes, too.
    let lost = f.scripted(&mut Moment::default(), || {
        f.set(&Arc::default(), "a", "5");
        f.log.acknowledge_all();
    });
    assert!(matches!(lost, Err(Fault::Wait(Wait::Changed))));
    let moments = &f.service.database(0).moments;
    assert!(moments.watched().is_empty(), "nothing is left behind");
}

/// A script that may write, but does not: the records of others come while its keys are locked.
#[test]
fn what_a_script_that_writes_nothing_reads_is_of_one_moment() {
    let f = Fixture::new(false);
    f.set_both("1");
    f.log.acknowledge_all();
    let mut moment = Moment::default();
    let mut run = |value: &str| {
        let end = f.log.end();
        let keys = Keys::Some(&[b"a", b"b"]);
        let locks = (keys, View::Update);
        let pace = Pace::default();
        let computed = f
            .service
            .transact_of_moment(pace, &Arc::default(), locks, Some(&mut moment), |t| {
                let a = t.get_string(0, b"a")?;
                f.log.foreign("a", value);
                f.wait(|f| f.here().applied.load(Ordering::Acquire) > end);
                Ok((a, t.get_string(0, b"b")?))
            });
        computed.map(|computed| computed.value)
    };
    assert!(matches!(run("2"), Err(Fault::Wait(Wait::Changed))));
    let shown = run("3").ok();
    assert_eq!(shown, Some((Some("2".into()), Some("1".into()))));
}

#[test]
fn each_key_that_is_read_again_and_again_is_noted_once() {
    let f = Fixture::new(false);
    for pace in [Pace::default(), UNLOCKED] {
        let keys = Keys::Some(&[b"a"]);
        let noted = f.service.transact_at(pace, &Arc::default(), keys, View::Update, |t| {
            for number in 0..10_000 {
                t.get_string(0, format!("k{}", number % 20).as_bytes())?;
            }
            Ok(t.noted())
        });
        assert_eq!(noted.map(|noted| noted.value).ok(), Some(20));
    }
}

#[test]
fn a_script_cannot_read_without_end() {
    let f = Fixture::new(true);
    let locks = (Keys::Unlocked, View::Committed);
    let pace = Pace::default();
    let endless = f
        .service
        .transact_of_moment(pace, &Arc::default(), locks, Some(&mut Moment::default()), |t| {
            for number in 0_u64.. {
                t.get_string(0, &number.to_be_bytes())?;
            }
            Ok(())
        });
    let Err(Fault::Error(error)) = endless else {
        panic!("it ended");
    };
    assert!(error.starts_with(b"ERR a script can read at most"), "{error:?}");
}

#[test]
fn a_command_that_fails_among_others_writes_nothing() {
    let f = Fixture::new(true);
    f.set(&Arc::default(), "kept", "0");
    f.log.acknowledge_all();
    written(f.transact(&Arc::default(), "kept", View::Update, |t| {
        t.set(0, b"kept", "1".into(), None);
        let failed: Result<(), Fault> = t.whole(|t| {
            t.set(0, b"kept", "lost".into(), None);
            t.delete(0, b"kept");
            for number in 0..20 {
                t.set(0, format!("lost{number}").as_bytes(), "lost".into(), None);
            }
            Err("ERR it fails".into())
        });
        assert!(failed.is_err());
        assert_eq!(t.get_string(0, b"kept")?.as_deref(), Some(&b"1"[..]));
        assert_eq!(t.get_string(0, b"lost3")?, None);
        t.whole(|t| {
            for number in 0..20 {
                t.set(0, format!("k{number}").as_bytes(), "v".into(), None);
            }
            Ok(())
        })
    }));
    f.log.acknowledge_all();
    assert_eq!(f.get("kept").as_deref(), Some("1"));
    assert_eq!(f.get("lost3"), None);
    assert_eq!(f.get("k19").as_deref(), Some("v"));
}
