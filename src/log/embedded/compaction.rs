//! Compaction.
use super::Shared;

#[derive(Clone, Debug)]
pub struct Options {
    pub enabled: bool,
}
impl Default for Options {
    fn default() -> Self {
        Self { enabled: false }
    }
}
pub fn run(_shared: &Shared) {}
