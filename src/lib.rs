//! Highwater: a Redis-protocol server whose data lives in a compacted Kafka topic.

pub mod database;
pub mod log;
pub mod resp;
pub mod store;
