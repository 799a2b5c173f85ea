//! A sorted sequence that is cheap to copy, and knows the place of each item: a persistent B+tree
//! with the number of items in its inner nodes. Large collections are kept in it.
//!
//! A copy shares all nodes. A write copies the nodes on its path that others hold, and changes the
//! rest in place. So a reader takes a copy in O(1) and sees no later write.
//!
//! Searches take a function that says how an item compares to what is sought: `Less` for items
//! before it, `Equal` for the one. The items' own order ([`Item::order`]) has to agree with it.
//! A search that also knows the key of what it seeks ([`Sought::key`]) is faster: the keys of a
//! node's items stand side by side, so it waits for memory once or twice in a node, not at each
//! comparison.
//!
//! No library offers both copies and places; `docs/decisions/split.md` has the measurements.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

/// The most items of a leaf, and the most children of an inner node.
const WIDTH: usize = 32;
/// A node with fewer is joined with a neighbour, if both together leave room for more.
const THIN: usize = WIDTH / 4;
const JOINED: usize = WIDTH * 3 / 4;

pub trait Item: Clone {
    /// Items are kept in this order. Two items that are equal in it do not stand side by side: the
    /// later one replaces the earlier one.
    fn order(&self, other: &Self) -> Ordering;

    /// A number that is at most that of any later item. The fewer items have the same one, the
    /// faster is a search that knows it.
    fn key(&self) -> u64 {
        0
    }

    /// A number of the item, of which the tree knows the least; see [`Tree::least_mark`].
    fn mark(&self) -> u64 {
        u64::MAX
    }
}

/// What is sought in a tree of `T`.
pub trait Sought<T> {
    /// [`Item::key`] of what is sought. A function alone does not know it.
    fn key(&self) -> Option<u64> {
        None
    }

    /// How an item compares to what is sought.
    fn relation(&self, item: &T) -> Ordering;
}

impl<T, F: Fn(&T) -> Ordering> Sought<T> for F {
    fn relation(&self, item: &T) -> Ordering {
        self(item)
    }
}

/// The place of an item.
pub struct PlaceOf<'t, T>(pub &'t T);

impl<T: Item> Sought<T> for PlaceOf<'_, T> {
    fn key(&self) -> Option<u64> {
        Some(self.0.key())
    }

    fn relation(&self, item: &T) -> Ordering {
        item.order(self.0)
    }
}

#[derive(Clone, Debug)]
pub struct Tree<T> {
    root: Arc<Node<T>>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<T> {
    Leaf(Parts<T>),
    /// At least one child; all leaves are equally deep.
    Inner(Parts<Child<T>>),
}

/// What a node consists of: items, or children. `keys` has the key of each one's (first) item.
#[derive(Clone, Debug)]
struct Parts<P> {
    keys: Vec<u64>,
    list: Vec<P>,
}

#[derive(Clone, Debug)]
struct Child<T> {
    /// Not after any item below, and after every item of the children before. A search need not
    /// look into the child for it.
    first: T,
    /// Items below.
    len: usize,
    /// The least mark of the items below.
    mark: u64,
    node: Arc<Node<T>>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Tree {
            root: Arc::new(Node::Leaf(Parts::default())),
            len: 0,
        }
    }
}

