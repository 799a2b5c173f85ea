//! Highwater: a Redis-protocol server whose data lives in a compacted Kafka topic.
//!
//! Reading order, which is the order in which a request meets the modules: [`server`] accepts
//! connections, [`resp`] decodes requests and encodes replies, [`command`] is the table of
//! commands, [`script`] runs Lua, [`database`] reads and writes, [`log`] is where the data lives,
//! [`store`] is the local view of it. [`config`] has every setting once, [`telemetry`] has logs and
//! counters, and [`run`] assembles everything.
//!
//! Arrows go one way: `server → resp, command → database → store, log → model`. `resp` knows
//! neither Kafka nor sled. `store` and `log` know nothing of each other or of RESP.
//!
//! Invariants:
//! 1. Only the applier changes the store; only the log's producer appends to the log.
//! 2. No OK before the log has it; no reply that rests on what the log has not acknowledged.
//! 3. A position is never ahead of its data.
//! 4. Deleting the store is always safe.
//! 5. Every node that has applied the same positions answers the same.
//! 6. Every queue, frame, pipeline, wait, connection and cache has a bound with a clear error.
//! 7. A node that cannot be right says so (LOADING, STALE, READONLY, error); it never guesses.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads of their own"))]

pub mod acl;
pub mod command;
pub mod config;
pub mod copy;
pub mod database;
pub mod datadir;
pub mod export;
pub mod files;
pub mod glob;
pub mod grpc;
pub mod http;
pub mod import;
pub mod log;
pub mod metrics;
pub mod model;
pub mod open;
pub mod probe;
pub mod rdb;
pub mod resp;
pub mod room;
pub mod run;
pub mod script;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod striped;
pub mod supervise;
pub mod sweep;
pub mod telemetry;

/// For librdkafka, OpenSSL and zstd too. Here one thread constantly frees what another allocated (a
/// record goes from its connection to the producer, from the consumer to the store), which glibc's
/// arenas handle badly. jemalloc also returns free memory by itself.
#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings. Those in the environment's MALLOC_CONF take precedence. They keep less free
/// memory resident: threads keep no blocks of more than 4 KiB for themselves, and free pages are
/// returned after 3 s instead of 10 (docs/decisions/allocator.md).
// SAFETY: only jemalloc has this name. It declares it weak, `const char *malloc_conf`, for programs
// to define: a pointer to a string that ends with NUL and lives as long as the program. A reference
// to an array is such a pointer.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8; 36] = b"tcache_max:4096,dirty_decay_ms:3000\0";

/// The value of `mem_allocator` in INFO.
pub const ALLOCATOR: &str = "jemalloc-5.3.0";
