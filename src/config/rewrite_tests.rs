use std::fs;

use tempfile::TempDir;

use super::super::table::{Change, Effect};
use super::super::{Config, Refused};
use super::*;

/// Values, the awkward ones first: each setting gets the first that it takes and does not have.
const VALUES: &[&str] = &[
    "a \"b\"  \\c 'd'\t# \u{e9}\u{a0}\u{7}\n\rx",
    "a.b=c d\ne.f=\"g\"  # \\h",
    "900 1 300 10",
    "1=x 2=y,readonly",
    "normal 1 2 3 pubsub 4 5 6",
    "hash,zset",
    "AKE",
    "50 99.5",
    "1 2 3",
    "a-name.example",
    "5%",
    "3145729",
    "700ms",
    "2m",
    "77",
    "7",
    "yes",
    "no",
];

fn load(arguments: &[String]) -> Result<Config, String> {
    let arguments = ["highwater".to_owned()].into_iter().chain(arguments.iter().cloned());
    Config::load(arguments.map(Into::into), std::iter::empty()).map_err(|refused| match refused {
        Refused::Wrong(line) => line,
        Refused::Shown(text) => text.to_string(),
    })
}

/// A value that the setting takes and does not have.
fn other(setting: &Setting, current: &str) -> String {
    let takes = |value: &&str| {
        setting
            .kind
            .normalise(value, current)
            .is_ok_and(|value| value != current)
    };
    let choices = match setting.kind {
        super::super::kind::Kind::Choice(choices) => choices,
        _ => VALUES,
    };
    let value = choices.iter().copied().find(takes);
    value
        .unwrap_or_else(|| panic!("{} has one value", setting.name))
        .to_owned()
}

/// A file of settings.
struct Conf {
    temp: TempDir,
}

impl Conf {
    fn new(text: &str) -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let conf = Conf { temp };
        conf.write("conf", text);
        conf
    }

    fn path(&self, name: &str) -> String {
        let path = self.temp.path().join(name);
        path.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a temporary file can be written");
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path("conf")).expect("a temporary file can be read")
    }

    fn load(&self, more: &[String]) -> Config {
        load(&[&[self.path("conf")][..], more].concat()).expect("good settings")
    }

    fn rewrite(&self, config: &Config, users: &[&str]) -> Result<String, String> {
        let users: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
        config.rewrite(&users, |path, text| fs::write(path, text))?;
        Ok(self.text())
    }
}

fn set(config: &Config, name: &str, value: &str) {
    let set = config.set(&[(name.as_bytes(), value.as_bytes())]);
    set.unwrap_or_else(|error| panic!("{name} {value:?}: {error}"));
}

#[test]
fn a_start_with_the_rewritten_file_has_every_value() {
    let conf = Conf::new("# mine\nPORT 7000\n\nsave 1 1\nsave 2 2\nslave-priority 5\ntimeout 1\ntimeout 2\n");
    conf.write("properties", "sasl.username=me\nsasl.password=secret\n");
    let mut arguments = Vec::new();
    let settings = || {
        SETTINGS
            .iter()
            .filter(|row| !matches!(row.effect, Effect::OnlyDefault(_)))
    };
    for setting in settings().filter(|setting| setting.change != Change::Any) {
        let value = match setting.name {
            "kafka-properties-file" => conf.path("properties"),
            _ => other(setting, setting.default),
        };
        arguments.push(format!("--{}={value}", setting.name));
    }
    let config = conf.load(&arguments);
    for setting in settings().filter(|setting| setting.change == Change::Any) {
        set(&config, setting.name, &other(setting, &config.value(setting.name)));
    }
    let all = |config: &Config| (config.get(|_| true), config.kafka_properties());
    let changed = settings().filter(|setting| *config.value(setting.name) != *setting.default);
    assert_eq!(changed.count(), settings().count());
    let text = conf.rewrite(&config, &[]).expect("it can be written");
    assert!(text.starts_with("# mine\nport "), "{text}");
    assert_eq!(all(&conf.load(&[])), all(&config), "{text}");
    assert!(
        !text.contains("secret"),
        "the file of properties keeps what is in it: {text}"
    );
    assert_eq!(
        conf.rewrite(&config, &[]).as_deref(),
        Ok(&*text),
        "it changes nothing more"
    );
    assert_eq!(conf.rewrite(&conf.load(&[]), &[]).as_deref(), Ok(&*text));
    // And back again.
    let config = conf.load(&[]);
    for setting in settings().filter(|setting| setting.change == Change::Any) {
        set(&config, setting.name, setting.default);
    }
    let text = conf.rewrite(&config, &[]).expect("it can be written");
    assert_eq!(all(&conf.load(&[])), all(&config), "{text}");
}

