//! Arguments → configuration → run. Exit codes: 0 stopped as asked, 1 could not start or go on, 2
//! wrong settings.

use std::process::ExitCode;

use highwater::config::{Config, Refused};
use highwater::{copy, export, files, import, probe, run, snapshot, supervise};

fn main() -> ExitCode {
    files::restrict_new();
    let config = match Config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(config) => config,
        Err(Refused::Shown(text)) => {
            // If this fails, there is no other place to report it.
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
        Err(Refused::Wrong(reason)) => {
            eprintln!("highwater: {reason}");
            return ExitCode::from(2);
        }
    };
    let done = if config.ping() {
        probe::ping(&config)
    } else if let Some(options) = config.copy() {
        copy::copy(&config, options)
    } else if let Some(options) = config.import() {
        import::import(&config, options)
    } else if let Some(options) = config.export() {
        export::export(&config, options)
    } else if let Some(options) = config.snapshot_options() {
        snapshot::snapshot(&config, options)
    } else if let Some(options) = config.restore() {
        snapshot::restore(&config, options)
    } else {
        run::run(config)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            supervise::tell(&problem);
            ExitCode::FAILURE
        }
    }
}
