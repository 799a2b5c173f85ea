//! A producer with a thread of its own that delivers its reports, like rdkafka's
//! `ThreadedProducer`. That one asks ten times a second and spins through the last fraction of a
//! millisecond each time: 1 % of a core for each idle producer. It also delivers reports one by
//! one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ffi::Polls;
use crate::supervise;

/// The longest that one poll takes; reports that come meanwhile are delivered at once. The end of a
/// producer may take this long.
const POLL: Duration = Duration::from_millis(100);
/// How long the reports of what is given up at the end are waited for.
const LAST: Duration = Duration::from_secs(1);

pub(super) struct Polled<P: Polls> {
    inner: Arc<P>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl<P: Polls> Polled<P> {
    /// `tick` is called after each poll, at least ten times a second.
    pub fn start(producer: P, tick: impl Fn() + Send + 'static) -> Result<Self, String> {
        let inner = Arc::new(producer);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (inner.clone(), stop.clone());
        let body = move || {
            while !stopped.load(Ordering::Acquire) {
                supervise::busy(Duration::ZERO);
                polled.poll(POLL);
                tick();
            }
        };
        let thread = supervise::thread(&supervise::KAFKA_REPORTS, body)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Polled {
            inner,
            stop,
            thread: Some(thread),
        })
    }
}

impl<P: Polls> std::ops::Deref for Polled<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.inner
    }
}

impl<P: Polls> Drop for Polled<P> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // The thread has reported it if it panicked.
            let _ = thread.join();
        }
        // Those who still wait for a report get it.
        self.purge();
        let end = Instant::now() + LAST;
        while self.outstanding() > 0 && Instant::now() < end {
            self.poll(POLL);
        }
    }
}
