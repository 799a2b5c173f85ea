//! DEBUG: what tests of the server ask for.

use std::sync::Arc;
use std::time::Duration;

use crate::command::args::{is, parse_int, text, unknown_subcommand, wrong_arity};
use crate::command::clients::Client;
use crate::command::dump::length;
use crate::command::keys::object::{encoding_of, idle_seconds, references};
use crate::command::{Args, Data, Fault, Outcome, Reply, Run, Session, Shared, Waiting};

const HELP: &[&str] = &[
    "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "HELP",
    "    Lists the subcommands.",
    "LOG <message>",
    "    Writes a line into the log.",
    "OBJECT <key>",
    "    Tells how Redis would keep the value of a key.",
    "SET-ACTIVE-EXPIRE <0|1>",
    "    Stops or starts the removal of expired keys in the background.",
    "SLEEP <seconds>",
    "    Answers after this time.",
];

/// OBJECT is about data.
pub(super) fn runs(args: Args) -> Run {
    match args {
        [_, what, _] if is(what, "object") => Run::Data(object),
        _ => Run::Later(debug),
    }
}

fn debug(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Result<Waiting, Fault> {
    /// Longest DEBUG SLEEP.
    const LONGEST: f64 = 3_600.0;
    let reply = match &args[1..] {
        [what, seconds] if is(what, "sleep") => {
            let seconds: f64 = text(seconds).parse().unwrap_or(0.0);
            let time = Duration::from_secs_f64(if seconds > 0.0 { seconds.min(LONGEST) } else { 0.0 });
            let (client, shared) = (session.client.clone(), shared.clone());
            return Ok(Box::pin(async move {
                pause(client, shared, time).await;
                Reply::Ok
            }));
        }
        [what, on] if is(what, "set-active-expire") => {
            let on: &[u8] = if parse_int(on).unwrap_or(0) == 0 { b"no" } else { b"yes" };
            let set = shared.config.set(&[(b"active-expire", on)]);
            set.map_err(|error| Fault::error(error.to_string()))?;
            Reply::Ok
        }
        [what, line] if is(what, "log") => {
            tracing::info!(client = session.client.id, "DEBUG LOG: {}", text(line).escape_debug());
            Reply::Ok
        }
        [what] if is(what, "help") => Reply::Array(HELP.iter().map(|line| Reply::simple(*line)).collect()),
        [what, ..] => return Err(unknown_subcommand("debug", what)),
        [] => return Err(wrong_arity("debug")),
    };
    Ok(Box::pin(async move { reply }))
}

/// DEBUG OBJECT: in the form of Redis, since tools take it apart. No value has a fixed place in
/// memory, so the address is the offset of the key's record.
fn object(data: &mut Data, args: Args) -> Outcome {
    /// Redis's clock for idle keys, in seconds.
    const CLOCK: i64 = 1 << 24;
    let (database, key) = (data.database, args[2]);
    if !data.transaction.service().is_serving() {
        return Err("LOADING Highwater is loading the dataset".into());
    }
    data.await_record(key)?;
    let Some(entry) = data.transaction.peek(database, key)? else {
        return Err("ERR no such key".into());
    };
    let encoding = encoding_of(data, key, &entry)?;
    let references = references(&entry)?;
    let length = length(data, key, &entry)?;
    let used = entry.meta.timestamp / 1000 % CLOCK;
    Ok(Reply::simple(format!(
        "Value at:{:#x} refcount:{references} encoding:{encoding} serializedlength:{length} lru:{used} lru_seconds_idle:{}",
        entry.meta.offset,
        idle_seconds(data, &entry)
    )))
}

/// Waits, at most until the connection is killed or the server stops.
async fn pause(client: Arc<Client>, shared: Arc<Shared>, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = client.killed() => {}
        () = shared.shutdown.asked() => {}
    }
}
