//! A selector: commands, keys and channels that go together. Each user has one of its own, and may
//! have others, which stand in parentheses.

use std::collections::BTreeMap;

use super::catalogue::{Bits, Catalogue, Entry};
use super::user::{RuleError, is};
use crate::glob;

/// What a request does with a key, or what a pattern allows: [`Access::READ`], [`Access::WRITE`],
/// both, or neither. A request that does neither (EXISTS) needs any pattern that matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    pub const NONE: Access = Access(0);
    pub const READ: Access = Access(1);
    pub const WRITE: Access = Access(2);
    pub const ALL: Access = Access(3);

    #[must_use]
    pub fn and(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    fn covers(self, wanted: Access) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// A key that a request names.
pub type Wanted<'a> = (&'a [u8], Access);

/// What a request wants to do.
pub struct Request<'a> {
    /// The command.
    pub number: u32,
    /// Everybody may run the command (AUTH, HELLO).
    pub is_free: bool,
    /// The argument that `+command|argument` is compared with.
    pub first: Option<&'a [u8]>,
    pub keys: &'a [Wanted<'a>],
    pub channels: &'a [&'a [u8]],
    /// The channels are patterns, as those of PSUBSCRIBE.
    pub are_patterns: bool,
}

/// What a request may not use. Of several refusals, the greatest is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denied {
    Command,
    /// The key at this place of the request's keys.
    Key(usize),
    /// The channel at this place of the request's channels.
    Channel(usize),
}

/// Some of all names: those that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Patterns<P> {
    /// Every name matches. There are no patterns then.
    every: bool,
    patterns: Vec<P>,
}

impl<P> Patterns<P> {
    fn set(&mut self, every: bool) {
        self.every = every;
        self.patterns.clear();
    }
}

impl<P> Default for Patterns<P> {
    fn default() -> Self {
        Patterns {
            every: false,
            patterns: Vec::new(),
        }
    }
}

type Bytes = Box<[u8]>;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    commands: Bits,
    /// Every command is allowed.
    every_command: bool,
    /// `+@all` came after the last `-@all`: later rules take commands away.
    began_with_all: bool,
    /// First arguments with which commands are allowed that are not among `commands`.
    first_arguments: BTreeMap<u32, Vec<Bytes>>,
    /// The rules on commands since the last `+@all` or `-@all`, each with its sign, in lower case.
    rules: Vec<Vec<u8>>,
    keys: Patterns<(Bytes, Access)>,
    channels: Patterns<Bytes>,
}

impl Selector {
    /// It allows no command and no key.
    pub fn new(catalogue: &Catalogue, every_channel: bool) -> Self {
        Selector {
            commands: catalogue.none(),
            every_command: false,
            began_with_all: false,
            first_arguments: BTreeMap::new(),
            rules: Vec::new(),
            keys: Patterns::default(),
            channels: Patterns {
                every: every_channel,
                patterns: Vec::new(),
            },
        }
    }

    pub fn allows_everything(&self) -> bool {
        self.every_command && self.keys.every && self.channels.every
    }

    pub fn allows_every_key(&self) -> bool {
        self.keys.every
    }

    /// Whether every key may be read.
    pub fn reads_every_key(&self) -> bool {
        let reads_all = |(pattern, access): &(Bytes, Access)| &**pattern == b"*" && access.covers(Access::READ);
        self.keys.every || self.keys.patterns.iter().any(reads_all)
    }

    // ---- rules ----

