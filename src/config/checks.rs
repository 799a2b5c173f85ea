//! Settings whose values have a form of their own, and the parsing of those values.

use std::collections::BTreeMap;

use super::kind::parse_memory;
use crate::model::is_known;

/// Checks a value and returns its canonical form. The second argument is the current value.
#[derive(Clone, Copy)]
pub struct Check {
    pub normalise: fn(&str, &str) -> Result<String, String>,
    pub placeholder: &'static str,
    pub hint: &'static str,
}

pub const OUTPUT_LIMITS: Check = Check {
    normalise: |value, current| OutputLimits::parse(current)?.changed(value).map(|limits| limits.show()),
    placeholder: "CLASS HARD SOFT SECONDS",
    hint: "a class (normal, replica, pubsub), a hard limit, a soft limit and seconds, as often as there are classes",
};

pub const DATABASES: Check = Check {
    normalise: |value, _| Ok(show_mappings(&parse_mappings(value)?)),
    placeholder: "N=TOPIC[,readonly]",
    hint: "N=TOPIC or N=TOPIC,readonly",
};

/// The value of `max-features` that allows every feature.
pub const ALL_FEATURES: &str = "all";

pub const FEATURES: Check = Check {
    normalise: |value, _| features(value),
    placeholder: "all|none|NAME,...",
    hint: "all, none, or names of features",
};

fn features(value: &str) -> Result<String, String> {
    if value == ALL_FEATURES || value == "none" {
        return Ok(value.to_owned());
    }
    match value.split(',').find(|name| !is_known(name)) {
        Some(unknown) => Err(format!("this version knows no feature '{unknown}'")),
        None => Ok(value.to_owned()),
    }
}

pub const PROPERTIES: Check = Check {
    normalise: |value, _| Ok(show_properties(&parse_properties(value)?)),
    placeholder: "PROPERTY=VALUE",
    hint: "PROPERTY=VALUE",
};

/// Permissions of a file, in octal digits as for chmod.
pub const PERMISSIONS: Check = Check {
    normalise: |value, _| match u32::from_str_radix(value, 8) {
        Ok(mode) if mode <= 0o777 && !value.starts_with('+') => Ok(format!("{mode:o}")),
        Ok(_) => Err("argument must be between 0 and 777 inclusive".into()),
        Err(_) => Err("argument couldn't be parsed as an octal number".into()),
    },
    placeholder: "MODE",
    hint: "octal digits from 0 to 777",
};

pub const SAVE: Check = Check {
    normalise: |value, _| save_points(value),
    placeholder: "SECONDS CHANGES",
    hint: "pairs of seconds and changes",
};

pub const EVENTS: Check = Check {
    normalise: |value, _| events(value),
    placeholder: "CLASSES",
    hint: "letters out of Ag$lshzxeKEtmdn",
};

pub const PERCENTILES: Check = Check {
    normalise: |value, _| percentiles(value),
    placeholder: "P...",
    hint: "percentiles from 0 to 100",
};

pub const OOM_VALUES: Check = Check {
    normalise: |value, _| oom_values(value),
    placeholder: "N N N",
    hint: "three numbers from -2000 to 2000",
};

pub const HOST_NAME: Check = Check {
    normalise: |value, _| {
        let fits = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        fits.then(|| value.to_string())
            .ok_or_else(|| "Hostnames may only contain alphanumeric characters, hyphens or dots".into())
    },
    placeholder: "NAME",
    hint: "letters, digits, hyphens and dots",
};

/// One class of `client-output-buffer-limit`. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimit {
    /// Above so many bytes the connection is closed at once.
    pub hard: u64,
    /// Above so many bytes it is closed after `soft_seconds`.
    pub soft: u64,
    pub soft_seconds: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimits {
    pub normal: OutputLimit,
    /// Kept and returned. There are no such clients.
    pub replica: OutputLimit,
    pub pubsub: OutputLimit,
}

impl OutputLimits {
    pub fn parse(value: &str) -> Result<Self, String> {
        OutputLimits::default().changed(value)
    }

    fn changed(mut self, value: &str) -> Result<Self, String> {
        let words: Vec<&str> = value.split_ascii_whitespace().collect();
        if !words.len().is_multiple_of(4) {
            return Err("Wrong number of arguments in buffer limit configuration.".into());
        }
        for class in words.chunks(4) {
            let limit = match class[0].to_ascii_lowercase().as_str() {
                "normal" => &mut self.normal,
                "slave" | "replica" => &mut self.replica,
                "pubsub" => &mut self.pubsub,
                _ => return Err("Invalid client class specified in buffer limit configuration.".into()),
            };
            let wrong = "Error in hard, soft or soft_seconds setting in buffer limit configuration.";
            *limit = OutputLimit {
                hard: parse_memory(class[1]).ok_or(wrong)?,
                soft: parse_memory(class[2]).ok_or(wrong)?,
                soft_seconds: class[3].parse().map_err(|_| wrong)?,
            };
        }
        Ok(self)
    }

    fn show(&self) -> String {
        let class = |name: &str, l: &OutputLimit| format!("{name} {} {} {}", l.hard, l.soft, l.soft_seconds);
        [
            class("normal", &self.normal),
            class("slave", &self.replica),
            class("pubsub", &self.pubsub),
        ]
        .join(" ")
    }
}

