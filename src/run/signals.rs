//! Signals: SIGINT and SIGTERM stop the server, SIGHUP reads the file of settings again.

use std::process::exit;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::Problem;
use crate::command::Shared;
use crate::config::{Config, Reloaded};
use crate::telemetry::logging::Logging;

/// Wrappers such as timeout(1) send one request as two signals.
const SAME_REQUEST: Duration = Duration::from_millis(200);

/// Ignores signals that would end the process and ask nothing of it. SIGHUP is one of them until it
/// is handled ([`Signals`]). A file that is larger than the process may write (SIGXFSZ) is reported
/// by the write.
pub(super) fn ignore_signals() {
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGXFSZ] {
        // SAFETY: plain system call; nothing of this process handles these signals yet.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The signals that ask something of the server.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    config: Arc<Config>,
    logging: Arc<Logging>,
}

impl Signals {
    pub(super) fn new(config: &Arc<Config>, logging: &Arc<Logging>) -> Result<Signals, Problem> {
        let handler = |kind| signal(kind).map_err(|e| format!("take signals: {e}"));
        Ok(Signals {
            interrupt: handler(SignalKind::interrupt())?,
            terminate: handler(SignalKind::terminate())?,
            hangup: handler(SignalKind::hangup())?,
            config: config.clone(),
            logging: logging.clone(),
        })
    }

    /// The number of the next signal that asks the server to stop. SIGHUP is handled here.
    pub(super) async fn next(&mut self) -> i32 {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return libc::SIGINT,
                _ = self.terminate.recv() => return libc::SIGTERM,
                _ = self.hangup.recv() => self.reload(),
            }
        }
    }

    /// Continues in a new log file, and applies the current contents of the file of settings.
    fn reload(&self) {
        self.logging.reopen();
        let Some(file) = self.config.file() else {
            return match self.config.reload_tls() {
                Ok(()) => info!("SIGHUP: there is no file of settings to read again"),
                Err(reason) => warn!("SIGHUP: the settings of TLS stay as they are: {reason}"),
            };
        };
        let file = file.display();
        match self.config.reload() {
            Err(reason) => warn!("SIGHUP: nothing of {file} is taken over: {reason}"),
            Ok(Reloaded { changed, at_next_start }) => {
                info!("SIGHUP: read {file} again; changed: {}", or_nothing(&changed));
                if !at_next_start.is_empty() {
                    warn!(
                        "settings in {file} that change only at the next start: {}",
                        at_next_start.join(" ")
                    );
                }
            }
        }
    }

    /// The first signal stops the server in good order, the next one at once.
    pub(super) async fn watch(mut self, shared: Arc<Shared>) {
        let number = self.next().await;
        info!("signal {number}: stopping; another one stops at once");
        shared.shutdown.ask();
        let first = Instant::now();
        loop {
            let number = self.next().await;
            if first.elapsed() > SAME_REQUEST {
                warn!("signal {number}: stopping at once");
                exit(128 + number);
            }
        }
    }
}

/// Names for a log line.
fn or_nothing(names: &[&str]) -> String {
    match names {
        [] => "nothing".into(),
        names => names.join(" "),
    }
}
