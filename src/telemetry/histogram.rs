//! Durations, counted by length in steps of 3 %, from a nanosecond to a minute.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps in which a duration doubles.
const STEPS: usize = 32;
/// Durations are counted up to this power of two, in nanoseconds: 68 s. Longer ones count as that
/// long.
const LONGEST: u32 = 36;
const COUNTS: usize = STEPS * (LONGEST as usize - 4);
/// The shortest duration that LATENCY HISTOGRAM reports, in nanoseconds. Each of the others is
/// twice as long.
const FIRST_BUCKET: u64 = 1_024;

/// Counts of durations. Allocates its memory with the first one.
#[derive(Default)]
pub struct Histogram(OnceLock<Box<[AtomicU64; COUNTS]>>);

/// What several histograms counted together.
pub struct Times {
    counts: Vec<u64>,
    pub total: u64,
}

impl Histogram {
    pub fn add(&self, time: Duration) {
        let counts = self.0.get_or_init(|| Box::new([const { AtomicU64::new(0) }; COUNTS]));
        counts[place(time)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn reset(&self) {
        for count in self.0.get().iter().flat_map(|counts| counts.iter()) {
            count.store(0, Ordering::Relaxed);
        }
    }
}

impl Times {
    pub fn of<'h>(histograms: impl Iterator<Item = &'h Histogram>) -> Times {
        let mut counts = vec![0; COUNTS];
        for histogram in histograms.filter_map(|histogram| histogram.0.get()) {
            for (sum, count) in counts.iter_mut().zip(histogram.iter()) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        let total = counts.iter().sum();
        Times { counts, total }
    }

    /// The duration, in nanoseconds, that so many percent did not exceed.
    pub fn percentile(&self, percent: f64) -> u64 {
        let wanted = ((self.total as f64 * percent / 100.0).ceil() as u64).max(1);
        let mut so_far = 0;
        let found = self.counts.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        });
        found.map_or(0, end)
    }

    /// How many durations were shorter than each of these, in nanoseconds: powers of two from 32
    /// on, in order.
    pub fn below<const N: usize>(&self, limits: [u64; N]) -> [u64; N] {
        let (mut so_far, mut counts) = (0, self.counts.iter().enumerate().peekable());
        limits.map(|limit| {
            while let Some((_, count)) = counts.next_if(|(place, _)| end(*place) < limit) {
                so_far += count;
            }
            so_far
        })
    }

    /// All durations together, in seconds: each as the middle of its step, so within 2 %.
    pub fn seconds(&self) -> f64 {
        let of_step = |(place, &count): (usize, &u64)| {
            let begin = place.checked_sub(1).map_or(0, |before| end(before) + 1);
            count as f64 * (begin + end(place)) as f64 / 2.0
        };
        self.counts.iter().enumerate().map(of_step).sum::<f64>() / 1e9
    }

    /// For LATENCY HISTOGRAM: microseconds, each about twice those before, and how many durations
    /// were at most that long.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let mut buckets = Vec::new();
        let (mut so_far, mut told, mut limit) = (0, 0, FIRST_BUCKET);
        for (place, count) in self.counts.iter().enumerate() {
            so_far += count;
            if end(place) + 1 >= limit {
                if so_far > told {
                    // Redis reports the end of its own step, of which there are 128 where a
                    // duration doubles.
                    buckets.push(((limit + limit / 128 - 1) / 1_000, so_far));
                    told = so_far;
                }
                limit *= 2;
            }
        }
        buckets
    }
}

/// The index at which a duration is counted.
fn place(time: Duration) -> usize {
    let nanoseconds = u64::try_from(time.as_nanos())
        .unwrap_or(u64::MAX)
        .min((1 << LONGEST) - 1) as usize;
    match nanoseconds.checked_ilog2().filter(|power| 1 << power >= STEPS) {
        None => nanoseconds,
        Some(power) => {
            let shift = power - STEPS.ilog2();
            shift as usize * STEPS + (nanoseconds >> shift)
        }
    }
}

/// The longest duration, in nanoseconds, that is counted at this index.
fn end(place: usize) -> u64 {
    match (place / STEPS).checked_sub(1) {
        None => place as u64,
        Some(shift) => (((place - shift * STEPS + 1) as u64) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_its_place() {
        for place in 0..COUNTS {
            assert_eq!(super::place(Duration::from_nanos(end(place))), place);
            assert_eq!(
                super::place(Duration::from_nanos(end(place) + 1)),
                (place + 1).min(COUNTS - 1)
            );
        }
        assert_eq!(super::place(Duration::MAX), COUNTS - 1);
    }

    #[test]
    fn percentiles_and_buckets() {
        let (one, other) = (Histogram::default(), Histogram::default());
        for microseconds in 1..=99 {
            one.add(Duration::from_micros(microseconds));
        }
        other.add(Duration::from_millis(5));
        let times = Times::of([&one, &other, &Histogram::default()].into_iter());
        assert_eq!(times.total, 100);
        let near = |percent, microseconds: f64| {
            let told = times.percentile(percent) as f64 / 1_000.0;
            assert!(
                (microseconds..microseconds * 1.04).contains(&told),
                "p{percent} = {told}"
            );
        };
        near(50.0, 50.0);
        near(99.0, 99.0);
        near(99.9, 5_000.0);
        near(0.0, 1.0);
        // As redis-server 7.0.15 names them.
        assert_eq!(
            times.buckets(),
            [
                (1, 1),
                (2, 2),
                (4, 4),
                (8, 8),
                (16, 16),
                (33, 32),
                (66, 65),
                (132, 99),
                (8454, 100)
            ]
        );
        assert_eq!(times.below([1 << 10, 1 << 14, 1 << 22, 1 << 34]), [1, 16, 99, 100]);
        one.reset();
        assert_eq!(Times::of([&one].into_iter()).total, 0);
    }
}
