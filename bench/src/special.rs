//! The rows that are more than one load on one server.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::bench::{Bench, Case, Figures, fill, fill_by, latencies};
use crate::keys::{Range, Spread};
use crate::load::{Load, Pace, Plan, Until, Work};
use crate::machine;
use crate::options::short;
use crate::prober;
use crate::rows::{Column, column, usual};
use crate::servers::{Kind, Server, ask};
use crate::support::temp;

const REBUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// No tombstone for so long: the last one was written.
const BURIED: Duration = Duration::from_secs(8);
/// Memory that did not become less for so long stays. What is freed jemalloc gives back over 10 s, and some of it is freed late: with less
/// patience the row was seen to stop between two steps.
const GIVEN_BACK: Duration = Duration::from_secs(15);
const SUSTAINED: Duration = Duration::from_secs(600);
const MIB: f64 = (1 << 20) as f64;

pub const BARE: &str = "bare produce";
pub const LATENCY: &[Column] = &[
    column("p50", "p50 µs", 0),
    column("p99", "p99 µs", 0),
    column("p999", "p99.9 µs", 0),
];
pub const BESIDE: &[Column] = &[
    column("p50", "GET p50 µs", 0),
    column("p99", "GET p99 µs", 0),
    column("p999", "GET p99.9 µs", 0),
    column("set_p50", "SET p50 µs", 0),
    column("set_p99", "SET p99 µs", 0),
];
pub const BESIDE_BITOP: &[Column] = &[
    column("seconds", "seconds of one BITOP", 2),
    column("p50", "GET p50 µs", 0),
    column("p99", "GET p99 µs", 0),
    column("p999", "GET p99.9 µs", 0),
    column("set_p50", "SET p50 µs", 0),
    column("set_p99", "SET p99 µs", 0),
];
pub const FLUSH: &[Column] = &[
    column("seconds", "seconds until all are written", 1),
    column("p50", "GET p50 µs", 0),
    column("p99", "GET p99 µs", 0),
    column("set_p50", "SET p50 µs", 0),
    column("set_p99", "SET p99 µs", 0),
];
pub const SNAPSHOT: &[Column] = &[
    column("rebuild", "seconds of a rebuild", 2),
    column("make", "seconds to make a snapshot", 2),
    column("megabytes", "its MB", 0),
    column("seconds", "seconds from it until serving", 2),
    column("of_rebuild", "of the rebuild", 2),
];
pub const MEMORY: &[Column] = &[
    column("idle", "idle MiB", 1),
    column("filled", "filled MiB", 1),
    column("per_million", "MiB per million", 1),
];
pub const UNFIT: &[Column] = &[
    column("per_second", "per second", 0),
    column("p50", "p50 µs", 0),
    column("p99", "p99 µs", 0),
    column("server_cpu", "server CPU µs", 2),
    column("resident", "resident MiB", 0),
    column("disk", "disk MiB", 0),
];
pub const SUSTAINED_COLUMNS: &[Column] = &[
    column("per_second", "per second", 0),
    column("slowest", "slowest second", 0),
    column("p99", "p99 µs", 0),
    column("server_cpu", "server CPU µs", 2),
    column("resident", "most resident MiB", 0),
    column("disk", "disk MiB", 0),
];

/// The store that a Highwater is started with; redis-server has none.
#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Sled,
    Fjall,
    None,
}

impl Engine {
    fn args(self) -> Vec<String> {
        match self {
            Engine::Sled => ["--store", "sled"].map(str::to_owned).to_vec(),
            Engine::Fjall => ["--store", "fjall"].map(str::to_owned).to_vec(),
            Engine::None => Vec::new(),
        }
    }

    fn name(self, kind: Kind) -> String {
        match self {
            Engine::Sled => format!("{}, sled", kind.name()),
            Engine::Fjall => format!("{}, fjall", kind.name()),
            Engine::None => kind.name().to_owned(),
        }
    }
}

