//! A hash table of slots that knows where in memory a key is before the key is read: open
//! addressing with linear probing, at most three quarters of the places in use. It does not know
//! what a slot means.
//!
//! Without that need, a library's table would do. A burst of reads at random places is bound by
//! waiting for memory. It waits once instead of each time if all of it is requested first
//! (docs/performance.md).

/// What a table holds.
pub trait Hashed {
    fn hash(&self) -> u32;
    /// The other part of memory that is read when this slot is found.
    fn behind(&self) -> &[u8];
}

pub struct Table<T> {
    places: Box<[Option<T>]>,
    len: usize,
}

/// Bytes that a processor reads from memory at once.
const LINE: usize = 64;
/// How many lines of what is behind a slot are prefetched.
const LINES_BEHIND: usize = 3;
const LEAST: usize = 8;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table {
            places: Box::default(),
            len: 0,
        }
    }
}

impl<T: Hashed> Table<T> {
    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.len
    }

    /// The slot at a place.
    pub fn at(&mut self, place: usize) -> Option<&mut T> {
        self.places.get_mut(place)?.as_mut()
    }

    /// The place of a hash, if that is free. Also the place that is as far into the table as the
    /// hash is into 2³².
    pub fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.places.len() as u64) >> u32::BITS) as usize
    }

    /// The place after this one. The first comes after the last.
    pub fn next(&self, place: usize) -> usize {
        match place + 1 {
            end if end == self.places.len() => 0,
            next => next,
        }
    }

    pub fn find(&mut self, hash: u32, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let place = self.place(hash, is)?;
        self.places[place].as_mut()
    }

    fn place(&self, hash: u32, is: impl Fn(&T) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut place = self.home(hash);
        // There is always a free place, which ends the loop.
        while let Some(there) = &self.places[place] {
            if there.hash() == hash && is(there) {
                return Some(place);
            }
            place = self.next(place);
        }
        None
    }

    /// Removes and returns the slot that is found.
    pub fn take(&mut self, hash: u32, is: impl Fn(&T) -> bool) -> Option<T> {
        let place = self.place(hash, is)?;
        self.remove(place)
    }

    /// Adds a slot that is not in the table yet.
    pub fn insert(&mut self, new: T) {
        if (self.len + 1) * 4 > self.places.len() * 3 {
            let more = empty(self.grown());
            let old = std::mem::replace(&mut self.places, more);
            for there in old.into_iter().flatten() {
                self.put(there);
            }
        }
        self.put(new);
        self.len += 1;
    }

    /// Number of places of the next size. Jemalloc has four sizes in each doubling. What is between
    /// two sizes is lost, and with larger steps more places would be empty on average.
    fn grown(&self) -> usize {
        let place = size_of::<Option<T>>();
        let bytes = self.places.len() * place;
        // This size may be less than one place short of one of jemalloc's.
        let least = (bytes + bytes / 8).max(LEAST * place);
        let step = (least.next_power_of_two() / 8).max(1);
        least.next_multiple_of(step) / place
    }

    fn put(&mut self, new: T) {
        let mut place = self.home(new.hash());
        while self.places[place].is_some() {
            place = self.next(place);
        }
        self.places[place] = Some(new);
    }

    /// Removes the slot at a place. The slots after it move up as far as they may, so that they are
    /// still found.
    pub fn remove(&mut self, place: usize) -> Option<T> {
        let removed = self.places.get_mut(place)?.take()?;
        self.len -= 1;
        let places = self.places.len();
        let distance = |from: usize, to: usize| if to < from { to + places - from } else { to - from };
        let (mut free, mut place) = (place, self.next(place));
        while let Some(there) = &self.places[place] {
            let home = self.home(there.hash());
            // The way from its home passes the free place.
            if distance(home, place) >= distance(free, place) {
                self.places.swap(free, place);
                free = place;
            }
            place = self.next(place);
        }
        Some(removed)
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        let old = std::mem::replace(&mut self.places, empty(0));
        let size = old.len();
        let kept: Vec<T> = old.into_iter().flatten().filter(|there| keep(there)).collect();
        self.len = kept.len();
        if !kept.is_empty() {
            self.places = empty(size);
            kept.into_iter().for_each(|there| self.put(there));
        }
    }

    /// The most taken places without a free one between them: what the longest search passes.
    #[cfg(test)]
    pub fn longest_row(&self) -> usize {
        let rows = self.places.split(Option::is_none).map(<[_]>::len);
        rows.max().unwrap_or(0)
    }

    /// Prefetches the memory where a search for this hash begins.
    pub fn prefetch(&self, hash: u32) {
        if !self.places.is_empty() {
            prefetch(&self.places[self.home(hash)]);
        }
    }

    /// Prefetches what is behind the slot where a search for this hash is likely to end.
    /// [`Table::prefetch`] has to be called some time before.
    pub fn prefetch_behind(&self, hash: u32) {
        if let Some(place) = self.place(hash, |_| true)
            && let Some(there) = &self.places[place]
        {
            let behind = there.behind();
            behind
                .chunks(LINE)
                .take(LINES_BEHIND)
                .for_each(|line| prefetch(&line[0]));
        }
    }
}

fn empty<T>(places: usize) -> Box<[Option<T>]> {
    std::iter::repeat_with(|| None).take(places).collect()
}

/// Requests the line of memory that holds this from the processor, and does not wait for it.
#[inline]
fn prefetch<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it is a hint, which reads nothing, and is allowed with every address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    struct One(u32, u16);

    impl Hashed for One {
        fn hash(&self) -> u32 {
            self.0
        }
        fn behind(&self) -> &[u8] {
            &[]
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u16),
        Remove(u32, u16),
        Retain(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few hashes. Some make clusters run over the end.
        let hash = || prop_oneof![0..4_u32, (u32::MAX - 6)..=u32::MAX];
        let step = prop_oneof![
            6 => (hash(), 0..6_u16).prop_map(|(hash, name)| Step::Insert(hash, name)),
            5 => (hash(), 0..6_u16).prop_map(|(hash, name)| Step::Remove(hash, name)),
            1 => (1..5_u16).prop_map(Step::Retain),
        ];
        prop::collection::vec(step, 0..200)
    }

    #[test]
    fn two_fifths_of_the_places_at_most_are_empty() {
        let mut table = Table::default();
        for number in 1..30_000_usize {
            table.insert(One(number as u32 * 143_165, 0));
            let least = if number < 100 { 45 } else { 59 };
            assert!(
                number < LEAST || number * 100 >= table.places.len() * least,
                "{number} of {}",
                table.places.len()
            );
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in steps()) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(hash, name) => {
                        if map.insert((hash, name), ()).is_none() {
                            table.insert(One(hash, name));
                        }
                    }
                    Step::Remove(hash, name) => {
                        let place = table.place(hash, |one| one.1 == name);
                        prop_assert_eq!(place.is_some(), map.remove(&(hash, name)).is_some());
                        if let Some(place) = place {
                            let removed = table.remove(place).expect("it was there");
                            prop_assert_eq!((removed.0, removed.1), (hash, name));
                        }
                    }
                    Step::Retain(divisor) => {
                        table.retain(|one| one.1 % divisor == 0);
                        map.retain(|(_, name), ()| *name % divisor == 0);
                    }
                }
                prop_assert_eq!(table.len, map.len());
                for (hash, name) in map.keys() {
                    prop_assert!(table.find(*hash, |one| one.1 == *name).is_some());
                }
                let found = (0..table.places.len()).filter(|place| table.at(*place).is_some()).count();
                prop_assert_eq!(found, map.len());
            }
        }
    }
}
