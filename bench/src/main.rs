//! `bench/run`: Highwater beside redis-server, on one machine, in one run.
//!
//! In reading order: [`options`] is the command line, [`rows`] and [`special`] what is measured, [`bench`] takes the
//! measurements with [`load`] (over [`keys`] and [`wire`]) on [`servers`], [`report`] and [`plot`] show them.

mod bench;
mod build;
mod fanout;
mod keys;
mod load;
mod machine;
mod options;
mod plot;
mod prober;
mod redis_benchmark;
mod report;
mod rows;
mod servers;
mod special;
mod support;
mod wire;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use bench::Bench;
use options::Options;
use rows::{ROWS, Row};

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(failed) if failed.is_empty() => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("these rows failed: {}", failed.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench/run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The names of the rows that failed.
fn run(options: Options) -> Result<Vec<&'static str>> {
    if options.list {
        for row in ROWS {
            println!("{:19} {}{}", row.name, row.title, if row.slow { " (slow)" } else { "" });
        }
        return Ok(Vec::new());
    }
    let rows = chosen(&options)?;
    // Its children end with this process, whatever ends it.
    ctrlc::set_handler(|| {
        servers::clean_up();
        std::process::exit(130);
    })?;
    machine::raise_file_limit()?;
    let site = build::site(&options)?;
    let about = report::About::find(&options, &site)?;
    let results = target().join("bench");
    fs::create_dir_all(&results).context("create target/bench")?;
    let raw = results.join(format!("{}-{}.jsonl", about.date, std::process::id()));
    let mut results = File::create(&raw).context("create the raw results")?;
    writeln!(results, "{}", serde_json::to_string(&about)?).context("write the raw results")?;
    let mut bench = Bench::new(options, site, results);
    let failed = measure(&mut bench, &rows);
    println!("{}", report::tables(&rows, &bench.samples, &about));
    if bench.options.docs {
        report::write_docs(&root(), &rows, &bench.samples, &about)?;
    }
    eprintln!("raw results: {}", raw.display());
    Ok(failed)
}

fn chosen(options: &Options) -> Result<Vec<&'static Row>> {
    for name in &options.only {
        if !ROWS.iter().any(|row| row.name == name) {
            bail!("there is no row {name}; see --list");
        }
    }
    let chosen = |row: &&Row| match options.only.is_empty() {
        true => !row.slow || options.full || options.smoke,
        false => options.only.iter().any(|name| name == row.name),
    };
    Ok(ROWS.iter().filter(chosen).collect())
}

/// Measures each row; one that fails does not keep the others from being measured.
fn measure(bench: &mut Bench, rows: &[&'static Row]) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for row in rows {
        if row.fresh {
            bench.dismiss();
        }
        bench.row = row.name;
        let rounds = if row.slow { 1 } else { bench.options.rounds() };
        for round in 0..rounds {
            bench.round = round;
            if let Err(error) = row.run(bench) {
                while servers::interrupted() {
                    // The handler of the interruption ends the process.
                    std::thread::park();
                }
                eprintln!("{} failed: {error:#}", row.name);
                failed.push(row.name);
                // A server may be in no state to go on with.
                bench.dismiss();
                bench.site.stop_kafka();
                break;
            }
        }
        if row.fresh {
            bench.dismiss();
        }
    }
    failed
}

/// The project's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("")
}

/// The project's target directory.
pub fn target() -> PathBuf {
    root().join("target")
}
