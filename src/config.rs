//! Every setting once.

use std::sync::Arc;
use std::time::Duration;

pub struct Config {}

impl Config {
    /// Longest string, bytes (`proto-max-bulk-len`).
    pub fn proto_max_bulk_len(&self) -> usize {
        512 << 20
    }
    pub fn client_query_buffer_limit(&self) -> usize {
        1 << 30
    }
    pub fn requirepass(&self) -> Option<Arc<str>> {
        None
    }
    pub fn password_is(&self, _password: &[u8]) -> bool {
        true
    }
    pub fn timeout(&self) -> Option<Duration> {
        None
    }
    pub fn tcp_keepalive(&self) -> u64 {
        300
    }
    pub fn maxclients(&self) -> usize {
        10_000
    }
    pub fn protected_mode(&self) -> bool {
        true
    }
}
