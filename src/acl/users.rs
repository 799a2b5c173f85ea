//! All users of this node, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::catalogue::Catalogue;
use super::denials::Denials;
use super::selector::check_name;
use super::user::{Grammar, RuleError, RulesError, User};

const WRONG_NAME: &str = "Usernames can't contain spaces or null characters";

/// The user of connections that have not logged in. It always exists.
pub const DEFAULT: &[u8] = b"default";

/// The name of a user.
pub type Name = Box<[u8]>;

/// A user under its name. What it may do can change while connections hold it.
#[derive(Debug)]
pub struct Account {
    name: Name,
    user: ArcSwap<User>,
    /// Allows everything: nothing else need be looked at.
    may_everything: AtomicBool,
}

impl Account {
    fn new(name: &[u8], user: User) -> Arc<Self> {
        Arc::new(Account {
            name: name.into(),
            may_everything: user.may_everything().into(),
            user: ArcSwap::from_pointee(user),
        })
    }

    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Its rights, as they are now.
    pub fn user(&self) -> Arc<User> {
        self.user.load_full()
    }

    /// The same for a check, which is soon over. It costs no count that other threads change, too.
    pub fn rights(&self) -> Guard<Arc<User>> {
        self.user.load()
    }

    /// Whether no command needs a further check. Costs one load.
    pub fn may_everything(&self) -> bool {
        self.may_everything.load(Ordering::Acquire)
    }

    /// Its line in ACL LIST and in the file of users.
    pub fn describe(&self) -> Vec<u8> {
        [b"user ", self.name(), b" ", &*self.user().describe()].concat()
    }

    fn set(&self, user: User) {
        let may_everything = user.may_everything();
        self.user.store(Arc::new(user));
        self.may_everything.store(may_everything, Ordering::Release);
    }
}

/// Users by name that are not in force yet.
pub type Defined = BTreeMap<Name, User>;

/// What a file of users has changed.
#[derive(Default)]
pub struct Loaded {
    /// Accounts that exist with other rights or passwords.
    pub changed: Vec<Arc<Account>>,
    pub removed: Vec<Arc<Account>>,
}

/// All users of this node.
pub struct Users {
    catalogue: &'static Catalogue,
    accounts: Mutex<BTreeMap<Name, Arc<Account>>>,
    default: Arc<Account>,
    /// New users and selectors may use every channel.
    every_channel: AtomicBool,
    pub denials: Denials,
}

impl Users {
    /// The default user alone, who may do everything without a password.
    pub fn new(catalogue: &'static Catalogue) -> Self {
        let grammar = Grammar {
            catalogue,
            every_channel: false,
        };
        let default = Account::new(DEFAULT, default_user(grammar));
        Users {
            catalogue,
            accounts: Mutex::new([(DEFAULT.into(), default.clone())].into()),
            default,
            every_channel: AtomicBool::new(false),
            denials: Denials::default(),
        }
    }

    fn grammar(&self) -> Grammar<'static> {
        Grammar {
            catalogue: self.catalogue,
            every_channel: self.every_channel.load(Ordering::Relaxed),
        }
    }

    /// Whether users and selectors that are made from now on may use every channel.
    pub fn set_every_channel(&self, may: bool) {
        self.every_channel.store(may, Ordering::Relaxed);
    }

    /// The user of connections that have not logged in.
    pub fn default_account(&self) -> &Arc<Account> {
        &self.default
    }

    /// Whether connections need not log in.
    pub fn needs_no_login(&self) -> bool {
        self.default.user.load().is_open()
    }

    pub fn get(&self, name: &[u8]) -> Option<Arc<Account>> {
        self.accounts.lock().get(name).cloned()
    }

    /// All accounts, by name.
    pub fn list(&self) -> Vec<Arc<Account>> {
        self.accounts.lock().values().cloned().collect()
    }

    /// The user of this name, if it may log in with this password.
    pub fn log_in(&self, name: &[u8], password: &[u8]) -> Option<Arc<Account>> {
        self.get(name).filter(|account| account.rights().lets_in(password))
    }

    // ---- changes ----

    /// Changes a user, or creates it. An error changes nothing.
    pub fn set(&self, name: &[u8], rules: &[&[u8]]) -> Result<Arc<Account>, String> {
        if check_name(name).is_err() {
            return Err(WRONG_NAME.to_owned());
        }
        let mut accounts = self.accounts.lock();
        let known = accounts.get(name).cloned();
        let before = known
            .as_ref()
            .map_or_else(|| Arc::new(User::new(self.grammar())), |known| known.user());
        let user = before.with(rules, self.grammar()).map_err(wrong_rules)?;
        Ok(match known {
            Some(known) => {
                known.set(user);
                known
            }
            None => {
                let account = Account::new(name, user);
                accounts.insert(name.into(), account.clone());
                account
            }
        })
    }

    /// Removes a user. What still holds its account may do nothing any more. `None`: there is no
    /// such user, or it is the default one.
    pub fn remove(&self, name: &[u8]) -> Option<Arc<Account>> {
        if name == DEFAULT {
            return None;
        }
        let removed = self.accounts.lock().remove(name)?;
        removed.set(User::new(Grammar {
            every_channel: false,
            ..self.grammar()
        }));
        Some(removed)
    }

    /// Gives the default user this password alone; without one it needs none (`requirepass`).
    pub fn set_default_password(&self, password: Option<&str>) {
        let password = password.map(|password| format!(">{password}"));
        let rules = ["resetpass", password.as_deref().unwrap_or("nopass")];
        let _locked = self.accounts.lock();
        let user = self.default.user().with(&rules.map(str::as_bytes), self.grammar());
        self.default.set(user.expect("rules that are always right"));
    }

    // ---- the configuration and the file of users ----

    /// Adds the user that a `user` line of the configuration defines to `defined`: its name, then
    /// its rules.
    pub fn define(&self, words: &[&[u8]], defined: &mut Defined) -> Result<(), String> {
        let (name, rules) = words.split_first().ok_or("a user has a name")?;
        let is_default = **name == *DEFAULT;
        if !is_default && defined.contains_key(*name) {
            return Err("Duplicate user found. A user can only be defined once in config files".to_owned());
        }
        if check_name(name).is_err() {
            return Err(WRONG_NAME.to_owned());
        }
        let fresh: &[&[u8]] = if is_default { &[&b"reset"[..]] } else { &[] };
        let user = User::new(self.grammar()).with(&[fresh, rules].concat(), self.grammar());
        defined.insert(Name::from(*name), user.map_err(wrong_rules)?);
        Ok(())
    }

    /// Puts these users in force; others stay. Returns the accounts that existed with other rights
    /// or passwords.
    pub fn put(&self, defined: Defined) -> Vec<Arc<Account>> {
        put(&mut self.accounts.lock(), defined)
    }

    /// Takes the users that a file has instead of those that there are: all, or after an error
    /// none. `file` is its name, for errors.
    pub fn load(&self, file: &str, text: &[u8]) -> Result<Loaded, String> {
        let grammar = self.grammar();
        let mut wanted = read(file, text, grammar)?;
        wanted.entry(DEFAULT.into()).or_insert_with(|| default_user(grammar));
        let mut accounts = self.accounts.lock();
        let gone: BTreeSet<Name> = accounts
            .keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        let mut loaded = Loaded::default();
        for name in gone {
            if let Some(account) = accounts.remove(&name) {
                account.set(User::new(grammar));
                loaded.removed.push(account);
            }
        }
        loaded.changed = put(&mut accounts, wanted);
        Ok(loaded)
    }

    /// A file that [`Users::load`] reads.
    pub fn save(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for account in self.list() {
            text.extend(account.describe());
            text.push(b'\n');
        }
        text
    }
}

