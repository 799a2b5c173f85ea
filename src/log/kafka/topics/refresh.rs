//! Looks at the topics and publishes what changed: which exist, which can be used, and what about
//! them can lose data.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::types::RDKafkaErrorCode;

use super::{ASK, Depth, Topic, TopicState, Topics};
use crate::log::TopicIdentity;
use crate::log::kafka::admin::{Admin, Settings};
use crate::log::kafka::config::Mapped;
use crate::log::kafka::context::describe_code;
use crate::log::kafka::ffi::{self, CallError, Described};

/// Kafka's default, for topics whose settings this node may not see.
const TOMBSTONES_KEPT_MS: usize = 24 * 60 * 60 * 1000;
/// The cleanup policy of such a topic.
const UNKNOWN: &str = "unknown";
/// How long a topic has to be missing before it counts as deleted: a broker that has just started
/// may not know all topics yet.
const GONE: Duration = Duration::from_secs(4);

impl Topics {
    /// Looks at all topics with one question, and publishes what changed.
    pub fn refresh(&self, timeout: Duration, depth: Depth) -> Result<(), CallError> {
        let mut missing = self.missing.lock();
        self.hurry.store(false, Ordering::Relaxed);
        let answer = ffi::describe_topics(self.questions.client(), &self.all_names(), timeout.min(ASK));
        self.note_connection(answer.as_ref().err());
        let now = self.states.load_full();
        let mut suspects = Vec::new();
        for (at, described) in answer?.into_iter().enumerate() {
            let absent = matches!(described, Err((RDKafkaErrorCode::UnknownTopicOrPartition, _)));
            missing[at] = absent.then(|| missing[at].unwrap_or_else(Instant::now));
            match described {
                Ok(described) if described.served => {
                    if depth == Depth::Thorough || self.is_news(&now[at], &described) {
                        suspects.push((at, described));
                    }
                }
                // There is a leader soon.
                Ok(_) => {}
                Err(_) if absent => {}
                Err((code, text)) => self.not_described(at, code, &text),
            }
        }
        let gone = |at: &usize| missing[*at].is_some_and(|since| since.elapsed() >= GONE);
        let gone: Vec<usize> = (0..now.len())
            .filter(|at| gone(at) && !matches!(now[*at], TopicState::Absent))
            .collect();
        self.publish(suspects, &gone)
    }

    /// True for a topic that was not there, or not the same. (A refused topic is looked at again in
    /// a thorough refresh.)
    fn is_news(&self, now: &TopicState, described: &Described) -> bool {
        match now {
            TopicState::Absent => true,
            TopicState::Refused(_) => false,
            TopicState::Usable(topic) => !self.is_same(topic, described),
        }
    }

    fn is_same(&self, topic: &Topic, described: &Described) -> bool {
        let partitions = topic.grown_to.unwrap_or(topic.identity.partitions);
        topic.identity.id == self.identity(&described.id) && partitions == described.partitions
    }

