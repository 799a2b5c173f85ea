//! The rows: what is measured, on which servers, and compared with which. Rows that are a load on one server stand here;
//! `special` has those with a course of their own.

use anyhow::Result;

use crate::bench::{Bench, Case, Figures};
use crate::fanout;
use crate::keys::{Range, Spread};
use crate::load::Work;
use crate::options::{Options, short};
use crate::redis_benchmark;
use crate::servers::Kind;
use crate::special;

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    /// What is done, in a sentence or two for the reader of the table.
    pub about: &'static str,
    /// What was set out to be reached.
    pub goal: &'static str,
    /// Measured only with `--full`, or when asked for by name, and in one round.
    pub slow: bool,
    /// Begins and ends without the servers that other rows share.
    pub fresh: bool,
    pub columns: &'static [Column],
    pub compare: Compare,
    pub measure: Measure,
}

/// A figure and how it is shown.
pub struct Column {
    pub figure: &'static str,
    pub header: &'static str,
    pub decimals: usize,
}

/// With which server of the same case, by which figure.
pub enum Compare {
    Nothing,
    /// This server's figures over the other one's.
    Ratio(&'static [&'static str], Kind),
    /// This figure less the other server's.
    Difference(&'static str, &'static str),
}

pub enum Measure {
    Load {
        kinds: &'static [Kind],
        cases: fn(&Options) -> Vec<Case>,
        redis_benchmark: bool,
    },
    Special(fn(&mut Bench) -> Result<()>),
}

