//! COMMAND DOCS: the arguments and the history of commands (`arguments.txt`), besides what their
//! rows say.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::command::Reply;
use crate::command::table::{CommandEntry, subcommands_there};

/// What `arguments.txt` has under a command's name.
#[derive(Default)]
struct Doc {
    /// Versions, each with what it brought.
    history: Vec<(&'static str, &'static str)>,
    /// Since which version, and what replaces the command.
    deprecated: Option<(&'static str, &'static str)>,
    is_for_the_system: bool,
    arguments: Vec<Argument>,
}

#[derive(Default)]
struct Argument {
    name: &'static str,
    kind: &'static str,
    key_spec: Option<i64>,
    token: Option<&'static str>,
    since: Option<&'static str>,
    deprecated: Option<&'static str>,
    flags: Vec<&'static str>,
    arguments: Vec<Argument>,
}

static DOCS: LazyLock<HashMap<&'static str, Doc>> = LazyLock::new(|| parse(include_str!("arguments.txt")));

fn parse(text: &'static str) -> HashMap<&'static str, Doc> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut rest = &lines[..];
    let mut docs = HashMap::new();
    while let Some((name, behind)) = rest.split_first() {
        rest = behind;
        docs.insert(*name, Doc::parse(&mut rest));
    }
    docs
}

fn depth(line: &str) -> usize {
    (line.len() - line.trim_start().len()) / 2
}

impl Doc {
    /// Reads the lines of one command.
    fn parse(lines: &mut &[&'static str]) -> Doc {
        let mut doc = Doc::default();
        while let Some((line, behind)) = lines.split_first() {
            let mut words = line.trim_start().splitn(3, ' ');
            let mut next = || words.next().unwrap_or_default();
            match next() {
                _ if depth(line) == 0 => break,
                "!" => doc.history.push((next(), next())),
                "deprecated" => doc.deprecated = Some((next(), next())),
                "syscmd" => doc.is_for_the_system = true,
                _ => {
                    doc.arguments.extend(Argument::parse_all(lines, 1));
                    continue;
                }
            }
            *lines = behind;
        }
        doc
    }
}

impl Argument {
    /// Reads all arguments at this depth of indentation, with the arguments inside them.
    fn parse_all(lines: &mut &[&'static str], at: usize) -> Vec<Argument> {
        let mut all = Vec::new();
        while let Some((line, behind)) = lines.split_first().filter(|(line, _)| depth(line) == at) {
            *lines = behind;
            let mut argument = Argument::parse(line);
            argument.arguments = Argument::parse_all(lines, at + 1);
            all.push(argument);
        }
        all
    }

    fn parse(line: &'static str) -> Argument {
        let mut words = line.split_ascii_whitespace();
        let mut argument = Argument {
            name: words.next().unwrap_or_default(),
            kind: words.next().unwrap_or_default(),
            ..Argument::default()
        };
        for word in words {
            match word.split_once('=') {
                Some(("token", token)) => argument.token = Some(token),
                Some(("since", version)) => argument.since = Some(version),
                Some(("deprecated", version)) => argument.deprecated = Some(version),
                _ => match word.strip_prefix('@') {
                    Some(place) => argument.key_spec = place.parse().ok(),
                    None => argument.flags.push(word),
                },
            }
        }
        argument
    }

    fn describe(&self) -> Reply {
        let mut told = vec![pair("name", self.name), pair("type", self.kind)];
        let place = self.key_spec.map(|at| (Reply::bulk("key_spec_index"), Reply::Int(at)));
        told.extend(place);
        for (name, value) in [
            ("token", self.token),
            ("since", self.since),
            ("deprecated_since", self.deprecated),
        ] {
            told.extend(value.map(|value| pair(name, value)));
        }
        if !self.flags.is_empty() {
            told.push((Reply::bulk("flags"), statuses(&self.flags)));
        }
        if !self.arguments.is_empty() {
            told.push((Reply::bulk("arguments"), describe_all(&self.arguments)));
        }
        Reply::Map(told)
    }
}

fn pair(name: &str, value: &str) -> (Reply, Reply) {
    (Reply::bulk(name), Reply::bulk(value))
}

fn statuses(words: &[&'static str]) -> Reply {
    Reply::Set(words.iter().map(|word| Reply::simple(*word)).collect())
}

fn describe_all(arguments: &[Argument]) -> Reply {
    Reply::Array(arguments.iter().map(Argument::describe).collect())
}

/// What COMMAND DOCS reports about a command.
pub fn document(entry: &'static CommandEntry) -> Reply {
    let mut told = vec![
        pair("summary", entry.summary),
        pair("since", entry.since),
        pair("group", entry.group),
    ];
    if !entry.complexity.is_empty() {
        told.push(pair("complexity", entry.complexity));
    }
    if let Some(doc) = DOCS.get(entry.name) {
        if doc.is_for_the_system {
            told.push((Reply::bulk("doc_flags"), statuses(&["syscmd"])));
        }
        if let Some((version, by)) = doc.deprecated {
            told.push((Reply::bulk("doc_flags"), statuses(&["deprecated"])));
            told.extend([pair("deprecated_since", version), pair("replaced_by", by)]);
        }
        if !doc.history.is_empty() {
            let change = |(version, what): &(&str, &str)| Reply::Array(vec![Reply::bulk(version), Reply::bulk(what)]);
            let history = doc.history.iter().map(change).collect();
            told.push((Reply::bulk("history"), Reply::Set(history)));
        }
        if !doc.arguments.is_empty() {
            told.push((Reply::bulk("arguments"), describe_all(&doc.arguments)));
        }
    }
    let subcommands: Vec<(Reply, Reply)> = subcommands_there(entry)
        .map(|sub| (Reply::bulk(sub.name), document(sub)))
        .collect();
    if !subcommands.is_empty() {
        told.push((Reply::bulk("subcommands"), Reply::Map(subcommands)));
    }
    Reply::Map(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::table;

    #[test]
    fn every_line_is_about_a_command_that_is_there() {
        let unknown: Vec<_> = DOCS
            .keys()
            .filter(|name| table::find_there(name.as_bytes()).is_none())
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn commands_that_take_arguments_say_which() {
        let takes_some = |entry: &&CommandEntry| {
            let words = 1 + entry.name.matches('|').count() as i32;
            // Redis 7.0 reports no arguments for these.
            let silent = [
                "quit",
                "debug",
                "replconf",
                "command|getkeys",
                "command|getkeysandflags",
            ];
            entry.is_there() && entry.subcommands.is_empty() && entry.arity != words && !silent.contains(&entry.name)
        };
        let silent: Vec<&str> = table::with_subcommands()
            .filter(takes_some)
            .map(|entry| entry.name)
            .filter(|name| DOCS.get(name).is_none_or(|doc| doc.arguments.is_empty()))
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
