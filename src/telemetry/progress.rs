//! How far something is that takes long: a bar for a terminal, else a log line from time to time.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::logging::Logging;

/// What takes longer than this is shown.
const QUIET: Duration = Duration::from_millis(500);
/// Time between log lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Takes its bar away when it is dropped.
pub struct Progress<'l> {
    logging: &'l Logging,
    what: &'static str,
    unit: &'static str,
    bar: Option<ProgressBar>,
    started: Instant,
    told: Instant,
}

impl<'l> Progress<'l> {
    /// `unit`: of what is counted, "records" for one.
    pub fn new(logging: &'l Logging, what: &'static str, unit: &'static str) -> Self {
        let now = Instant::now();
        Progress {
            logging,
            what,
            unit,
            bar: None,
            started: now,
            told: now,
        }
    }

    pub fn show(&mut self, done: u64, total: u64) {
        if self.started.elapsed() < QUIET || total == 0 {
            return;
        }
        let done = done.min(total);
        if self.logging.is_terminal() {
            let bar = self.bar.get_or_insert_with(|| new_bar(self.logging, self.what));
            bar.set_length(total);
            bar.set_position(done);
        } else if self.told.elapsed() >= PAUSE {
            self.told = Instant::now();
            let percent = u128::from(done) * 100 / u128::from(total);
            tracing::info!("{}: {percent}% ({done} of {total} {})", self.what, self.unit);
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            self.logging.show_bar(None);
            bar.finish_and_clear();
        }
    }
}

/// Log lines go above it.
fn new_bar(logging: &Logging, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {percent}%, {eta} left");
    let bar = ProgressBar::new(0).with_message(what);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    logging.show_bar(Some(bar.clone()));
    bar
}