fn put(accounts: &mut BTreeMap<Name, Arc<Account>>, users: Defined) -> Vec<Arc<Account>> {
    let mut changed = Vec::new();
    for (name, user) in users {
        match accounts.get(&name) {
            Some(known) if *known.user() == user => {}
            Some(known) => {
                known.set(user);
                changed.push(known.clone());
            }
            None => {
                let account = Account::new(&name, user);
                accounts.insert(name, account);
            }
        }
    }
    changed
}

/// The error of rules for one user.
fn wrong_rules(error: RulesError) -> String {
    match error {
        RulesError::Unmatched(rule) => {
            format!("Unmatched parenthesis in acl selector starting at '{}'.", text(&rule))
        }
        RulesError::Rule(rule, error) => format!("Error in ACL SETUSER modifier '{}': {error}", text(&rule)),
    }
}

fn default_user(grammar: Grammar<'_>) -> User {
    let rules = ["on", "nopass", "+@all", "~*", "allchannels"].map(str::as_bytes);
    User::new(grammar)
        .with(&rules, grammar)
        .expect("rules that are always right")
}

/// The users that a file defines. The error names every wrong line.
fn read(file: &str, contents: &[u8], grammar: Grammar<'_>) -> Result<Defined, String> {
    let mut users = BTreeMap::new();
    let mut errors = String::new();
    for (number, line) in (1..).zip(contents.split(|byte| *byte == b'\n')) {
        let words: Vec<&[u8]> = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .collect();
        match &words[..] {
            [] => {}
            [b"user", name, ..] if users.contains_key(*name) => {
                errors += &format!("WARNING: Duplicate user '{}' found on line {number}. ", text(name));
            }
            [b"user", name, ..] if check_name(name).is_err() => {
                errors += &format!(
                    "'{file}:{number}: username '{}' contains invalid characters. ",
                    text(name)
                );
            }
            [b"user", name, rules @ ..] => {
                // Errors are all told, so a line with one defines its user too.
                let user = User::new(grammar).with(rules, grammar).unwrap_or_else(|error| {
                    errors += &match error {
                        RulesError::Unmatched(_) => {
                            format!("{file}:{number}: Unmatched parenthesis in selector definition.")
                        }
                        // Such a rule is no secret.
                        RulesError::Rule(rule, error @ RuleError::Unknown) => {
                            format!(
                                "{file}:{number}: Error in applying operation '{}': {error}. ",
                                text(&rule)
                            )
                        }
                        RulesError::Rule(_, error) => format!("{file}:{number}: {error}. "),
                    };
                    User::new(grammar)
                });
                users.insert(Name::from(*name), user);
            }
            _ => {
                errors += &format!("{file}:{number} should start with user keyword followed by the username. ");
            }
        }
    }
    match errors.is_empty() {
        true => Ok(users),
        false => Err(format!(
            "{errors}WARNING: ACL errors detected, no change to the previously active ACL rules was performed"
        )),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
#[path = "users_tests.rs"]
mod tests;
