//! The connections that watch what others execute ([`Monitors`]), and what scripts execute before
//! it is shown to them ([`ScriptLines`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::clients::Client;

/// Bytes of lines that one script may show. What it executes after that is not shown.
const MOST_OF_SCRIPT: usize = 16 << 20;

/// The connections of this node that are in the MONITOR mode.
#[derive(Default)]
pub struct Monitors {
    /// How many there are, so that a command costs nothing while there is none.
    count: AtomicUsize,
    clients: Mutex<Vec<Arc<Client>>>,
}

impl Monitors {
    #[inline]
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Calls `show` for each of them. When a connection has left the mode, nothing more is shown
    /// to it.
    pub fn each(&self, show: impl Fn(&Arc<Client>)) {
        self.clients.lock().iter().for_each(show);
    }
}

/// A connection in the MONITOR mode. Dropping this ends the mode.
pub struct Monitoring {
    monitors: Arc<Monitors>,
    client: Arc<Client>,
}

impl Monitoring {
    pub fn new(monitors: &Arc<Monitors>, client: &Arc<Client>) -> Self {
        monitors.clients.lock().push(client.clone());
        monitors.count.fetch_add(1, Ordering::Relaxed);
        client.monitors.store(true, Ordering::Relaxed);
        Monitoring {
            monitors: monitors.clone(),
            client: client.clone(),
        }
    }
}

impl Drop for Monitoring {
    fn drop(&mut self) {
        self.client.monitors.store(false, Ordering::Relaxed);
        self.monitors.count.fetch_sub(1, Ordering::Relaxed);
        self.monitors
            .clients
            .lock()
            .retain(|client| client.id != self.client.id);
    }
}

/// Lines about the commands of scripts, until it is certain that they are executed.
#[derive(Default)]
pub struct ScriptLines {
    lines: VecDeque<Line>,
    bytes: usize,
}

enum Line {
    Of(Bytes),
    /// The end of one script.
    End,
}

impl ScriptLines {
    /// What was noted is computed again, or not executed at all.
    pub fn clear(&mut self) {
        *self = ScriptLines::default();
    }

    /// A script of a transaction has ended.
    pub fn end(&mut self) {
        self.lines.push_back(Line::End);
    }

    /// The next line of a script; `None` at its end.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        match self.lines.pop_front()? {
            Line::Of(line) => Some(line),
            Line::End => None,
        }
    }

    pub(super) fn add(&mut self, line: Bytes) {
        self.bytes += line.len();
        if self.bytes <= MOST_OF_SCRIPT {
            self.lines.push_back(Line::Of(line));
        }
    }
}
