//! The commands that rules can name.

use std::collections::HashMap;

/// A command or a subcommand.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Lower case; a subcommand has its full name: `client|list`.
    pub name: &'static str,
    /// Its number, different from those of all other commands and subcommands.
    pub number: u32,
    /// The numbers of its subcommands.
    pub subcommands: Vec<u32>,
    /// Its categories, without `@`.
    pub categories: Vec<&'static str>,
}

impl Entry {
    /// Whether it is a subcommand.
    pub fn is_sub(&self) -> bool {
        self.name.contains('|')
    }
}

/// All commands and categories.
pub struct Catalogue {
    by_name: HashMap<&'static str, Entry>,
    categories: HashMap<&'static str, Vec<u32>>,
    /// One more than the highest number of a command.
    len: u32,
}

impl Catalogue {
    pub fn new(categories: &[&'static str], entries: impl Iterator<Item = Entry>) -> Self {
        let mut catalogue = Catalogue {
            by_name: HashMap::new(),
            categories: categories.iter().map(|name| (*name, Vec::new())).collect(),
            len: 0,
        };
        for entry in entries {
            for category in &entry.categories {
                catalogue.categories.entry(category).or_default().push(entry.number);
            }
            catalogue.len = catalogue.len.max(entry.number + 1);
            catalogue.by_name.insert(entry.name, entry);
        }
        catalogue
    }

    /// The command of this name, in any case.
    pub fn find(&self, name: &[u8]) -> Option<&Entry> {
        self.by_name.get(&*lower(name)?)
    }

    /// The numbers of the commands of this category, in any case.
    pub fn category(&self, name: &[u8]) -> Option<&[u32]> {
        self.categories.get(&*lower(name)?).map(Vec::as_slice)
    }

    /// No command.
    pub fn none(&self) -> Bits {
        Bits(vec![0; self.len.div_ceil(64) as usize].into())
    }

    /// Every command.
    pub fn all(&self) -> Bits {
        Bits(vec![u64::MAX; self.len.div_ceil(64) as usize].into())
    }
}

fn lower(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name).ok().map(str::to_ascii_lowercase)
}

/// Some of the commands, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(Box<[u64]>);

impl Bits {
    pub fn has(&self, number: u32) -> bool {
        let word = self.0.get(number as usize / 64);
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    pub fn set(&mut self, number: u32, to: bool) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            let bit = 1 << (number % 64);
            *word = if to { *word | bit } else { *word & !bit };
        }
    }
}