impl<T: Item> Tree<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The least mark of all items ([`Item::mark`]); `u64::MAX` without items.
    pub fn least_mark(&self) -> u64 {
        self.root.mark()
    }

    pub fn get(&self, sought: impl Sought<T>) -> Option<&T> {
        self.find(&sought)
    }

    fn find(&self, sought: &impl Sought<T>) -> Option<&T> {
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(items) => return items.find(sought).ok().map(|place| &items.list[place]),
                Node::Inner(children) => node = &children.list[children.child_of(sought)].node,
            }
        }
    }

    /// How many items are before what is sought.
    pub fn rank(&self, sought: impl Sought<T>) -> usize {
        let (mut node, mut before) = (&self.root, 0);
        loop {
            match &**node {
                Node::Leaf(items) => return before + items.before(&sought),
                Node::Inner(children) => {
                    let place = children.child_of(&sought);
                    before += children.list[..place].iter().map(|child| child.len).sum::<usize>();
                    node = &children.list[place].node;
                }
            }
        }
    }

    /// The item at a place; the first one is at 0.
    pub fn nth(&self, place: usize) -> Option<&T> {
        let (leaf, inside) = self.leaf_at(place)?;
        leaf.get(inside)
    }

    /// The items at these places, in order, or from the last to the first by `rev`.
    pub fn range(&self, places: Range<usize>) -> Iter<'_, T> {
        let end = places.end.min(self.len);
        Iter {
            tree: self,
            left: places.start.min(end)..end,
            front: Part::default(),
            back: Part::default(),
        }
    }

    pub fn iter(&self) -> Iter<'_, T> {
        self.range(0..self.len)
    }

    /// The leaf with the item at this place, and the item's place there.
    fn leaf_at(&self, mut place: usize) -> Option<(&[T], usize)> {
        if place >= self.len {
            return None;
        }
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(items) => return Some((&items.list, place)),
                Node::Inner(children) => {
                    let child = children.list.iter().find(|child| {
                        let is_below = place < child.len;
                        if !is_below {
                            place -= child.len;
                        }
                        is_below
                    });
                    node = &child?.node;
                }
            }
        }
    }

    /// Puts an item in its place. Returns the one that it replaces.
    pub fn insert(&mut self, item: T) -> Option<T> {
        let (old, split) = Arc::make_mut(&mut self.root).insert(item);
        if let Some(second) = split {
            let root = std::mem::replace(&mut self.root, second);
            let mut children = Parts::default();
            for child in [root, Arc::clone(&self.root)].into_iter().filter_map(Child::of) {
                children.push(child.first.key(), child);
            }
            self.root = Arc::new(Node::Inner(children));
        }
        self.len += usize::from(old.is_none());
        old
    }

    pub fn remove(&mut self, sought: impl Sought<T>) -> Option<T> {
        // Looked up first, so that nothing is copied in vain.
        self.find(&sought)?;
        let removed = Arc::make_mut(&mut self.root).remove(&sought)?;
        self.len -= 1;
        while let Node::Inner(children) = &*self.root
            && let [only] = &children.list[..]
        {
            self.root = Arc::clone(&only.node);
        }
        Some(removed)
    }
}

impl<T: Item> FromIterator<T> for Tree<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Tree<T> {
        let mut tree = Tree::default();
        items.into_iter().for_each(|item| drop(tree.insert(item)));
        tree
    }
}

impl<P> Default for Parts<P> {
    fn default() -> Self {
        Parts {
            keys: Vec::new(),
            list: Vec::new(),
        }
    }
}

impl<P> Parts<P> {
    /// The places where what is sought can be, as far as keys tell.
    fn candidates<T>(&self, sought: &impl Sought<T>) -> Range<usize> {
        let Some(key) = sought.key() else {
            return 0..self.list.len();
        };
        // All keys are looked at: so it needs no branches, and memory is asked for all at once.
        let start = self.keys.iter().map(|other| usize::from(*other < key)).sum();
        let same = self.keys[start..].iter().take_while(|other| **other == key);
        start..start + same.count()
    }

    fn insert(&mut self, place: usize, key: u64, part: P) {
        self.keys.insert(place, key);
        self.list.insert(place, part);
    }

    fn push(&mut self, key: u64, part: P) {
        self.insert(self.list.len(), key, part);
    }

    fn remove(&mut self, place: usize) -> P {
        self.keys.remove(place);
        self.list.remove(place)
    }

    fn append(&mut self, mut more: Parts<P>) {
        self.keys.append(&mut more.keys);
        self.list.append(&mut more.list);
    }

    /// Puts a part into a node. A full node keeps a first half, and the second one is returned.
    /// What comes at its end begins the next node instead: so items that come in order leave full
    /// nodes.
    fn put(&mut self, place: usize, key: u64, part: P) -> Option<Parts<P>> {
        if self.list.len() < WIDTH {
            self.insert(place, key, part);
            return None;
        }
        let mut second = Parts::default();
        if place == self.list.len() {
            second.push(key, part);
            return Some(second);
        }
        let half = WIDTH / 2;
        second.keys = self.keys.split_off(half);
        second.list = self.list.split_off(half);
        match place <= half {
            true => self.insert(place, key, part),
            false => second.insert(place - half, key, part),
        }
        Some(second)
    }
}

