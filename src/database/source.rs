//! The text that says what the store of a database was filled from. Its positions mean something
//! only while the topic has the same text.

use super::Service;
use crate::log::record::READS;

/// The source that the store must have for its positions to mean anything.
pub(super) fn of(service: &Service, database: u16) -> Option<String> {
    let topic = service.log.identity(database)?;
    let mut source = format!(
        "{} {} partitions={} reads={READS}",
        topic.topic, topic.id, topic.partitions
    );
    if topic.partitions > 1 {
        // This function decides the keys' homes.
        source = format!("{source} {}", topic.partitioner);
    }
    if !topic.starts.is_empty() {
        let starts: Vec<String> = topic.starts.iter().map(u64::to_string).collect();
        source = format!("{source}{STARTS}{}", starts.join("."));
    }
    Some(source)
}

const STARTS: &str = " starts=";

/// The topic's id, its number of partitions, and where they begin, from [`of`].
pub fn topic_in(source: &str) -> Option<(&str, u32, Vec<u64>)> {
    let (source, starts) = source.split_once(STARTS).unwrap_or((source, ""));
    let mut words = source.split(' ').skip(1);
    let id = words.next()?;
    let partitions = words.next()?.strip_prefix("partitions=")?.parse().ok()?;
    let starts = starts.split('.').filter_map(|start| start.parse().ok()).collect();
    Some((id, partitions, starts))
}
