use std::sync::atomic::AtomicBool;
use std::task::Waker;

use super::*;
use crate::acl::{Reason, Users};
use crate::command::rights;
use crate::command::session::Replies;
use crate::command::shared::Turns;
use crate::command::step::PendingReply;
use crate::config::Config;
use crate::database::tests::Fixture;
use crate::log::ProduceError;
use crate::resp::Version;
use crate::telemetry::Stats;

pub(crate) fn shared(f: &Fixture) -> Arc<Shared> {
    Arc::new(Shared {
        service: f.service.clone(),
        config: Arc::new(Config::default()),
        clients: Default::default(),
        users: Users::new(&rights::CATALOGUE),
        pubsub: Default::default(),
        monitors: Default::default(),
        tracking: Default::default(),
        stats: Stats::default(),
        turns: Turns::new(1),
        scripts: crate::script::Engine::new("7.2.0"),
        pause: Default::default(),
        shutdown: Default::default(),
        started: Instant::now(),
        started_at: 0,
        run_id: String::new(),
    })
}

/// What a pipeline is answered. All that it writes at first loses against another writer, and so
/// does the next write, once that all of it is computed again; and how CLIENT REPLY then stands.
async fn answers(pipeline: &[&[&[u8]]]) -> (Vec<Reply>, Replies) {
    let f = Fixture::new(false);
    f.log.foreign("a", "10");
    f.wait(|f| f.service.read(0, b"a", false).is_ok_and(|seen| seen.entry.is_some()));
    let shared = shared(&f);
    let client = shared.clients.add(Waker::noop(), None, None, 0);
    let mut session = Session::new(client, &shared.users);
    let mut held = Vec::new();
    for args in pipeline {
        let reply = match execute(&mut session, &shared, args, false) {
            Step::Reply(reply) => Ok(reply),
            Step::Pending(pending) => Err(pending),
            Step::Before(_) | Step::Later(_) | Step::Blocks(_) => panic!("it waits"),
        };
        session.replies.next();
        held.push(HeldReply {
            args: args.iter().copied().collect(),
            reply,
            is_sent: true,
            version: Version::Resp2,
        });
    }
    f.log.losing.store(1, Ordering::SeqCst);
    while !f.log.waiting.lock().is_empty() {
        f.log.fail(ProduceError::Stale { after: None });
    }
    let settled = AtomicBool::new(false);
    let settling = async {
        settle_all(&mut session, &shared, &mut held).await;
        settled.store(true, Ordering::SeqCst);
    };
    let acknowledging = async {
        while !settled.load(Ordering::SeqCst) {
            f.log.acknowledge_all();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(settling, acknowledging);
    assert_eq!(f.log.losing.load(Ordering::SeqCst), 0, "nothing lost a second time");
    let settled = held
        .into_iter()
        .map(|held| held.reply.unwrap_or_else(|_| panic!("not settled")));
    (settled.collect(), session.replies)
}

#[tokio::test]
async fn what_loses_again_and_again_keeps_its_place_in_the_pipeline() {
    let (incr, get): (&[&[u8]], &[&[u8]]) = (&[b"INCR", b"a"], &[b"GET", b"a"]);
    let (told, _) = answers(&[incr, incr, get]).await;
    assert_eq!(told, [Reply::Int(11), Reply::Int(12), Reply::bulk("12")]);
    let (told, _) = answers(&[incr, &[b"MULTI"], incr, get, &[b"EXEC"]]).await;
    let of_exec = Reply::Array(vec![Reply::Int(12), Reply::bulk("12")]);
    assert_eq!((&told[0], &told[4]), (&Reply::Int(11), &of_exec));
}

/// The replies of a new connection, and whether it tracks keys in the end.
fn tracking(lines: &[&[&[u8]]]) -> (Vec<Reply>, bool) {
    let f = Fixture::new(false);
    let shared = shared(&f);
    let ended = shared.clients.add(Waker::noop(), None, None, 0);
    ended.pushes.close();
    assert_eq!(ended.id, 1);
    let mut session = Session::new(shared.clients.add(Waker::noop(), None, None, 0), &shared.users);
    session.takes_pushes = true;
    let replies = lines
        .iter()
        .map(|args| match execute(&mut session, &shared, args, false) {
            Step::Reply(reply) => reply,
            _ => panic!("it waits"),
        });
    (replies.collect(), session.tracks.is_some())
}

#[tokio::test]
async fn what_tracking_refuses_leaves_it_off() {
    let long = vec![b'x'; 2 << 20];
    let refused: [&[&[u8]]; 2] = [
        &[b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", &long],
        // Nothing can be pushed to it.
        &[b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", b"1"],
    ];
    for line in refused {
        let (replies, tracks) = tracking(&[line]);
        assert!(replies[0].is_error() && !tracks, "{replies:?}");
    }
    let on: &[&[u8]] = &[b"CLIENT", b"TRACKING", b"ON"];
    let (replies, tracks) = tracking(&[&[b"MULTI"], on, &[b"EXEC"]]);
    let Reply::Array(of_exec) = &replies[2] else {
        panic!("{replies:?}");
    };
    assert!(of_exec[0].is_error() && !tracks, "{replies:?}");
}

#[tokio::test]
async fn a_skip_in_a_transaction_that_is_computed_again_skips_one_reply() {
    let skip: &[&[u8]] = &[b"CLIENT", b"REPLY", b"SKIP"];
    let (told, replies) = answers(&[&[b"MULTI"], &[b"INCR", b"a"], skip, &[b"EXEC"]]).await;
    assert_eq!(told[3], Reply::Array(vec![Reply::Int(11), Reply::Ok]));
    let one = Replies {
        skip: true,
        ..Replies::default()
    };
    assert_eq!(replies, one);
}

#[tokio::test]
async fn when_what_exec_waits_for_does_not_come_its_transaction_is_over() {
    let f = Fixture::new(false);
    let shared = shared(&f);
    let mut session = Session::new(shared.clients.add(Waker::noop(), None, None, 0), &shared.users);
    let queue: [&[&[u8]]; 2] = [&[b"MULTI"], &[b"SET", b"k", b"v"]];
    for request in queue {
        execute(&mut session, &shared, request, false);
    }
    f.service.settings.write_timeout_ms.store(0, Ordering::SeqCst);
    let waits = Step::Before(Before::Wait(Wait::Own));
    let told = execute_waiting(&mut session, &shared, &[b"EXEC"], waits).await;
    let Step::Reply(Reply::Error(text)) = told else {
        panic!("it was executed");
    };
    assert!(text.starts_with(b"NOTWRITTEN "), "{text:?}");
    assert!(session.multi.is_none(), "what comes next would be queued");
}

/// What one connection does, on a log of its own.
struct One {
    f: Fixture,
    shared: Arc<Shared>,
    session: Session,
}

impl One {
    fn new() -> One {
        let f = Fixture::new(false);
        f.log.foreign("k", "0");
        f.wait(|f| f.service.read(0, b"k", false).is_ok_and(|seen| seen.entry.is_some()));
        let shared = shared(&f);
        let session = Session::new(shared.clients.add(Waker::noop(), None, None, 0), &shared.users);
        One { f, shared, session }
    }

    fn send(&mut self, request: &str) -> Step {
        let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        execute(&mut self.session, &self.shared, &args, false)
    }

    #[track_caller]
    fn reply(&mut self, request: &str) -> Reply {
        match self.send(request) {
            Step::Reply(reply) => reply,
            Step::Pending(_) => panic!("{request} writes"),
            Step::Before(_) | Step::Later(_) | Step::Blocks(_) => panic!("{request} waits"),
        }
    }
}

#[test]
fn exec_does_nothing_if_a_change_is_shown_and_the_flag_is_yet_to_be_raised() {
    for queued in ["SET k 2", "SET other 2", "GET k", "GET other"] {
        let mut one = One::new();
        one.reply("WATCH k");
        Fixture::show(&one.f.service, "k", "1", 12, None);
        one.reply("MULTI");
        one.reply(queued);
        assert_eq!(one.reply("EXEC"), Reply::NullArray, "{queued}");
    }
}

#[test]
fn what_exec_reads_under_watch_is_what_watch_found() {
    let mut one = One::new();
    let mut executed = 0;
    for round in 0..300u64 {
        one.reply("WATCH k");
        let Reply::Bulk(known) = one.reply("GET k") else {
            panic!("k is there");
        };
        one.reply("MULTI");
        for _ in 0..100 {
            one.reply("GET k");
        }
        let told = std::thread::scope(|scope| {
            let service = one.f.service.clone();
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(round % 100));
                Fixture::show(&service, "k", &round.to_string(), round + 10, None);
            });
            let args: [&[u8]; 1] = [b"EXEC"];
            execute(&mut one.session, &one.shared, &args, false)
        });
        match told {
            Step::Reply(Reply::NullArray) => {}
            Step::Reply(Reply::Array(replies)) => {
                executed += 1;
                assert!(
                    replies.iter().all(|reply| *reply == Reply::Bulk(known.clone())),
                    "{replies:?}"
                );
            }
            _ => panic!("it only reads"),
        }
    }
    assert!(executed > 0);
}

#[test]
fn exec_rests_on_a_watched_key_that_was_expired() {
    let mut one = One::new();
    Fixture::show(&one.f.service, "k", "", 12, Some(1));
    one.reply("WATCH k");
    one.reply("MULTI");
    one.reply("SET other 1");
    assert!(matches!(one.send("EXEC"), Step::Pending(_)));
    let waiting = one.f.log.waiting.lock();
    let condition = waiting[0].condition.as_ref().expect("it has a condition");
    let reads: Vec<_> = condition
        .reads
        .iter()
        .map(|read| (read.key.as_deref(), read.known))
        .collect();
    assert_eq!(reads, [(Some(&b"k"[..]), 13)]);
}

#[test]
fn watch_waits_for_a_write_under_way_and_that_is_no_change() {
    let mut one = One::new();
    let owner = Arc::default();
    one.f.set(&owner, "k", "1");
    let Step::Before(Before::Wait(Wait::Write(write))) = one.send("WATCH k") else {
        panic!("it does not wait");
    };
    one.f.log.acknowledge_all();
    assert!(write.outcome().is_some());
    assert_eq!(one.reply("WATCH k"), Reply::Ok);
    one.reply("MULTI");
    one.reply("GET k");
    assert_eq!(one.reply("EXEC"), Reply::Array(vec![Reply::bulk("1")]));
}

/// A command may fail when it is computed again. A MULTI that was sent behind it has nothing to do
/// with that.
#[tokio::test]
async fn what_fails_when_it_is_computed_again_spoils_no_later_transaction() {
    let mut one = One::new();
    let Step::Pending(pending) = one.send("INCR k") else {
        panic!("it writes");
    };
    one.reply("MULTI");
    one.reply("GET other");
    Fixture::show(&one.f.service, "k", "no number", 12, None);
    one.f.log.fail(ProduceError::Stale { after: None });
    let args: [&[u8]; 2] = [b"INCR", b"k"];
    let mut held = [HeldReply {
        args: args.into_iter().collect(),
        reply: Err(pending),
        is_sent: true,
        version: Version::Resp2,
    }];
    settle_all(&mut one.session, &one.shared, &mut held).await;
    let [HeldReply { reply: Ok(reply), .. }] = held else {
        panic!("it is not settled");
    };
    assert!(reply.is_error(), "{reply:?}");
    assert_eq!(one.reply("EXEC"), Reply::Array(vec![Reply::Null]));
}

/// The reply of EXEC, which is computed again: another writer has given `k` the value 5.
async fn computed_again(one: &mut One, pending: PendingReply) -> Reply {
    one.f.log.foreign("k", "5");
    one.f.wait(|f| {
        let seen = f.service.read(0, b"k", false);
        seen.is_ok_and(|seen| {
            seen.entry
                .is_some_and(|entry| entry.string().is_ok_and(|value| value == "5"))
        })
    });
    one.f.log.fail(ProduceError::Stale { after: None });
    let args: [&[u8]; 1] = [b"EXEC"];
    let mut held = [HeldReply {
        args: args.into_iter().collect(),
        reply: Err(pending),
        is_sent: true,
        version: Version::Resp2,
    }];
    let log = one.f.log.clone();
    let settled = AtomicBool::new(false);
    let settling = async {
        settle_all(&mut one.session, &one.shared, &mut held).await;
        settled.store(true, Ordering::SeqCst);
    };
    let acknowledging = async {
        while !settled.load(Ordering::SeqCst) {
            log.acknowledge_all();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(settling, acknowledging);
    match held {
        [HeldReply { reply: Ok(reply), .. }] => reply,
        _ => panic!("it is not settled"),
    }
}

/// What is not about data runs once, also if the transaction is computed again.
#[tokio::test]
async fn a_select_in_a_transaction_that_is_computed_again_is_done_once() {
    let mut one = One::new();
    for request in ["MULTI", "INCR k", "SELECT 1", "GET k", "SELECT 99"] {
        one.reply(request);
    }
    let Step::Pending(pending) = one.send("EXEC") else {
        panic!("it writes");
    };
    assert_eq!(one.session.database, 1);
    one.reply("SELECT 0");
    let reply = computed_again(&mut one, pending).await;
    let no_such = Reply::error("ERR DB index is out of range");
    assert_eq!(
        reply,
        Reply::Array(vec![Reply::Int(6), Reply::Ok, Reply::Null, no_such])
    );
    assert_eq!(one.session.database, 0, "what the connection has selected since stays");
}

/// A script has the rights of the user who sent EXEC, and what it was refused is noted once.
#[tokio::test]
async fn a_login_in_a_transaction_gives_its_scripts_no_rights_when_they_are_computed_again() {
    let mut one = One::new();
    let rules = ["on", "nopass", "~k", "+@transaction", "+incr", "+eval", "+get", "+acl"].map(str::as_bytes);
    one.shared.users.set(b"ann", &rules).expect("good rules");
    let login: [&[u8]; 3] = [b"AUTH", b"ann", b"x"];
    let logged_in = execute(&mut one.session, &one.shared, &login, true);
    assert!(matches!(logged_in, Step::Reply(Reply::Ok)));
    let script = "EVAL return{redis.pcall('get','secret'),redis.pcall('get','secret')} 0";
    for request in ["MULTI", "INCR k", script, "AUTH default x", "ACL WHOAMI"] {
        one.reply(request);
    }
    let Step::Pending(pending) = execute(&mut one.session, &one.shared, &[b"EXEC"], true) else {
        panic!("it writes");
    };
    assert_eq!(one.shared.users.denials.count(Reason::Key), 2);
    let reply = computed_again(&mut one, pending).await;
    let Reply::Array(replies) = &reply else {
        panic!("{reply:?}");
    };
    let refused = Reply::error("ERR ACL failure in script: No permissions to access a key");
    assert_eq!(replies[0], Reply::Int(6), "{replies:?}");
    assert_eq!(replies[1], Reply::Array(vec![refused.clone(), refused]));
    assert_eq!(replies[3], Reply::bulk("default"));
    assert_eq!(one.shared.users.denials.count(Reason::Key), 2, "once each");
    assert_eq!(one.session.user.name(), b"default");
}
