//! EXEC: the commands that MULTI queued, as one.
//!
//! The commands about data are computed in one transaction, which may be computed again. All others
//! (SELECT, CLIENT, CONFIG, …) run once, when the transaction has been computed for the first time.
//! Their replies stay, also when the transaction is computed again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::admission::{Caller, Refusal, Wants, admit};
use super::args::is;
use super::checks::caller;
use super::compute::{compute, conclude, fit_together, locks, replied, view};
use super::key_specs::{KeyList, keys_of};
use super::session::{Multi, Queued, Session};
use super::shared::Shared;
use super::step::{Admitted, Exec, Step, refused};
use super::table::CommandEntry;
use super::undeclared::{Undeclared, Used, UsedMore};
use super::{Args, Fault, MAX_REPLY_MEMORY, Reply, Run, connection, flag, monitor};
use crate::acl::{Account, Context, Reason};
use crate::database::transaction::{Computed, Keys as Locks, Moment, Posted, Transaction, View};
use crate::database::watch::Found;
use crate::database::write::Outstanding;
use crate::database::{Place, Wait};
use crate::resp::Weight;

type Watched = HashMap<(u16, Bytes), Option<Found>>;

/// A queued command.
struct Request<'q> {
    command: &'static CommandEntry,
    args: Vec<&'q [u8]>,
    /// The database that is selected by then.
    database: u16,
    /// The user by then.
    user: &'q Arc<Account>,
    /// Why it is not run: that user may not run it.
    refused: Option<&'q Reply>,
}

/// Runs what the connection has queued.
pub fn begin(session: &mut Session, shared: &Arc<Shared>) -> Step {
    let Some(multi) = session.multi.take() else {
        return Step::Reply(Reply::error("ERR EXEC without MULTI"));
    };
    if multi.aborted {
        session.end_transaction();
        return Step::Reply(Reply::error(
            "EXECABORT Transaction discarded because of previous errors.",
        ));
    }
    session.client.refusals.lock().begin();
    let mut exec = Some(Box::new(Exec {
        admitted: admitted(session, shared, &multi),
        multi,
        watch: session.watch.take().unwrap_or_default(),
        database: session.database,
        user: session.user.clone(),
        others: None,
    }));
    let step = run(session, shared, &mut exec, false);
    match exec {
        // It has to wait: everything is as before.
        Some(exec) => {
            session.multi = Some(exec.multi);
            session.watch = Some(exec.watch).filter(|watch| !watch.keys.is_empty());
        }
        None => session.end_transaction(),
    }
    step
}

/// Computes the transaction. It is left in `exec` only if it has to wait. `again`: it has been
/// computed before, so its commands are counted already.
pub fn run(session: &mut Session, shared: &Arc<Shared>, exec: &mut Option<Box<Exec>>, again: bool) -> Step {
    let Some(mut taken) = exec.take() else {
        return Step::Reply(Reply::error("ERR EXEC without MULTI"));
    };
    let mut others = taken.others.take();
    let requests = taken.requests(shared);
    if !again {
        session.caches_in_exec(requests.iter().map(Request::caching));
    }
    // When it is computed again, no later command may have been computed. That can happen where
    // others write too.
    let barrier =
        !shared.service.log.chains() || taken.publishes() || requests.iter().any(|r| r.command.has(flag::BARRIER));
    let mut times = Vec::with_capacity(requests.len());
    let computed = match taken.compute(session, shared, &requests, &mut times) {
        Ok(computed) => computed,
        Err(Fault::Wait(wait)) => {
            drop(requests);
            taken.others = others;
            *exec = Some(taken);
            return refused(Fault::Wait(wait));
        }
        Err(fault) => return refused(fault),
    };
    let computed = computed.map(|value| match value {
        None => Reply::NullArray,
        Some(mut replies) => {
            let done = others.get_or_insert_with(|| do_others(session, shared, &requests, &replies, &mut times));
            for (place, reply) in done {
                replies[*place] = reply.clone();
            }
            if !again {
                count(session, shared, &requests, &times, &replies);
            }
            Reply::Array(replies)
        }
    });
    drop(requests);
    session.script_lines.clear();
    let database = taken.database;
    taken.others = others;
    conclude(session, computed, database, barrier, again, Some(taken))
}

