//! COMMAND and help: what the table says of itself.

use super::{Command, Compatibility, Reply};

pub static COMMANDS: &[Command] = &[];

/// The reply of a container's HELP: its subcommands with their summaries.
pub fn help_of(container: &str, subcommands: &[Command]) -> Reply {
    let mut lines = vec![Reply::simple(format!(
        "{} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        container.to_ascii_uppercase()
    ))];
    for command in subcommands.iter().filter(|c| c.compatibility != Compatibility::NotYet) {
        let name = command.name.split_once('|').map_or(command.name, |(_, sub)| sub);
        lines.push(Reply::simple(name.to_ascii_uppercase()));
        lines.push(Reply::simple(format!("    {}", command.summary)));
    }
    Reply::Array(lines)
}
