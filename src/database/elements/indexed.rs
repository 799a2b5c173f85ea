//! The elements of a split collection at one moment: by name, and in the order of their type once a
//! command has asked for that order.
//!
//! Both are persistent trees, so a copy costs nothing and sees no later change. The second one is
//! made from the first, and follows each change from then on.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Held;
use crate::model::{Item, PlaceOf, Tree, Value, order};

/// What an element costs in the second tree, bytes (measured roughly).
const RANKED: usize = 48;
/// What it costs to bring an element into the second tree, as bytes to go through.
const PLACED: usize = 1_024;

/// An order of elements other than that by name. A type of collection has one at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Of sorted sets: by score, then by member.
    Score,
    /// Of lists and streams: by name.
    Name,
}

/// An element's place in an order.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// It is not a number for an element that cannot be read. Those come last. 0 in
    /// [`Order::Name`].
    pub score: f64,
    pub name: Arc<[u8]>,
}

impl Order {
    fn of(self, held: &Held) -> Ranked {
        let score = match (self, &held.value) {
            (Order::Name, _) => 0.0,
            (Order::Score, Value::Element(element)) => element.score().unwrap_or(f64::NAN),
            (Order::Score, Value::String(_) | Value::Packed(_) | Value::Split(_) | Value::Unreadable(_)) => f64::NAN,
        };
        Ranked {
            score,
            name: held.name.clone(),
        }
    }
}

impl Ranked {
    /// The order of items in relation to the one of this name, in [`Order::Name`].
    pub fn named(name: &[u8]) -> impl Fn(&Ranked) -> Ordering {
        move |other| other.name[..].cmp(name)
    }

    pub fn is_readable(&self) -> bool {
        !self.score.is_nan()
    }

    fn compare(&self, other: &Ranked) -> Ordering {
        let by_kind = other.is_readable().cmp(&self.is_readable());
        by_kind.then_with(|| order((&self.name, self.score), (&other.name, other.score)))
    }
}

impl Item for Ranked {
    fn order(&self, other: &Ranked) -> Ordering {
        self.compare(other)
    }

    /// The score as a number in the same order.
    fn key(&self) -> u64 {
        if !self.is_readable() {
            return u64::MAX;
        }
        // Both zeros are one score.
        let bits = (self.score + 0.0).to_bits();
        if self.score < 0.0 { !bits } else { bits | 1 << 63 }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Indexed {
    by_name: Tree<Held>,
    ordered: Option<(Order, Tree<Ranked>)>,
}

impl Indexed {
    pub fn by_name(&self) -> &Tree<Held> {
        &self.by_name
    }

    /// The elements in this order, if they have been put in it.
    pub fn in_order(&self, order: Order) -> Option<&Tree<Ranked>> {
        self.ordered
            .as_ref()
            .filter(|(of, _)| *of == order)
            .map(|(_, ordered)| ordered)
    }

    /// The element at a place in this order, if they have been put in it.
    pub fn nth(&self, order: Order, place: usize) -> Option<&Held> {
        let ranked = self.in_order(order)?.nth(place)?;
        self.by_name.get(Held::named(&ranked.name))
    }

    /// All elements: in this order, if one is given and they have been put in it.
    pub fn iter(&self, order: Option<Order>) -> impl Iterator<Item = &Held> {
        let ordered = order.and_then(|order| self.in_order(order));
        let by_name = ordered.is_none().then(|| self.by_name.iter());
        let ordered = ordered.into_iter().flat_map(|ordered| ordered.iter());
        let ordered = ordered.filter_map(|ranked| self.by_name.get(Held::named(&ranked.name)));
        by_name.into_iter().flatten().chain(ordered)
    }

    /// The place of an element in this order, whether they have been put in it or not.
    pub fn ranked(&self, order: Order, name: &[u8]) -> Option<Ranked> {
        self.by_name.get(Held::named(name)).map(|held| order.of(held))
    }

    /// What [`Indexed::put_in_order`] costs, as bytes to go through.
    pub fn work(&self) -> usize {
        self.by_name.len().saturating_mul(PLACED)
    }

    /// Puts all elements in this order. Later changes keep it.
    pub fn put_in_order(&mut self, order: Order) {
        if self.in_order(order).is_none() {
            self.ordered = Some((order, self.all_ranked(order)));
        }
    }

    fn all_ranked(&self, order: Order) -> Tree<Ranked> {
        let mut ranked: Vec<Ranked> = self.by_name.iter().map(|held| order.of(held)).collect();
        ranked.sort_unstable_by(Ranked::compare);
        ranked.into_iter().collect()
    }

    /// Takes the order of an earlier state of the same elements. All elements that have changed
    /// since are among these names, each once.
    pub(super) fn take_order<'n>(&mut self, earlier: Indexed, changed: impl Iterator<Item = &'n [u8]>) {
        let Some((order, mut ordered)) = earlier.ordered else {
            return;
        };
        for name in changed {
            if let Some(old) = earlier.by_name.get(Held::named(name)) {
                take_out(&mut ordered, &order.of(old));
            }
            if let Some(new) = self.by_name.get(Held::named(name)) {
                ordered.insert(order.of(new));
            }
        }
        self.ordered = Some((order, ordered));
    }

    /// Puts an element in its place. Returns the one that it replaces.
    pub fn insert(&mut self, held: Held) -> Option<Held> {
        let ranked = self.ordered.as_ref().map(|(order, _)| order.of(&held));
        let old = self.by_name.insert(held);
        if let (Some((order, ordered)), Some(ranked)) = (&mut self.ordered, ranked) {
            let was = old.as_ref().map(|old| order.of(old));
            if let Some(was) = was.filter(|was| was.compare(&ranked).is_ne()) {
                take_out(ordered, &was);
            }
            ordered.insert(ranked);
        }
        old
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Held> {
        let old = self.by_name.remove(Held::named(name))?;
        if let Some((order, ordered)) = &mut self.ordered {
            take_out(ordered, &order.of(&old));
        }
        Some(old)
    }

    /// What the order costs for each element, bytes.
    pub(super) fn weight_of_place(&self) -> usize {
        if self.ordered.is_some() { RANKED } else { 0 }
    }

    /// Bytes of memory that all elements take.
    pub(super) fn weight(&self) -> usize {
        let elements: usize = self.by_name.iter().map(Held::weight).sum();
        elements + self.weight_of_order()
    }

    pub(super) fn weight_of_order(&self) -> usize {
        self.by_name.len() * self.weight_of_place()
    }
}

impl FromIterator<Held> for Indexed {
    fn from_iter<I: IntoIterator<Item = Held>>(elements: I) -> Indexed {
        Indexed {
            by_name: elements.into_iter().collect(),
            ordered: None,
        }
    }
}

fn take_out(ordered: &mut Tree<Ranked>, ranked: &Ranked) {
    let removed = ordered.remove(PlaceOf(ranked));
    debug_assert!(removed.is_some(), "both trees have the same elements");
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::model::Element;

    #[derive(Clone, Debug)]
    enum Step {
        /// `None`: what is written is no score.
        Put(u8, Option<i8>),
        Remove(u8),
        PutInOrder,
        /// The elements as they are now are put in order while others change.
        Begin,
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..20u8, prop::option::weighted(0.9, -3..3i8)).prop_map(|(name, score)| Step::Put(name, score)),
            4 => (0..20u8).prop_map(Step::Remove),
            1 => Just(Step::PutInOrder),
            1 => Just(Step::Begin),
            1 => Just(Step::End),
        ]
    }

