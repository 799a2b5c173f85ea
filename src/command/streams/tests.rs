//! What a command about streams answers while writes of others are under way, and what it rests on.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::command::Reply;
use crate::command::blocked::{found_at_once, serve};
use crate::command::execute::execute;
use crate::command::execute::tests::shared;
use crate::command::session::Session;
use crate::command::shared::Shared;
use crate::command::step::{Blocks, PendingReply, Step};
use crate::database::tests::Fixture;
use crate::database::{Pace, Turn};
use crate::log::ProduceError;
use crate::model::Collection;

const SOON: Duration = Duration::from_secs(60);

struct Node {
    f: Fixture,
    shared: Arc<Shared>,
}

impl Node {
    /// The log has what these requests write.
    fn new(requests: &[&str]) -> Node {
        let f = Fixture::new(false);
        f.names_features("stream split");
        let shared = shared(&f);
        let node = Node { f, shared };
        requests.iter().for_each(|request| node.write(request));
        node
    }

    fn session(&self) -> Session {
        let mut session = Session::new(
            self.shared.clients.add(Waker::noop(), None, None, 0),
            &self.shared.users,
        );
        session.may_block = true;
        session
    }

    fn send(&self, session: &mut Session, request: &str) -> Step {
        let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        execute(session, &self.shared, &args, false)
    }

    fn write(&self, request: &str) {
        pending(self.send(&mut self.session(), request));
        self.f.log.acknowledge_all();
    }

    /// Whether a client waits for the stream `s`.
    fn waits(&self) -> bool {
        let waiters = &self.shared.service.waiters;
        waiters.any_wait(Collection::Stream, 0, &[b"s"])
    }

    fn fail(&self) {
        self.f.log.fail(ProduceError::NotWritten("the test says so".to_owned()));
    }

    /// What a command that waits answers in the end. `then` happens once it waits.
    async fn answer(&self, session: &mut Session, request: &str, mut blocks: Blocks, then: impl Fn(&Node)) -> String {
        let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        let waiting = async {
            let reply = match found_at_once(session, &self.shared, &args, &mut blocks).await {
                Some(reply) => Some(reply),
                None => serve(session, &self.shared, &args, blocks).await,
            };
            format!("{:?}", reply.expect("a reply"))
        };
        let acting = async {
            while !self.waits() {
                tokio::task::yield_now().await;
            }
            then(self);
            loop {
                self.f.log.acknowledge_all();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waiting = tokio::time::timeout(SOON, waiting);
        tokio::select! {
            reply = waiting => reply.expect("a reply in time"),
            () = acting => unreachable!("it does not end"),
        }
    }
}

fn pending(step: Step) -> PendingReply {
    match step {
        Step::Pending(pending) => pending,
        Step::Reply(reply) => panic!("{reply:?} rests on nothing"),
        Step::Before(_) | Step::Later(_) | Step::Blocks(_) => panic!("it waits"),
    }
}

fn blocks(step: Step) -> Blocks {
    match step {
        Step::Blocks(blocks) => blocks,
        _ => panic!("it does not wait"),
    }
}

#[tokio::test]
async fn an_entry_of_the_own_pipeline_that_fails_is_not_shown() {
    for from in ["1-1", "$"] {
        let node = Node::new(&["XADD s 1-1 a 1"]);
        let mut session = node.session();
        pending(node.send(&mut session, "XADD s 5-5 a 5"));
        let request = format!("XREAD BLOCK 0 STREAMS s {from}");
        let waits = blocks(node.send(&mut session, &request));
        node.fail();
        // The connection looks at what became of its XADD before it waits.
        session.outstanding.settling();
        let then = |node: &Node| node.write("XADD s 2-2 a 2");
        let answer = node.answer(&mut session, &request, waits, then).await;
        assert!(answer.contains("2-2") && !answer.contains("5-5"), "{from}: {answer}");
    }
}

#[tokio::test]
async fn an_entry_whose_removal_fails_is_given_to_who_waits() {
    let node = Node::new(&["XADD s 1-1 a 1", "XGROUP CREATE s g 0"]);
    pending(node.send(&mut node.session(), "XDEL s 1-1"));
    let mut session = node.session();
    let request = "XREADGROUP GROUP g c BLOCK 0 STREAMS s >";
    let waits = blocks(node.send(&mut session, request));
    let answer = node.answer(&mut session, request, waits, Node::fail).await;
    assert!(answer.contains("1-1"), "{answer}");
}

#[test]
fn a_reply_waits_for_the_writes_that_it_rests_on() {
    let made = ["XADD s 1-1 a 1", "XADD s 2-2 a 2", "XGROUP CREATE s g 0"];
    let read = "XREADGROUP GROUP g c COUNT 1 STREAMS s >";
    let set_up = [made[0], made[1], made[2], read];
    for (first, request) in [
        ("XGROUP DESTROY s g", "XACK s g 1-1"),
        ("XGROUP CREATE s h 0", "XGROUP CREATECONSUMER s h d"),
        ("XTRIM s MAXLEN 1", "XTRIM s MAXLEN 1"),
        ("XACK s g 1-1", "XGROUP DELCONSUMER s g c"),
        ("XACK s g 1-1", "XREADGROUP GROUP g c STREAMS s 0"),
        ("XACK s g 1-1", "XAUTOCLAIM s g d 0 0"),
    ] {
        let node = Node::new(&set_up);
        pending(node.send(&mut node.session(), first));
        let depends = pending(node.send(&mut node.session(), request)).depends;
        assert_eq!(depends.len(), 1, "{request} after {first}");
    }
    // What is not there rests on no other write.
    let node = Node::new(&set_up);
    pending(node.send(&mut node.session(), "XADD s 3-3 a 3"));
    let step = node.send(&mut node.session(), "XACK s g 7-7");
    assert!(matches!(step, Step::Reply(Reply::Int(0))));
}

#[test]
fn writes_that_must_not_pass_each_other_share_a_record() {
    let node = Node::new(&["XADD s 1-1 a 1", "XGROUP CREATE s g 0"]);
    let claimed = pending(node.send(&mut node.session(), "XCLAIM s g c 0 1-1 FORCE"));
    let write = claimed.write.expect("it writes");
    let mut names = write.items.iter().filter_map(|item| item.name());
    assert!(names.any(|(_, name)| name.ends_with(b"gg")), "the group");
}

#[test]
fn a_consumer_far_behind_gets_a_part() {
    let node = Node::new(&["XGROUP CREATE s g 0 MKSTREAM"]);
    let mut session = node.session();
    session.pace = Pace {
        turn: Turn::Long,
        locked: true,
    };
    node.send(&mut session, "MULTI");
    for _ in 0..12_000 {
        node.send(&mut session, "XADD s * a 1");
    }
    pending(node.send(&mut session, "EXEC"));
    node.f.log.acknowledge_all();
    let step = node.send(&mut session, "XREADGROUP GROUP g c STREAMS s >");
    let write = pending(step).write.expect("it writes");
    assert_eq!(write.items.len(), 10_000 + 1);
}
