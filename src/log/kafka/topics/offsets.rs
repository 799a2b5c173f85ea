//! Where the partitions of the topics begin and end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{ASK, Topic, TopicState, Topics, remaining};
use crate::log::kafka::context::{Question, describe_error};
use crate::log::kafka::ffi;
use crate::log::{LogError, Positions, TopicPartition};

/// How long an answer of the known leaders is waited for before the leaders are looked up again;
/// twice as long the next time.
const ONE_ANSWER: Duration = Duration::from_millis(500);

impl Topics {
    /// The high watermark of every partition.
    pub fn ends(&self, timeout: Duration) -> Result<Positions, LogError> {
        let end = Instant::now() + timeout;
        let states = self.states.load_full();
        let asked = self
            .ask_for(Offset::End, &states, |_| true)
            .map_err(|error| LogError::Failed(describe_error(&error)))?;
        if asked.count() == 0 {
            return Ok(Positions::new());
        }
        let mut patience = ONE_ANSWER;
        loop {
            let answer = self
                .questions
                .offsets_for_times(asked.clone(), remaining(end).min(patience));
            match answer
                .map_err(|error| describe_error(&error))
                .and_then(|list| read_offsets(&states, &list))
            {
                Ok(positions) => {
                    self.health.answered(Question::Ends);
                    return Ok(positions);
                }
                Err(cause) if Instant::now() >= end => {
                    self.health.unanswered(Question::Ends, cause.clone());
                    let cause = self.health.last().map_or(cause, |(_, cause)| cause);
                    return Err(LogError::Failed(format!(
                        "cannot ask Kafka for the end of the log: {cause}"
                    )));
                }
                Err(_) => {
                    self.find_leaders(&states, remaining(end).min(patience));
                    self.idle(Duration::from_millis(20).min(remaining(end)));
                    // Bounded: an answer that is an error may come at once, again and again.
                    patience = (patience * 2).min(ASK);
                }
            }
        }
    }

    /// The last stable offset of every partition: every transaction before it has ended.
    pub fn stable_ends(&self, timeout: Duration) -> Result<Positions, LogError> {
        let states = self.states.load_full();
        let asked = self
            .ask_for(Offset::End, &states, |_| true)
            .map_err(|error| LogError::Failed(describe_error(&error)))?;
        if asked.count() == 0 {
            return Ok(Positions::new());
        }
        let answer = ffi::stable_offsets(self.questions.client(), &asked, timeout)
            .map_err(|(_, text)| text)
            .and_then(|list| read_offsets(&states, &list));
        answer.map_err(|cause| LogError::Failed(format!("cannot ask Kafka for open transactions: {cause}")))
    }

    /// Asks where the partitions of all writable topics begin. Returns true if a topic's records
    /// were deleted since the last time it was asked.
    pub(super) fn find_starts(&self, states: &mut [TopicState]) -> bool {
        let found = self
            .ask_for(Offset::Beginning, states, |topic| !topic.identity.read_only)
            .and_then(|asked| self.questions.offsets_for_times(asked, ONE_ANSWER))
            .map_err(|error| describe_error(&error))
            .and_then(|list| read_offsets(states, &list));
        let found = match found {
            Ok(found) => found,
            Err(cause) => {
                tracing::debug!(cause, "cannot ask where the topics begin");
                return false;
            }
        };
        let mut changed = false;
        for (database, state) in (0..).zip(states) {
            let TopicState::Usable(topic) = state else { continue };
            let place = |partition| TopicPartition { database, partition };
            let mut starts: Vec<u64> = (0..topic.identity.partitions)
                .map_while(|partition| found.get(&place(partition)).copied())
                .collect();
            if starts.iter().all(|start| *start == 0) {
                starts.clear();
            }
            if topic.identity.starts != starts {
                Arc::make_mut(topic).identity.starts = starts;
                changed = true;
            }
        }
        changed
    }

    /// A question for the offsets of all partitions of these topics.
    fn ask_for(
        &self,
        offset: Offset,
        states: &[TopicState],
        wanted: impl Fn(&Topic) -> bool,
    ) -> Result<TopicPartitionList, KafkaError> {
        let mut asked = TopicPartitionList::new();
        for topic in states
            .iter()
            .filter_map(TopicState::usable)
            .filter(|topic| wanted(topic))
        {
            for partition in 0..topic.identity.partitions {
                asked.add_partition_offset(&topic.identity.topic, partition as i32, offset)?;
            }
        }
        Ok(asked)
    }

    /// Asks who leads the partitions now. By itself librdkafka goes on asking the broker that it
    /// knows of, even if that broker is lost, until its knowledge is a quarter of an hour old.
    fn find_leaders(&self, states: &[TopicState], timeout: Duration) {
        let end = Instant::now() + timeout;
        for topic in states.iter().filter_map(TopicState::usable) {
            let name = &topic.identity.topic;
            if let Err(error) = self.questions.fetch_metadata(Some(name), remaining(end)) {
                tracing::debug!(%error, topic = name, "cannot ask who leads a topic");
            }
        }
    }
}

/// What Kafka answered for the partitions of these topics.
fn read_offsets(states: &[TopicState], list: &TopicPartitionList) -> Result<Positions, String> {
    let mut positions = Positions::new();
    for element in list.elements() {
        element.error().map_err(|error| describe_error(&error))?;
        let owner = states.iter().position(|state| {
            state
                .usable()
                .is_some_and(|topic| topic.identity.topic == element.topic())
        });
        let (Some(database), Ok(partition)) = (owner, u32::try_from(element.partition())) else {
            return Err("the answer names a partition that was not asked for".into());
        };
        let at = TopicPartition {
            database: database as u16,
            partition,
        };
        match element.offset() {
            Offset::Offset(offset) if offset >= 0 => positions.insert(at, offset as u64),
            other => return Err(format!("{} has the offset {other:?}", element.topic())),
        };
    }
    Ok(positions)
}
