//! What one user has: passwords, and rights.

use openssl::sha::sha256;

use super::catalogue::Catalogue;
use super::selector::{Denied, Request, Selector};

/// The SHA-256 of a password.
type Hash = [u8; 32];

/// Why a rule is refused. The texts are Redis's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("Unknown command or category name in ACL")]
    Unknown,
    #[error("Syntax error")]
    Syntax,
    #[error(
        "Adding a pattern after the * pattern (or the 'allkeys' flag) is not valid and does not have any effect. \
         Try 'resetkeys' to start with an empty list of patterns"
    )]
    AfterAllKeys,
    #[error(
        "Adding a pattern after the * pattern (or the 'allchannels' flag) is not valid and does not have any effect. \
         Try 'resetchannels' to start with an empty list of channels"
    )]
    AfterAllChannels,
    #[error("The password you are trying to remove from the user does not exist")]
    NoSuchPassword,
    #[error("The password hash must be exactly 64 characters and contain only lowercase hexadecimal characters")]
    BadHash,
    #[error("Allowing first-arg of a subcommand is not supported")]
    FirstOfSubcommand,
}

/// Why rules are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulesError {
    /// A parenthesis that this argument opens is not closed.
    Unmatched(Vec<u8>),
    /// This rule.
    Rule(Vec<u8>, RuleError),
}

/// What rules are read with.
#[derive(Clone, Copy)]
pub struct Grammar<'c> {
    pub catalogue: &'c Catalogue,
    /// New users and selectors may use every channel (`acl-pubsub-default allchannels`).
    pub every_channel: bool,
}

/// A user without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    is_on: bool,
    /// Every password is right.
    no_password: bool,
    /// Whether RESTORE checks what this user gives it. `None`: no rule says. It always does here.
    sanitizes: Option<bool>,
    passwords: Vec<Hash>,
    root: Selector,
    /// Those in parentheses.
    selectors: Vec<Selector>,
}

impl User {
    /// A user that may not log in, and may do nothing.
    pub fn new(grammar: Grammar<'_>) -> Self {
        User {
            is_on: false,
            no_password: false,
            sanitizes: None,
            passwords: Vec::new(),
            root: Selector::new(grammar.catalogue, grammar.every_channel),
            selectors: Vec::new(),
        }
    }

    /// The user that `rules` make of this one. A selector may stand in several arguments.
    pub fn with(&self, rules: &[&[u8]], grammar: Grammar<'_>) -> Result<User, RulesError> {
        let mut user = self.clone();
        for rule in join_selectors(rules)? {
            if let Err(error) = user.apply(&rule, grammar) {
                return Err(RulesError::Rule(rule, error));
            }
        }
        Ok(user)
    }

    fn apply(&mut self, rule: &[u8], grammar: Grammar<'_>) -> Result<(), RuleError> {
        match rule {
            [] => {}
            _ if is(rule, "on") => self.is_on = true,
            _ if is(rule, "off") => self.is_on = false,
            _ if is(rule, "sanitize-payload") => self.sanitizes = Some(true),
            _ if is(rule, "skip-sanitize-payload") => self.sanitizes = Some(false),
            _ if is(rule, "nopass") => self.set_no_password(true),
            _ if is(rule, "resetpass") => self.set_no_password(false),
            [b'>', password @ ..] => self.add_password(sha256(password)),
            [b'#', hash @ ..] => self.add_password(parse_hash(hash)?),
            [b'<', password @ ..] => self.remove_password(&sha256(password))?,
            [b'!', hash @ ..] => self.remove_password(&parse_hash(hash)?)?,
            [b'(', rules @ .., b')'] => {
                let mut selector = Selector::new(grammar.catalogue, grammar.every_channel);
                for rule in words(rules) {
                    // A file of users could not be read with it.
                    if rule.ends_with(b")") {
                        return Err(RuleError::Syntax);
                    }
                    selector.apply(rule, grammar.catalogue)?;
                }
                self.selectors.push(selector);
            }
            _ if is(rule, "clearselectors") => self.selectors.clear(),
            _ if is(rule, "reset") => {
                *self = User {
                    sanitizes: Some(true),
                    ..User::new(grammar)
                }
            }
            _ => self.root.apply(rule, grammar.catalogue)?,
        }
        Ok(())
    }

    fn set_no_password(&mut self, to: bool) {
        self.no_password = to;
        self.passwords.clear();
    }

    fn add_password(&mut self, hash: Hash) {
        if !self.passwords.contains(&hash) {
            self.passwords.push(hash);
        }
        self.no_password = false;
    }