pub fn wanted(bench: &Bench, kinds: &[Kind]) -> Vec<Kind> {
    let wanted = kinds.iter().filter(|kind| bench.options.wants(kind.name()));
    wanted.copied().collect()
}

/// The servers that are wanted, each Highwater once with either store.
fn with_engines(bench: &Bench, kinds: &[Kind]) -> Vec<(Kind, Engine)> {
    let engines = |kind: &Kind| match kind.is_highwater() {
        true => vec![(*kind, Engine::Sled), (*kind, Engine::Fjall)],
        false => vec![(*kind, Engine::None)],
    };
    let all = kinds.iter().flat_map(engines);
    all.filter(|(kind, engine)| bench.options.wants(&engine.name(*kind)))
        .collect()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// A topic as Highwater makes it, with nothing in it.
fn new_topic(bench: &mut Bench) -> Result<String> {
    let topic = bench.site.fresh_topic();
    drop(on_topic(bench, &topic)?);
    Ok(topic)
}

fn on_topic(bench: &mut Bench, topic: &str) -> Result<Server> {
    Server::start(
        Kind::OnKafka,
        &mut bench.site,
        &["--topic".to_owned(), topic.to_owned()],
    )
}

pub fn latency(bench: &mut Bench) -> Result<()> {
    const CASE: &str = "1 client";
    let case = Case {
        clients: 1,
        pipeline: 1,
        ..usual(&bench.options, Work::Set)
    };
    let figures = bench.measure(Kind::OnKafka, &case)?;
    bench.note(CASE, Kind::OnKafka.name(), figures)?;
    let topic = new_topic(bench)?;
    let args = [
        bench.site.kafka()?,
        topic,
        bench.options.time().as_secs_f64().to_string(),
        case.value_bytes.to_string(),
    ];
    bench.settle(&[]);
    let printed = bench.site.example("bare_produce", &args)?;
    let figure = |name: &'static str| -> Result<(&'static str, f64)> {
        Ok((
            name,
            *printed
                .get(name)
                .with_context(|| format!("no {name} from bare_produce"))?,
        ))
    };
    bench.note(
        CASE,
        BARE,
        Figures::from([figure("p50")?, figure("p99")?, figure("p999")?]),
    )
}

pub fn visible(bench: &mut Bench) -> Result<()> {
    let topic = bench.site.fresh_topic();
    let first = on_topic(bench, &topic)?;
    let second = on_topic(bench, &topic)?;
    let case = usual(&bench.options, Work::Set);
    fill(first.port, case.range, case.value_bytes)?;
    bench.settle(&[&first, &second]);
    let time = bench.options.time();
    let per_second = bench.options.rate(10_000);
    let load = Load::connect(Plan {
        pace: Pace::Open { per_second },
        ..case.plan(first.port, Until::Time(time), u64::from(bench.round))
    })?;
    let done = AtomicBool::new(false);
    let (load, seen) = std::thread::scope(|scope| {
        let prober = scope.spawn(|| prober::run(first.port, second.port, &done));
        let load = load.run();
        done.store(true, Ordering::Relaxed);
        (load, prober.join().expect("the prober does not panic"))
    });
    let (load, seen) = (load?, seen?);
    ensure!(!seen.is_empty(), "nothing was seen");
    let at = |percent: f64| seen.value_at_percentile(percent) as f64 / 1e3;
    let figures = [
        ("p50", at(50.0)),
        ("p99", at(99.0)),
        ("p999", at(99.9)),
        ("probes", seen.len() as f64),
        ("set_p99", load.percentile(99.0)),
    ];
    bench.note(
        &format!("{} SET/s", short(per_second)),
        "two nodes on Kafka",
        Figures::from(figures),
    )
}

