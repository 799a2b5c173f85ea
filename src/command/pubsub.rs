//! Publish and subscribe: <https://redis.io/docs/latest/commands/?group=pubsub>. Who listens to
//! what is in [`super::hub`], and how a message gets there in [`super::publish`].

use std::sync::Arc;

use bytes::Bytes;

use super::hub::Listening;
use super::pushes::Kind;
use super::{Args, Command, Compatibility, Fault, KeySpec, Outcome, Reply, Run, Session, Shared, flag, help_of};
use crate::command::key_specs::access::NOT_KEY;
use crate::glob::KeyPattern;

const STOPS: u32 = flag::PUBSUB | flag::NOSCRIPT | flag::LOADING | flag::STALE | flag::WHILE_LISTENING;
const LISTENS: u32 = STOPS | flag::LISTENS;
const PUBLISHES: u32 = flag::PUBSUB | flag::LOADING | flag::STALE | flag::FAST | flag::MAY_REPLICATE;
const TELLS: u32 = flag::PUBSUB | flag::LOADING | flag::STALE;
const PER_NODE: Compatibility = Compatibility::Partial("counts who listens on this node");
const RECEIVERS: Compatibility = Compatibility::Partial(
    "answers how many listen on this node; inside MULTI, messages are sent when the transaction is in the log, after its other commands",
);

const ROW: Command = Command {
    group: "pubsub",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "psubscribe",
        arity: -2,
        flags: LISTENS,
        since: "2.0.0",
        complexity: "O(N log M), N being the number of patterns and M those that the client listens to.",
        summary: "Listens to channels by pattern.",
        run: Run::Session(psubscribe),
        ..ROW
    },
    Command {
        name: "publish",
        arity: 3,
        flags: PUBLISHES,
        since: "2.0.0",
        complexity: "O(N+M), N connections that listen to the channel and M patterns in all.",
        summary: "Sends a message to a channel.",
        compatibility: RECEIVERS,
        run: Run::Publish { shard: false },
        ..ROW
    },
    Command {
        name: "pubsub",
        arity: -2,
        since: "2.8.0",
        complexity: "Depends on the subcommand.",
        summary: "Commands that report who listens.",
        run: Run::Container,
        subcommands: PUBSUB,
        ..ROW
    },
    Command {
        name: "punsubscribe",
        arity: -1,
        flags: STOPS,
        since: "2.0.0",
        complexity: "O(N log M), N being the number of patterns and M those that the client listens to.",
        summary: "Stops listening by pattern.",
        run: Run::Session(punsubscribe),
        ..ROW
    },
    Command {
        name: "spublish",
        arity: 3,
        flags: PUBLISHES,
        keys: &[KeySpec::at(1, NOT_KEY)],
        since: "7.0.0",
        complexity: "O(N), N connections that listen to the channel.",
        summary: "Sends a message to a channel of the shard.",
        compatibility: RECEIVERS,
        run: Run::Publish { shard: true },
        ..ROW
    },
    Command {
        name: "ssubscribe",
        arity: -2,
        flags: LISTENS,
        keys: &[KeySpec::from(1, NOT_KEY)],
        since: "7.0.0",
        complexity: "O(N log M), N being the number of channels and M those that the client listens to.",
        summary: "Listens to channels of the shard.",
        run: Run::Session(ssubscribe),
        ..ROW
    },
    Command {
        name: "subscribe",
        arity: -2,
        flags: LISTENS,
        since: "2.0.0",
        complexity: "O(N log M), N being the number of channels and M those that the client listens to.",
        summary: "Listens to channels.",
        run: Run::Session(subscribe),
        ..ROW
    },
    Command {
        name: "sunsubscribe",
        arity: -1,
        flags: STOPS,
        keys: &[KeySpec::from(1, NOT_KEY)],
        since: "7.0.0",
        complexity: "O(N log M), N being the number of channels and M those that the client listens to.",
        summary: "Stops listening to channels of the shard.",
        run: Run::Session(sunsubscribe),
        ..ROW
    },
    Command {
        name: "unsubscribe",
        arity: -1,
        flags: STOPS,
        since: "2.0.0",
        complexity: "O(N log M), N being the number of channels and M those that the client listens to.",
        summary: "Stops listening to channels.",
        run: Run::Session(unsubscribe),
        ..ROW
    },
];

const PUBSUB: &[Command] = &[
    Command {
        name: "pubsub|channels",
        arity: -2,
        flags: TELLS,
        since: "2.8.0",
        complexity: "O(N), N channels that somebody listens to.",
        summary: "Lists channels that somebody listens to.",
        compatibility: PER_NODE,
        run: Run::Session(channels),
        ..ROW
    },
    Command {
        name: "pubsub|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        since: "6.2.0",
        summary: "Lists the subcommands.",
        run: Run::Session(help),
        ..ROW
    },
    Command {
        name: "pubsub|numpat",
        arity: 2,
        flags: TELLS,
        since: "2.8.0",
        summary: "Counts the patterns.",
        compatibility: PER_NODE,
        run: Run::Session(numpat),
        ..ROW
    },
    Command {
        name: "pubsub|numsub",
        arity: -2,
        flags: TELLS,
        since: "2.8.0",
        complexity: "O(N), N channels that were asked for.",
        summary: "Counts who listens to channels.",
        compatibility: PER_NODE,
        run: Run::Session(numsub),
        ..ROW
    },
    Command {
        name: "pubsub|shardchannels",
        arity: -2,
        flags: TELLS,
        since: "7.0.0",
        complexity: "O(N), N channels of the shard that somebody listens to.",
        summary: "Lists channels of the shard that somebody listens to.",
        compatibility: PER_NODE,
        run: Run::Session(shardchannels),
        ..ROW
    },
    Command {
        name: "pubsub|shardnumsub",
        arity: -2,
        flags: TELLS,
        since: "7.0.0",
        complexity: "O(N), N channels that were asked for.",
        summary: "Counts who listens to channels of the shard.",
        compatibility: PER_NODE,
        run: Run::Session(shardnumsub),
        ..ROW
    },
];