    fn publish(&self, suspects: Vec<(usize, Described)>, gone: &[usize]) -> Result<(), CallError> {
        let names: Vec<&str> = suspects.iter().map(|(at, _)| self.names[*at].topic.as_str()).collect();
        let settings = match names.is_empty() {
            true => Vec::new(),
            false => Admin::connect(&self.config, &self.health)?.settings(&names, ASK)?,
        };
        let mut states = Vec::clone(&self.states.load());
        let mut changed = !gone.is_empty();
        for ((at, described), settings) in suspects.into_iter().zip(settings) {
            if let Some(state) = self.judge(at, &states[at], &described, settings) {
                states[at] = state;
                changed = true;
            }
        }
        for at in gone {
            tracing::warn!(topic = self.names[*at].topic, "the topic was deleted");
            states[*at] = TopicState::Absent;
        }
        changed |= self.find_starts(&mut states);
        if changed {
            self.states.store(Arc::new(states));
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// The new state of a topic; `None` if it stays what it is. Logs what is new.
    fn judge(
        &self,
        at: usize,
        now: &TopicState,
        described: &Described,
        settings: Result<Settings, RDKafkaErrorCode>,
    ) -> Option<TopicState> {
        let name = &self.names[at].topic;
        let policy = settings
            .as_ref()
            .ok()
            .and_then(|settings| settings.text("cleanup.policy"));
        let is_compacted = policy.is_none_or(|policy| policy == "compact");
        let (mut new, warnings) = self.verify(at, described, settings);
        let same = now.usable().is_some_and(|topic| self.is_same(topic, described));
        if let (TopicState::Usable(now), TopicState::Usable(new)) = (now, &mut new) {
            *new = grown(now, new, self.servers());
            if same {
                Arc::make_mut(new).identity.starts = now.identity.starts.clone();
            }
        }
        match (now, &new) {
            (TopicState::Usable(now), TopicState::Usable(new)) if now == new => return None,
            (TopicState::Usable(now), TopicState::Usable(_)) if same && now.unsafe_policy.is_some() => {
                tracing::info!(topic = name, "the topic is compacted again: writes are taken");
            }
            (TopicState::Refused(now), TopicState::Refused(new)) if now == new => return None,
            // Kafka is going to delete what is in it. What is here is served, and nothing more is
            // acknowledged.
            (TopicState::Usable(now), TopicState::Refused(why)) if same && !is_compacted => {
                if now.unsafe_policy.as_ref() == Some(why) {
                    return None;
                }
                tracing::error!(topic = name, "writes are refused: {why}");
                let mut topic = now.clone();
                Arc::make_mut(&mut topic).unsafe_policy = Some(why.clone());
                return Some(TopicState::Usable(topic));
            }
            // Its settings cannot be seen any more. What is here and what comes is as good as it
            // was: go on, but log it.
            (TopicState::Usable(_), TopicState::Refused(why)) if same => {
                tracing::error!(topic = name, "{why}");
                return None;
            }
            // At the start the caller reports it.
            (_, TopicState::Refused(why)) if self.generation() > 0 => {
                tracing::warn!(topic = name, "{why}")
            }
            _ if same => {}
            _ => warnings
                .iter()
                .for_each(|warning| tracing::warn!(topic = name, "{warning}")),
        }
        Some(new)
    }

    /// Judges a topic as it is found, with the doubts about it.
    fn verify(
        &self,
        at: usize,
        described: &Described,
        settings: Result<Settings, RDKafkaErrorCode>,
    ) -> (TopicState, Vec<String>) {
        let Mapped { topic: name, read_only } = &self.names[at];
        let mut doubts = Vec::new();
        // Without the right to see them there are no settings, or an error.
        let settings = match settings {
            Ok(settings) if settings.text("cleanup.policy").is_some() => settings,
            // A read-only topic needs no guarantee of this node.
            _ if *read_only => {
                doubts.push(format!("the settings of topic {name} cannot be read"));
                Settings::default()
            }
            denied => {
                let cause = denied.err().map_or("not allowed".to_owned(), describe_code);
                let why = format!("cannot read the settings of topic {name}: {cause}; allow DescribeConfigs on it");
                return (TopicState::Refused(why), doubts);
            }
        };
        let policy = settings.text("cleanup.policy").unwrap_or(UNKNOWN);
        if policy != "compact" && !read_only {
            let why = not_compacted(&self.config.bootstrap_servers, name, policy);
            return (TopicState::Refused(why), doubts);
        }
        doubts.extend(warnings(name, policy, described.replicas, *read_only, &settings));
        let identity = TopicIdentity {
            topic: name.clone(),
            id: self.identity(&described.id),
            partitions: described.partitions,
            partitioner: self.config.partitioner.name(),
            read_only: *read_only,
            starts: Vec::new(),
        };
        let retention = settings.number("delete.retention.ms").unwrap_or(TOMBSTONES_KEPT_MS);
        let topic = Topic {
            identity,
            max_message_bytes: settings.number("max.message.bytes").unwrap_or(1_000_000),
            tombstone_retention: Duration::from_millis(retention as u64),
            copies: settings
                .number("min.insync.replicas")
                .unwrap_or(1)
                .clamp(1, described.replicas.max(1)) as u32,
            loses_records: *read_only && is_lossy(policy),
            grown_to: None,
            unsafe_policy: None,
        };
        (TopicState::Usable(Arc::new(topic)), doubts)
    }

    /// Handles a topic that this node may not even look at, or one with an impossible name.
    fn not_described(&self, at: usize, code: RDKafkaErrorCode, text: &str) {
        let name = &self.names[at].topic;
        if code == RDKafkaErrorCode::LeaderNotAvailable || !matches!(self.states.load()[at], TopicState::Absent) {
            tracing::debug!(topic = name, error = ?code, "{text}");
            return;
        }
        let mut states = Vec::clone(&self.states.load());
        states[at] = TopicState::Refused(format!(
            "cannot use topic {name}: {}; allow Describe, Read and Write on it",
            describe_code(code)
        ));
        self.states.store(Arc::new(states));
    }
}

/// The topic as it is, but without the partitions that were added to it.
fn grown(known: &Topic, found: &Arc<Topic>, servers: &str) -> Arc<Topic> {
    let same = known.identity.id == found.identity.id;
    if !same || found.identity.partitions <= known.identity.partitions {
        return found.clone();
    }
    let topic = Topic {
        identity: known.identity.clone(),
        grown_to: Some(found.identity.partitions),
        ..Topic::clone(found)
    };
    if let (Some(why), true) = (topic.grown(servers), known.grown_to != topic.grown_to) {
        tracing::error!("writes are refused, and reads that have to be new: {why}");
    }
    Arc::new(topic)
}

fn not_compacted(servers: &str, name: &str, policy: &str) -> String {
    format!(
        "topic {name} has cleanup.policy={policy}, so Kafka would delete data that is still in use; make it compacted: \
         kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {name} \
         --add-config cleanup.policy=compact"
    )
}

/// True if Kafka deletes records by this cleanup policy that are the newest ones of their keys.
fn is_lossy(policy: &str) -> bool {
    policy != "compact" && policy != UNKNOWN
}

/// The settings of a topic that can lose data, for a person to know.
fn warnings(name: &str, policy: &str, replicas: usize, read_only: bool, settings: &Settings) -> Vec<String> {
    let mut all = Vec::new();
    if read_only {
        if is_lossy(policy) {
            all.push(format!("topic {name} has cleanup.policy={policy}: keys vanish from it without a delete, and stay here until the next rebuild"));
        }
        return all;
    }
    if replicas >= 3 && settings.number("min.insync.replicas") == Some(1) {
        all.push(format!("topic {name} has {replicas} replicas and min.insync.replicas=1: the loss of one broker can lose acknowledged writes; set it to 2"));
    }
    if settings.text("unclean.leader.election.enable") == Some("true") {
        all.push(format!("topic {name} has unclean.leader.election.enable=true: a failover can lose acknowledged writes; set it to false"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_can_lose_data_are_warned_of() {
        let settings = |all: &[(&str, &str)]| {
            Settings::from_iter(all.iter().map(|(name, value)| (name.to_string(), value.to_string())))
        };
        let good = [
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
        ];
        let bad = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
        assert!(warnings("t", "compact", 3, false, &settings(&good)).is_empty());
        assert_eq!(warnings("t", "compact", 3, false, &settings(&bad)).len(), 2);
        // With one or two replicas there is nothing to demand.
        assert_eq!(warnings("t", "compact", 1, false, &settings(&bad)).len(), 1);
        assert!(warnings("t", "compact", 3, true, &settings(&bad)).is_empty());
        assert_eq!(warnings("t", "delete", 3, true, &settings(&good)).len(), 1);
    }
}