pub fn hand_over(bench: &mut Bench) -> Result<()> {
    let topic = bench.site.fresh_topic();
    let first = on_topic(bench, &topic)?;
    let second = on_topic(bench, &topic)?;
    bench.settle(&[&first, &second]);
    let seen = prober::hand_over(first.port, second.port, bench.options.time())?;
    let at = |percent: f64| seen.value_at_percentile(percent) as f64 / 1e3;
    let figures = [
        ("p50", at(50.0)),
        ("p99", at(99.0)),
        ("p999", at(99.9)),
        ("items", seen.len() as f64),
    ];
    bench.note("one at a time", "two nodes on Kafka", Figures::from(figures))
}

pub fn get_beside_set(bench: &mut Bench) -> Result<()> {
    let (get_rate, set_rate) = (bench.options.rate(50_000), bench.options.rate(20_000));
    let label = format!("{} GET/s, {} SET/s", short(get_rate), short(set_rate));
    for kind in wanted(bench, &[Kind::RedisAlways, Kind::Embedded, Kind::OnKafka]) {
        fill_for_gets(bench, kind)?;
        let figures = gets_and_sets(bench, kind, get_rate, set_rate)?;
        bench.note(&label, kind.name(), figures)?;
    }
    Ok(())
}

/// The keys of [`gets_and_sets`], before anything else is asked of the server.
fn fill_for_gets(bench: &mut Bench, kind: Kind) -> Result<()> {
    let get = usual(&bench.options, Work::Get);
    bench.fill(kind, get.range, get.value_bytes)?;
    bench.settle(&[]);
    Ok(())
}

/// Latencies of GET and SET, each at a fixed rate and by half of the clients.
fn gets_and_sets(bench: &mut Bench, kind: Kind, get_rate: u64, set_rate: u64) -> Result<Figures> {
    let (get, set) = (usual(&bench.options, Work::Get), usual(&bench.options, Work::Set));
    let port = bench.server(kind)?.port;
    let until = Until::Time(bench.options.time());
    let connect = |case: &Case, rate: u64, seed: u64| {
        let plan = case.plan(port, until, seed);
        Load::connect(Plan {
            pace: Pace::Open { per_second: rate },
            clients: plan.clients.div_ceil(2),
            ..plan
        })
    };
    let (gets, sets) = (connect(&get, get_rate, 1)?, connect(&set, set_rate, 2)?);
    let (gets, sets) = std::thread::scope(|scope| {
        let sets = scope.spawn(|| sets.run());
        (gets.run(), sets.join().expect("a load does not panic"))
    });
    let (gets, sets) = (gets?, sets?);
    let mut figures = latencies(&gets);
    figures.insert("set_p50", sets.percentile(50.0));
    figures.insert("set_p99", sets.percentile(99.0));
    Ok(figures)
}

pub fn beside_bitop(bench: &mut Bench) -> Result<()> {
    const NAMED: usize = 200;
    let bytes = bench.options.sized(10 << 20);
    let label = format!("BITOP of {NAMED} × {} MB", bytes >> 20);
    let (get_rate, set_rate) = (bench.options.rate(5_000), bench.options.rate(1_000));
    let bitop = format!("BITOP OR bitop:to{}", " bitop:from".repeat(NAMED));
    for kind in wanted(bench, &[Kind::RedisAlways, Kind::Embedded, Kind::OnKafka]) {
        fill_for_gets(bench, kind)?;
        let port = bench.server(kind)?.port;
        ask(port, &format!("SETRANGE bitop:from {} x", bytes - 1))?;
        let over = AtomicBool::new(false);
        let (figures, seconds) = std::thread::scope(|scope| {
            let bitops = scope.spawn(|| again_and_again(port, &bitop, &over));
            let figures = gets_and_sets(bench, kind, get_rate, set_rate);
            over.store(true, Ordering::Relaxed);
            (figures, bitops.join().expect("a client does not panic"))
        });
        let mut figures = figures?;
        figures.insert("seconds", seconds?);
        bench.note(&label, kind.name(), figures)?;
    }
    Ok(())
}

