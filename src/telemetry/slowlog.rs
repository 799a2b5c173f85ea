//! SLOWLOG: the last commands that clients waited long for, shortened as Redis does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// Arguments of an entry. The last one says how many were left out.
const MAX_ARGUMENTS: usize = 32;
/// Bytes of an argument.
const MAX_BYTES: usize = 128;
/// Within so many milliseconds no more commands are noted than the log keeps, but at least
/// [`ALWAYS_NOTED`]. When thousands wait for the same disk, noting them all would only make it
/// worse.
const TICK_MS: u64 = 10;
const ALWAYS_NOTED: usize = 128;

/// One slow command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowCommand {
    pub id: u64,
    /// Seconds since the epoch.
    pub time: u64,
    pub microseconds: u64,
    pub arguments: Vec<Bytes>,
    pub client_address: String,
    pub client_name: Bytes,
}

#[derive(Default)]
pub struct Slowlog {
    next_id: AtomicU64,
    /// Number of the tick in which commands were last noted, and how many.
    tick: AtomicU64,
    noted: AtomicUsize,
    /// Newest first.
    entries: Mutex<VecDeque<SlowCommand>>,
}

impl Slowlog {
    /// Whether a command that was slow is to be noted.
    pub fn takes(&self, now_ms: u64, max_len: usize) -> bool {
        let tick = now_ms / TICK_MS;
        if self.tick.swap(tick, Ordering::Relaxed) != tick {
            self.noted.store(0, Ordering::Relaxed);
        }
        self.noted.fetch_add(1, Ordering::Relaxed) < max_len.max(ALWAYS_NOTED)
    }

    /// Notes a command. After that the log has at most `max_len` entries.
    pub fn note(
        &self,
        arguments: &[&[u8]],
        microseconds: u64,
        client_address: String,
        client_name: Bytes,
        max_len: usize,
    ) {
        let mut entries = self.entries.lock();
        if max_len > 0 {
            entries.push_front(SlowCommand {
                id: self.next_id.fetch_add(1, Ordering::Relaxed),
                time: super::unix_seconds(),
                microseconds,
                arguments: shorten(arguments),
                client_address,
                client_name,
            });
        }
        entries.truncate(max_len);
    }

    /// The newest entries, newest first.
    pub fn latest(&self, count: usize) -> Vec<SlowCommand> {
        self.entries.lock().iter().take(count).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn reset(&self) {
        self.entries.lock().clear();
    }
}

/// A command as it is reported: its first arguments, and the beginnings of those.
pub fn shorten(arguments: &[&[u8]]) -> Vec<Bytes> {
    let kept = match arguments.len() {
        all if all <= MAX_ARGUMENTS => all,
        _ => MAX_ARGUMENTS - 1,
    };
    let mut shortened: Vec<Bytes> = arguments[..kept].iter().map(|argument| shorten_one(argument)).collect();
    if kept < arguments.len() {
        shortened.push(format!("... ({} more arguments)", arguments.len() - kept).into());
    }
    shortened
}

fn shorten_one(argument: &[u8]) -> Bytes {
    if argument.len() <= MAX_BYTES {
        return Bytes::copy_from_slice(argument);
    }
    let mut short = argument[..MAX_BYTES].to_vec();
    short.extend_from_slice(format!("... ({} more bytes)", argument.len() - MAX_BYTES).as_bytes());
    short.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(log: &Slowlog, arguments: &[&[u8]], max_len: usize) {
        log.note(arguments, 7, "127.0.0.1:1".into(), Bytes::new(), max_len);
    }

    #[test]
    fn long_commands_are_shortened() {
        let log = Slowlog::default();
        let long = vec![b'x'; 200];
        let mut arguments: Vec<&[u8]> = vec![b"mset"; 40];
        arguments[1] = &long;
        note(&log, &arguments, 8);
        let noted = log.latest(1).remove(0).arguments;
        assert_eq!(noted.len(), 32);
        assert_eq!(noted[1], [&vec![b'x'; 128][..], b"... (72 more bytes)"].concat());
        assert_eq!(noted[31], "... (9 more arguments)");
        note(&log, &arguments[..32], 8);
        assert_eq!(log.latest(1)[0].arguments[31], "mset");
    }

    #[test]
    fn a_flood_of_slow_commands_is_not_noted_in_full() {
        let log = Slowlog::default();
        let taken = |now: u64, max_len| (0..300).filter(|_| log.takes(now, max_len)).count();
        assert_eq!([taken(1_000, 3), taken(1_001, 3), taken(1_010, 3)], [128, 0, 128]);
        assert_eq!(taken(1_020, 200), 200);
    }

    #[test]
    fn the_newest_entries_are_kept() {
        let log = Slowlog::default();
        for _ in 0..5 {
            note(&log, &[b"get"], 3);
        }
        let ids: Vec<u64> = log.latest(10).iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [4, 3, 2]);
        log.reset();
        assert!(log.is_empty());
        note(&log, &[b"get"], 0);
        assert!(log.is_empty());
        note(&log, &[b"get"], 1);
        assert_eq!(log.latest(1)[0].id, 5);
    }
}
