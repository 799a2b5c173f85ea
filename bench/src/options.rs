//! The command line, and the sizes that follow from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::keys::Range;

/// Measures Highwater beside redis-server, on this machine, in one run.
///
/// The servers of a row take turns, round by round; a figure is the median of the rounds, a ratio the median of the
/// rounds' ratios. Prints tables; raw results go to target/bench.
#[derive(Parser, Clone, Debug)]
#[command(name = "bench/run")]
pub struct Options {
    /// Only these rows (see --list), slow ones among them too
    #[arg(long, value_delimiter = ',', value_name = "ROW,ROW")]
    pub only: Vec<String>,
    /// Only servers with one of these in their names, such as "redis,fjall,on Kafka"
    #[arg(long, value_delimiter = ',', value_name = "PART,PART")]
    pub servers: Vec<String>,
    /// The slow rows too
    #[arg(long)]
    pub full: bool,
    /// A first look: one round, one second each, 100,000 keys
    #[arg(long)]
    pub quick: bool,
    /// Every row with next to no load, to see that it works; what it prints says nothing
    #[arg(long)]
    pub smoke: bool,
    /// Print the rows
    #[arg(long)]
    pub list: bool,
    /// Put tables and plots into docs/performance.md and docs/plots
    #[arg(long, conflicts_with = "smoke")]
    pub docs: bool,
    /// Rounds of each row that is not slow [default: 3]
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Keys, where a row does not say otherwise [default: 1000000]
    #[arg(long)]
    pub keys: Option<u64>,
    /// Connections, where a row does not say otherwise
    #[arg(long, default_value_t = 50)]
    pub clients: usize,
    /// Seconds of each measurement [default: 4]
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Bytes of a value, where a row does not say otherwise
    #[arg(long, default_value_t = 64)]
    pub value_bytes: usize,
    /// Leave redis-benchmark out
    #[arg(long)]
    pub no_redis_benchmark: bool,
    /// A Kafka that runs; without it one is started
    #[arg(long, value_name = "HOST:PORT")]
    pub bootstrap_servers: Option<String>,
    /// The server to measure; without it the static one is built (docker/build-static)
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// The directory with the project's built examples; without it they are built
    #[arg(long, value_name = "DIR")]
    pub examples: Option<PathBuf>,
}

impl Options {
    pub fn rounds(&self) -> u32 {
        self.rounds
            .unwrap_or(if self.quick || self.smoke { 1 } else { 3 })
            .max(1)
    }

    /// Of one measurement.
    pub fn time(&self) -> Duration {
        let seconds = match self.seconds {
            Some(seconds) => seconds,
            None if self.smoke => 0.08,
            None if self.quick => 1.0,
            None => 4.0,
        };
        Duration::from_secs_f64(seconds.max(0.01))
    }

    pub fn range(&self) -> Range {
        let count = match self.keys {
            Some(keys) => keys,
            None if self.smoke => 500,
            None if self.quick => 100_000,
            None => 1_000_000,
        };
        Range {
            first: 0,
            count: count.max(1),
        }
    }

    /// A number of keys or records of a row that has sizes of its own.
    pub fn sized(&self, size: u64) -> u64 {
        match (self.smoke, self.quick) {
            (true, _) => (size / 10_000).max(20),
            (_, true) => (size / 10).max(20),
            _ => size,
        }
    }

    /// The keys of a row that has a number of its own: that, unless the command line says otherwise.
    pub fn keys_or(&self, keys: u64) -> u64 {
        self.keys.unwrap_or_else(|| self.sized(keys))
    }

    /// Requests per second of a row at a fixed rate.
    pub fn rate(&self, per_second: u64) -> u64 {
        if self.smoke { per_second / 100 } else { per_second }
    }

    /// Whether a server is to be measured.
    pub fn wants(&self, server: &str) -> bool {
        self.servers.is_empty() || self.servers.iter().any(|part| server.contains(part.as_str()))
    }

    /// How long to wait for servers to have nothing left to do.
    pub fn patience(&self) -> Duration {
        match self.smoke {
            true => Duration::from_millis(20),
            false => Duration::from_secs(300),
        }
    }
}

/// A number of keys as people say it: `5M`.
pub fn short(number: u64) -> String {
    match number {
        million if million >= 1_000_000 && million % 1_000_000 == 0 => format!("{}M", million / 1_000_000),
        thousand if thousand >= 1_000 && thousand % 1_000 == 0 => format!("{}k", thousand / 1_000),
        other => other.to_string(),
    }
}
