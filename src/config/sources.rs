//! Where values come from besides the command line: the environment, and files in redis.conf
//! syntax. Every value keeps its place, so that an error can name it.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::checks;
use super::table::{self, SETTINGS};

/// How deep files may include each other.
const MAX_INCLUDES: usize = 16;
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Directives of redis.conf that are not settings, and why they are refused.
const NOT_TAKEN: &[(&str, &str)] = &[
    ("rename-command", "commands keep their names"),
    ("loadmodule", "there are no modules"),
];

/// A value and its place.
#[derive(Clone)]
pub struct Given {
    /// Place of the setting in the table.
    pub setting: usize,
    pub words: Vec<String>,
    pub place: Place,
}

/// A line `user` of a file: the user's name, then its rules.
#[derive(Clone)]
pub struct UserLine {
    pub words: Vec<String>,
    pub place: Place,
}

/// What a file gives, with the files that it includes.
#[derive(Default)]
pub struct FromFile {
    pub given: Vec<Given>,
    pub users: Vec<UserLine>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    Flag(String),
    Variable(String),
    Line(PathBuf, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Flag(flag) => write!(f, "{flag}"),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Line(path, line) => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// The error for a name that is not a setting.
pub fn unknown(place: &Place, name: &str) -> String {
    let name: String = name.chars().take(80).collect();
    match table::nearest(&name) {
        Some(nearest) => {
            let nearest = match place {
                Place::Flag(_) => format!("--{nearest}"),
                Place::Variable(_) => table::variable(nearest),
                Place::Line(..) => format!("'{nearest}'"),
            };
            format!("{place}: there is no setting '{name}'; did you mean {nearest}?")
        }
        None => format!("{place}: there is no setting '{name}'; highwater --help lists them all"),
    }
}

/// The values in the environment. An empty variable counts as not set.
pub fn from_environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<Given>, String> {
    let mut given = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("HIGHWATER_")) else {
            continue;
        };
        let place = Place::Variable(name.to_string());
        let value = value
            .into_string()
            .map_err(|_| format!("{place}: the value is not UTF-8"))?;
        if value.is_empty() || is_from_elsewhere(name, &value) {
            continue;
        }
        let known = SETTINGS
            .iter()
            .position(|setting| setting.names().any(|known| table::variable(known) == name));
        let Some(setting) = known else {
            let plain = name["HIGHWATER_".len()..].to_ascii_lowercase().replace('_', "-");
            return Err(unknown(&place, &plain));
        };
        given.push(Given {
            setting,
            words: vec![value],
            place,
        });
    }
    Ok(given)
}

/// Variables that are set by others: by Kubernetes for a service named `highwater`, and by the
/// project's own tests.
fn is_from_elsewhere(name: &str, value: &str) -> bool {
    ["HIGHWATER_SERVICE_", "HIGHWATER_PORT_", "HIGHWATER_TEST_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || (name == "HIGHWATER_PORT" && value.contains("://"))
}

/// The values in a file in redis.conf syntax, and those of the files that it includes.
pub fn from_file(path: &Path) -> Result<FromFile, String> {
    from_text(path, &read_text(path)?)
}

/// As [`from_file`], if the file had this text.
pub fn from_text(path: &Path, text: &str) -> Result<FromFile, String> {
    let mut all = FromFile::default();
    read_into(path, text, &mut all, 0)?;
    Ok(all)
}

fn read_into(path: &Path, text: &str, all: &mut FromFile, depth: usize) -> Result<(), String> {
    if depth > MAX_INCLUDES {
        return Err(format!(
            "{}: files include each other more than {MAX_INCLUDES} deep",
            path.display()
        ));
    }
    for (number, line) in text.lines().enumerate() {
        let place = Place::Line(path.to_path_buf(), number + 1);
        if is_empty(line) {
            continue;
        }
        let mut words = split(line).ok_or_else(|| format!("{place}: a quote is not closed, or text follows it"))?;
        let name = words.remove(0);
        if words.is_empty() {
            return Err(format!("{place}: '{name}' has no value; an empty one is written \"\""));
        }
        if name.eq_ignore_ascii_case("include") {
            for file in &words {
                let file = path.parent().unwrap_or(Path::new("")).join(file);
                read_into(&file, &read_text(&file)?, all, depth + 1)?;
            }
            continue;
        }
        if name.eq_ignore_ascii_case("user") {
            all.users.push(UserLine { words, place });
            continue;
        }
        if let Some((name, why)) = NOT_TAKEN.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) {
            return Err(format!("{place}: '{name}' is not supported: {why}"));
        }
        let setting = table::place(&name).ok_or_else(|| unknown(&place, &name))?;
        all.given.push(Given { setting, words, place });
    }
    Ok(())
}

