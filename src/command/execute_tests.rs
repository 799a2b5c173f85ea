use std::sync::atomic::AtomicBool;
use std::task::Waker;

use super::*;
use crate::command::session::Replies;
use crate::config::Config;
use crate::database::tests::Fixture;
use crate::telemetry::Stats;

fn shared(f: &Fixture) -> Arc<Shared> {
    Arc::new(Shared {
        service: f.service.clone(),
        config: Arc::new(Config::default()),
        clients: Default::default(),
        stats: Stats::default(),
        long_turns: tokio::sync::Semaphore::new(1),
        pause: Default::default(),
        shutdown: Default::default(),
        started: Instant::now(),
        started_at: 0,
        run_id: String::new(),
    })
}

/// What a pipeline is answered. All that it writes at first loses against another writer, and so does the next write, once that all of it is
/// computed again; and how CLIENT REPLY then stands.
async fn answers(pipeline: &[&[&[u8]]]) -> (Vec<Reply>, Replies) {
    let f = Fixture::new(false);
    f.log.foreign("a", "10");
    f.wait(|f| f.service.read(0, b"a", false).is_ok_and(|seen| seen.entry.is_some()));
    let shared = shared(&f);
    let client = shared.clients.add(Waker::noop(), None, None, 0);
    let mut session = Session::new(client, true);
    let mut held = Vec::new();
    for args in pipeline {
        let reply = match execute(&mut session, &shared, args, false) {
            Step::Reply(reply) => Ok(reply),
            Step::Pending(pending) => Err(pending),
            Step::Before(_) | Step::Later(_) => panic!("it waits"),
        };
        session.replies.next();
        held.push(Held {
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
    let mut session = Session::new(shared.clients.add(Waker::noop(), None, None, 0), true);
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