/// Sends a command until it is over; seconds that it took on average.
fn again_and_again(port: u16, line: &str, over: &AtomicBool) -> Result<f64> {
    let (begun, mut times) = (Instant::now(), 0);
    while times == 0 || !over.load(Ordering::Relaxed) {
        let reply = ask(port, line)?;
        ensure!(reply.starts_with(':'), "not a length: {reply}");
        times += 1;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(times))
}

#[expect(clippy::too_many_lines, reason = "it is still to be split")]
pub fn flush(bench: &mut Bench) -> Result<()> {
    let (get, set) = (usual(&bench.options, Work::Get), usual(&bench.options, Work::Set));
    let old = Range {
        first: 0,
        count: bench.options.keys_or(bench.options.sized(100_000)),
    };
    let new = Range {
        first: old.count,
        count: old.count.div_ceil(10),
    };
    let server = Server::start(Kind::OnKafka, &mut bench.site, &[])?;
    let port = server.port;
    let connect = |case: &Case, per_second: u64, seed: u64| {
        let case = Case {
            range: new,
            ..case.clone()
        };
        Load::connect(Plan {
            pace: Pace::Open { per_second },
            ..case.plan(port, Until::Time(Duration::from_secs(1)), seed)
        })
    };
    let rates = (bench.options.rate(10_000), bench.options.rate(2_000));
    fill(port, old, get.value_bytes)?;
    for flushes in [false, true] {
        fill(port, new, get.value_bytes)?;
        bench.settle(&[&server]);
        let begun = Instant::now();
        if flushes {
            ensure!(ask(port, "FLUSHALL")? == "+OK", "FLUSHALL failed");
            fill(port, new, get.value_bytes)?;
        }
        let done = AtomicBool::new(false);
        let until_done = |case: &Case, per_second, seed| -> Result<Histogram<u64>> {
            let mut all = Histogram::new(3).expect("three digits are allowed");
            while !done.load(Ordering::Relaxed) {
                all.add(connect(case, per_second, seed)?.run()?.latency)?;
            }
            Ok(all)
        };
        let (seconds, gets, sets) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let seconds = match flushes {
                    true => until_buried(port, begun),
                    false => {
                        std::thread::sleep(bench.options.time());
                        Ok(0.0)
                    }
                };
                done.store(true, Ordering::Relaxed);
                seconds
            });
            let sets = scope.spawn(|| until_done(&set, rates.1, 2));
            let gets = until_done(&get, rates.0, 1);
            let sets = sets.join().expect("a load does not panic");
            (watch.join().expect("the watch does not panic"), gets, sets)
        });
        let (seconds, gets, sets) = (seconds?, gets?, sets?);
        let at = |all: &Histogram<u64>, percent| all.value_at_percentile(percent) as f64 / 1e3;
        let mut figures = Figures::from([
            ("p50", at(&gets, 50.0)),
            ("p99", at(&gets, 99.0)),
            ("set_p50", at(&sets, 50.0)),
            ("set_p99", at(&sets, 99.0)),
        ]);
        let what = ["before", "after"][usize::from(flushes)];
        if flushes {
            figures.insert("seconds", seconds);
        }
        bench.note(
            &format!("{what} FLUSHALL of {} keys", short(old.count)),
            Kind::OnKafka.name(),
            figures,
        )?;
    }
    Ok(())
}

