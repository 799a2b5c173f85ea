//! Creating topics and reading settings, with a client for the moment. (A client that lived on
//! would have to be polled for its log lines.) It knows nothing of which topics are wanted.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::config::Config;
use super::context::{Context, Health, describe_code, describe_error};
use super::ffi::CallError;

pub(super) struct Admin(AdminClient<Context>);

/// The settings of a topic, by name.
#[derive(Default)]
pub(super) struct Settings(HashMap<String, String>);

impl Settings {
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn number(&self, name: &str) -> Option<usize> {
        self.text(name)?.parse().ok()
    }
}

impl FromIterator<(String, String)> for Settings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Settings {
        Settings(all.into_iter().collect())
    }
}

impl Admin {
    pub fn connect(config: &Config, health: &Arc<Health>) -> Result<Admin, CallError> {
        config
            .admin()
            .create_with_context(Context::new(health))
            .map(Admin)
            .map_err(failure)
    }

    /// The settings of each topic, in the order asked.
    pub fn settings(
        &self,
        topics: &[&str],
        timeout: Duration,
    ) -> Result<Vec<Result<Settings, RDKafkaErrorCode>>, CallError> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let answers = block_on(self.0.describe_configs(&asked, &options)).map_err(failure)?;
        if answers.len() != topics.len() {
            return Err((RDKafkaErrorCode::Fail, "the broker left out settings of topics".into()));
        }
        let read = |entry: rdkafka::admin::ConfigEntry| Some((entry.name, entry.value?));
        let settings = |resource: rdkafka::admin::ConfigResource| {
            resource.entries.into_iter().filter_map(read).collect::<Settings>()
        };
        Ok(answers.into_iter().map(|answer| answer.map(settings)).collect())
    }

    /// The replication factor that the broker gives to topics without one, if this node may know
    /// it.
    pub fn default_replication(&self, broker: i32, timeout: Duration) -> Option<u16> {
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let asked = [ResourceSpecifier::Broker(broker)];
        let answers = block_on(self.0.describe_configs(&asked, &options)).ok()?;
        let settings = answers.into_iter().next()?.ok()?;
        settings.get("default.replication.factor")?.value.as_ref()?.parse().ok()
    }

    /// Creates a topic; returns false if it exists by then.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replicas: Option<u16>,
        settings: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<bool, CallError> {
        let replicas = TopicReplication::Fixed(replicas.map_or(-1, i32::from));
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        let topic = settings
            .iter()
            .fold(NewTopic::new(name, partitions, replicas), |topic, (name, value)| {
                topic.set(name, value)
            });
        let options = AdminOptions::new()
            .request_timeout(Some(timeout))
            .operation_timeout(Some(timeout));
        let answers = block_on(self.0.create_topics([&topic], &options)).map_err(failure)?;
        match answers.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
            Some(Err((_, code))) => Err((code, describe_code(code))),
            None => Err((RDKafkaErrorCode::Fail, "the broker did not answer for the topic".into())),
        }
    }
}

fn failure(error: KafkaError) -> CallError {
    let code = match &error {
        KafkaError::AdminOp(code) => *code,
        other => other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
    };
    (code, describe_error(&error))
}

/// Waits for an answer on this thread. It always comes: each request has a timeout of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = TaskContext::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => std::thread::park(),
        }
    }
}
