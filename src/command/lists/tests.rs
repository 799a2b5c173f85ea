//! What commands on lists with a record for each item rest on, and what is left of an empty one;
//! places and ranges.

use std::sync::Arc;
use std::task::Waker;

use super::{place, range};
use crate::command::execute::execute;
use crate::command::execute::tests::shared;
use crate::command::session::Session;
use crate::command::shared::Shared;
use crate::command::step::{PendingReply, Step};
use crate::database::tests::Fixture;
use crate::log::Read;
use crate::model::order_key::FIRST;
use crate::model::{ElementName, place_of};

struct Node {
    f: Fixture,
    shared: Arc<Shared>,
}

impl Node {
    /// The list `l` has the items 0 to 599, in this order.
    fn new() -> Node {
        let f = Fixture::new(false);
        f.names_features("list split");
        let shared = shared(&f);
        let node = Node { f, shared };
        let items: Vec<String> = (0..600).map(|item| item.to_string()).collect();
        node.write(&format!("RPUSH l {}", items.join(" ")));
        node
    }

    fn send(&self, request: &str) -> Step {
        let mut session = Session::new(
            self.shared.clients.add(Waker::noop(), None, None, 0),
            &self.shared.users,
        );
        let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        execute(&mut session, &self.shared, &args, false)
    }

    /// What it writes is under way.
    fn begin(&self, request: &str) -> PendingReply {
        match self.send(request) {
            Step::Pending(pending) => pending,
            Step::Reply(reply) => panic!("{request}: {reply:?} rests on nothing"),
            Step::Before(_) | Step::Later(_) | Step::Blocks(_) => panic!("{request} waits"),
        }
    }

    fn write(&self, request: &str) {
        self.begin(request);
        self.f.log.acknowledge_all();
    }

    /// What the write of this request rests on.
    fn rests_on(&self, request: &str) -> String {
        self.begin(request);
        let condition = self.f.log.waiting.lock()[0].condition.take();
        self.f.log.acknowledge_all();
        let reads = condition.expect("it has a condition").reads;
        reads.iter().map(named).collect::<Vec<_>>().join(" ")
    }
}

fn named(read: &Read) -> String {
    let shown = |place: u64| match place {
        0 => "start".to_owned(),
        u64::MAX => "end".to_owned(),
        place => (place.wrapping_sub(FIRST) as i64).to_string(),
    };
    let key = read.key.as_ref().expect("a key");
    match (ElementName::parse(key), read.added) {
        (None, _) => key.escape_ascii().to_string(),
        (Some(_), Some(span)) => format!("{}..{}", shown(span.from), shown(span.to)),
        (Some(name), None) if name.sub_key.is_empty() => "all".to_owned(),
        (Some(name), None) => shown(place_of(name.sub_key)),
    }
}

#[test]
fn a_command_rests_on_its_end_and_on_what_it_takes() {
    for (request, expected) in [
        ("RPUSH l a b", "l 599..end"),
        ("LPUSH l a b", "l start..0"),
        ("RPUSHX l a", "l 0 599..end"),
        ("LPOP l", "l start..0 0"),
        ("RPOP l 2", "l 598..end 598 599"),
        ("LMOVE l l LEFT RIGHT", "l start..0 0 599..end"),
        ("LSET l 7 a", "l all"),
        ("LINSERT l AFTER 7 a", "l all"),
        ("LREM l 1 7", "l all"),
        ("LTRIM l 1 -1", "l all"),
        ("LPOP l 600", "l start..599"),
    ] {
        let node = Node::new();
        let rests_on = node.rests_on(request);
        assert!(rests_on.starts_with(expected), "{request}: {rests_on}");
        let is_whole = request == "LPOP l 600";
        assert!(is_whole || rests_on == expected, "{request}: {rests_on}");
    }
}

#[test]
fn a_command_depends_on_those_under_way() {
    for (first, request) in [
        ("RPOP l", "RPUSH l a"),
        ("RPUSH l a", "RPOP l"),
        ("LPOP l 600", "RPUSH l a"),
        ("LPOP l 600", "LPOP l"),
        ("LREM l 0 7", "LLEN l"),
    ] {
        let node = Node::new();
        node.begin(first);
        // A command that only reads sees what is acknowledged, unless it is of the same connection.
        if request == "LLEN l" {
            assert!(matches!(node.send(request), Step::Reply(_)));
            continue;
        }
        let depends = node.begin(request).depends;
        assert_eq!(depends.len(), 1, "{request} after {first}");
    }
}

#[test]
fn a_write_depends_on_the_newest_one_alone() {
    let node = Node::new();
    node.begin("RPUSH l a");
    node.begin("LPOP l");
    let newest = node.begin("LPUSH l b").write.expect("a write");
    let depends = node.begin("RPOP l").depends;
    assert!(matches!(&depends[..], [only] if Arc::ptr_eq(only, &newest)));
}

#[test]
fn an_empty_list_keeps_its_head_for_a_while() {
    let node = Node::new();
    let head = || {
        let seen = node.f.service.read(0, b"l", false).expect("a read");
        seen.entry.map(|entry| entry.meta.offset)
    };
    let remove = || node.f.service.remove_emptied(0, b"l").map_err(drop).expect("a look");
    let first = head();
    assert!(remove().is_none(), "it has items");
    node.write("LPOP l 600");
    assert_eq!(head(), first);
    assert_eq!(node.rests_on("RPUSH l a"), "l start..end");
    assert_eq!(head(), first, "it is used again");
    assert!(remove().is_none(), "it has an item");
    node.write("RPOP l");
    assert!(remove().is_some());
    node.f.log.acknowledge_all();
    assert_eq!(head(), None);
}

#[test]
fn places_and_ranges_are_those_of_redis() {
    for (index, expected) in [
        (0, Some(0)),
        (4, Some(4)),
        (5, None),
        (-1, Some(4)),
        (-5, Some(0)),
        (-6, None),
        (i64::MAX, None),
        (i64::MIN, None),
    ] {
        assert_eq!(place(index, 5), expected, "{index}");
    }
    for (start, stop, expected) in [
        (0, -1, 0..5),
        (1, 2, 1..3),
        (-3, -2, 2..4),
        (-9, 0, 0..1),
        (-9, -6, 0..0),
        (3, 2, 0..0),
        (5, 9, 0..0),
        (i64::MIN, i64::MAX, 0..5),
        (i64::MAX, i64::MIN, 0..0),
    ] {
        assert_eq!(range(start, stop, 5), expected, "{start} {stop}");
    }
    assert_eq!(place(0, 0), None);
    assert_eq!(range(0, -1, 0), 0..0);
}