impl Row {
    pub fn run(&self, bench: &mut Bench) -> Result<()> {
        match self.measure {
            Measure::Special(measure) => measure(bench),
            Measure::Load {
                kinds,
                cases,
                redis_benchmark,
            } => {
                for case in cases(&bench.options) {
                    for kind in kinds {
                        if !bench.options.wants(kind.name()) {
                            continue;
                        }
                        let mut figures = bench.measure(*kind, &case)?;
                        if redis_benchmark && !bench.options.no_redis_benchmark {
                            add_redis_benchmark(bench, *kind, &case, &mut figures)?;
                        }
                        bench.note(&case.label, kind.name(), figures)?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn add_redis_benchmark(bench: &mut Bench, kind: Kind, case: &Case, figures: &mut Figures) -> Result<()> {
    bench.settle(&[]);
    let rate = figures.get("per_second").copied().unwrap_or_default();
    let requests = (rate * bench.options.time().as_secs_f64()) as u64;
    let port = bench.server(kind)?.port;
    figures.insert("redis_benchmark", redis_benchmark::run(port, case, requests)?);
    bench.settle(&[]);
    Ok(())
}

pub const fn column(figure: &'static str, header: &'static str, decimals: usize) -> Column {
    Column {
        figure,
        header,
        decimals,
    }
}

const PER_SECOND: Column = column("per_second", "per second", 0);
const LOAD: &[Column] = &[
    PER_SECOND,
    column("redis_benchmark", "by redis-benchmark", 0),
    column("p50", "p50 µs", 0),
    column("p99", "p99 µs", 0),
    column("p999", "p99.9 µs", 0),
    column("server_cpu", "server CPU µs", 2),
    column("broker_cpu", "broker CPU µs", 2),
    column("client_cpu", "client CPU µs", 2),
];
const BY_RATE_AND_CPU: &[&str] = &["per_second", "server_cpu"];

const READERS: &[Kind] = &[Kind::Redis, Kind::Embedded, Kind::OnKafka];
const SCRIPTS: &[Kind] = &[Kind::Redis, Kind::EmbeddedEverysec, Kind::OnKafka];
const WRITERS: &[Kind] = &[Kind::RedisAlways, Kind::Embedded, Kind::OnKafka];

const ROW: Row = Row {
    name: "",
    title: "",
    about: "",
    goal: "",
    slow: false,
    fresh: false,
    columns: LOAD,
    compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::RedisAlways),
    measure: Measure::Special(|_| Ok(())),
};

/// Every row, in the order of the document.
pub const ROWS: &[Row] = &[
    Row {
        name: "get",
        title: "GET",
        about: "Uniform keys, all in memory.",
        goal: "pipeline 1 / 16 / 64: 1.2 / 1.5 / 2.0 × (at least 1.0 / 1.1 / 1.5 ×); CPU at pipeline 1 / 64: 0.9 / 0.6 × (at most 1.1 / 0.9 ×)",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Get, Spread::Uniform, &[1, 16, 64]),
            redis_benchmark: true,
        },
        ..ROW
    },
    Row {
        name: "get-zipf",
        title: "GET of zipfian keys",
        about: "A few keys get most requests (zipfian, 0.99).",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Get, Spread::Zipf, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "mget",
        title: "MGET of 10",
        about: "Ten uniform keys a command; the figures count commands.",
        goal: "2 × (at least 1.2 ×)",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Mget, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "set",
        title: "SET, acknowledged when durable",
        about: "Uniform keys. OK comes after fsync, or when Kafka has it (acks=all).",
        goal: "on Kafka, pipeline 1 / 16 / 64: 0.7 / 1.1 / 1.6 × (at least 0.35 / 0.7 / 1.0 ×); embedded, 16 / 64: 1.5 × (at least 0.8 ×)",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Set, Spread::Uniform, &[1, 16, 64]),
            redis_benchmark: true,
        },
        ..ROW
    },
    Row {
        name: "set-everysec",
        title: "SET, on disk within a second",
        about: "Uniform keys. OK comes before the data is synced.",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::RedisEverysec),
        measure: Measure::Load {
            kinds: &[Kind::RedisEverysec, Kind::EmbeddedEverysec],
            cases: |options| pipelines(options, Work::Set, Spread::Uniform, &[1, 16, 64]),
            redis_benchmark: true,
        },
        ..ROW
    },
    Row {
        name: "incr-hot",
        title: "INCR of one counter",
        about: "Every client counts the same key up; on Kafka by transactions.",
        goal: "on Kafka 20k/s (at least 8k/s)",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Incr, Spread::One, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "incr",
        title: "INCR of many counters",
        about: "Uniform keys.",
        goal: "on Kafka 250k/s (at least 60k/s)",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Incr, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "mixed",
        title: "80% GET, 20% SET",
        about: "Zipfian keys, both commands on every connection.",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Mixed(80), Spread::Zipf, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "get-sizes",
        title: "GET by the size of values",
        about: "Pipeline 16, uniform keys, at most 64 MiB of values.",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: &[Kind::Redis, Kind::Embedded],
            cases: |options| sizes(options, Work::Get),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "set-sizes",
        title: "SET by the size of values",
        about: "Pipeline 16 (4 from 16 KiB on), uniform keys, at most 64 MiB of values, acknowledged when durable.",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| sizes(options, Work::Set),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "get-clients",
        title: "GET by the number of clients",
        about: "Pipeline 1, uniform keys.",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| clients(options, Work::Get),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "set-clients",
        title: "SET by the number of clients",
        about: "Pipeline 1, uniform keys, acknowledged when durable.",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| clients(options, Work::Set),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "hget-small",
        title: "HGET of small hashes",
        about: "A hash of ten fields for each key; one record each.",
        goal: "pipeline 16: 0.8 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::HgetSmall, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "hgetall",
        title: "HGETALL of ten fields",
        about: "A hash of ten fields for each key; one record each.",
        goal: "pipeline 16: 0.8 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Hgetall, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "hset-small",
        title: "HSET of small hashes, acknowledged when durable",
        about: "One of ten fields; the record has all of them.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::HsetSmall, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "hget",
        title: "HGET of one large hash",
        about: "A field for each key, all in memory.",
        goal: "pipeline 16: 0.8 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Hget, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "hset",
        title: "HSET of one large hash, acknowledged when durable",
        about: "A field for each key; one record each.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Hset, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "sadd",
        title: "SADD to one large set, acknowledged when durable",
        about: "New members; one record each.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Sadd, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "zadd",
        title: "ZADD to one large sorted set, acknowledged when durable",
        about: "A member for each key, whose score changes; one record each.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Zadd, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "zrange",
        title: "ZRANGE of 100 of one large sorted set",
        about: "A member for each key; the figures count commands.",
        goal: "pipeline 16: 0.8 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Zrange, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "lpush",
        title: "LPUSH to one large list, acknowledged when durable",
        about: "New items; one record each.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Lpush, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "lrange",
        title: "LRANGE of 100 of one large list",
        about: "An item for each key; the figures count commands.",
        goal: "pipeline 16: 0.8 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Lrange, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "queue",
        title: "RPUSH and LPOP of one list, acknowledged when durable",
        about: "Each command is the one or the other, at random; the list has an item for each key.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Queue, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "xadd",
        title: "XADD to one large stream, acknowledged when durable",
        about: "Entries of one field; one record each.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Xadd, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "xread",
        title: "XREAD of ten entries",
        about: "The first ten of one large stream; the figures count commands.",
        goal: "pipeline 16: 0.8 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: READERS,
            cases: |options| pipelines(options, Work::Xread, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "jobs",
        title: "XADD, XREADGROUP and XACK of one stream, acknowledged when durable",
        about: "A client acknowledges what it was given; else it adds an entry or asks for one, at random.",
        goal: "embedded, pipeline 16: 0.6 ×; on Kafka 50k/s",
        measure: Measure::Load {
            kinds: WRITERS,
            cases: |options| pipelines(options, Work::Jobs, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "eval",
        title: "EVAL of GET and SET",
        about: "Each script gets a key and sets it.",
        goal: "embedded with fsync everysec, pipeline 16: 0.5 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: SCRIPTS,
            cases: |options| pipelines(options, Work::EvalGetSet, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "eval-bucket",
        title: "EVAL of a token bucket",
        about: "Each script reads and writes a small hash and its expiry.",
        goal: "embedded with fsync everysec, pipeline 16: 0.5 ×",
        compare: Compare::Ratio(BY_RATE_AND_CPU, Kind::Redis),
        measure: Measure::Load {
            kinds: SCRIPTS,
            cases: |options| pipelines(options, Work::EvalBucket, Spread::Uniform, &[1, 16]),
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "publish",
        title: "PUBLISH to 1, 100 and 1,000 subscribers",
        about: "One client publishes, 16 messages at a time, until every subscriber has every message; the figure counts what was delivered.",
        columns: fanout::COLUMNS,
        compare: Compare::Ratio(&["per_second", "server_cpu"], Kind::Redis),
        measure: Measure::Special(fanout::measure),
        ..ROW
    },
    Row {
        name: "hand-over",
        title: "From OK of RPUSH on one node to BLPOP's reply on another",
        about: "One item at a time; the list is empty in between.",
        goal: "p99 20 ms",
        columns: special::LATENCY,
        compare: Compare::Nothing,
        measure: Measure::Special(special::hand_over),
        ..ROW
    },
    Row {
        name: "latency",
        title: "One SET on Kafka over a bare produce",
        about: "One client, one SET at a time, beside a librdkafka producer that waits for each acknowledgement (examples/bare_produce.rs).",
        goal: "p50 + 0.1 ms (at most + 0.3 ms)",
        columns: special::LATENCY,
        compare: Compare::Difference("p50", special::BARE),
        measure: Measure::Special(special::latency),
        ..ROW
    },
    Row {
        name: "commit",
        title: "One INCR on Kafka",
        about: "One client, one command at a time: each is a transaction of its own, and the figure is what its commit takes.",
        goal: "p50 under 5 ms",
        columns: special::LATENCY,
        compare: Compare::Nothing,
        measure: Measure::Load {
            kinds: &[Kind::OnKafka],
            cases: |options| {
                let case = usual(options, Work::Incr);
                vec![Case {
                    label: "1 client".to_owned(),
                    clients: 1,
                    pipeline: 1,
                    ..case
                }]
            },
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "flush",
        title: "The tombstones behind FLUSHALL",
        about: "What a flush hides is told to other consumers by a tombstone for each key, in the background. Meanwhile 10,000 GET/s and 2,000 SET/s run at a fixed rate on keys that were set anew; before the flush the same.",
        columns: special::FLUSH,
        compare: Compare::Nothing,
        fresh: true,
        measure: Measure::Special(special::flush),
        ..ROW
    },
    Row {
        name: "visible",
        title: "From OK on one node to visible on another",
        about: "10,000 SET/s at a fixed rate on the first node; beside them one key is set there and, after its OK, read on the second node until it is new. A read's own round trip is part of the figure.",
        goal: "p99 3 ms (at most 10 ms)",
        columns: special::LATENCY,
        compare: Compare::Nothing,
        measure: Measure::Special(special::visible),
        ..ROW
    },
    Row {
        name: "get-beside-set",
        title: "GET at a fixed rate beside SET at a fixed rate",
        about: "50,000 GET/s while 20,000 SET/s run, both at a fixed rate, each by half of the clients; latencies count from when a request was due.",
        goal: "p99 of GET 0.5 ms (at most 2 ms)",
        columns: special::BESIDE,
        compare: Compare::Ratio(&["p99"], Kind::RedisAlways),
        measure: Measure::Special(special::get_beside_set),
        ..ROW
    },
    Row {
        name: "beside-bitop",
        title: "GET and SET at a fixed rate beside BITOP",
        about: "5,000 GET/s and 1,000 SET/s while one client sends BITOP of 200 names of one large value, again and again; latencies count from when a request was due.",
        goal: "p99 50 ms",
        columns: special::BESIDE_BITOP,
        compare: Compare::Ratio(&["p99"], Kind::RedisAlways),
        measure: Measure::Special(special::beside_bitop),
        ..ROW
    },
    Row {
        name: "memory",
        title: "Resident memory",
        about: "After the start, and with the keys set and everything settled.",
        goal: "idle 8 MiB (at most 20); per million keys 0.8 × (at most 1.2 ×)",
        fresh: true,
        columns: special::MEMORY,
        compare: Compare::Ratio(&["per_million"], Kind::Redis),
        measure: Measure::Special(special::memory),
        ..ROW
    },
    Row {
        name: "memory-collections",
        title: "Resident memory of collections",
        about: "After the start, and with a large sorted set or many small hashes in it and everything settled; per million members or hashes.",
        goal: "sorted set at most 1.5 ×, hashes at most 1.3 ×",
        fresh: true,
        columns: special::MEMORY,
        compare: Compare::Ratio(&["per_million"], Kind::Redis),
        measure: Measure::Special(special::memory_of_collections),
        ..ROW
    },
    Row {
        name: "binary",
        title: "Size of the binary",
        about: "The one that was measured: static, stripped, with everything.",
        goal: "9 MB (at most 13 MB)",
        columns: &[column("megabytes", "MB", 1)],
        compare: Compare::Nothing,
        measure: Measure::Special(special::binary),
        ..ROW
    },
    Row {
        name: "restart",
        title: "Restart until serving",
        about: "After a clean stop (SIGTERM) and after kill -9.",
        goal: "5M keys: 0.5 s (at most 3 s)",
        slow: true,
        fresh: true,
        columns: &[column("seconds", "seconds", 2), column("resident", "resident MiB", 0)],
        compare: Compare::Ratio(&["seconds"], Kind::RedisAlways),
        measure: Measure::Special(special::restart),
    },
    Row {
        name: "rebuild",
        title: "Rebuild from Kafka until serving",
        about: "A node with an empty directory on a filled topic (examples/fill_topic.rs).",
        goal: "1.5 × (at least 0.7 ×) of Kafka Streams' GlobalKTable",
        slow: true,
        fresh: true,
        columns: &[
            column("seconds", "seconds", 2),
            column("per_second", "records per second", 0),
            column("server_cpu", "server CPU µs each", 2),
            column("resident", "resident MiB", 0),
        ],
        compare: Compare::Nothing,
        measure: Measure::Special(special::rebuild),
    },
    Row {
        name: "snapshot",
        title: "Begin from a snapshot",
        about: "A node with an empty directory, without and with --snapshot, on a filled topic (examples/fill_topic.rs). The snapshot \
                was made by `highwater snapshot` in an empty directory too.",
        goal: "5M keys: a third of a rebuild or less",
        slow: true,
        fresh: true,
        columns: special::SNAPSHOT,
        compare: Compare::Nothing,
        measure: Measure::Special(special::snapshot),
    },
    Row {
        name: "get-unfit",
        title: "GET of keys that do not fit into memory",
        about: "Keys and values are four times the memory given, half of it to the hot tier (--maxmemory), half to the store (--store-cache). Pipeline 16, uniform.",
        goal: "300k/s (at least 150k/s)",
        slow: true,
        fresh: true,
        columns: special::UNFIT,
        compare: Compare::Nothing,
        measure: Measure::Special(special::get_unfit),
    },
    Row {
        name: "keys",
        title: "GET and SET by the number of keys",
        about: "Pipeline 16, uniform keys.",
        slow: true,
        fresh: true,
        measure: Measure::Load {
            kinds: WRITERS,
            cases: numbers_of_keys,
            redis_benchmark: false,
        },
        ..ROW
    },
    Row {
        name: "sustained",
        title: "SET for ten minutes",
        about: "Uniform keys, pipeline 64.",
        goal: "250k/s (at least 100k/s), memory bounded",
        slow: true,
        fresh: true,
        columns: special::SUSTAINED_COLUMNS,
        compare: Compare::Ratio(&["per_second"], Kind::RedisAlways),
        measure: Measure::Special(special::sustained),
    },
];

/// The load that rows vary.
pub fn usual(options: &Options, work: Work) -> Case {
    Case {
        label: String::new(),
        work,
        pipeline: 16,
        clients: options.clients,
        range: options.range(),
        spread: Spread::Uniform,
        value_bytes: options.value_bytes,
    }
}

fn pipelines(options: &Options, work: Work, spread: Spread, pipelines: &[usize]) -> Vec<Case> {
    let case = |pipeline: &usize| Case {
        label: format!("pipeline {pipeline}"),
        pipeline: *pipeline,
        spread,
        ..usual(options, work)
    };
    pipelines.iter().map(case).collect()
}

fn sizes(options: &Options, work: Work) -> Vec<Case> {
    let sizes = [
        (16, "16 B"),
        (256, "256 B"),
        (1 << 10, "1 KiB"),
        (16 << 10, "16 KiB"),
        (64 << 10, "64 KiB"),
    ];
    let case = |(number, (value_bytes, label)): (usize, &(usize, &str))| Case {
        label: (*label).to_owned(),
        value_bytes: *value_bytes,
        pipeline: if *value_bytes < 16 << 10 { 16 } else { 4 },
        // Apart from the other rows' keys, whose values have another size.
        range: Range {
            first: (number as u64 + 1) * 1_000_000_000,
            count: options.range().count.min((64 << 20) / *value_bytes as u64),
        },
        ..usual(options, work)
    };
    sizes.iter().enumerate().map(case).collect()
}

fn clients(options: &Options, work: Work) -> Vec<Case> {
    let case = |clients| Case {
        label: format!("{clients} client{}", if clients == 1 { "" } else { "s" }),
        clients,
        pipeline: 1,
        ..usual(options, work)
    };
    [1, 50, 1_000].map(case).to_vec()
}

fn numbers_of_keys(options: &Options) -> Vec<Case> {
    let numbers = match options.keys {
        Some(keys) => vec![keys],
        None => [100_000, 1_000_000, 10_000_000]
            .map(|keys| options.sized(keys))
            .to_vec(),
    };
    let mut cases = Vec::new();
    for (work, name) in [(Work::Get, "GET"), (Work::Set, "SET")] {
        for count in &numbers {
            cases.push(Case {
                label: format!("{name}, {} keys", short(*count)),
                range: Range {
                    first: 0,
                    count: *count,
                },
                ..usual(options, work)
            });
        }
    }
    cases
}
