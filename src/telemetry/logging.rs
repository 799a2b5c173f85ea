//! Log lines: text or JSON, to standard error or a file. The level can change while the server
//! runs.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::Config;
use crate::supervise;

/// Starts logging as configured. A change of `loglevel` takes effect at once. Called once per
/// process.
pub fn start(config: &Config) -> Result<Logging, String> {
    let output = match config.logfile() {
        None => Output::Stderr(Arc::default()),
        Some(path) => {
            let file = LogFile::open(&path)
                .map_err(|e| format!("open the log file {}: {e}; name another with --logfile", path.display()))?;
            Output::File(Arc::new(file))
        }
    };
    let logging = Logging { output: output.clone() };
    let (filter, handle) = reload::Layer::new(filter(&config.loglevel()));
    let lines: Box<dyn Layer<Filtered> + Send + Sync> = if config.log_is_json() {
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(output)
            .boxed()
    } else {
        let colours = logging.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let text = tracing_subscriber::fmt::layer().with_target(false).with_ansi(colours);
        text.with_writer(output).boxed()
    };
    tracing_subscriber::registry()
        // The filter is for all layers, not only for this one: if a library logs through the `log`
        // crate and the filter of one layer suppresses it, the next line of its thread is lost too,
        // whatever it is.
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|e| format!("start logging: {e}"))?;
    std::panic::set_hook(Box::new(tell_panic));
    config.on_change("loglevel", move |config| {
        if let Err(error) = handle.modify(|current| *current = self::filter(&config.loglevel())) {
            tracing::error!(%error, "cannot change the log level");
        }
    });
    Ok(logging)
}

/// A panic is logged like everything else. The owner of the thread reports what it means.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let (thread, trace) = (thread.name().unwrap_or("unnamed"), Backtrace::capture());
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = supervise::panic_text(panic.payload());
    match trace.status() {
        BacktraceStatus::Captured => tracing::error!(thread, place, "panicked: {text}\n{trace}"),
        _ => tracing::error!(thread, place, "panicked: {text}"),
    }
}

type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;

/// Where log lines go.
pub struct Logging {
    output: Output,
}

impl Logging {
    /// True if a person watches the log lines.
    pub fn is_terminal(&self) -> bool {
        matches!(self.output, Output::Stderr(_)) && io::stderr().is_terminal()
    }

    /// Continues in a new file if the current one was moved away (logrotate). If that fails,
    /// continues in the current one.
    pub fn reopen(&self) {
        if let Output::File(file) = &self.output
            && let Err(error) = file.reopen()
        {
            tracing::warn!(%error, "cannot open the log file {} again", file.path.display());
        }
    }

    /// While a bar is set, log lines are written above it.
    pub fn show_bar(&self, bar: Option<ProgressBar>) {
        if let Output::Stderr(shown) = &self.output {
            *shown.lock() = bar;
        }
    }
}

/// Redis's levels. Libraries are one level quieter.
fn filter(level: &str) -> Targets {
    let (own, others) = match level {
        "debug" => (LevelFilter::TRACE, LevelFilter::DEBUG),
        "verbose" => (LevelFilter::DEBUG, LevelFilter::INFO),
        "notice" => (LevelFilter::INFO, LevelFilter::WARN),
        "warning" => (LevelFilter::WARN, LevelFilter::ERROR),
        _ => (LevelFilter::OFF, LevelFilter::OFF),
    };
    Targets::new().with_default(others).with_target("highwater", own)
}

#[derive(Clone)]
enum Output {
    Stderr(Arc<Mutex<Option<ProgressBar>>>),
    File(Arc<LogFile>),
}

struct LogFile {
    path: PathBuf,
    state: Mutex<LogFileState>,
}

struct LogFileState {
    file: File,
    /// Lines that could not be written since the last one that was.
    lost: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        Ok(LogFile {
            path: path.to_owned(),
            state: Mutex::new(LogFileState {
                file: append_to(path)?,
                lost: 0,
            }),
        })
    }

    fn reopen(&self) -> io::Result<()> {
        self.state.lock().file = append_to(&self.path)?;
        Ok(())
    }

    fn write(&self, line: &[u8]) {
        let mut state = self.state.lock();
        match state.file.write_all(line) {
            Ok(()) if state.lost == 0 => {}
            Ok(()) => {
                let lost = std::mem::take(&mut state.lost);
                // If this line is lost too, the next one reports it.
                let _ = writeln!(state.file, "{lost} log lines before this one could not be written");
            }
            Err(error) => {
                state.lost += 1;
                if state.lost == 1 {
                    // If this fails, there is no other place to report it.
                    let _ = writeln!(io::stderr(), "highwater: cannot write {}: {error}", self.path.display());
                }
            }
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Output;

    fn make_writer(&'a self) -> Output {
        self.clone()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    /// Never fails: after an error the logging library would print it to standard error, and panic
    /// if that is not read any more (a closed terminal).
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let write = || drop(io::stderr().write_all(bytes));
        match self {
            Output::File(file) => file.write(bytes),
            Output::Stderr(bar) => match &*bar.lock() {
                Some(bar) => bar.suspend(write),
                None => write(),
            },
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_as_in_redis() {
        let would = |level: &str, target: &str, at: tracing::Level| filter(level).would_enable(target, &at);
        assert!(would("notice", "highwater::log", tracing::Level::INFO));
        assert!(!would("notice", "highwater::log", tracing::Level::DEBUG));
        assert!(!would("notice", "sled", tracing::Level::INFO));
        assert!(would("verbose", "highwater::log", tracing::Level::DEBUG));
        assert!(!would("warning", "highwater::log", tracing::Level::INFO));
        assert!(!would("nothing", "highwater::log", tracing::Level::ERROR));
    }
}
