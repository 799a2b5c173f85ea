//! The value that a setting gets: from the places that give it at start, from other settings, from
//! CONFIG SET.

use std::collections::BTreeMap;
use std::path::Path;

use super::sources::Given;
use super::table::{Change, Effect, SETTINGS, Setting};
use super::{Values, checks, place_of, sources};

/// Shown in the place of a secret.
const HIDDEN: &str = "";

/// The value as logs and errors may show it.
pub(super) fn shown(setting: &Setting, value: &str) -> String {
    match setting.name {
        _ if setting.secret => HIDDEN.into(),
        "kafka-property" => checks::without_secrets(value),
        _ => value.into(),
    }
}

/// The value of a setting after one more place has given it.
pub(super) fn start_value(setting: &Setting, given: &Given, current: &str, again: bool) -> Result<String, String> {
    let place = &given.place;
    let named = match place {
        sources::Place::Line(..) => format!("{place}: {}", setting.name),
        place => place.to_string(),
    };
    if given.words.len() > 1 && !setting.kind.takes_words() {
        return Err(format!("{named} takes one value: {}", setting.kind.hint()));
    }
    let value = given.words.join(" ");
    let joined = match setting.adds_up && again && !value.is_empty() && !current.is_empty() {
        true if setting.name == "kafka-property" => format!("{current}\n{value}"),
        true => format!("{current} {value}"),
        false => value.clone(),
    };
    let echoed = if setting.secret || setting.name == "kafka-property" {
        String::new()
    } else {
        format!(" '{value}'")
    };
    let value = setting.kind.normalise(&joined, current).map_err(|reason| {
        let reason = match setting.kind.hint_tells_all() {
            true => String::new(),
            false => format!("{reason}; "),
        };
        format!(
            "{named}{echoed}: {reason}{} takes {}",
            setting.name,
            setting.kind.hint()
        )
    })?;
    match setting.effect {
        Effect::OnlyDefault(why) if value != setting.default => Err(format!(
            "{named}{echoed}: not supported: {why}; leave {} out",
            setting.name
        )),
        _ => Ok(value),
    }
}

/// The values that a file gives to settings, by their places in the table.
pub(super) fn of_file(given: &[Given]) -> Result<BTreeMap<usize, String>, String> {
    let mut values: BTreeMap<usize, String> = BTreeMap::new();
    for one in given {
        let setting = &SETTINGS[one.setting];
        let before = values.get(&one.setting);
        let current = before.map_or(setting.default, String::as_str);
        let value = start_value(setting, one, current, before.is_some())?;
        values.insert(one.setting, value);
    }
    Ok(values)
}

/// Computes values that depend on others: the properties file, Kafka's brokers among the
/// properties, the absolute directory.
pub(super) fn complete(values: &mut Values) -> Result<(), String> {
    let properties = place_of("kafka-property");
    let file = values[place_of("kafka-properties-file")].clone();
    if !file.is_empty() {
        let from_file = sources::properties_file(Path::new(&*file))?;
        let all = format!("{from_file}\n{}", values[properties]);
        values[properties] = SETTINGS[properties].kind.normalise(&all, "")?.into();
    }
    let brokers = place_of("bootstrap-servers");
    let is_brokers = |name: &str| matches!(name, "bootstrap.servers" | "metadata.broker.list");
    let (named, rest): (Vec<_>, Vec<_>) = checks::parse_properties(&values[properties])?
        .into_iter()
        .partition(|(name, _)| is_brokers(name));
    values[properties] = checks::show_properties(&rest).into();
    if let Some((_, value)) = named.into_iter().next()
        && values[brokers].is_empty()
    {
        values[brokers] = value.into();
    }
    let dir = place_of("dir");
    let absolute = std::path::absolute(&*values[dir]).map_err(|e| format!("--dir {}: {e}", values[dir]))?;
    values[dir] = absolute.to_string_lossy().into();
    Ok(())
}

pub(super) fn check_changeable(setting: &Setting, twice: bool) -> Result<(), String> {
    match setting.change {
        Change::Immutable => Err("can't set immutable config".into()),
        Change::Protected => Err("can't set protected config".into()),
        _ if twice => Err("duplicate parameter".into()),
        Change::Any | Change::AtStart => Ok(()),
    }
}

/// The new value after CONFIG SET. `None` if the value does not change.
pub(super) fn new_value(setting: &Setting, value: &[u8], current: &str) -> Result<Option<String>, String> {
    let value = std::str::from_utf8(value).map_err(|_| "argument is not UTF-8".to_string())?;
    if setting.change == Change::AtStart && value == shown(setting, current) {
        return Ok(None);
    }
    let value = setting.kind.normalise(value, current)?;
    match (setting.change, setting.effect) {
        (_, Effect::OnlyDefault(why)) if value != setting.default => Err(format!("not supported: {why}")),
        (Change::AtStart, _) if value != current => Err("can only be set when the server is started".into()),
        _ => Ok(Some(value)),
    }
}
