//! LATENCY: for each kind of event, the last times at which it took long.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

/// Samples kept per event, as in Redis.
const SAMPLES: usize = 160;
/// Most kinds of events that are kept.
const MAX_EVENTS: usize = 64;

/// One slow event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Seconds since the epoch.
    pub time: u64,
    pub milliseconds: u64,
}

/// What LATENCY LATEST reports about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    pub event: &'static str,
    pub last: Sample,
    /// Most milliseconds since the last reset.
    pub max: u64,
}

#[derive(Default)]
struct Event {
    samples: VecDeque<Sample>,
    max: u64,
}

#[derive(Default)]
pub struct Latency {
    events: Mutex<BTreeMap<&'static str, Event>>,
}

impl Latency {
    /// Notes an event that took at least `threshold` milliseconds; with 0, never. Of the events in
    /// one second the longest is kept.
    pub fn note(&self, event: &'static str, milliseconds: u64, threshold: u64) {
        if threshold == 0 || milliseconds < threshold {
            return;
        }
        let time = super::unix_seconds();
        let mut events = self.events.lock();
        if events.len() >= MAX_EVENTS && !events.contains_key(event) {
            return;
        }
        let event = events.entry(event).or_default();
        event.max = event.max.max(milliseconds);
        match event.samples.back_mut() {
            Some(last) if last.time == time => last.milliseconds = last.milliseconds.max(milliseconds),
            _ => {
                if event.samples.len() == SAMPLES {
                    event.samples.pop_front();
                }
                event.samples.push_back(Sample { time, milliseconds });
            }
        }
    }

    pub fn latest(&self) -> Vec<Latest> {
        let events = self.events.lock();
        let latest = events.iter().filter_map(|(&event, kept)| {
            let last = *kept.samples.back()?;
            Some(Latest {
                event,
                last,
                max: kept.max,
            })
        });
        latest.collect()
    }

    /// The samples of an event, oldest first.
    pub fn history(&self, event: &[u8]) -> Vec<Sample> {
        let events = self.events.lock();
        let found = events.iter().find(|(name, _)| name.as_bytes() == event);
        found.map_or(Vec::new(), |(_, event)| event.samples.iter().copied().collect())
    }

    /// Forgets these events, or all of them. Returns how many there were.
    pub fn reset(&self, only: &[&[u8]]) -> usize {
        let mut events = self.events.lock();
        let before = events.len();
        events.retain(|name, _| !only.is_empty() && !only.contains(&name.as_bytes()));
        before - events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_above_the_threshold_are_kept() {
        let latency = Latency::default();
        latency.note("command", 5, 0);
        latency.note("command", 5, 6);
        assert!(latency.latest().is_empty());
        latency.note("command", 9, 6);
        latency.note("command", 7, 6);
        latency.note("fork", 8, 6);
        let latest = latency.latest();
        assert_eq!(
            latest.iter().map(|l| (l.event, l.max)).collect::<Vec<_>>(),
            [("command", 9), ("fork", 8)]
        );
        assert!(!latency.history(b"command").is_empty());
        assert!(latency.history(b"nothing").is_empty());
        assert_eq!(latency.reset(&[b"fork", b"nothing"]), 1);
        assert_eq!(latency.reset(&[]), 1);
    }
}
