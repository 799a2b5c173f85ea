//! Transactions of other producers that hold up the reading of the log. Kafka gives readers of
//! committed records nothing after the first record of an open transaction (the *last stable
//! offset*). This module owns what is known of such transactions and reports it. It ends none.
//!
//! librdkafka reports neither a record's producer id nor the producers of a partition (KIP-664), so
//! a person is given the command lines that do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use parking_lot::Mutex;

use super::config::{Config, Isolation};
use super::context::Health;
use super::follower::KafkaFollower;
use super::topics::Topics;
use crate::log::{Follower, LogError, Positions, TopicPartition};

/// A node's own transaction may be open for a write timeout. A transaction that is open for this
/// much longer is reported.
const LONGER: Duration = Duration::from_secs(5);
/// How long its first record may take to be read.
const READ: Duration = Duration::from_secs(2);

pub(super) struct OpenTransactions {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    open: Mutex<BTreeMap<TopicPartition, Open>>,
}

/// The first transaction in a partition that is open.
#[derive(Clone)]
struct Open {
    /// The offset of its first record.
    offset: u64,
    /// When this node first saw it.
    seen: Instant,
    reported: bool,
    /// When its first record was produced, milliseconds since the epoch; `None` until it was read.
    since: Option<i64>,
}

impl OpenTransactions {
    pub fn new(config: &Arc<Config>, topics: &Arc<Topics>, health: &Arc<Health>) -> OpenTransactions {
        OpenTransactions {
            config: config.clone(),
            topics: topics.clone(),
            health: health.clone(),
            open: Mutex::default(),
        }
    }

    /// Asks Kafka which partitions have an open transaction. Reports those that are open for long,
    /// once each. Blocking.
    pub fn look(&self, timeout: Duration) -> Result<(), LogError> {
        // In this order, records that are committed meanwhile make no difference between the two.
        let stable = self.topics.stable_ends(timeout)?;
        let ends = self.topics.ends(timeout)?;
        self.update(&stable, &ends);
        let unreported =
            |(at, open): (&TopicPartition, &Open)| (self.is_long(open) && !open.reported).then_some((*at, open.offset));
        let unreported: Vec<_> = self.open.lock().iter().filter_map(unreported).collect();
        for (at, offset) in unreported {
            let since = self.timestamp(at, offset);
            let mut all = self.open.lock();
            let Some(open) = all.get_mut(&at).filter(|open| open.offset == offset) else {
                continue;
            };
            (open.since, open.reported) = (since, true);
            tracing::warn!("{}", self.describe(at, open));
        }
        Ok(())
    }

    /// Takes in the last stable offsets and the ends.
    fn update(&self, stable: &Positions, ends: &Positions) {
        let mut all = self.open.lock();
        let known = std::mem::take(&mut *all);
        for (at, &offset) in stable {
            if ends.get(at).is_some_and(|end| *end > offset) {
                let same = known.get(at).filter(|open| open.offset == offset);
                let new = || Open {
                    offset,
                    seen: Instant::now(),
                    reported: false,
                    since: None,
                };
                all.insert(*at, same.cloned().unwrap_or_else(new));
            }
        }
        let ended = known
            .iter()
            .filter(|(at, open)| open.reported && all.get(at).is_none_or(|now| now.offset != open.offset));
        for (at, open) in ended {
            let topic = self.topics.name(at.database);
            tracing::info!(
                topic,
                partition = at.partition,
                offset = open.offset,
                "the open transaction has ended"
            );
        }
    }

    /// When the record at this place was produced.
    fn timestamp(&self, at: TopicPartition, offset: u64) -> Option<i64> {
        let from = Positions::from([(at, offset)]);
        let read = || -> Result<Option<i64>, LogError> {
            let (config, isolation) = (&self.config, Isolation::Uncommitted);
            let mut follower = KafkaFollower::start(config, &self.topics, &self.health, &from, isolation)?;
            let end = Instant::now() + READ;
            let mut records = Vec::new();
            while Instant::now() < end {
                follower.poll(&mut records, end.saturating_duration_since(Instant::now()))?;
                if let Some(first) = records.drain(..).find(|record| record.at == at) {
                    return Ok(Some(first.timestamp));
                }
            }
            Ok(None)
        };
        read().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot read the first record of an open transaction");
            None
        })
    }

    /// What holds up the reading of this partition; with `None`, of any partition, if its
    /// transaction is open for long.
    pub fn held_up(&self, at: Option<TopicPartition>) -> Option<String> {
        let all = self.open.lock();
        let (at, open) = match at {
            Some(at) => (at, all.get(&at)?),
            None => all
                .iter()
                .find(|(_, open)| self.is_long(open))
                .map(|(at, open)| (*at, open))?,
        };
        Some(self.describe(at, open))
    }

    fn is_long(&self, open: &Open) -> bool {
        open.seen.elapsed() >= self.config.write_timeout + LONGER
    }

    fn describe(&self, at: TopicPartition, open: &Open) -> String {
        let (topic, partition, offset) = (self.topics.name(at.database), at.partition, open.offset);
        let tool = format!("kafka-transactions.sh --bootstrap-server {}", self.topics.servers());
        let place = format!("--topic {topic} --partition {partition}");
        let since = open
            .since
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis);
        let age = since.and_then(|since| (UNIX_EPOCH + since).elapsed().ok());
        let seconds = age.unwrap_or_else(|| open.seen.elapsed()).as_secs();
        format!(
            "a transaction of another producer has been open for {seconds} s in topic {topic}, partition {partition}, from offset \
             {offset} on: what comes after it cannot be read until it ends. To see whose it is: {tool} describe-producers {place}. \
             To end it: {tool} abort {place} --start-offset {offset}"
        )
    }
}
