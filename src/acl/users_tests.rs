use std::sync::LazyLock;

use super::super::{Access, Denied, Entry, Request, Wanted};
use super::*;

const GET: u32 = 0;
const SET: u32 = 1;
const CONFIG: u32 = 2;
const CONFIG_GET: u32 = 3;
const CONFIG_SET: u32 = 4;
const SELECT: u32 = 70;

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let entry = |name, number, subcommands: &[u32], category| Entry {
        name,
        number,
        subcommands: subcommands.to_vec(),
        categories: vec![category],
    };
    let entries = [
        entry("get", GET, &[], "read"),
        entry("set", SET, &[], "write"),
        entry("config", CONFIG, &[CONFIG_GET, CONFIG_SET], "admin"),
        entry("config|get", CONFIG_GET, &[], "admin"),
        entry("config|set", CONFIG_SET, &[], "admin"),
        entry("select", SELECT, &[], "connection"),
    ];
    Catalogue::new(&["read", "write", "admin", "connection", "geo"], entries.into_iter())
});

fn set(users: &Users, rules: &str) -> Result<Arc<Account>, String> {
    let rules: Vec<&[u8]> = rules.split(' ').map(str::as_bytes).collect();
    users.set(b"ann", &rules)
}

/// A new user with these rules.
fn user(rules: &str) -> Arc<User> {
    set(&Users::new(&CATALOGUE), rules).expect("good rules").user()
}

fn described(rules: &str) -> String {
    String::from_utf8(user(rules).describe()).expect("text")
}