/// A database that is a topic of another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub topic: String,
    pub read_only: bool,
}

pub fn parse_mappings(value: &str) -> Result<BTreeMap<u16, Mapping>, String> {
    let mut mappings = BTreeMap::new();
    for word in value.split_ascii_whitespace() {
        let wrong = || format!("'{word}' is not N=TOPIC or N=TOPIC,readonly");
        let (number, topic) = word.split_once('=').ok_or_else(wrong)?;
        let number: u16 = number.parse().map_err(|_| wrong())?;
        let (topic, read_only) = match topic.split_once(',') {
            None => (topic, false),
            Some((topic, "readonly" | "read-only")) => (topic, true),
            Some(_) => return Err(wrong()),
        };
        if topic.is_empty() {
            return Err(wrong());
        }
        let topic = topic.to_string();
        mappings.insert(number, Mapping { topic, read_only });
    }
    Ok(mappings)
}

fn show_mappings(mappings: &BTreeMap<u16, Mapping>) -> String {
    let show = |(n, m): (&u16, &Mapping)| format!("{n}={}{}", m.topic, if m.read_only { ",readonly" } else { "" });
    mappings.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// librdkafka properties, one per line. If a property has two lines, the later one holds. The error
/// never shows a value.
pub fn parse_properties(value: &str) -> Result<Vec<(String, String)>, String> {
    let mut properties: Vec<(String, String)> = Vec::new();
    for line in value.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line
            .split_once('=')
            .ok_or("a property without a value; it is written PROPERTY=VALUE")?;
        let (name, value) = (name.trim().to_string(), value.trim().to_string());
        if name.is_empty() {
            return Err("a value without a property; it is written PROPERTY=VALUE".into());
        }
        properties.retain(|(other, _)| *other != name);
        properties.push((name, value));
    }
    Ok(properties)
}

pub fn show_properties(properties: &[(String, String)]) -> String {
    let lines: Vec<String> = properties
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    lines.join("\n")
}

/// The properties without their secret values.
pub fn without_secrets(properties: &str) -> String {
    let shown: Vec<(String, String)> = parse_properties(properties)
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| {
            if is_secret_property(&name) {
                (name, "***".into())
            } else {
                (name, value)
            }
        })
        .collect();
    show_properties(&shown)
}

/// True if the property's value must not be shown. In doubt it is not shown.
pub fn is_secret_property(name: &str) -> bool {
    const SECRET: &[&str] = &[
        "password",
        "passphrase",
        "secret",
        "token",
        "jaas",
        "oauthbearer",
        "key.pem",
        "credential",
    ];
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|part| name.contains(part))
}

fn save_points(value: &str) -> Result<String, String> {
    let words: Vec<&str> = value.split(' ').collect();
    if value.is_empty() {
        return Ok(String::new());
    }
    let at_least = |word: &str, least: i32| word.parse::<i32>().is_ok_and(|n| n >= least);
    let fits =
        words.len().is_multiple_of(2) && words.chunks(2).all(|pair| at_least(pair[0], 1) && at_least(pair[1], 0));
    fits.then(|| words.join(" "))
        .ok_or_else(|| "Invalid save parameters".into())
}

/// Event classes in the order in which Redis shows them. `A` stands for all of `ALL`.
fn events(value: &str) -> Result<String, String> {
    const ALL: &str = "g$lshzxetd";
    if !value.chars().all(|c| "Ag$lshzxeKEtmdn".contains(c)) {
        return Err("Invalid event class character. Use 'Ag$lshzxeKEtmdn'.".into());
    }
    let has = |c: char| value.contains(c) || (ALL.contains(c) && value.contains('A'));
    let mut shown = String::new();
    if ALL.chars().all(has) {
        shown.push('A');
    } else {
        shown.extend(ALL.chars().chain(['n']).filter(|&c| has(c)));
    }
    shown.extend("KEm".chars().filter(|&c| has(c)));
    Ok(shown)
}

fn percentiles(value: &str) -> Result<String, String> {
    let mut shown = Vec::new();
    for word in value.split_ascii_whitespace() {
        let number: f64 = word
            .parse()
            .map_err(|_| "Invalid latency-tracking-info-percentiles parameters")?;
        if !(0.0..=100.0).contains(&number) {
            return Err("latency-tracking-info-percentiles parameters should sit between [0.0,100.0]".into());
        }
        let text = format!("{number:.6}");
        shown.push(text.trim_end_matches('0').trim_end_matches('.').to_string());
    }
    Ok(shown.join(" "))
}

fn oom_values(value: &str) -> Result<String, String> {
    let words: Vec<&str> = value.split_ascii_whitespace().collect();
    if words.len() != 3 {
        return Err("wrong number of arguments".into());
    }
    let fits = |word: &&str| word.parse::<i32>().is_ok_and(|n| (-2000..=2000).contains(&n));
    if !words.iter().all(fits) {
        return Err("Invalid oom-score-adj-values, elements must be between -2000 and 2000.".into());
    }
    Ok(words.join(" "))
}
