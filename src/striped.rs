//! Counters that all connections add to, in stripes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Stripes of each counter. If there are more threads, they share them.
const STRIPES: usize = 8;

/// A `T` in several stripes, each in a cache line of its own. Each thread adds to one of them. A
/// counter that every processor writes to at every command costs as much as reading a key, and so
/// does what is beside it in memory.
pub struct Striped<T>(Box<[Line<T>; STRIPES]>);

#[derive(Default)]
#[repr(align(64))]
struct Line<T>(T);

impl<T: Default> Default for Striped<T> {
    fn default() -> Self {
        Striped(Box::default())
    }
}

impl<T> Striped<T> {
    /// The stripe that this thread adds to.
    #[inline]
    pub fn own(&self) -> &T {
        &self.0[stripe()].0
    }

    /// The sum over all stripes.
    pub fn sum(&self, counter: impl Fn(&T) -> &AtomicU64) -> u64 {
        self.0
            .iter()
            .map(|line| counter(&line.0).load(Ordering::Relaxed))
            .fold(0, u64::wrapping_add)
    }

    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }

    /// Sets these counters to 0.
    pub fn reset<const N: usize>(&self, counters: impl Fn(&T) -> [&AtomicU64; N]) {
        for counter in self.0.iter().flat_map(|line| counters(&line.0)) {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    OWN.with(|own| *own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_threads_add_is_summed() {
        let striped = Striped::<[AtomicU64; 2]>::default();
        std::thread::scope(|scope| {
            for _ in 0..3 * STRIPES {
                scope.spawn(|| {
                    striped.own()[0].fetch_add(1, Ordering::Relaxed);
                    striped.own()[1].fetch_add(10, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(striped.sum(|two| &two[0]), 3 * STRIPES as u64);
        assert_eq!(striped.sum(|two| &two[1]), 30 * STRIPES as u64);
        striped.reset(|[first, _]| [first]);
        assert_eq!(
            (striped.sum(|two| &two[0]), striped.sum(|two| &two[1])),
            (0, 30 * STRIPES as u64)
        );
    }
}
