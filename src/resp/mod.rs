//! The Redis protocol: requests in, replies out.
//!
//! - [`decode`]: bytes of a connection → argument ranges, with limits and Redis's protocol errors
//! - [`inline`]: the telnet form of a request (`SET k "a b"`)
//! - [`reply`]: a reply as data, encoded for RESP2 or RESP3
//! - [`double`]: doubles as Redis prints them
//!
//! This module owns the byte format and nothing else. It does no I/O, and knows no command, no
//! store and no log.

mod decode;
mod double;
mod inline;
mod reply;

pub use decode::{Args, Decoder, Limits, Next, ProtocolError, Request};
pub use double::{format_decimal, format_double};
pub use reply::{
    Encoding, Reply, Version, Weight, encode, write_bulk, write_error, write_int, write_length, write_null, write_ok,
};

/// Property tests are fast here, so they run many cases; `PROPTEST_CASES` sets more. Seeds are
/// printed, not kept in files.
#[cfg(test)]
fn test_cases() -> proptest::prelude::ProptestConfig {
    let mut config = proptest::prelude::ProptestConfig::default();
    config.cases = config.cases.max(2048);
    config.failure_persistence = None;
    config
}
