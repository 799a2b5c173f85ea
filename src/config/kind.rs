//! The values that a setting may have: parsing, bounds, and the canonical form. Error texts are
//! Redis's, since CONFIG SET returns them.

use std::time::Duration;

use super::checks::Check;

/// The kind of a setting.
#[derive(Clone, Copy)]
pub enum Kind {
    YesNo,
    Integer {
        min: i64,
        max: i64,
    },
    /// Bytes, with units as in redis.conf: `100mb`.
    Memory {
        min: u64,
        max: u64,
    },
    /// Bytes, or a share of `maxmemory`: `5%`.
    MemoryOrPercent,
    /// `500ms`, `5s`, `1m`.
    Time {
        min: Duration,
        max: Duration,
    },
    Choice(&'static [&'static str]),
    Text,
    /// Text of several words, which need no quotes on the command line and in the file.
    Words,
    /// Words with a form of their own.
    Checked(Check),
}

pub const PORT: Kind = Kind::Integer { min: 0, max: 65_535 };
pub const COUNT: Kind = Kind::Integer {
    min: 0,
    max: i32::MAX as i64,
};
pub const LARGE: Kind = Kind::Integer { min: 0, max: i64::MAX };
/// Who may use something: nobody, clients on this machine, everybody.
pub const MODES: Kind = Kind::Choice(&["no", "local", "yes"]);
pub const MEMORY: Kind = Kind::Memory { min: 0, max: u64::MAX };

impl Kind {
    /// The value as it is kept and shown, or the reason why it is refused. `current` is the current
    /// value, which some kinds change only in part.
    pub fn normalise(&self, value: &str, current: &str) -> Result<String, String> {
        match self {
            Kind::YesNo => choose(value, &["yes", "no"]).ok_or_else(|| "argument must be 'yes' or 'no'".into()),
            Kind::Integer { min, max } => integer(value, *min, *max).map(|n| n.to_string()),
            Kind::Memory { min, max } => memory(value, *min, *max).map(|n| n.to_string()),
            Kind::MemoryOrPercent => memory_or_percent(value),
            Kind::Time { min, max } => time(value, *min, *max).map(show_time),
            Kind::Choice(choices) => choose(value, choices)
                .ok_or_else(|| format!("argument(s) must be one of the following: {}", choices.join(", "))),
            Kind::Text | Kind::Words => Ok(value.to_string()),
            Kind::Checked(check) => (check.normalise)(value, current),
        }
    }

    pub fn takes_words(&self) -> bool {
        matches!(self, Kind::Words | Kind::Checked(_))
    }

    /// The placeholder for the value in `--help`.
    pub fn placeholder(&self) -> String {
        match self {
            Kind::YesNo => "yes|no".into(),
            Kind::Integer { .. } => "N".into(),
            Kind::Memory { .. } | Kind::MemoryOrPercent => "BYTES".into(),
            Kind::Time { .. } => "TIME".into(),
            Kind::Choice(choices) => choices.join("|"),
            Kind::Text | Kind::Words => "TEXT".into(),
            Kind::Checked(check) => check.placeholder.into(),
        }
    }

    /// Whether [`Kind::hint`] says everything that an error of [`Kind::normalise`] would say.
    pub fn hint_tells_all(&self) -> bool {
        !matches!(self, Kind::Checked(_))
    }

    /// What a valid value looks like, for people.
    pub fn hint(&self) -> String {
        match self {
            Kind::YesNo => "yes or no".into(),
            Kind::Integer { min, max: i64::MAX } => format!("a whole number, {min} or more"),
            Kind::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Memory { min: 0, max: u64::MAX } => "bytes, such as 1048576, 64mb or 2gb".into(),
            Kind::Memory { min, max: u64::MAX } => format!("bytes, {min} or more, such as 64mb or 2gb"),
            Kind::Memory { min, max } => format!("bytes, {min} to {max}, such as 64mb or 2gb"),
            Kind::MemoryOrPercent => "bytes, such as 64mb, or a percentage up to 100%".into(),
            Kind::Time { min, max } => {
                format!(
                    "a time from {} to {}, such as 500ms, 5s or 1m",
                    show_time(*min),
                    show_time(*max)
                )
            }
            Kind::Choice(choices) => format!("one of {}", choices.join(", ")),
            Kind::Text | Kind::Words => "text".into(),
            Kind::Checked(check) => check.hint.into(),
        }
    }
}

fn choose(value: &str, choices: &[&str]) -> Option<String> {
    let known = choices.iter().find(|choice| choice.eq_ignore_ascii_case(value))?;
    Some(known.to_string())
}

/// As strict as Redis: no blanks, no plus sign, no leading zeros.
fn integer(value: &str, min: i64, max: i64) -> Result<i64, String> {
    let number: i64 = value
        .parse()
        .ok()
        .filter(|n: &i64| n.to_string() == value)
        .ok_or("argument couldn't be parsed into an integer")?;
    if number < min || number > max {
        return Err(format!("argument must be between {min} and {max} inclusive"));
    }
    Ok(number)
}

/// Units as in redis.conf: `k` is 1000, `kb` 1024, and so on. As in Redis, a value without digits
/// is 0.
pub fn parse_memory(value: &str) -> Option<u64> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    if number.is_empty() {
        return Some(0);
    }
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn memory(value: &str, min: u64, max: u64) -> Result<u64, String> {
    let bytes = parse_memory(value).ok_or("argument must be a memory value")?;
    if bytes < min || bytes > max {
        return Err(format!("argument must be between {min} and {max} inclusive"));
    }
    Ok(bytes)
}

fn memory_or_percent(value: &str) -> Result<String, String> {
    const WRONG: &str = "argument must be a memory or percent value";
    let Some(percent) = value.strip_suffix('%') else {
        return Ok(parse_memory(value).ok_or(WRONG)?.to_string());
    };
    match percent.parse::<u64>() {
        Ok(share) if share <= 100 => Ok(format!("{share}%")),
        Ok(_) => Err("percentage argument must be less or equal to 100".into()),
        Err(_) => Err(WRONG.into()),
    }
}

/// A time with its unit. A number without a unit is refused, since Redis has settings in seconds
/// and in milliseconds.
pub fn parse_time(value: &str) -> Option<Duration> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit.trim().to_ascii_lowercase().as_str() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

pub fn show_time(time: Duration) -> String {
    match time.as_millis() {
        0 => "0s".into(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

fn time(value: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let time = parse_time(value).ok_or("argument must be a time with its unit, such as 500ms, 5s or 1m")?;
    if time < min || time > max {
        return Err(format!(
            "argument must be between {} and {} inclusive",
            show_time(min),
            show_time(max)
        ));
    }
    Ok(time)
}
