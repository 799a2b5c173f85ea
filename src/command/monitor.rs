//! MONITOR: every command that this node executes, as one line. A command that is computed again is
//! shown once, and so are the commands of a script.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::clients::Address;
use super::invalidations::add;
use super::monitors::Monitoring;
use super::pushes::Push;
use super::{Args, Command, Outcome, Reply, Run, Session, Shared, flag};

pub static COMMANDS: &[Command] = &[Command {
    name: "monitor",
    arity: 1,
    flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
    group: "server",
    since: "1.0.0",
    complexity: "",
    summary: "Shows every command that the server gets.",
    run: Run::Session(monitor),
    ..Command::DEFAULT
}];

fn monitor(session: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    if session.in_exec {
        return Err("ERR MONITOR isn't allowed for DENY BLOCKING client".into());
    }
    if !session.takes_pushes {
        return Err("ERR only connections of the Redis protocol can monitor".into());
    }
    if session.monitoring.is_some() {
        // As in Redis.
        return Ok(Reply::None);
    }
    session.monitoring = Some(Monitoring::new(&shared.monitors, &session.client));
    Ok(Reply::Ok)
}

/// A command was executed.
pub(super) fn executed(session: &mut Session, shared: &Shared, command: &Command, args: Args<'_>) {
    if !shared.monitors.any() {
        if command.is_script() {
            session.script_lines.clear();
        }
        return;
    }
    let is_shown = command.is_script() || !command.has(flag::ADMIN | flag::SKIP_MONITOR);
    if is_shown {
        let address = match &session.client.address {
            Some(Address::Tcp(address)) => address.to_string(),
            Some(Address::Unix(path)) => format!("unix:{path}"),
            None => "?:0".to_owned(),
        };
        show(shared, line(session.database, &address, command, args));
    }
    if command.is_script() {
        while let Some(line) = session.script_lines.next() {
            show(shared, line);
        }
    }
}

/// A script executes a command.
pub(super) fn script_executes(
    session: &mut Session,
    shared: &Shared,
    database: u16,
    command: &Command,
    args: Args<'_>,
) {
    if shared.monitors.any() && !command.has(flag::ADMIN | flag::SKIP_MONITOR) {
        session.script_lines.add(line(database, "lua", command, args));
    }
}

fn show(shared: &Shared, line: Bytes) {
    let push = Push::Plain(line);
    shared.monitors.each(|client| {
        add(shared, client, &push);
    });
}

fn line(database: u16, source: &str, command: &Command, args: Args<'_>) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!("+{}.{:06} [{database} {source}]", now.as_secs(), now.subsec_micros());
    for argument in command.without_secrets(args) {
        line.push_str(" \"");
        argument.iter().for_each(|byte| quote(&mut line, *byte));
        line.push('"');
    }
    line.push_str("\r\n");
    line.into()
}

fn quote(line: &mut String, byte: u8) {
    let escaped = match byte {
        b'\\' | b'"' => byte as char,
        b'\n' => 'n',
        b'\r' => 'r',
        b'\t' => 't',
        0x07 => 'a',
        0x08 => 'b',
        b' '..=b'~' => return line.push(byte as char),
        // To a string: it cannot fail.
        _ => return write!(line, "\\x{byte:02x}").unwrap_or_default(),
    };
    line.extend(['\\', escaped]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_as_redis_quotes_them() {
        let mut line = String::new();
        b"a \"b\"\\\n\r\t\x07\x08\x00\xff~"
            .iter()
            .for_each(|byte| quote(&mut line, *byte));
        assert_eq!(line, r#"a \"b\"\\\n\r\t\a\b\x00\xff~"#);
    }
}