#[test]
fn lines_stay_unless_their_value_has_changed() {
    let before = "# first\n\n  maxmemory   100mb\n# of clients\ntimeout 5\nhz 1\n\n# twice\nHZ 12\nclient-output-buffer-limit \
                  normal 1mb 2 3\nclient-output-buffer-limit pubsub 4 5 6\nbind 127.0.0.1  -::1";
    let conf = Conf::new(before);
    let config = conf.load(&["--maxclients".to_owned(), "7".to_owned()]);
    set(&config, "timeout", "6");
    set(&config, "requirepass", "a b");
    let text = conf
        .rewrite(&config, &["user ann on nopass ~* &* +@all"])
        .expect("it can be written");
    let after = before
        .replace("timeout 5", "timeout 6")
        .replace("hz 1\n\n# twice\nHZ 12", "hz 12\n\n# twice");
    let added = "requirepass \"a b\"\nmaxclients 7\nuser ann on nopass ~* &* +@all\n";
    assert_eq!(text, format!("{after}\n{SIGNATURE}\n{added}"));
    // Another time nothing is moved, and no second heading comes.
    set(&config, "requirepass", "");
    set(&config, "timeout", "0");
    let users = [
        "user bob off resetchannels -@all",
        "user ann off ~\"x' \\ resetchannels -@all",
    ];
    let text = conf.rewrite(&config, &users).expect("it can be written");
    let after = after.replace("timeout 6", "timeout 0");
    let ann = "user ann off \"~\\\"x'\" \"\\\\\" resetchannels -@all\n";
    let bob = "user bob off resetchannels -@all\n";
    assert_eq!(
        text,
        format!("{after}\n{SIGNATURE}\nrequirepass \"\"\nmaxclients 7\n{ann}{bob}")
    );
    // With a file of users the lines go. What there was of the file may have gone, too.
    let text = conf.rewrite(&config, &[]).expect("it can be written");
    assert_eq!(text, format!("{after}\n{SIGNATURE}\nrequirepass \"\"\nmaxclients 7\n"));
    fs::remove_file(conf.path("conf")).expect("it is there");
    let text = conf.rewrite(&config, &[]).expect("it can be written");
    assert!(text.starts_with(SIGNATURE) && text.contains("\nhz 12\n"), "{text}");
}

#[test]
fn files_that_are_included_stay_and_their_values_count() {
    let conf = Conf::new("timeout 1\nsave 1 1\ninclude other\n");
    conf.write("other", "timeout 2\nmaxmemory 5mb\nsave 2 2\n");
    let config = conf.load(&[]);
    let before = conf.text();
    assert_eq!(conf.rewrite(&config, &[]), Ok(before.clone()), "all values are there");
    set(&config, "timeout", "0");
    set(&config, "maxmemory", "0");
    set(&config, "save", "3 3");
    let text = conf.rewrite(&config, &[]).expect("it can be written");
    let added = "maxmemory 0\ntimeout 0\nsave \"\"\nsave 3 3\n";
    assert_eq!(
        text,
        format!("include other\n{SIGNATURE}\n{added}"),
        "behind the other file"
    );
    assert_eq!(conf.load(&[]).get(|_| true), config.get(|_| true));
    assert_eq!(conf.rewrite(&config, &[]), Ok(text));
    // A user cannot be defined twice.
    conf.write("other", "user ann on\n");
    let refused = conf.rewrite(&config, &["user ann off resetchannels -@all"]);
    let refused = refused.expect_err("ann would be there twice");
    assert!(refused.contains("other:1 defines a user"), "{refused}");
}

#[test]
fn nothing_is_written_if_something_cannot_be() {
    let conf = Conf::new("timeout 1\n");
    let config = conf.load(&[]);
    set(&config, "timeout", "2");
    for (text, told) in [
        ("prot 1\n", ":1: there is no setting 'prot'"),
        ("timeout \"1\n", "conf:1: a quote"),
    ] {
        conf.write("conf", text);
        let refused = conf.rewrite(&config, &[]).expect_err("the file is wrong by now");
        assert!(refused.contains(told), "{refused}");
        assert_eq!(conf.text(), text);
    }
    let failed = config.rewrite(&[], |_, _| Err(std::io::Error::from_raw_os_error(libc::EROFS)));
    assert!(failed.expect_err("the file is wrong by now").contains("conf:1"));
    conf.write("conf", "timeout 1\n");
    let failed = config.rewrite(&[], |_, _| Err(std::io::Error::from_raw_os_error(libc::EROFS)));
    assert_eq!(
        failed,
        Err("Read-only file system".to_owned()),
        "the system's words, as in Redis"
    );
    assert!(
        Config::default().rewrite(&[], |_, _| Ok(())).is_err(),
        "there is no file"
    );
}
