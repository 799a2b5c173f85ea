//! The same load from redis-benchmark, for readers who want to compare with figures from elsewhere.

use anyhow::{Context, Result, bail, ensure};

use crate::bench::Case;
use crate::load::Work;
use crate::support::parts;
use crate::wire;

const FEWEST: u64 = 1_000;

/// Requests per second.
pub fn run(port: u16, case: &Case, requests: u64) -> Result<f64> {
    let mut command = parts::redis_benchmark();
    command.args(["--csv", "-p", &port.to_string()]);
    let numbers = [
        ("-c", case.clients as u64),
        ("-P", case.pipeline as u64),
        ("-n", requests.max(FEWEST)),
        ("-r", case.range.count),
    ];
    for (flag, number) in numbers {
        command.args([flag, &number.to_string()]);
    }
    let mut value = wire::FOREIGN_VALUE.to_vec();
    value.extend(wire::filler(case.value_bytes.saturating_sub(value.len())));
    let value = String::from_utf8(value).context("the filler is printable")?;
    match case.work {
        Work::Get => command.args(["GET", "key:__rand_int__"]),
        Work::Set => command.args(["SET", "key:__rand_int__", &value]),
        other => bail!("no redis-benchmark for {other:?}"),
    };
    let output = command.output().context("run redis-benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "redis-benchmark: {text}");
    // "the command","requests per second",…
    let rate = text
        .lines()
        .last()
        .and_then(|line| line.split("\",\"").nth(1)?.parse().ok());
    rate.with_context(|| format!("redis-benchmark printed {text:?}"))
}
