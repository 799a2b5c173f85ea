//! Tracing, counters, health.

use std::sync::atomic::AtomicU64;

#[derive(Default)]
pub struct Stats {
    pub connections_received: AtomicU64,
    pub connections_rejected: AtomicU64,
    pub input_bytes: AtomicU64,
    pub output_bytes: AtomicU64,
    pub error_replies: AtomicU64,
}
