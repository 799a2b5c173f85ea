//! What the tests share: the real parts (`parts`), a Kafka broker (`kafka`) and the processes
//! under them (`process`). It knows how to start, stop and talk to things, and judges nothing
//! that a single test is about.

// A helper may stand here before its first user does.
#![allow(dead_code)]

pub mod attempt;
pub mod certificates;
pub mod client;
pub mod foreign;
pub mod grpc;
pub mod history;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod panics;
pub mod parts;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod resp;
pub mod server;
pub mod small_disk;
pub mod temp;
pub mod tree;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Waits until `ready` answers something, and panics with `what` when `deadline` has passed.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same for what is only to become true.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, mut reached: impl FnMut() -> bool) {
    wait_for(what, deadline, || reached().then_some(()));
}

/// Sets it when dropped, also when the test panics: what runs beside it until then must end before the panic is told.
pub struct Stopping<'a>(pub &'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How many times longer than in a usual run tests that go on as long as one likes are to last: `HIGHWATER_TEST_LONG`.
pub fn longer() -> u32 {
    match std::env::var("HIGHWATER_TEST_LONG") {
        Ok(factor) => factor.parse().expect("HIGHWATER_TEST_LONG is a number"),
        Err(_) => 1,
    }
}