impl Exec {
    /// What is queued, each with the database that is selected by then, and the user.
    fn requests(&self, shared: &Shared) -> Vec<Request<'_>> {
        let (mut database, mut user) = (self.database, &self.user);
        let mut requests = Vec::with_capacity(self.multi.queued.len());
        for (Queued { command, args }, Admitted { refused, becomes }) in self.multi.queued.iter().zip(&self.admitted) {
            let args: Vec<&[u8]> = args.iter().map(|argument| &argument[..]).collect();
            if refused.is_none() && matches!(command.run, Run::Select) {
                // If there is no such database, the one before stays.
                database = connection::selected(shared, &args).unwrap_or(database);
            }
            requests.push(Request {
                user,
                refused: refused.as_ref(),
                command,
                args,
                database,
            });
            user = becomes.as_ref().unwrap_or(user);
        }
        requests
    }

    /// Computes the commands about data in one transaction. Returns their replies, with
    /// [`Reply::None`] in the places of the other commands, or `None` if a watched key has changed.
    /// `times`: how long each command took.
    fn compute(
        &self,
        session: &mut Session,
        shared: &Arc<Shared>,
        requests: &[Request<'_>],
        times: &mut Vec<Duration>,
    ) -> Result<Computed<Option<Vec<Reply>>>, Fault> {
        let watched = &self.watch.keys;
        let has = |flag| requests.iter().any(|request| request.command.has(flag));
        let writes = requests.iter().any(|request| request.command.may_write());
        let is_script = |request: &Request<'_>| request.command.is_script();
        let has_scripts = requests.iter().any(is_script);
        let mut keys: KeyList<'_> = requests.iter().flat_map(Request::keys).collect();
        keys.extend(watched.keys().map(|(_, key)| &key[..]));
        let places = match fit_together(writes, keys.len(), true) {
            true => places(watched, requests),
            false => Vec::new(),
        };
        let (owner, view) = (session.outstanding.clone(), view(session, shared, writes));
        if has_scripts && view == View::Pending {
            // What is under way is not seen as it is at one moment.
            return Err(Fault::Wait(Wait::Own));
        }
        let finds_keys = requests.iter().any(|request| request.command.finds_keys(&request.args));
        let others_find = requests.iter().any(|r| !is_script(r) && r.command.finds_keys(&r.args));
        let all = has(flag::ALL_KEYS) || (has_scripts && writes && others_find);
        let (mut undeclared, mut moment) = (Undeclared::default(), Moment::default());
        loop {
            let keys: KeyList<'_> = keys.iter().copied().chain(undeclared.found()).collect();
            let locks = match has_scripts && !all {
                true if writes => undeclared.locks(&keys),
                true => Locks::Unlocked,
                false => locks(&keys, &places, writes, all, finds_keys),
            };
            // Before EXEC, the whole store was waited for.
            let mut used = undeclared.run(&keys, writes && !all, true);
            let of_moment = has_scripts.then_some(&mut moment);
            let computed = self.transact(
                session,
                shared,
                requests,
                &owner,
                (locks, view),
                (&mut used, of_moment, times),
            );
            let used = UsedMore::from(used);
            drop(keys);
            if moment.lost {
                for request in requests {
                    moment.expect(request.database, request.keys().into_iter());
                }
            }
            // A script that was stopped is not run again.
            if !undeclared.learn(used, &moment) || matches!(computed, Err(Fault::Error(_))) {
                return computed;
            }
        }
    }

    /// Computes it once. `used`: what the scripts in it may use.
    fn transact(
        &self,
        session: &mut Session,
        shared: &Arc<Shared>,
        requests: &[Request<'_>],
        owner: &Arc<Outstanding>,
        (locks, view): (Locks<'_>, View),
        (used, moment, times): (&mut Used<'_>, Option<&mut Moment>, &mut Vec<Duration>),
    ) -> Result<Computed<Option<Vec<Reply>>>, Fault> {
        let (watched, changed) = (&self.watch.keys, &self.watch.changed);
        let (service, pace) = (&shared.service, session.pace);
        // Keys that are read together are read before the first command is computed.
        for request in requests
            .iter()
            .filter(|r| matches!(r.command.run, Run::Data(_)) && r.refused.is_none())
        {
            session.reads(shared, request.command, &request.args);
        }
        service.transact_of_moment(pace, owner, (locks, view), moment, |transaction| {
            // First the keys, then the flag: a transaction that watches what it reads notices later
            // changes.
            if has_changed(transaction, watched)? || changed.load(Ordering::SeqCst) {
                return Ok(None);
            }
            let (mut replies, mut weight) = (Vec::with_capacity(requests.len()), Weight::default());
            times.clear();
            session.script_lines.clear();
            session.client.refusals.lock().begin();
            for request in requests {
                let started = session.tally.begin(shared, request.command);
                request.post(transaction, replies.len());
                let reply = request.reply(session, shared, transaction, used)?;
                times.push(session.tally.done(started));
                weight.add(&reply);
                if weight.bytes() > MAX_REPLY_MEMORY {
                    return Err(Fault::error(format!("{}; nothing was executed", too_much())));
                }
                replies.push(reply);
            }
            used.check()?;
            // The log checks a transaction that writes. Without writes, the keys may have changed
            // since the first look.
            if !transaction.writes() && has_changed(transaction, watched)? {
                transaction.messages.clear();
                return Ok(None);
            }
            Ok(Some(replies))
        })
    }
}

impl<'q> Request<'q> {
    /// Its command, and whether its argument is YES, as that of CLIENT CACHING may be.
    fn caching(&self) -> (&'static str, bool) {
        (self.command.name, self.args.get(2).is_some_and(|word| is(word, "yes")))
    }

    fn keys(&self) -> KeyList<'q> {
        keys_of(self.command.keys, &self.args)
    }

    /// Its message, if it is a PUBLISH: it is sent when the log has the transaction.
    fn post(&self, transaction: &mut Transaction<'_>, place: usize) {
        if let (Run::Publish { shard }, [_, channel, payload], None) = (self.command.run, &self.args[..], self.refused)
        {
            transaction.messages.push(Posted {
                shard,
                channel: Bytes::copy_from_slice(channel),
                payload: Bytes::copy_from_slice(payload),
                queued: Some(place),
            });
        }
    }

    /// Its reply if it is about data or refused, else [`Reply::None`].
    fn reply(
        &self,
        session: &mut Session,
        shared: &Arc<Shared>,
        transaction: &mut Transaction<'_>,
        used: &mut Used<'_>,
    ) -> Result<Reply, Fault> {
        if let Some(refused) = self.refused {
            return Ok(refused.clone());
        }
        let handler = match self.command.run {
            Run::Data(handler) => handler,
            // If a script is stopped, nothing of the whole is written.
            Run::Script(handler) => {
                let user = std::mem::replace(&mut session.user, self.user.clone());
                session.declares(self.command, &self.args);
                let reply = handler(session, shared, transaction, used, self.database, &self.args);
                session.declares(self.command, &[]);
                session.script_lines.end();
                session.user = user;
                return reply;
            }
            _ => return Ok(Reply::None),
        };
        transaction.counts = !self.command.has(flag::WRITE);
        let computed = transaction
            .whole(|transaction| compute((self.command, handler), shared, self.database, transaction, &self.args));
        let reply = match computed {
            Err(Fault::Error(text)) => Reply::Error(text),
            reply => reply?,
        };
        transaction.check_size()?;
        Ok(reply)
    }
}

/// What the users by then make of each queued command. AUTH and HELLO log in later, but for what
/// comes after them.
fn admitted(session: &Session, shared: &Shared, multi: &Multi) -> Vec<Admitted> {
    let mut user = session.user.clone();
    let of_each = multi.queued.iter().map(|Queued { command, args }| {
        if user.may_everything() && !command.has(flag::NO_AUTH) {
            return Admitted::default();
        }
        let args: &[&[u8]] = &args.iter().map(|argument| &argument[..]).collect::<Vec<_>>();
        let refused = refused_now(session, shared, (&user, command, args));
        let login = connection::login(shared, command, args);
        let becomes = login.and_then(|(user, password)| shared.users.log_in(user, password));
        user = becomes.as_ref().unwrap_or(&user).clone();
        Admitted { refused, becomes }
    });
    of_each.collect()
}

/// The reply in the place of a queued command that its user may not run any more.
fn refused_now(
    session: &Session,
    shared: &Shared,
    (user, command, args): (&Account, &CommandEntry, Args<'_>),
) -> Option<Reply> {
    let caller = Caller {
        user,
        may_repeat: true,
        ..caller(session, Context::Multi)
    };
    let why = match admit(shared, Wants::Run { caller, command, args }).err()? {
        Refusal::NotAllowed(Reason::Command, _) => "no permission to execute the command or subcommand",
        Refusal::NotAllowed(Reason::Key, _) => "no permission to touch the specified keys",
        Refusal::NotAllowed(Reason::Channel, _) => "no permission to access one of the channels used as arguments",
        refusal => return Some(Reply::error(refusal.text().into_owned())),
    };
    Some(Reply::error(format!(
        "NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This \
         command is no longer allowed for the following reason: {why}"
    )))
}

fn too_much() -> String {
    format!("ERR the reply of EXEC would take more than {MAX_REPLY_MEMORY} bytes of memory")
}

/// Runs the commands that are not about data. Returns their replies with their places, and puts the
/// time that each took into `times`. The transaction is on its way already, so a reply that is too
/// large becomes an error in its own place.
fn do_others(
    session: &mut Session,
    shared: &Arc<Shared>,
    requests: &[Request<'_>],
    of_data: &[Reply],
    times: &mut [Duration],
) -> Vec<(usize, Reply)> {
    let mut weight = Weight::default();
    of_data.iter().for_each(|reply| weight.add(reply));
    let mut done = Vec::new();
    session.in_exec = true;
    for (place, request) in requests
        .iter()
        .enumerate()
        .filter(|(_, request)| request.refused.is_none())
    {
        let started = session.tally.begin(shared, request.command);
        let reply = match do_other(session, shared, request.command, &request.args) {
            None => continue,
            // CLIENT REPLY OFF and SKIP. EXEC's reply is always whole. Redis leaves replies out of
            // it that its length counts.
            Some(Ok(Reply::None)) => Reply::Ok,
            Some(Ok(reply)) => reply,
            Some(Err(Fault::Error(text))) => Reply::Error(text),
            Some(Err(Fault::Wait(_))) => Reply::error("ERR the command could not be computed"),
        };
        times[place] = session.tally.done(started);
        weight.add(&reply);
        let fits = weight.bytes() <= MAX_REPLY_MEMORY;
        done.push((place, if fits { reply } else { Reply::error(too_much()) }));
    }
    session.in_exec = false;
    done
}

/// `None` if it is about data, or done later.
fn do_other(
    session: &mut Session,
    shared: &Arc<Shared>,
    command: &CommandEntry,
    args: Args<'_>,
) -> Option<Result<Reply, Fault>> {
    match command.run {
        Run::Data(_) | Run::Script(_) => None,
        Run::Session(handler) => Some(handler(session, shared, args)),
        Run::Select => Some(connection::select(session, shared, args)),
        // Done when the log has the transaction.
        Run::Publish { .. } => None,
        // MULTI does not queue these.
        Run::Later(_) | Run::By(_) | Run::Exec | Run::Container | Run::NotYet => {
            Some(Err("ERR Command not allowed inside a transaction".into()))
        }
    }
}

/// Counts each queued command as one that was executed.
fn count(session: &mut Session, shared: &Shared, requests: &[Request<'_>], times: &[Duration], replies: &[Reply]) {
    for ((Request { command, args, .. }, took), reply) in requests.iter().zip(times).zip(replies) {
        session.tally.computed(shared, command, *took);
        replied(session, shared, command, args, *took, reply.is_error(), false);
        monitor::executed(session, shared, command, args);
        if let Reply::Error(text) = reply {
            shared.stats.count_error(text);
        }
    }
}

/// The keys that EXEC looks at, each once.
fn places<'q>(watched: &'q Watched, requests: &'q [Request<'q>]) -> Vec<Place<'q>> {
    let mut met = HashSet::new();
    let mut places: Vec<Place<'q>> = watched.keys().map(|(database, key)| (*database, &key[..])).collect();
    met.extend(places.iter().copied());
    for request in requests {
        let of_command = request.keys().into_iter().map(|key| (request.database, key));
        places.extend(of_command.filter(|place| met.insert(*place)));
    }
    places
}

/// Whether a watched key is no longer what WATCH found. The transaction then rests on these keys.
fn has_changed(transaction: &mut Transaction<'_>, watched: &Watched) -> Result<bool, Fault> {
    for ((database, key), found) in watched {
        if *found != Some(transaction.found(*database, key)?) {
            return Ok(true);
        }
    }
    Ok(false)
}