    fn element(score: Option<i8>) -> Value {
        let payload = score.map_or(vec![7], |score| f64::from(score).to_be_bytes().into());
        Value::Element(Element::new(&payload, None))
    }

    type Model = BTreeMap<u8, Option<i8>>;

    fn check(indexed: &Indexed, model: &Model) {
        assert_eq!(indexed.by_name().len(), model.len());
        for (name, score) in model {
            let held = indexed.by_name().get(Held::named(&[*name])).expect("it is there");
            assert_eq!(held.value, element(*score));
        }
        let Some(ordered) = indexed.in_order(Order::Score) else {
            return;
        };
        // What is no score comes last.
        let mut expected: Vec<(bool, i8, u8)> = Vec::new();
        for (name, score) in model {
            expected.push((score.is_none(), score.unwrap_or(0), *name));
        }
        expected.sort_unstable();
        let shown = ordered.iter().map(|ranked| match ranked.is_readable() {
            true => (false, ranked.score as i8, ranked.name[0]),
            false => (true, 0, ranked.name[0]),
        });
        assert_eq!(shown.collect::<Vec<_>>(), expected);
        assert_eq!(indexed.weight_of_order(), ordered.len() * RANKED);
    }

    proptest! {
        #[test]
        fn both_orders_have_the_same_elements(steps in prop::collection::vec(step(), 1..200)) {
            let (mut indexed, mut model) = (Indexed::default(), Model::new());
            let mut copies = Vec::new();
            let mut begun: Option<(Indexed, BTreeSet<u8>)> = None;
            for step in steps {
                match step {
                    Step::Put(name, score) => {
                        let old = indexed.insert(Held::new(&[name], element(score), 0));
                        let expected = model.insert(name, score);
                        prop_assert_eq!(old.map(|old| old.value), expected.map(element));
                        if let Some((_, changed)) = &mut begun {
                            changed.insert(name);
                        }
                    }
                    Step::Remove(name) => {
                        let old = indexed.remove(&[name]);
                        prop_assert_eq!(old.map(|old| old.value), model.remove(&name).map(element));
                        if let Some((_, changed)) = &mut begun {
                            changed.insert(name);
                        }
                    }
                    Step::PutInOrder => indexed.put_in_order(Order::Score),
                    Step::Begin => begun = Some((indexed.clone(), BTreeSet::new())),
                    Step::End => {
                        if let Some((mut earlier, changed)) = begun.take() {
                            earlier.put_in_order(Order::Score);
                            indexed.take_order(earlier, changed.iter().map(std::slice::from_ref));
                            prop_assert!(indexed.in_order(Order::Score).is_some());
                        }
                    }
                }
                check(&indexed, &model);
                copies.push((indexed.clone(), model.clone()));
            }
            // No copy has seen a later change.
            copies.iter().for_each(|(copy, model)| check(copy, model));
        }
    }
}
