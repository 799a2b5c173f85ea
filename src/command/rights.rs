//! What a request needs of its user's rights: its command, its keys, its channels.

use std::sync::LazyLock;

use smallvec::SmallVec;

use super::categories::{CATEGORIES, categories};
use super::key_specs::{access, keys_and_access};
use super::table::{self, CommandEntry};
use super::{Args, Run, flag};
use crate::acl::{Access, Account, Catalogue, Denied, Entry, Reason, Request, User, Wanted};

/// All commands, also those that are not implemented: rules that name them are no mistakes.
pub static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let entries = table::with_subcommands().map(|entry| Entry {
        name: entry.name,
        number: entry.number,
        subcommands: entry.subcommands.iter().map(|sub| sub.number).collect(),
        categories: categories(entry),
    });
    Catalogue::new(CATEGORIES, entries)
});

/// What a user may not do that a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack<'a> {
    Command,
    Key(&'a [u8]),
    Channel(&'a [u8]),
    /// Reading every key: this option of SORT names keys that only its computation finds.
    OtherKeys(&'static str),
}

impl<'a> Lack<'a> {
    /// The reason, and what is denied. `None`: Redis does not log it.
    pub fn logged(self, command: &'a CommandEntry) -> Option<(Reason, &'a [u8])> {
        match self {
            Lack::Command => Some((Reason::Command, command.name.as_bytes())),
            Lack::Key(key) => Some((Reason::Key, key)),
            Lack::Channel(channel) => Some((Reason::Channel, channel)),
            Lack::OtherKeys(_) => None,
        }
    }
}

/// Whether this user may run a request.
pub fn allow(user: &Account, command: &CommandEntry, args: Args<'_>) -> bool {
    user.may_everything() || check(&user.rights(), command, args).is_ok()
}

/// Checks a request of this user.
pub fn check<'a>(user: &User, command: &CommandEntry, args: Args<'a>) -> Result<(), Lack<'a>> {
    let keys: SmallVec<[Wanted<'_>; 4]> = match user.allows_every_key() {
        true => SmallVec::new(),
        false => {
            let keys = keys_and_access(command, args).into_iter();
            keys.map(|(key, flags)| (key, wanted(flags))).collect()
        }
    };
    let (channels, are_patterns) = channels(command, args);
    let request = Request {
        number: command.number,
        is_free: command.has(flag::NO_AUTH),
        first: args.get(if command.name.contains('|') { 2 } else { 1 }).copied(),
        keys: &keys,
        channels,
        are_patterns,
    };
    user.check(&request).map_err(|denied| match denied {
        Denied::Command => Lack::Command,
        Denied::Key(at) => Lack::Key(keys[at].0),
        Denied::Channel(at) => Lack::Channel(channels[at]),
    })?;
    match command.other_keys(args) {
        Some(option) if !user.may_read_others(&request) => Err(Lack::OtherKeys(option)),
        _ => Ok(()),
    }
}

/// What a user needs for a key that a command does this with.
fn wanted(flags: u16) -> Access {
    let reads = flags & access::ACCESS != 0;
    let writes = flags & (access::INSERT | access::DELETE | access::UPDATE) != 0;
    let when = |is: bool, access| if is { access } else { Access::NONE };
    when(reads, Access::READ).and(when(writes, Access::WRITE))
}

