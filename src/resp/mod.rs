//! The Redis protocol: request decoding with limits, reply encoding (RESP2 and RESP3).