impl<T: Item> Parts<T> {
    /// How many items are before what is sought.
    fn before(&self, sought: &impl Sought<T>) -> usize {
        let candidates = self.candidates(sought);
        let start = candidates.start;
        start + self.list[candidates].partition_point(|item| sought.relation(item).is_lt())
    }

    /// The place of what is sought, or the one where it would be.
    fn find(&self, sought: &impl Sought<T>) -> Result<usize, usize> {
        let place = self.before(sought);
        match self.list.get(place) {
            Some(item) if sought.relation(item).is_eq() => Ok(place),
            _ => Err(place),
        }
    }
}

impl<T: Item> Parts<Child<T>> {
    /// The child that has what is sought, or would have it.
    fn child_of(&self, sought: &impl Sought<T>) -> usize {
        let candidates = self.candidates(sought);
        let start = candidates.start;
        let before = self.list[candidates].partition_point(|child| sought.relation(&child.first).is_le());
        (start + before).saturating_sub(1)
    }

    /// Joins a child that has become thin with a neighbour, if they fit.
    fn join(&mut self, place: usize) {
        let fits = |(a, b): (usize, usize)| {
            let (a, b) = (self.list.get(a)?, self.list.get(b)?);
            (a.node.width() + b.node.width() <= JOINED).then_some(())
        };
        let before = place.checked_sub(1).map(|before| (before, place));
        let pairs = before.into_iter().chain([(place, place + 1)]);
        let Some((first, second)) = pairs.into_iter().find(|pair| fits(*pair).is_some()) else {
            return;
        };
        let Child { len, mark, node, .. } = self.remove(second);
        let first = &mut self.list[first];
        first.len += len;
        first.mark = first.mark.min(mark);
        match (Arc::make_mut(&mut first.node), Arc::unwrap_or_clone(node)) {
            (Node::Leaf(items), Node::Leaf(more)) => items.append(more),
            (Node::Inner(children), Node::Inner(more)) => children.append(more),
            _ => unreachable!("all leaves are equally deep"),
        }
    }
}

impl<T: Item> Child<T> {
    /// `None` for a node without items.
    fn of(node: Arc<Node<T>>) -> Option<Child<T>> {
        let (first, len) = match &*node {
            Node::Leaf(items) => (items.list.first()?.clone(), items.list.len()),
            Node::Inner(children) => {
                let len = children.list.iter().map(|child| child.len).sum();
                (children.list.first()?.first.clone(), len)
            }
        };
        let mark = node.mark();
        Some(Child { first, len, mark, node })
    }

    /// Below, an item with this mark has taken the place of one with the mark `old`, or of none.
    /// Only if the least mark may have gone are all looked at.
    fn marked(&mut self, new: u64, old: Option<u64>) {
        match old {
            Some(old) if old == self.mark && new > old => self.mark = self.node.mark(),
            _ => self.mark = self.mark.min(new),
        }
    }
}

impl<T: Item> Node<T> {
    fn mark(&self) -> u64 {
        let least = match self {
            Node::Leaf(items) => items.list.iter().map(Item::mark).min(),
            Node::Inner(children) => children.list.iter().map(|child| child.mark).min(),
        };
        least.unwrap_or(u64::MAX)
    }

    fn width(&self) -> usize {
        match self {
            Node::Leaf(items) => items.list.len(),
            Node::Inner(children) => children.list.len(),
        }
    }

    /// Returns the item that it replaces, or the second half of a node that was full.
    fn insert(&mut self, item: T) -> (Option<T>, Option<Arc<Node<T>>>) {
        let (key, mark) = (item.key(), item.mark());
        match self {
            Node::Leaf(items) => match items.find(&PlaceOf(&item)) {
                Ok(place) => (Some(std::mem::replace(&mut items.list[place], item)), None),
                Err(place) => {
                    let second = items.put(place, key, item);
                    (None, second.map(|second| Arc::new(Node::Leaf(second))))
                }
            },
            Node::Inner(children) => {
                let place = children.child_of(&PlaceOf(&item));
                let child = &mut children.list[place];
                // Only what comes before all others is before its child's first one.
                if place == 0 && item.order(&child.first).is_lt() {
                    children.keys[0] = key;
                    child.first = item.clone();
                }
                let (old, split) = Arc::make_mut(&mut child.node).insert(item);
                child.len += usize::from(old.is_none());
                let Some(second) = split.and_then(Child::of) else {
                    child.marked(mark, old.as_ref().map(Item::mark));
                    return (old, None);
                };
                child.len -= second.len;
                child.mark = child.node.mark();
                let split = children.put(place + 1, second.first.key(), second);
                (old, split.map(|second| Arc::new(Node::Inner(second))))
            }
        }
    }