fn subscribe(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    listen(session, shared, args, Kind::Channel)
}

fn psubscribe(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    listen(session, shared, args, Kind::Pattern)
}

fn ssubscribe(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    if session.in_exec {
        return Err("ERR SSUBSCRIBE isn't allowed for a DENY BLOCKING client".into());
    }
    listen(session, shared, args, Kind::Shard)
}

fn unsubscribe(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    Ok(stop(session, args, Kind::Channel))
}

fn punsubscribe(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    Ok(stop(session, args, Kind::Pattern))
}

fn sunsubscribe(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    Ok(stop(session, args, Kind::Shard))
}

/// Begins to listen. There is one reply for each channel.
fn listen(session: &mut Session, shared: &Arc<Shared>, args: Args, kind: Kind) -> Outcome {
    const TOO_MANY: &str = "ERR this connection listens to as many channels as one may (256 MB of names)";
    if !session.takes_pushes {
        return Err("ERR only connections of the Redis protocol can listen to channels".into());
    }
    let word = match kind {
        Kind::Channel => "subscribe",
        Kind::Pattern => "psubscribe",
        Kind::Shard => "ssubscribe",
    };
    let client = session.client.clone();
    let listening = session
        .listening
        .get_or_insert_with(|| Box::new(Listening::new(&shared.pubsub.hub, &client)));
    let mut replies = Vec::with_capacity(args.len() - 1);
    for name in &args[1..] {
        replies.push(match listening.add(kind, name) {
            Ok(()) => {
                let count = told(Some(listening), kind);
                Reply::Push(vec![Reply::bulk(word), Reply::bulk(name), count])
            }
            Err(_) => Reply::error(TOO_MANY),
        });
    }
    session.listening.take_if(|listening| listening.is_empty());
    // Who changed the rights meanwhile may have looked at the listeners before this one was there.
    let may = |name: &&[u8]| session.user.rights().allows_channel(name, kind == Kind::Pattern);
    session.close |= !session.user.may_everything() && !args[1..].iter().all(may);
    Ok(Reply::Several(replies))
}

/// Stops listening to what the request names, or to all. There is one reply for each channel, and
/// at least one.
fn stop(session: &mut Session, args: Args, kind: Kind) -> Reply {
    let word = match kind {
        Kind::Channel => "unsubscribe",
        Kind::Pattern => "punsubscribe",
        Kind::Shard => "sunsubscribe",
    };
    // What has been pushed is sent before these replies.
    session.pushes_first = true;
    let mut listening = session.listening.take();
    let names: Vec<Bytes> = match (&args[1..], &listening) {
        ([], Some(listening)) => listening.all(kind),
        (names, _) => names.iter().map(|name| Bytes::copy_from_slice(name)).collect(),
    };
    let mut replies = Vec::with_capacity(names.len().max(1));
    for name in names {
        if let Some(listening) = &mut listening {
            listening.remove(kind, &name);
        }
        let count = told(listening.as_deref(), kind);
        replies.push(Reply::Push(vec![Reply::bulk(word), Reply::Bulk(name), count]));
    }
    if replies.is_empty() {
        let count = told(listening.as_deref(), kind);
        replies.push(Reply::Push(vec![Reply::bulk(word), Reply::Null, count]));
    }
    session.listening = listening.filter(|listening| !listening.is_empty());
    Reply::Several(replies)
}

/// The number in a reply: channels of the shard are counted for themselves.
fn told(listening: Option<&Listening>, kind: Kind) -> Reply {
    let count = |kind| listening.map_or(0, |listening| listening.count(kind));
    Reply::Int(match kind {
        Kind::Shard => count(Kind::Shard),
        Kind::Channel | Kind::Pattern => count(Kind::Channel) + count(Kind::Pattern),
    } as i64)
}

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("pubsub", PUBSUB))
}

fn channels(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    list(shared, args, false)
}

fn shardchannels(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    list(shared, args, true)
}

fn list(shared: &Shared, args: Args, shard: bool) -> Outcome {
    let mut channels = shared.pubsub.hub.channels(shard);
    match args[2..] {
        [] => {}
        [pattern] => {
            let mut pattern = KeyPattern::of_channel(pattern);
            channels.retain(|name| pattern.matches(name));
            if pattern.is_exhausted() {
                return Err("ERR the pattern takes too long to match".into());
            }
        }
        _ => {
            return Err(Fault::error(format!(
                "ERR unknown subcommand or wrong number of arguments for '{}'. Try PUBSUB HELP.",
                super::args::text(&args[1][..args[1].len().min(128)])
            )));
        }
    }
    Ok(Reply::Array(channels.into_iter().map(Reply::Bulk).collect()))
}

fn numpat(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Int(shared.pubsub.hub.count(Kind::Pattern) as i64))
}

fn numsub(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    Ok(count(shared, args, false))
}

fn shardnumsub(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    Ok(count(shared, args, true))
}

fn count(shared: &Shared, args: Args, shard: bool) -> Reply {
    let count = |name: &&[u8]| {
        let count = shared.pubsub.hub.listeners(name, shard);
        [Reply::bulk(name), Reply::Int(count as i64)]
    };
    Reply::Array(args[2..].iter().flat_map(count).collect())
}
