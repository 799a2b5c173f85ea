//! CLIENT TRACKING, CACHING, TRACKINGINFO and GETREDIR: client-side caching.

use std::sync::Arc;

use crate::command::args::{SYNTAX, int, is};
use crate::command::tracking::{TooMany, Tracks, check_size};
use crate::command::tracking_modes::mode;
use crate::command::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, Session, Shared, flag};

const ROW: Command = Command {
    flags: flag::NOSCRIPT | flag::LOADING | flag::STALE,
    categories: &["connection"],
    group: "connection",
    ..Command::DEFAULT
};

pub(super) const CACHING: Command = Command {
    name: "client|caching",
    arity: 3,
    since: "6.0.0",
    summary: "Steers tracking of the next command's keys.",
    run: Run::Session(client_caching),
    ..ROW
};

pub(super) const GETREDIR: Command = Command {
    name: "client|getredir",
    arity: 2,
    since: "6.0.0",
    summary: "Tells where invalidations go.",
    run: Run::Session(client_getredir),
    ..ROW
};

pub(super) const TRACKING: Command = Command {
    name: "client|tracking",
    arity: -3,
    since: "6.0.0",
    complexity: "O(1), and O(N) with N prefixes.",
    compatibility: Compatibility::Partial("ON is refused inside MULTI"),
    summary: "Has the server tell when read keys change.",
    run: Run::Session(client_tracking),
    ..ROW
};

pub(super) const TRACKINGINFO: Command = Command {
    name: "client|trackinginfo",
    arity: 2,
    since: "6.2.0",
    summary: "Tells the state of tracking.",
    run: Run::Session(client_trackinginfo),
    ..ROW
};

/// The options of CLIENT TRACKING.
#[derive(Default)]
struct Options<'a> {
    modes: u8,
    redirect: u64,
    prefixes: Vec<&'a [u8]>,
}