    fn remove(&mut self, sought: &impl Sought<T>) -> Option<T> {
        match self {
            Node::Leaf(items) => {
                let place = items.find(sought).ok()?;
                Some(items.remove(place))
            }
            Node::Inner(children) => {
                let place = children.child_of(sought);
                let child = &mut children.list[place];
                let removed = Arc::make_mut(&mut child.node).remove(sought)?;
                child.len -= 1;
                child.marked(u64::MAX, Some(removed.mark()));
                match child.node.width() {
                    0 => drop(children.remove(place)),
                    1..THIN => children.join(place),
                    _ => {}
                }
                Some(removed)
            }
        }
    }
}

/// What an iterator has in hand of one leaf: its items, and the place of the first of them.
struct Part<'t, T> {
    items: &'t [T],
    start: usize,
}

impl<T> Default for Part<'_, T> {
    fn default() -> Self {
        Part { items: &[], start: 0 }
    }
}

impl<'t, T: Item> Part<'t, T> {
    fn at(&mut self, tree: &'t Tree<T>, place: usize) -> Option<&'t T> {
        if !(self.start..self.start + self.items.len()).contains(&place) {
            let (items, inside) = tree.leaf_at(place)?;
            *self = Part {
                items,
                start: place - inside,
            };
        }
        self.items.get(place - self.start)
    }
}

pub struct Iter<'t, T> {
    tree: &'t Tree<T>,
    left: Range<usize>,
    front: Part<'t, T>,
    back: Part<'t, T>,
}

impl<'t, T: Item> Iterator for Iter<'t, T> {
    type Item = &'t T;

    fn next(&mut self) -> Option<&'t T> {
        let place = self.left.next()?;
        self.front.at(self.tree, place)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.left.size_hint()
    }
}

impl<'t, T: Item> DoubleEndedIterator for Iter<'t, T> {
    fn next_back(&mut self) -> Option<&'t T> {
        let place = self.left.next_back()?;
        self.back.at(self.tree, place)
    }
}