    fn remove_password(&mut self, hash: &Hash) -> Result<(), RuleError> {
        let at = self.passwords.iter().position(|known| known == hash);
        self.passwords.remove(at.ok_or(RuleError::NoSuchPassword)?);
        Ok(())
    }

    // ---- what it says ----

    /// `on`, `nopass` and the like, in the order in which they are listed.
    pub fn flags(&self) -> Vec<&'static str> {
        let is_on = if self.is_on { "on" } else { "off" };
        let sanitizes = match self.sanitizes {
            Some(true) => Some("sanitize-payload"),
            Some(false) => Some("skip-sanitize-payload"),
            None => None,
        };
        let no_password = self.no_password.then_some("nopass");
        [Some(is_on), no_password, sanitizes].into_iter().flatten().collect()
    }

    /// The hashes of its passwords, as hexadecimal digits.
    pub fn passwords(&self) -> impl Iterator<Item = String> {
        self.passwords.iter().map(hex)
    }

    /// What it may do besides its selectors.
    pub fn root(&self) -> &Selector {
        &self.root
    }

    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// The rules that make a new user this one, as ACL LIST and the file of users have them.
    pub fn describe(&self) -> Vec<u8> {
        let flags = self.flags().into_iter().map(|flag| flag.as_bytes().to_vec());
        let passwords = self.passwords().map(|hash| format!("#{hash}").into_bytes());
        let others = self
            .selectors
            .iter()
            .map(|selector| [b"(", &*selector.describe(), b")"].concat());
        let parts = flags.chain(passwords).chain([self.root.describe()]).chain(others);
        parts.collect::<Vec<_>>().join(&b' ')
    }

    // ---- checks ----

    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether a connection needs no password to be this user.
    pub fn is_open(&self) -> bool {
        self.is_on && self.no_password
    }

    /// Whether it may log in with this password. Takes the same time whichever byte is wrong.
    pub fn lets_in(&self, password: &[u8]) -> bool {
        let given = sha256(password);
        let right = self
            .passwords
            .iter()
            .fold(false, |right, hash| right | openssl::memcmp::eq(hash, &given));
        self.is_on && (self.no_password || right)
    }

    pub fn may_everything(&self) -> bool {
        self.root.allows_everything()
    }

    pub fn allows_every_key(&self) -> bool {
        self.all_selectors().all(Selector::allows_every_key)
    }

    pub fn allows_channel(&self, channel: &[u8], is_pattern: bool) -> bool {
        self.all_selectors()
            .any(|selector| selector.allows_channel(channel, is_pattern))
    }

    /// Of several selectors one must allow the whole request.
    pub fn check(&self, request: &Request<'_>) -> Result<(), Denied> {
        self.check_by(request, |_| true)
    }

    /// Whether it may run this request, and read any key beside those that the request names.
    pub fn may_read_others(&self, request: &Request<'_>) -> bool {
        self.check_by(request, Selector::reads_every_key).is_ok()
    }

    fn check_by(&self, request: &Request<'_>, counts: impl Fn(&Selector) -> bool) -> Result<(), Denied> {
        let mut denied = Denied::Command;
        for selector in self.all_selectors().filter(|selector| counts(selector)) {
            match selector.check(request) {
                Ok(()) => return Ok(()),
                Err(other) => denied = denied.max(other),
            }
        }
        Err(denied)
    }

    fn all_selectors(&self) -> impl Iterator<Item = &Selector> {
        std::iter::once(&self.root).chain(&self.selectors)
    }
}

/// True if the rule is this word, in any case.
pub(super) fn is(rule: &[u8], word: &str) -> bool {
    rule.eq_ignore_ascii_case(word.as_bytes())
}

/// What stands between blanks.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Makes one rule of arguments that a parenthesis holds together.
fn join_selectors(rules: &[&[u8]]) -> Result<Vec<Vec<u8>>, RulesError> {
    let mut joined = Vec::new();
    let mut open: Option<(&[u8], Vec<u8>)> = None;
    for rule in rules {
        match open.take() {
            None if rule.starts_with(b"(") && !rule.ends_with(b")") => open = Some((rule, rule.to_vec())),
            None => joined.push(rule.to_vec()),
            Some((first, selector)) => {
                let selector = [&*selector, b" ", rule].concat();
                match rule.ends_with(b")") {
                    true => joined.push(selector),
                    false => open = Some((first, selector)),
                }
            }
        }
    }
    match open {
        Some((first, _)) => Err(RulesError::Unmatched(first.to_vec())),
        None => Ok(joined),
    }
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_hash(text: &[u8]) -> Result<Hash, RuleError> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(RuleError::BadHash),
    };
    let mut hash = Hash::default();
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() != hash.len() {
        return Err(RuleError::BadHash);
    }
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Ok(hash)
}