    /// Adds a rule. After an error the selector is of no use.
    pub fn apply(&mut self, rule: &[u8], catalogue: &Catalogue) -> Result<(), RuleError> {
        match rule {
            _ if is(rule, "allkeys") || rule == b"~*" => self.keys.set(true),
            _ if is(rule, "resetkeys") => self.keys.set(false),
            _ if is(rule, "allchannels") || rule == b"&*" => self.channels.set(true),
            _ if is(rule, "resetchannels") => self.channels.set(false),
            _ if is(rule, "allcommands") || is(rule, "+@all") => self.set_every_command(catalogue, true),
            _ if is(rule, "nocommands") || is(rule, "-@all") => self.set_every_command(catalogue, false),
            [b'~' | b'%', ..] => self.add_keys(rule)?,
            [b'&', pattern @ ..] => self.add_channels(pattern)?,
            [sign @ (b'+' | b'-'), b'@', category @ ..] => {
                let numbers = catalogue.category(category).ok_or(RuleError::Unknown)?;
                numbers.iter().for_each(|number| self.set(*number, *sign == b'+'));
                self.note(*sign, &rule[1..]);
            }
            [sign @ (b'+' | b'-'), name @ ..] => self.set_command(*sign, name, catalogue)?,
            _ => return Err(RuleError::Syntax),
        }
        Ok(())
    }

    fn set_every_command(&mut self, catalogue: &Catalogue, to: bool) {
        self.commands = if to { catalogue.all() } else { catalogue.none() };
        (self.every_command, self.began_with_all) = (to, to);
        self.first_arguments.clear();
        self.rules.clear();
    }

    /// `+command`, `-command`, `+command|subcommand`, or `+command|first argument`.
    fn set_command(&mut self, sign: u8, name: &[u8], catalogue: &Catalogue) -> Result<(), RuleError> {
        if let Some(entry) = catalogue.find(name) {
            self.set_with_subcommands(entry, sign == b'+');
            self.note(sign, entry.name.as_bytes());
            return Ok(());
        }
        let bar = name.iter().rposition(|byte| *byte == b'|').ok_or(RuleError::Unknown)?;
        let (command, argument) = (&name[..bar], &name[bar + 1..]);
        let entry = catalogue.find(command).filter(|_| sign == b'+');
        match entry.ok_or(RuleError::Unknown)? {
            entry if entry.is_sub() => Err(RuleError::FirstOfSubcommand),
            _ if argument.is_empty() => Err(RuleError::Syntax),
            entry if !entry.subcommands.is_empty() => Err(RuleError::Unknown),
            entry => {
                let known = self.first_arguments.entry(entry.number).or_default();
                if !known.iter().any(|known| known.eq_ignore_ascii_case(argument)) {
                    known.push(argument.into());
                }
                self.note(sign, name);
                Ok(())
            }
        }
    }

    fn set_with_subcommands(&mut self, entry: &Entry, to: bool) {
        for number in entry.subcommands.iter().chain([&entry.number]) {
            self.set(*number, to);
        }
    }

    fn set(&mut self, number: u32, to: bool) {
        self.commands.set(number, to);
        self.every_command &= to;
        self.first_arguments.remove(&number);
    }

    /// Remembers a rule on commands. Rules on the same command, or its subcommands, are obsolete.
    fn note(&mut self, sign: u8, rule: &[u8]) {
        let rule = rule.to_ascii_lowercase();
        self.rules.retain(|known| {
            let rest = known[1..].strip_prefix(&*rule);
            rest.is_none_or(|rest| !matches!(rest, [] | [b'|', ..]))
        });
        self.rules.push([&[sign], &*rule].concat());
    }

    /// `~pattern`, `%R~pattern`, `%W~pattern`, `%RW~pattern`.
    fn add_keys(&mut self, rule: &[u8]) -> Result<(), RuleError> {
        if self.keys.every {
            return Err(RuleError::AfterAllKeys);
        }
        let (access, pattern) = match rule {
            [b'%', rest @ ..] => {
                let tilde = rest.iter().position(|byte| *byte == b'~').ok_or(RuleError::Syntax)?;
                (access(&rest[..tilde])?, &rest[tilde + 1..])
            }
            _ => (Access::ALL, &rule[1..]),
        };
        check_name(pattern)?;
        let known = self.keys.patterns.iter_mut().find(|(known, _)| **known == *pattern);
        match known {
            Some((_, known)) => *known = known.and(access),
            None => self.keys.patterns.push((pattern.into(), access)),
        }
        Ok(())
    }

