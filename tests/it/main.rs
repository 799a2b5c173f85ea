//! Integration tests, in one binary so that they link once and share one Kafka broker.
//!
//! They run against real parts only: Apache Kafka, Debian's redis-server, Redis's own test suite
//! and other people's client libraries, fetched on first use (`support::parts`).

#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod architecture;
mod bench;
mod blocking;
mod clients;
mod clocks;
mod collections;
mod consistency;
mod copy;
mod deaths;
mod dependencies;
mod disk_full;
mod documents;
mod dump;
mod embedded_node;
mod examples;
mod field_expiry;
mod fights;
mod flushes;
mod frameworks;
mod front_doors;
mod functions;
mod grpc;
mod hostile_clients;
mod hostile_producers;
mod http;
mod kafka_batches;
mod kafka_faults;
mod kafka_log;
mod kafka_network;
mod kafka_node;
mod kafka_outages;
mod kafka_security;
mod kills;
mod lanes;
mod late_requests;
mod linearizability;
mod long_commands;
mod moving;
mod newer_strings;
mod observing;
mod pubsub;
mod redis_cli;
mod redis_py;
mod redis_suite;
mod replies;
mod rewriting;
mod scripts;
mod self_check;
mod side_by_side;
mod signals;
mod snapshots;
mod soak;
mod sort;
mod split;
mod split_compaction;
mod split_lists;
mod split_sorted_sets;
mod starting;
mod stream_queues;
mod streams;
mod support;
mod tidy;
mod tls;
mod tracking;
mod transactions;
mod unix_socket;
mod upgrades;
mod users;
