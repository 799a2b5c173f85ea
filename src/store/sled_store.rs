//! sled behind the [`Store`](super::Store) trait.