    fn add_channels(&mut self, pattern: &[u8]) -> Result<(), RuleError> {
        if self.channels.every {
            return Err(RuleError::AfterAllChannels);
        }
        check_name(pattern)?;
        if !self.channels.patterns.iter().any(|known| **known == *pattern) {
            self.channels.patterns.push(pattern.into());
        }
        Ok(())
    }

    // ---- what it says ----

    /// Its rules on commands, from `+@all` or `-@all` on.
    pub fn commands(&self) -> Vec<u8> {
        let first: &[u8] = if self.began_with_all { b"+@all" } else { b"-@all" };
        let rules = self.rules.iter().map(Vec::as_slice);
        std::iter::once(first).chain(rules).collect::<Vec<_>>().join(&b' ')
    }

    pub fn keys(&self) -> Vec<u8> {
        if self.keys.every {
            return b"~*".to_vec();
        }
        let shown = |(pattern, access): &(Bytes, Access)| match *access {
            Access::READ => [b"%R~", &**pattern].concat(),
            Access::WRITE => [b"%W~", &**pattern].concat(),
            _ => [b"~", &**pattern].concat(),
        };
        self.keys.patterns.iter().map(shown).collect::<Vec<_>>().join(&b' ')
    }

    pub fn channels(&self) -> Vec<u8> {
        if self.channels.every {
            return b"&*".to_vec();
        }
        let shown = |pattern: &Bytes| [b"&", &**pattern].concat();
        self.channels.patterns.iter().map(shown).collect::<Vec<_>>().join(&b' ')
    }

    /// The rules that make a new selector this one.
    pub fn describe(&self) -> Vec<u8> {
        let reset = if self.channels.every { "" } else { "resetchannels" };
        let parts = [self.keys(), reset.into(), self.channels(), self.commands()];
        let parts: Vec<Vec<u8>> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(&b' ')
    }

    // ---- checks ----

    pub fn check(&self, request: &Request<'_>) -> Result<(), Denied> {
        if !self.every_command && !request.is_free && !self.allows_command(request) {
            return Err(Denied::Command);
        }
        if let Some(at) = request
            .keys
            .iter()
            .position(|(key, access)| !self.allows_key(key, *access))
        {
            return Err(Denied::Key(at));
        }
        let allowed = |channel: &&[u8]| self.allows_channel(channel, request.are_patterns);
        match request.channels.iter().position(|channel| !allowed(channel)) {
            Some(at) => Err(Denied::Channel(at)),
            None => Ok(()),
        }
    }

    fn allows_command(&self, request: &Request<'_>) -> bool {
        let with = |known: &Bytes| request.first.is_some_and(|first| known.eq_ignore_ascii_case(first));
        self.commands.has(request.number)
            || (self.first_arguments.get(&request.number)).is_some_and(|known| known.iter().any(with))
    }

    fn allows_key(&self, key: &[u8], wanted: Access) -> bool {
        let allows = |(pattern, access): &(Bytes, Access)| access.covers(wanted) && matches(pattern, key);
        self.keys.every || self.keys.patterns.iter().any(allows)
    }

    /// A pattern that a client listens to must be allowed as it stands.
    pub fn allows_channel(&self, channel: &[u8], is_pattern: bool) -> bool {
        let allows = |pattern: &Bytes| match is_pattern {
            true => **pattern == *channel,
            false => matches(pattern, channel),
        };
        self.channels.every || self.channels.patterns.iter().any(allows)
    }
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    glob::matches(pattern, name)
}

/// The letters before `~`, each once, in any case.
fn access(letters: &[u8]) -> Result<Access, RuleError> {
    match letters.to_ascii_lowercase().as_slice() {
        b"r" => Ok(Access::READ),
        b"w" => Ok(Access::WRITE),
        b"rw" | b"wr" => Ok(Access::ALL),
        _ => Err(RuleError::Syntax),
    }
}

/// Rules are written in lines, with blanks between them.
pub(super) fn check_name(name: &[u8]) -> Result<(), RuleError> {
    match name
        .iter()
        .any(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b))
    {
        true => Err(RuleError::Syntax),
        false => Ok(()),
    }
}