impl<T: Item> ExactSizeIterator for Iter<'_, T> {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Pair(u16, u32);

    impl Item for Pair {
        fn order(&self, other: &Pair) -> Ordering {
            self.0.cmp(&other.0)
        }

        /// Some have the same one.
        fn key(&self) -> u64 {
            u64::from(self.0 / 3)
        }

        fn mark(&self) -> u64 {
            u64::from(self.1)
        }
    }

    fn at(key: u16) -> impl Fn(&Pair) -> Ordering {
        move |pair| pair.0.cmp(&key)
    }

    /// As [`at`], with the key.
    struct At(u16);

    impl Sought<Pair> for At {
        fn key(&self) -> Option<u64> {
            Some(Pair(self.0, 0).key())
        }

        fn relation(&self, item: &Pair) -> Ordering {
            item.0.cmp(&self.0)
        }
    }

    /// Everything about the tree is as in the model, and its nodes are as they have to be.
    fn check(tree: &Tree<Pair>, model: &BTreeMap<u16, u32>) {
        let expected: Vec<Pair> = model.iter().map(|(key, value)| Pair(*key, *value)).collect();
        assert_eq!(tree.len(), expected.len());
        assert_eq!(tree.iter().cloned().collect::<Vec<_>>(), expected);
        let reversed: Vec<Pair> = tree.iter().rev().cloned().collect();
        assert!(reversed.iter().eq(expected.iter().rev()));
        let least = model.values().min().map(|value| u64::from(*value));
        assert_eq!(tree.least_mark(), least.unwrap_or(u64::MAX));
        check_node(&tree.root, true);
    }

    /// Returns the number of items and the depth.
    fn check_node(node: &Node<Pair>, is_root: bool) -> (usize, usize) {
        assert!(node.width() <= WIDTH && (is_root || node.width() > 0));
        match node {
            Node::Leaf(items) => {
                assert_eq!(items.keys, items.list.iter().map(Item::key).collect::<Vec<_>>());
                (items.list.len(), 1)
            }
            Node::Inner(children) => {
                let Parts { keys, list: children } = children;
                let firsts = children.iter().map(|child| child.first.key());
                assert_eq!(*keys, firsts.collect::<Vec<_>>());
                assert!(!is_root || children.len() > 1);
                let below: Vec<_> = children
                    .iter()
                    .map(|child| {
                        let (len, depth) = check_node(&child.node, false);
                        assert_eq!((len, child.node.mark()), (child.len, child.mark));
                        depth
                    })
                    .collect();
                assert!(below.iter().all(|depth| *depth == below[0]));
                (children.iter().map(|child| child.len).sum(), below[0] + 1)
            }
        }
    }

    proptest! {
        #[test]
        fn it_does_what_a_sorted_map_does(
            steps in prop::collection::vec((0u8..8, 0u16..2_000, any::<u32>()), 1..3_000),
        ) {
            let (mut tree, mut model) = (Tree::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (what, key, value) in steps {
                match what {
                    0..5 => prop_assert_eq!(
                        tree.insert(Pair(key, value)).map(|old| old.1),
                        model.insert(key, value)
                    ),
                    5 => prop_assert_eq!(tree.remove(at(key)).map(|old| old.1), model.remove(&key)),
                    6 => prop_assert_eq!(tree.remove(At(key)).map(|old| old.1), model.remove(&key)),
                    _ => {
                        prop_assert_eq!(tree.get(at(key)).map(|pair| pair.1), model.get(&key).copied());
                        prop_assert_eq!(tree.get(At(key)).map(|pair| pair.1), model.get(&key).copied());
                        let before = model.range(..key).count();
                        prop_assert_eq!(tree.rank(at(key)), before);
                        prop_assert_eq!(tree.rank(At(key)), before);
                        let next = model.range(key..).next().map(|(key, value)| Pair(*key, *value));
                        prop_assert_eq!(tree.nth(before), next.as_ref());
                        if copies.len() < 8 {
                            copies.push((tree.clone(), model.clone()));
                        }
                    }
                }
            }
            check(&tree, &model);
            copies.iter().for_each(|(tree, model)| check(tree, model));
        }

        #[test]
        fn a_range_is_what_stands_at_its_places(
            len in 0usize..500, start in 0usize..600, end in 0usize..600, from_back in any::<u64>(),
        ) {
            let items: Vec<Pair> = (0..len as u16).map(|key| Pair(key, 0)).collect();
            let tree: Tree<Pair> = items.iter().rev().cloned().collect();
            let mut expected = items.get(start.min(end).min(len)..end.min(len)).unwrap_or(&[]);
            if start > end {
                expected = &[];
            }
            let mut range = tree.range(start..end);
            prop_assert_eq!(range.len(), expected.len());
            let mut bits = from_back;
            while let [first, .., last] | [first @ last] = expected {
                bits = bits.rotate_left(1);
                if bits & 1 == 0 {
                    prop_assert_eq!(range.next(), Some(first));
                    expected = &expected[1..];
                } else {
                    prop_assert_eq!(range.next_back(), Some(last));
                    expected = &expected[..expected.len() - 1];
                }
            }
            prop_assert_eq!(range.next(), None);
            prop_assert_eq!(range.next_back(), None);
        }
    }

    #[test]
    fn what_comes_in_order_fills_the_leaves() {
        let count = 10_000u16;
        let tree: Tree<Pair> = (0..count).map(|key| Pair(key, 0)).collect();
        fn leaves(node: &Node<Pair>) -> usize {
            match node {
                Node::Leaf(_) => 1,
                Node::Inner(children) => children.list.iter().map(|child| leaves(&child.node)).sum(),
            }
        }
        assert_eq!(leaves(&tree.root), usize::from(count).div_ceil(WIDTH));
    }

    #[test]
    fn all_can_be_removed_from_either_end_and_from_the_middle() {
        for step in [1u16, 7, 4_999] {
            let mut tree: Tree<Pair> = (0..5_000u16).map(|key| Pair(key, 0)).collect();
            let copy = tree.clone();
            for n in 0..5_000u32 {
                let key = (n * u32::from(step) % 5_000) as u16;
                assert_eq!(tree.remove(at(key)), Some(Pair(key, 0)));
                assert_eq!(tree.remove(at(key)), None);
            }
            check(&tree, &BTreeMap::new());
            assert_eq!(copy.len(), 5_000);
        }
    }
}