/// Seconds from `begun` until nothing that was flushed is left to be told to other consumers.
fn until_buried(port: u16, begun: Instant) -> Result<f64> {
    let mut last = (0, Instant::now());
    loop {
        let info = ask(port, "INFO kafka")?;
        let told = info.lines().find_map(|line| line.strip_prefix("flush_tombstones:"));
        let written: u64 = told.context("INFO tells flush_tombstones")?.trim().parse()?;
        if written != last.0 {
            last = (written, Instant::now());
        } else if written > 0 && last.1.elapsed() > BURIED {
            return Ok((last.1 - begun).as_secs_f64());
        }
        ensure!(begun.elapsed() < REBUILD_LIMIT, "the tombstones do not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn memory(bench: &mut Bench) -> Result<()> {
    let (range, value_bytes) = (bench.options.range(), bench.options.value_bytes);
    let case = format!("{} keys of {value_bytes} B", short(range.count));
    memory_of(bench, &case, Work::Set, range)
}

pub fn memory_of_collections(bench: &mut Bench) -> Result<()> {
    let Range { first, count } = bench.options.range();
    let members = format!("a sorted set of {} members", short(count));
    memory_of(bench, &members, Work::Zadd, Range { first, count })?;
    let count = (count / 10).max(1);
    let hashes = format!("{} hashes of ten fields", short(count));
    memory_of(bench, &hashes, Work::FillSmall, Range { first, count })
}

fn memory_of(bench: &mut Bench, case: &str, work: Work, range: Range) -> Result<()> {
    for kind in wanted(bench, &[Kind::Redis, Kind::Embedded, Kind::OnKafka]) {
        let server = Server::start(kind, &mut bench.site, &[])?;
        bench.settle(&[&server]);
        let idle = machine::resident(server.pid())?;
        fill_by(server.port, range, bench.options.value_bytes, work)?;
        bench.settle(&[&server]);
        let filled = settled_resident(server.pid(), bench.options.patience())?;
        let figures = [
            ("idle", mib(idle)),
            ("filled", mib(filled)),
            (
                "per_million",
                mib(filled.saturating_sub(idle)) * 1e6 / range.count as f64,
            ),
        ];
        bench.note(case, kind.name(), Figures::from(figures))?;
    }
    Ok(())
}

/// Bytes, when no more of them are given back.
fn settled_resident(pid: u32, patience: Duration) -> Result<u64> {
    let end = Instant::now() + patience;
    let (mut least, mut since) = (u64::MAX, Instant::now());
    while since.elapsed() < GIVEN_BACK && Instant::now() < end {
        let now = machine::resident(pid)?;
        if now < least - least / 100 {
            (least, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(100).min(patience));
    }
    machine::resident(pid)
}

pub fn binary(bench: &mut Bench) -> Result<()> {
    let size = fs::metadata(&bench.site.highwater).context("look at the binary")?.len();
    bench.note("", "highwater", Figures::from([("megabytes", size as f64 / 1e6)]))
}

pub fn restart(bench: &mut Bench) -> Result<()> {
    let count = bench.options.keys_or(5_000_000);
    let range = Range { first: 0, count };
    let value_bytes = bench.options.value_bytes;
    for (kind, engine) in with_engines(bench, &[Kind::RedisAlways, Kind::Embedded]) {
        let mut server = Server::start(kind, &mut bench.site, &engine.args())?;
        fill(server.port, range, value_bytes)?;
        for (signal, how) in [(libc::SIGTERM, "SIGTERM"), (libc::SIGKILL, "kill -9")] {
            bench.settle(&[&server]);
            let time = server.restart(signal)?;
            let figures = [
                ("seconds", time.as_secs_f64()),
                ("resident", mib(machine::resident(server.pid())?)),
            ];
            has_its_data(server.port, range, value_bytes)?;
            let case = format!("{} keys, {how}", short(count));
            bench.note(&case, &engine.name(kind), Figures::from(figures))?;
        }
    }
    Ok(())
}

pub fn rebuild(bench: &mut Bench) -> Result<()> {
    let cases = match bench.options.keys {
        Some(keys) => [(20 * keys, keys), (keys, keys)],
        None => [(20_000_000, 1_000_000), (5_000_000, 5_000_000)]
            .map(|(records, keys)| (bench.options.sized(records), bench.options.sized(keys))),
    };
    for (records, keys) in cases {
        let topic = filled_topic(bench, records, keys)?;
        for (kind, engine) in with_engines(bench, &[Kind::OnKafka]) {
            bench.settle(&[]);
            let figures = rebuild_one(bench, &topic, engine, records, keys)?;
            let case = format!("{} records on {} keys", short(records), short(keys));
            bench.note(&case, &engine.name(kind), figures)?;
        }
    }
    Ok(())
}

/// A topic that keeps so many records on so many keys.
fn filled_topic(bench: &mut Bench, records: u64, keys: u64) -> Result<String> {
    let topic = new_topic(bench)?;
    bench.site.keep_all_records(&topic)?;
    let numbers = [records, keys, bench.options.value_bytes as u64].map(|number| number.to_string());
    let mut args = vec![bench.site.kafka()?, topic.clone()];
    args.extend(numbers);
    bench.site.example("fill_topic", &args)?;
    Ok(topic)
}

fn rebuild_one(bench: &mut Bench, topic: &str, engine: Engine, records: u64, keys: u64) -> Result<Figures> {
    let mut args = engine.args();
    args.extend(["--topic".to_owned(), topic.to_owned()]);
    let start = Instant::now();
    let server = Server::start_without_waiting(Kind::OnKafka, &mut bench.site, args)?;
    server.wait_until_ready_within(REBUILD_LIMIT)?;
    let time = start.elapsed().as_secs_f64();
    let cpu = machine::cpu(server.pid())?.as_secs_f64();
    let resident = machine::resident(server.pid())?;
    let range = Range { first: 0, count: keys };
    has_its_data(server.port, range, bench.options.value_bytes)?;
    Ok(Figures::from([
        ("seconds", time),
        ("per_second", records as f64 / time),
        ("server_cpu", cpu * 1e6 / records as f64),
        ("resident", mib(resident)),
    ]))
}

pub fn snapshot(bench: &mut Bench) -> Result<()> {
    let keys = bench.options.keys_or(5_000_000);
    let topic = filled_topic(bench, keys, keys)?;
    for (kind, engine) in with_engines(bench, &[Kind::OnKafka]) {
        bench.settle(&[]);
        let rebuild = rebuild_one(bench, &topic, engine, keys, keys)?["seconds"];
        bench.settle(&[]);
        let temp = temp::dir("snapshot");
        let (file, dir) = (temp.path().join("file"), temp.path().join("data"));
        let begun = Instant::now();
        bench.site.snapshot(&topic, &dir, &file, &engine.args())?;
        let make = begun.elapsed().as_secs_f64();
        let bytes = fs::metadata(&file).context("look at the snapshot")?.len();
        bench.settle(&[]);
        let mut args = engine.args();
        args.extend(["--topic".to_owned(), topic.clone(), "--snapshot".to_owned()]);
        args.push(file.to_string_lossy().into_owned());
        let begun = Instant::now();
        let server = Server::start_without_waiting(kind, &mut bench.site, args)?;
        server.wait_until_ready_within(REBUILD_LIMIT)?;
        let seconds = begun.elapsed().as_secs_f64();
        has_its_data(server.port, Range { first: 0, count: keys }, bench.options.value_bytes)?;
        let figures = [
            ("rebuild", rebuild),
            ("make", make),
            ("megabytes", bytes as f64 / 1e6),
            ("seconds", seconds),
            ("of_rebuild", seconds / rebuild),
        ];
        let case = format!("{} keys", short(keys));
        bench.note(&case, &engine.name(kind), Figures::from(figures))?;
    }
    Ok(())
}

/// Reads some keys; every reply must be right.
fn has_its_data(port: u16, range: Range, value_bytes: usize) -> Result<()> {
    let case = Case {
        label: String::new(),
        work: Work::Get,
        pipeline: 16,
        clients: 4,
        range,
        spread: Spread::Uniform,
        value_bytes,
    };
    Load::connect(case.plan(port, Until::Requests(10_000), 1))?.run()?;
    Ok(())
}

pub fn get_unfit(bench: &mut Bench) -> Result<()> {
    let range = Range {
        first: 0,
        count: bench.options.keys_or(10_000_000),
    };
    let case = Case {
        range,
        ..usual(&bench.options, Work::Get)
    };
    let data = range.count * (crate::wire::KEY_BYTES + case.value_bytes) as u64;
    let given = (data / 8).max(1 << 20).to_string();
    for (kind, engine) in with_engines(bench, &[Kind::EmbeddedEverysec]) {
        let mut args = ["--maxmemory", &given, "--store-cache", &given]
            .map(str::to_owned)
            .to_vec();
        args.extend(engine.args());
        let server = Server::start(kind, &mut bench.site, &args)?;
        fill(server.port, range, case.value_bytes)?;
        bench.settle(&[&server]);
        // More than fits into memory, so that from then on each key that is read puts another one out.
        Load::connect(case.plan(server.port, Until::Requests(range.count / 4), 1))?.run()?;
        let (mut figures, _) = bench.measure_at(&server, None, &case)?;
        figures.insert("resident", mib(machine::resident(server.pid())?));
        figures.insert("disk", mib(machine::disk(server.dir())));
        bench.note(&format!("{} keys", short(range.count)), &engine.name(kind), figures)?;
    }
    Ok(())
}

pub fn sustained(bench: &mut Bench) -> Result<()> {
    let mut case = usual(&bench.options, Work::Set);
    case.pipeline = 64;
    let time = match bench.options.smoke || bench.options.quick {
        true => bench.options.time(),
        false => bench.options.seconds.map_or(SUSTAINED, Duration::from_secs_f64),
    };
    for (kind, engine) in with_engines(bench, &[Kind::RedisAlways, Kind::Embedded, Kind::OnKafka]) {
        let server = Server::start(kind, &mut bench.site, &engine.args())?;
        fill(server.port, case.range, case.value_bytes)?;
        bench.settle(&[&server]);
        let (figures, each_second) = sustained_one(bench, &server, &case, time)?;
        let label = format!("{:.0} s", time.as_secs_f64());
        bench.note_with(&label, &engine.name(kind), figures, each_second)?;
        drop(server);
        bench.settle(&[]);
    }
    Ok(())
}

fn sustained_one(bench: &Bench, server: &Server, case: &Case, time: Duration) -> Result<(Figures, Vec<u64>)> {
    let load = Load::connect(case.plan(server.port, Until::Time(time), 1))?;
    let cpu = machine::cpu(server.pid())?;
    let done = AtomicBool::new(false);
    let (outcome, resident) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| most_resident(server.pid(), &done));
        let outcome = load.run();
        done.store(true, Ordering::Relaxed);
        (outcome, watch.join().expect("the watch does not panic"))
    });
    let outcome = outcome?;
    bench.settle(&[server]);
    let cpu = machine::cpu(server.pid())?.saturating_sub(cpu);
    // The last second is not a whole one.
    let whole = &outcome.each_second[..outcome.each_second.len().saturating_sub(1)];
    let slowest = whole.iter().min().copied().unwrap_or(outcome.requests);
    let mut figures = latencies(&outcome);
    figures.insert("per_second", outcome.per_second());
    figures.insert("slowest", slowest as f64);
    figures.insert("server_cpu", cpu.as_secs_f64() * 1e6 / outcome.requests as f64);
    figures.insert("resident", mib(resident));
    figures.insert("disk", mib(machine::disk(server.dir())));
    Ok((figures, whole.to_vec()))
}

fn most_resident(pid: u32, done: &AtomicBool) -> u64 {
    let mut most = 0;
    while !done.load(Ordering::Relaxed) {
        most = most.max(machine::resident(pid).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    most
}
