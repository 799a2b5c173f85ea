//! Integration tests, in one binary so that they link once and share one Kafka broker.
//!
//! They run against real parts only: Apache Kafka, Debian's redis-server, Redis's own test suite
//! and other people's client libraries, fetched on first use (`support::parts`).

mod kafka_log;
mod self_check;
mod support;
