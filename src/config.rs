//! Every setting once.

pub struct Config {}

impl Config {
    /// Longest string, bytes (`proto-max-bulk-len`).
    pub fn proto_max_bulk_len(&self) -> usize {
        512 << 20
    }
}
