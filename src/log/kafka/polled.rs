//! A producer with a thread of its own that tells its reports. As rdkafka's `ThreadedProducer`, which asks ten times a second and spins
//! through the last fraction of a millisecond each time: 1 % of a core for each idle producer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, ProducerContext};

use super::context::describe_error;

/// One poll; reports that come meanwhile are told at once. So long the end of a producer may take.
const POLL: Duration = Duration::from_millis(1_000);

pub(super) struct Polled<C: ProducerContext + 'static> {
    inner: Arc<BaseProducer<C>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> Polled<C> {
    pub fn create(settings: &ClientConfig, context: C) -> Result<Self, String> {
        let create = settings.create_with_context(context);
        let inner: Arc<BaseProducer<C>> = Arc::new(create.map_err(|error| describe_error(&error))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (inner.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-reports".into())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    polled.poll(POLL);
                }
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Polled {
            inner,
            stop,
            thread: Some(thread),
        })
    }
}

impl<C: ProducerContext + 'static> std::ops::Deref for Polled<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.inner
    }
}

impl<C: ProducerContext + 'static> Drop for Polled<C> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that tells a producer's reports panicked");
        }
    }
}