/// The channels that a request sends to or begins to listen to, and whether they are patterns.
fn channels<'s, 'a>(command: &CommandEntry, args: &'s [&'a [u8]]) -> (&'s [&'a [u8]], bool) {
    match command.run {
        Run::Publish { .. } => (args.get(1..2).unwrap_or_default(), false),
        _ if command.has(flag::LISTENS) => (args.get(1..).unwrap_or_default(), command.name == "psubscribe"),
        _ => (&[], false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(rules: &str) -> User {
        let users = crate::acl::Users::new(&CATALOGUE);
        let rules: Vec<&[u8]> = rules.split(' ').map(str::as_bytes).collect();
        let account = users.set(b"ann", &rules).expect("good rules");
        User::clone(&account.user())
    }

    fn lacks(user: &User, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let command = table::find(args[0]).expect("a command");
        let sub = args.get(1).and_then(|name| table::find_subcommand(command, name));
        match check(user, sub.unwrap_or(command), &args) {
            Ok(()) => "ok".into(),
            Err(Lack::Command) => "command".into(),
            Err(Lack::Key(name) | Lack::Channel(name)) => String::from_utf8_lossy(name).into_owned(),
            Err(Lack::OtherKeys(option)) => option.into(),
        }
    }

    #[test]
    fn keys_need_what_commands_do_with_them() {
        let user = user("+@all %R~r:* %W~w:* ~a:*");
        for (line, expected) in [
            ("GET r:1", "ok"),
            ("GET w:1", "w:1"),
            ("SET w:1 x", "ok"),
            ("SET r:1 x", "r:1"),
            ("SET w:1 x GET", "w:1"),
            ("SET a:1 x GET", "ok"),
            ("COPY r:1 w:1", "ok"),
            ("COPY w:1 r:1", "w:1"),
            ("EXISTS w:1 r:1", "ok"),
            ("EXISTS other", "other"),
            ("MGET r:1 r:2 x", "x"),
            ("SORT r:1 STORE w:1", "ok"),
            ("SORT r:1 STORE r:2", "r:2"),
            ("SORT r:1 BY w:*", "BY"),
            ("SORT r:1 GET # GET r:*", "GET"),
            ("XREAD STREAMS r:1 w:1 0 0", "w:1"),
            ("XREAD STREAMS r:1 r:streams 0 0", "ok"),
            ("XREADGROUP GROUP g c STREAMS r:1 x > >", "x"),
            ("XREADGROUP NOACK GROUP g streams STREAMS x >", "x"),
            ("XREADGROUP GROUP streams c COUNT 1 STREAMS r:1 >", "ok"),
            ("EVAL return 1 x", "x"),
            ("EVAL return 3 a:1 x", "ok"),
            ("EVAL s 2 a:1 r:1 x", "r:1"),
            ("BITFIELD r:1 GET u4 0", "ok"),
            ("BITFIELD r:1 SET u4 0 1", "r:1"),
            ("OBJECT ENCODING x", "x"),
            ("GEORADIUS r:1 0 0 1 m STORE x STORE w:1", "x"),
            ("PING", "ok"),
        ] {
            assert_eq!(lacks(&user, line), expected, "{line}");
        }
        let all_read = "ok";
        assert_eq!(lacks(&self::user("+@all %R~*"), "SORT r:1 BY w:* GET x:*"), all_read);
    }

    #[test]
    fn channels_are_those_of_messages_and_of_listeners() {
        let user = user("+@all ~* &news:*");
        for (line, expected) in [
            ("PUBLISH news:1 hello", "ok"),
            ("PUBLISH old hello", "old"),
            ("SPUBLISH old hello", "old"),
            ("SUBSCRIBE news:1 news:2 old", "old"),
            ("SSUBSCRIBE news:1", "ok"),
            ("PSUBSCRIBE news:*", "ok"),
            ("PSUBSCRIBE news:1*", "news:1*"),
            ("UNSUBSCRIBE old", "ok"),
            ("PUBSUB CHANNELS old", "ok"),
        ] {
            assert_eq!(lacks(&user, line), expected, "{line}");
        }
    }

    #[test]
    fn every_category_and_command_can_be_named() {
        for category in CATEGORIES {
            let user = user(&format!("-@all +@{category}"));
            for entry in table::with_subcommands() {
                let is_in = categories(entry).contains(category);
                let request = [entry.own_name().as_bytes()];
                let allowed = check(&user, entry, &request) != Err(Lack::Command);
                let may = is_in || entry.has(flag::NO_AUTH);
                assert_eq!(allowed, may, "{category} {}", entry.name);
            }
        }
        for entry in table::with_subcommands() {
            user(&format!("+@all -{}", entry.name));
        }
    }
}
