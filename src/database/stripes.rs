//! Locks of keys, in stripes: a key's stripe is chosen by its hash.
//!
//! Nearly every holder needs its stripes for microseconds, and others block until they are free. A
//! holder that computes for longer marks its stripes. Others are then refused at once, and wait
//! without holding up a thread ([`Stripes::freed`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::store::key_hash;

const STRIPES: usize = 1024;
/// How long a thread blocks before it checks again whether the stripe is now held for long.
const PATIENCE: Duration = Duration::from_millis(1);

pub struct Stripes {
    stripes: Box<[Stripe]>,
    /// Notified when stripes that were held for long are free.
    freed: Notify,
}

#[derive(Default)]
struct Stripe {
    lock: Mutex<()>,
    held_for_long: AtomicBool,
}

/// How long a holder keeps its stripes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Short,
    Long,
}

/// A stripe that is held for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken(usize);

/// Stripes that are locked until this is dropped.
#[derive(Default)]
pub struct Held<'s> {
    guards: SmallVec<[(&'s Stripe, MutexGuard<'s, ()>); 2]>,
    /// Set if they are held for long.
    freed: Option<&'s Notify>,
}

impl Default for Stripes {
    fn default() -> Self {
        Stripes {
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            freed: Notify::new(),
        }
    }
}

impl Stripes {
    /// Locks the stripes of these keys. All callers lock in the same order.
    pub fn lock<'k>(&self, keys: impl Iterator<Item = &'k [u8]>, hold: Hold) -> Result<Held<'_>, Taken> {
        let mut stripes: SmallVec<[usize; 2]> = keys.map(|key| key_hash(key) as usize % STRIPES).collect();
        stripes.sort_unstable();
        stripes.dedup();
        self.lock_in_order(stripes.into_iter(), hold)
    }

    pub fn lock_all(&self, hold: Hold) -> Result<Held<'_>, Taken> {
        self.lock_in_order(0..STRIPES, hold)
    }

    fn lock_in_order(&self, stripes: impl Iterator<Item = usize>, hold: Hold) -> Result<Held<'_>, Taken> {
        let mut held = Held::default();
        if hold == Hold::Long {
            held.freed = Some(&self.freed);
        }
        for number in stripes {
            let stripe = &self.stripes[number];
            let guard = match hold {
                Hold::Short => stripe.lock_unless_held_for_long().ok_or(Taken(number))?,
                Hold::Long => stripe.lock_for_long(),
            };
            held.guards.push((stripe, guard));
        }
        Ok(held)
    }

    /// Waits until the stripe is not held for long.
    pub async fn freed(&self, Taken(stripe): Taken) {
        loop {
            let freed = self.freed.notified();
            if !self.stripes[stripe].held_for_long.load(Ordering::Acquire) {
                return;
            }
            freed.await;
        }
    }
}

impl Stripe {
    fn lock_unless_held_for_long(&self) -> Option<MutexGuard<'_, ()>> {
        if let Some(guard) = self.lock.try_lock() {
            return Some(guard);
        }
        while !self.held_for_long.load(Ordering::Acquire) {
            if let Some(guard) = self.lock.try_lock_for(PATIENCE) {
                return Some(guard);
            }
        }
        None
    }

    fn lock_for_long(&self) -> MutexGuard<'_, ()> {
        let guard = self.lock.lock();
        self.held_for_long.store(true, Ordering::Release);
        guard
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Some(freed) = self.freed else {
            return;
        };
        for (stripe, guard) in self.guards.drain(..) {
            stripe.held_for_long.store(false, Ordering::Release);
            drop(guard);
        }
        freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stripes: &Stripes, key: &'static [u8], hold: Hold) -> Result<usize, Taken> {
        let held = stripes.lock([key].into_iter(), hold)?;
        Ok(held.guards.len())
    }

    #[test]
    fn who_finds_a_stripe_held_for_long_is_refused_at_once() {
        let stripes = Stripes::default();
        let held = stripes
            .lock([&b"a"[..], b"b", b"a"].into_iter(), Hold::Long)
            .expect("free");
        assert_eq!(held.guards.len(), 2);
        assert!(key(&stripes, b"a", Hold::Short).is_err());
        assert!(stripes.lock_all(Hold::Short).is_err());
        assert_eq!(key(&stripes, b"c", Hold::Short), Ok(1));
        drop(held);
        assert_eq!(key(&stripes, b"a", Hold::Short), Ok(1));
    }

    #[test]
    fn a_thread_that_blocks_goes_when_the_stripe_becomes_one_that_is_held_for_long() {
        let stripes = Stripes::default();
        let short = stripes.lock([&b"a"[..]].into_iter(), Hold::Short).expect("free");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| key(&stripes, b"a", Hold::Short));
            std::thread::sleep(5 * PATIENCE);
            assert!(!waiting.is_finished(), "a short holder is waited for");
            stripes.stripes[key_hash(b"a") as usize % STRIPES]
                .held_for_long
                .store(true, Ordering::Release);
            assert!(waiting.join().expect("no panic").is_err());
        });
        drop(short);
    }

    #[tokio::test]
    async fn the_end_of_a_long_hold_is_waited_for() {
        let stripes = Stripes::default();
        let held = stripes.lock([&b"a"[..]].into_iter(), Hold::Long).expect("free");
        let Err(taken) = stripes.lock([&b"a"[..]].into_iter(), Hold::Short) else {
            panic!("it is held");
        };
        let mut waiting = std::pin::pin!(stripes.freed(taken));
        let early = tokio::time::timeout(Duration::from_millis(20), waiting.as_mut()).await;
        assert!(early.is_err(), "it is still held");
        drop(held);
        waiting.await;
    }
}