impl<'a> Options<'a> {
    fn parse(shared: &Shared, mut words: &[&'a [u8]]) -> Result<Options<'a>, Fault> {
        let mut options = Options::default();
        while let [word, rest @ ..] = words {
            words = rest;
            match (words, ()) {
                ([id, rest @ ..], ()) if is(word, "redirect") => {
                    words = rest;
                    if options.redirect != 0 {
                        return Err("ERR A client can only redirect to a single other client".into());
                    }
                    let id = u64::try_from(int(id)?).ok();
                    let client = id.and_then(|id| shared.clients.get(id));
                    // Nothing can be pushed to a client of gRPC, or to one that ends.
                    let client = client.filter(|client| !client.pushes.is_closed());
                    let client = client.ok_or("ERR The client ID you want redirect to does not exist")?;
                    options.redirect = client.id;
                }
                ([prefix, rest @ ..], ()) if is(word, "prefix") => {
                    words = rest;
                    options.prefixes.push(prefix);
                }
                _ if is(word, "bcast") => options.modes |= mode::BCAST,
                _ if is(word, "optin") => options.modes |= mode::OPTIN,
                _ if is(word, "optout") => options.modes |= mode::OPTOUT,
                _ if is(word, "noloop") => options.modes |= mode::NOLOOP,
                _ => return Err(SYNTAX.into()),
            }
        }
        Ok(options)
    }

    fn has(&self, mode: u8) -> bool {
        self.modes & mode != 0
    }

    /// An error if they contradict each other, or the modes that the connection is in.
    fn check(&self, before: Option<&Tracks>) -> Result<(), Fault> {
        let was = |mode| before.is_some_and(|tracks| tracks.has(mode));
        let [bcast, optin, optout] = [mode::BCAST, mode::OPTIN, mode::OPTOUT].map(|mode| self.has(mode));
        match () {
            () if !bcast && !self.prefixes.is_empty() => {
                Err("ERR PREFIX option requires BCAST mode to be enabled".into())
            }
            () if before.is_some() && was(mode::BCAST) != bcast => Err(
                "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it with a different mode.".into(),
            ),
            () if bcast && (optin || optout) => Err("ERR OPTIN and OPTOUT are not compatible with BCAST".into()),
            () if optin && optout => Err("ERR You can't specify both OPTIN mode and OPTOUT mode".into()),
            () if (optin && was(mode::OPTOUT)) || (optout && was(mode::OPTIN)) => Err(
                "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it with a different mode.".into(),
            ),
            () => self.check_prefixes(before),
        }
    }

    /// No key may have two of the prefixes.
    fn check_prefixes(&self, before: Option<&Tracks>) -> Result<(), Fault> {
        let overlap = |one: &[u8], other: &[u8]| one.starts_with(other) || other.starts_with(one);
        let error = |prefix: &[u8], what: &str, other: &[u8]| {
            let mut message = b"ERR Prefix '".to_vec();
            message.extend_from_slice(prefix);
            message.extend_from_slice(format!("' overlaps with {what} '").as_bytes());
            message.extend_from_slice(other);
            message.extend_from_slice(b"'. Prefixes for a single client must not overlap.");
            Err(Fault::error(message))
        };
        for (place, prefix) in self.prefixes.iter().enumerate() {
            let mut known = before.into_iter().flat_map(Tracks::prefixes);
            if let Some(other) = known.find(|other| overlap(other, prefix)) {
                return error(prefix, "an existing prefix", other);
            }
            let mut given = self.prefixes[place + 1..].iter();
            if let Some(other) = given.find(|other| overlap(other, prefix)) {
                return error(prefix, "another provided prefix", other);
            }
        }
        Ok(())
    }
}

fn client_tracking(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let options = Options::parse(shared, &args[3..])?;
    if is(args[2], "off") {
        session.tracks = None;
        return Ok(Reply::Ok);
    }
    if !is(args[2], "on") {
        return Err(SYNTAX.into());
    }
    if !session.takes_pushes {
        return Err("ERR only connections of the Redis protocol can track keys".into());
    }
    if session.in_exec {
        return Err(
            "ERR CLIENT TRACKING ON is not allowed inside MULTI: the commands of EXEC have read their keys already"
                .into(),
        );
    }
    let too_many = |TooMany| Fault::from("ERR a connection tracks prefixes of at most 1 MB together");
    check_size(session.tracks.as_deref(), &options.prefixes).map_err(too_many)?;
    options.check(session.tracks.as_deref())?;
    let client = &session.client;
    let new = || Box::new(Tracks::new(&shared.service, &shared.tracking, client));
    let mut tracks = session.tracks.take().unwrap_or_else(new);
    tracks.set(options.modes, options.redirect);
    let prefixes: &[&[u8]] = match options.prefixes.is_empty() && options.has(mode::BCAST) {
        true => &[b""],
        false => &options.prefixes,
    };
    tracks.add_prefixes(prefixes);
    session.tracks = Some(tracks);
    Ok(Reply::Ok)
}

fn client_caching(session: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let Some(tracks) = &mut session.tracks else {
        return Err("ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled".into());
    };
    match () {
        () if is(args[2], "yes") && !tracks.has(mode::OPTIN) => {
            return Err("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.".into());
        }
        () if is(args[2], "no") && !tracks.has(mode::OPTOUT) => {
            return Err("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.".into());
        }
        () if is(args[2], "yes") || is(args[2], "no") => tracks.caching = true,
        () => return Err(SYNTAX.into()),
    }
    Ok(Reply::Ok)
}

fn client_getredir(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Int(redirect(session)))
}

/// Where the invalidations go: -1 if there are none, 0 to the connection itself.
fn redirect(session: &Session) -> i64 {
    match &session.tracks {
        None => -1,
        Some(_) => session.client.tracking.redirect().map_or(0, |id| id as i64),
    }
}

fn client_trackinginfo(session: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    let mut flags = Vec::new();
    let mut prefixes = Vec::new();
    match &session.tracks {
        None => flags.push("off"),
        Some(tracks) => {
            let told = |mode, word, more| tracks.has(mode).then_some([Some(word), more]);
            let caching = |word| tracks.caching.then_some(word);
            let words = [
                told(mode::ON, "on", None),
                told(mode::BCAST, "bcast", None),
                told(mode::OPTIN, "optin", caching("caching-yes")),
                told(mode::OPTOUT, "optout", caching("caching-no")),
                told(mode::NOLOOP, "noloop", None),
            ];
            flags.extend(words.into_iter().flatten().flatten().flatten());
            if session.client.tracking.has(mode::BROKEN) {
                flags.push("broken_redirect");
            }
            prefixes.extend(tracks.prefixes().map(|prefix| Reply::Bulk(prefix.clone())));
        }
    }
    Ok(Reply::Map(vec![
        (
            Reply::bulk("flags"),
            Reply::Set(flags.into_iter().map(Reply::bulk).collect()),
        ),
        (Reply::bulk("redirect"), Reply::Int(redirect(session))),
        (Reply::bulk("prefixes"), Reply::Array(prefixes)),
    ]))
}