fn asks(user: &User, number: u32, first: &str, keys: &[Wanted<'_>]) -> Result<(), Denied> {
    user.check(&Request {
        number,
        is_free: false,
        first: Some(first.as_bytes()),
        keys,
        channels: &[],
        are_patterns: false,
    })
}

#[test]
fn rules_on_commands_are_shown_in_their_order() {
    for (rules, expected) in [
        ("on", "on resetchannels -@all"),
        ("+get -SET", "off resetchannels -@all +get -set"),
        ("+@all -set ~*", "off ~* resetchannels +@all -set"),
        ("+get +@all -@all", "off resetchannels -@all"),
        ("+config|get +config", "off resetchannels -@all +config"),
        ("+config -config|set", "off resetchannels -@all +config -config|set"),
        ("+select|0 +select|1", "off resetchannels -@all +select|0 +select|1"),
        ("+@read +get +@READ", "off resetchannels -@all +get +@read"),
        ("~a %r~b %W~b %R~c &d", "off ~a ~b %R~c resetchannels &d -@all"),
        (
            "nopass allchannels (+get ~x) ( %RW~y )",
            "off nopass &* -@all (~x resetchannels -@all +get) (~y resetchannels -@all)",
        ),
        (
            "(+get) clearselectors reset",
            "off sanitize-payload resetchannels -@all",
        ),
    ] {
        let shown = described(rules);
        assert_eq!(shown, expected, "{rules}");
        assert_eq!(described(&shown), expected, "what is shown makes the same user");
        assert_eq!(user(&shown), user(rules), "{rules}");
    }
}

#[test]
fn wrong_rules_change_nothing() {
    let users = Users::new(&CATALOGUE);
    set(&users, "on +get ~a").expect("good rules");
    let before = users.get(b"ann").expect("is there").user();
    for (rules, error) in [
        ("+set what", "'what': Syntax error"),
        ("+nosuch", "'+nosuch': Unknown command"),
        ("+@nosuch", "'+@nosuch': Unknown command or category"),
        ("-get|x", "Unknown command"),
        ("+config|nosuch", "Unknown command"),
        ("+config|get|x", "Allowing first-arg of a subcommand is not supported"),
        ("+get|", "Syntax error"),
        ("%~x", "Syntax error"),
        ("%RR~x", "Syntax error"),
        ("%R", "Syntax error"),
        ("allkeys ~x", "'allkeys' flag"),
        ("allchannels &x", "'allchannels' flag"),
        ("<no", "does not exist"),
        ("#0", "exactly 64 characters"),
        ("(+get", "Unmatched parenthesis in acl selector starting at '(+get'."),
        ("(+get x)", "'(+get x)': Syntax error"),
        ("(on)", "Syntax error"),
    ] {
        let refused = set(&users, rules).expect_err(rules);
        assert!(refused.contains(error), "{rules}: {refused}");
        assert_eq!(users.get(b"ann").expect("is there").user(), before, "{rules}");
    }
    assert!(users.set(b"a b", &[]).is_err() && users.set(b"a\0", &[]).is_err());
}

#[test]
fn passwords_are_compared_by_their_hashes() {
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let user_with = |rules: &str| user(rules);
    assert!(user_with("on >abc").lets_in(b"abc") && user_with(&format!("on #{abc}")).lets_in(b"abc"));
    assert_eq!(user_with("on >abc >abc").passwords().collect::<Vec<_>>(), [abc]);
    assert!(!user_with("on >abc").lets_in(b"abd") && !user_with("on >abc").lets_in(b""));
    assert!(!user_with("off >abc").lets_in(b"abc"), "it is off");
    assert!(!user_with("on").lets_in(b""), "it has no password and needs one");
    assert!(user_with("on >abc nopass").lets_in(b"anything"));
    assert!(!user_with(&format!("on >abc !{abc}")).lets_in(b"abc"));
    let two = user_with("on >abc >b <abc");
    assert!(two.lets_in(b"b") && !two.lets_in(b"abc"));
    assert!(!user_with("on nopass >b").lets_in(b"c"), "a password ends nopass");
}

#[test]
fn a_request_needs_one_selector_that_allows_all_of_it() {
    let user = user("on +get %R~read:* (+set +get %W~write:*) (+select|0)");
    let read = |key: &'static str| [(key.as_bytes(), Access::READ)];
    let write = |key: &'static str| [(key.as_bytes(), Access::WRITE)];
    assert_eq!(asks(&user, GET, "", &read("read:1")), Ok(()));
    assert_eq!(asks(&user, GET, "", &read("write:1")), Err(Denied::Key(0)));
    assert_eq!(asks(&user, SET, "", &write("write:1")), Ok(()));
    assert_eq!(asks(&user, SET, "", &write("read:1")), Err(Denied::Key(0)));
    let both = [read("read:1")[0], write("write:1")[0]];
    assert_eq!(asks(&user, GET, "", &both), Err(Denied::Key(1)), "no selector has both");
    let none = [(&b"write:1"[..], Access::NONE)];
    assert_eq!(
        asks(&user, GET, "", &none),
        Ok(()),
        "EXISTS and the like need any right"
    );
    assert_eq!(asks(&user, CONFIG_GET, "", &[]), Err(Denied::Command));
    assert_eq!(asks(&user, SELECT, "0", &[]), Ok(()));
    assert_eq!(asks(&user, SELECT, "1", &[]), Err(Denied::Command));
}

#[test]
fn subcommands_go_with_their_command_unless_a_rule_says_otherwise() {
    for (rules, get, set) in [
        ("+config", true, true),
        ("+config -config|set", true, false),
        ("+config|get", true, false),
        ("+@all -config +config|set", false, true),
        ("+@admin", true, true),
        ("+@all -@admin", false, false),
    ] {
        let user = user(rules);
        let may = [CONFIG_GET, CONFIG_SET].map(|number| asks(&user, number, "", &[]).is_ok());
        assert_eq!(may, [get, set], "{rules}");
    }
}

#[test]
fn channels_match_patterns_and_patterns_must_be_the_same() {
    let user = user("&news.* &x (&y)");
    for (channel, is_pattern, allowed) in [
        ("news.a", false, true),
        ("news.*", true, true),
        ("news.a", true, false),
        ("x", false, true),
        ("y", true, true),
        ("z", false, false),
    ] {
        assert_eq!(
            user.allows_channel(channel.as_bytes(), is_pattern),
            allowed,
            "{channel}"
        );
    }
}

#[test]
fn a_change_holds_for_those_who_have_the_account() {
    let users = Users::new(&CATALOGUE);
    let held = users.default_account().clone();
    assert!(held.may_everything() && users.needs_no_login());
    users.set(DEFAULT, &[b"-set"]).expect("a good rule");
    assert!(!held.may_everything() && asks(&held.user(), SET, "", &[]).is_err());
    users.set_default_password(Some("p w"));
    assert!(!users.needs_no_login() && users.log_in(DEFAULT, b"p w").is_some());
    assert!(users.log_in(DEFAULT, b"p").is_none() && users.log_in(b"nobody", b"p w").is_none());
    users.set_default_password(None);
    assert!(users.needs_no_login());
    assert!(users.remove(DEFAULT).is_none(), "it always exists");
    let ann = set(&users, "on nopass +@all ~* &*").expect("good rules");
    assert!(ann.may_everything());
    assert!(users.remove(b"ann").is_some_and(|removed| Arc::ptr_eq(&removed, &ann)));
    assert!(!ann.may_everything() && users.get(b"ann").is_none());
}

#[test]
fn a_file_of_users_is_taken_whole_or_not_at_all() {
    let users = Users::new(&CATALOGUE);
    let ann = set(&users, "on +get").expect("good rules");
    let text = |lines: &[&str]| lines.join("\n").into_bytes();
    for (lines, error) in [
        (&["user bob +nosuch"][..], "f:1: Error in applying operation '+nosuch'"),
        (&["", "user bob >x ~* ~a"], "f:2: Adding a pattern"),
        (&["user bob", "user bob"], "Duplicate user 'bob' found on line 2"),
        (&["# comment"], "f:1 should start with user keyword"),
        (&["user bob (+get"], "f:1: Unmatched parenthesis"),
    ] {
        let Err(refused) = users.load("f", &text(lines)) else {
            panic!("{lines:?} is taken");
        };
        assert!(refused.contains(error) && refused.contains("no change"), "{refused}");
        assert!(users.get(b"bob").is_none());
    }
    let bob = "user bob on nopass ~b resetchannels -@all +set (~c resetchannels -@all +get)";
    let loaded = users.load("f", &text(&[bob, ""])).expect("a good file");
    assert_eq!((loaded.changed.len(), loaded.removed.len()), (0, 1), "ann is gone");
    assert!(asks(&ann.user(), GET, "", &[]).is_err());
    assert_eq!(
        String::from_utf8(users.save()).expect("text"),
        format!("{bob}\nuser default on nopass ~* &* +@all\n")
    );
    let held = users.get(b"bob").expect("is there");
    let loaded = users.load("f", &text(&["user bob off"])).expect("a good file");
    assert_eq!((loaded.changed.len(), loaded.removed.len()), (1, 0));
    assert!(!held.user().is_on());
}

#[test]
fn users_of_the_configuration_are_defined_once() {
    let users = Users::new(&CATALOGUE);
    let words = |line: &'static str| -> Vec<&[u8]> { line.split(' ').map(str::as_bytes).collect() };
    let mut defined = Defined::new();
    users.define(&words("ann on +get"), &mut defined).expect("a good line");
    let again = users.define(&words("ann on"), &mut defined).expect_err("it is there");
    assert!(again.starts_with("Duplicate user"), "{again}");
    for line in ["default off", "default on +get"] {
        users.define(&words(line), &mut defined).expect("a good line");
    }
    assert!(users.get(b"ann").is_none(), "nothing is in force yet");
    let default = users.default_account().clone();
    let changed = users.put(defined.clone());
    assert!(changed.len() == 1 && Arc::ptr_eq(&changed[0], &default));
    assert!(!default.may_everything(), "its rights are only those of the line");
    assert!(users.put(defined).is_empty(), "nothing has changed");
}
