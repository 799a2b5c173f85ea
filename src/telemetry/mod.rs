//! Tracing, counters, health.

#[derive(Default)]
pub struct Stats {}
