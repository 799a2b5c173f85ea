//! The writes under way of one collection, oldest first. There can be hundreds, and each command
//! that looks at all elements takes a copy: so that costs nothing.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::database::write::Write;
use crate::model::{Item, PlaceOf, Tree};

/// A copy of them as they were at one moment.
#[derive(Clone, Default)]
pub struct Writes(Tree<Numbered>);

#[derive(Clone)]
struct Numbered {
    number: u64,
    write: Arc<Write>,
}

impl Item for Numbered {
    fn order(&self, other: &Numbered) -> Ordering {
        self.number.cmp(&other.number)
    }

    fn key(&self) -> u64 {
        self.number
    }
}

impl Writes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Write>> {
        self.0.iter().map(|numbered| &numbered.write)
    }

    /// Adds those of another moment.
    pub fn extend(&mut self, others: &Writes) {
        for other in others.0.iter() {
            self.0.insert(other.clone());
        }
    }
}

/// The writes under way, each with the number of its elements: one write can be of very many.
#[derive(Default)]
pub(super) struct UnderWayWrites {
    all: Writes,
    /// Their places in `all` and numbers of elements, by their addresses.
    known: HashMap<usize, (u64, usize), foldhash::fast::RandomState>,
}

impl UnderWayWrites {
    pub fn all(&self) -> &Writes {
        &self.all
    }

    /// The write is under way, and one more of its elements is of this collection.
    pub fn add(&mut self, write: &Arc<Write>) {
        // Of all collections: a transaction can have copies of one that was forgotten meanwhile.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let known = self.known.entry(Arc::as_ptr(write).addr()).or_insert_with(|| {
            let number = NEXT.fetch_add(1, Relaxed);
            let write = write.clone();
            self.all.0.insert(Numbered { number, write });
            (number, 0)
        });
        known.1 += 1;
    }

    /// So many of the write's elements are not under way any more.
    pub fn end(&mut self, write: &Arc<Write>, elements: usize) {
        let address = Arc::as_ptr(write).addr();
        let Some((number, left)) = self.known.get_mut(&address) else {
            return;
        };
        *left -= elements;
        if *left == 0 {
            let (number, write) = (*number, write.clone());
            self.all.0.remove(PlaceOf(&Numbered { number, write }));
            self.known.remove(&address);
        }
    }
}