/// Whether a line is blank or a comment.
pub fn is_empty(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// The properties in a file of librdkafka properties, as kcat's `-F` takes it.
pub fn properties_file(path: &Path) -> Result<String, String> {
    let mut properties = String::new();
    for (number, line) in read_text(path)?.lines().enumerate() {
        let line = line.trim();
        if is_empty(line) {
            continue;
        }
        if !line.contains('=') {
            return Err(format!("{}:{}: a line is PROPERTY=VALUE", path.display(), number + 1));
        }
        properties.push_str(line);
        properties.push('\n');
    }
    Ok(properties)
}

/// Files among these that contain a password, or its hash, and that every user of this machine can
/// read. `acl_file`: the file of users.
pub fn exposed_files(given: &[Given], users: &[UserLine], acl_file: Option<PathBuf>) -> Vec<PathBuf> {
    let has_secret = |properties: &str| {
        let properties = checks::parse_properties(properties).unwrap_or_default();
        properties.iter().any(|(name, _)| checks::is_secret_property(name))
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for Given { setting, words, place } in given {
        let setting = &SETTINGS[*setting];
        let value = words.join(" ");
        if setting.name == "kafka-properties-file"
            && properties_file(Path::new(&value)).is_ok_and(|properties| has_secret(&properties))
        {
            files.push(value.into());
        } else if let Place::Line(file, _) = place
            && !value.is_empty()
            && (setting.secret || (setting.name == "kafka-property" && has_secret(&value)))
        {
            files.push(file.clone());
        }
    }
    let is_password = |rule: &[u8]| matches!(rule, [b'>' | b'#', ..]);
    let has_password = |user: &&UserLine| user.words.iter().any(|rule| is_password(rule.as_bytes()));
    files.extend(users.iter().filter(has_password).filter_map(|user| match &user.place {
        Place::Line(file, _) => Some(file.clone()),
        _ => None,
    }));
    // What cannot be read is reported when the users are read.
    let has_password =
        |file: &PathBuf| std::fs::read(file).is_ok_and(|text| text.split(u8::is_ascii_whitespace).any(is_password));
    let everybody_reads =
        |file: &PathBuf| std::fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o004 != 0);
    files.extend(acl_file.filter(everybody_reads).filter(has_password));
    files.retain(everybody_reads);
    files.sort_unstable();
    files.dedup();
    files
}

pub fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |cause: &dyn fmt::Display| format!("cannot read {}: {cause}", path.display());
    let size = std::fs::metadata(path).map_err(|e| cannot(&e))?.len();
    if size > MAX_FILE_BYTES {
        return Err(cannot(&format!(
            "it has {size} bytes, more than the {MAX_FILE_BYTES} that are read"
        )));
    }
    let bytes = std::fs::read(path).map_err(|e| cannot(&e))?;
    String::from_utf8(bytes).map_err(|_| cannot(&"it is not UTF-8"))
}

/// Splits a line like redis.conf does: blanks separate, quotes hold together, and `\n`, `\x41` and
/// the like are escapes inside double quotes. `None` if a quote is not closed or something other
/// than a blank follows it.
pub fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.chars().next() {
            Some('"') => quoted(&rest[1..])?,
            Some('\'') => single_quoted(&rest[1..])?,
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (rest[..end].to_string(), &rest[end..])
            }
        };
        if after.chars().next().is_some_and(|c| !c.is_whitespace()) {
            return None;
        }
        words.push(word);
        rest = after.trim_start();
    }
    Some(words)
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut word = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        match byte {
            b'"' => return Some((String::from_utf8(word).ok()?, &text[at..])),
            b'\\' => {
                let escaped = *bytes.get(at)?;
                at += 1;
                let code = text.get(at..at + 2).filter(|_| escaped == b'x');
                match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => {
                        at += 2;
                        word.push(byte);
                    }
                    None => word.push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        other => other,
                    }),
                }
            }
            byte => word.push(byte),
        }
    }
}

fn single_quoted(text: &str) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('\'')?;
        match rest[..end].strip_suffix('\\') {
            Some(before) => word.push_str(&format!("{before}'")),
            None => {
                word.push_str(&rest[..end]);
                return Some((word, &rest[end + 1..]));
            }
        }
        rest = &rest[end + 1..];
    }
}
