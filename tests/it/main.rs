//! Integration tests, in one binary so that they link once and share one Kafka broker.

mod support;
