//! Creates topics, and makes sure that those that have to be there can be used.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::{ASK, Depth, MAX_MESSAGE_BYTES, TopicState, Topics, remaining};
use crate::log::LogError;
use crate::log::kafka::admin::Admin;
use crate::log::kafka::config::Mapped;
use crate::log::kafka::ffi::{self, CallError};

impl Topics {
    /// Makes sure that the database has a usable topic.
    pub fn create(&self, database: u16, timeout: Duration) -> Result<(), LogError> {
        let end = Instant::now() + timeout;
        let at = usize::from(database);
        let Some(Mapped { topic: name, read_only }) = self.names.get(at) else {
            return Err(LogError::Failed(format!("there is no database {database}")));
        };
        let depth = match &self.states.load()[at] {
            TopicState::Usable(_) => return Ok(()),
            TopicState::Absent if *read_only => return Err(missing(database, name)),
            TopicState::Absent => Depth::News,
            // Perhaps it was mended meanwhile.
            TopicState::Refused(_) => Depth::Thorough,
        };
        if depth == Depth::News && self.create_topic(name, remaining(end))? {
            let partitions = self.config.partitions;
            tracing::info!(topic = name, partitions, "created the topic");
        }
        loop {
            let seen = self.refresh(remaining(end), depth);
            match &self.states.load()[at] {
                TopicState::Usable(_) => return Ok(()),
                TopicState::Refused(why) => return Err(LogError::Failed(why.clone())),
                TopicState::Absent if Instant::now() >= end => {
                    let why = seen.err().map_or("it has no leader yet".to_owned(), |(_, text)| text);
                    return Err(cannot_create(name, &why));
                }
                TopicState::Absent => self.idle(Duration::from_millis(20)),
            }
        }
    }

    /// Returns true if the topic was not there.
    fn create_topic(&self, name: &str, timeout: Duration) -> Result<bool, LogError> {
        let failed = |(_, text): CallError| cannot_create(name, &text);
        let admin = Admin::connect(&self.config, &self.health).map_err(failed)?;
        let replicas = match self.config.replication_factor {
            Some(factor) => Some(factor),
            None => {
                ffi::any_broker(self.questions.client(), ASK).and_then(|broker| admin.default_replication(broker, ASK))
            }
        };
        // Every replica but one may be lost without losing what was acknowledged, and writes go on
        // without one replica.
        let in_sync = if replicas.is_some_and(|replicas| replicas >= 3) {
            "2"
        } else {
            "1"
        };
        let bytes = MAX_MESSAGE_BYTES.to_string();
        let settings = [
            ("cleanup.policy", "compact"),
            ("max.message.bytes", bytes.as_str()),
            ("min.insync.replicas", in_sync),
            ("unclean.leader.election.enable", "false"),
        ];
        let partitions = self.config.partitions;
        admin
            .create_topic(name, partitions, self.config.replication_factor, &settings, timeout)
            .map_err(failed)
    }

    /// Database 0 and the databases that somebody mapped have to be usable. The others are only
    /// logged.
    pub(super) fn require_topics(&self, end: Instant) -> Result<(), LogError> {
        if !self.names[0].read_only {
            self.create(0, remaining(end).max(ASK))?;
        }
        let states = self.states.load_full();
        let mut others = Vec::new();
        for (at, state) in states.iter().enumerate() {
            let database = at as u16;
            let wanted = database == 0 || self.config.mapped.contains_key(&database);
            match state {
                TopicState::Absent if wanted && self.names[at].read_only => {
                    return Err(missing(database, &self.names[at].topic));
                }
                TopicState::Refused(why) if wanted => return Err(LogError::Failed(why.clone())),
                TopicState::Refused(why) => others.push((database, why)),
                TopicState::Absent | TopicState::Usable(_) => {}
            }
        }
        if let Some((first, why)) = others.first() {
            let more = others.len() - 1;
            tracing::warn!(
                "database {first} and {more} others cannot be used (--databases says how many there are): {why}"
            );
        }
        Ok(())
    }
}

fn missing(database: u16, name: &str) -> LogError {
    LogError::Failed(format!(
        "database {database}: there is no topic {name}; check the name, or create it"
    ))
}

fn cannot_create(name: &str, cause: &str) -> LogError {
    LogError::Failed(format!(
        "cannot create topic {name}: {cause}; create it with cleanup.policy=compact, or allow it to be created"
    ))
}
