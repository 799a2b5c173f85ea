//! How new a read must be, and what makes it so: the log's ends, asked for by one question at a
//! time for all reads that wait. Also a session's position as a text that another node or process
//! can wait for. It knows neither commands nor connections.
//!
//! What a node shows grows with what it applies. A read is *linearizable* if the log was asked for
//! its ends after the read came, and everything below them had been applied before the read was
//! computed: whatever was acknowledged anywhere before the read came is below those ends. A read's
//! *lag* is bounded by the time since the last such question whose ends have been applied. A log
//! that [chains](crate::log::Log::chains) has this node as its only writer, and what this node has
//! acknowledged is visible at once: there, nothing has to be asked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::{Fault, Service};
use crate::log::{Positions, TopicPartition};
use crate::supervise;

/// How long one question to the log may take. The next one comes after it.
const QUESTION: Duration = Duration::from_secs(1);
/// Pause after a question that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Answers that are remembered because they have not been applied yet. If there are more, every
/// second one is dropped.
const REMEMBERED: usize = 64;
/// The shortest time between two questions that reads of bounded lag begin.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
/// The beginning of a token. Another format would begin differently.
const TOKEN: &str = "hw1";

/// What a read may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It may miss anything newer than what this node has applied, even own writes under way.
    Eventual,
    /// It sees what its connection wrote or saw.
    Session,
    /// It sees everything that was acknowledged anywhere before it came.
    Linearizable,
    /// It misses nothing that is older than this.
    MaxLag(Duration),
}

/// The server's own mode, and what is known of the log's ends.
pub struct Reads {
    default: AtomicU64,
    asking: Mutex<Asking>,
    /// Notified when a question is over.
    answered: Notify,
}

/// What has to be new enough for a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Partitions(SmallVec<[TopicPartition; 2]>),
    /// This database has no topic as far as this node knows.
    Unknown(u16),
    Everything,
}

/// How far a partition is.
pub struct Lag {
    pub at: TopicPartition,
    pub applied: u64,
    /// The log's end when the log was last asked for it.
    pub end: Option<u64>,
    /// Nothing that is older than this is missing here.
    pub age: Option<Duration>,
}

/// The log's answer to one question.
struct Answer {
    asked: Instant,
    /// The question was for new topics too.
    topics: bool,
    ends: Positions,
}

#[derive(Default)]
struct Asking {
    running: bool,
    /// Number of questions begun and of those that are over, and the number of the last one wanted.
    begun: u64,
    over: u64,
    wanted: u64,
    /// The next question is also for new topics.
    topics: bool,
    last_begun: Option<Instant>,
    newest: Option<Arc<Answer>>,
    /// Answers that are not fully applied, oldest first.
    unapplied: Vec<Arc<Answer>>,
    /// The time up to which everything in the log is visible here.
    as_of: BTreeMap<TopicPartition, Instant>,
    /// The time up to which every topic in the log is known here.
    topics_as_of: Option<Instant>,
    failure: Option<String>,
}

impl Consistency {
    /// The words of the setting `read-consistency`.
    pub fn named(name: &str, max_lag: Duration) -> Option<Consistency> {
        Some(match name {
            "eventual" => Consistency::Eventual,
            "session" => Consistency::Session,
            "linearizable" => Consistency::Linearizable,
            "max-lag" => Consistency::MaxLag(max_lag),
            _ => return None,
        })
    }

    /// True if reads see writes under way of their own connection.
    pub fn sees_pending(self) -> bool {
        self != Consistency::Eventual
    }

    fn encode(self) -> u64 {
        match self {
            Consistency::Eventual => 0,
            Consistency::Session => 1,
            Consistency::Linearizable => 2,
            Consistency::MaxLag(lag) => u64::try_from(lag.as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 2) << 2 | 3,
        }
    }

    fn decode(code: u64) -> Consistency {
        match code & 3 {
            0 => Consistency::Eventual,
            1 => Consistency::Session,
            2 => Consistency::Linearizable,
            _ => Consistency::MaxLag(Duration::from_millis(code >> 2)),
        }
    }
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Consistency::Eventual => f.write_str("eventual"),
            Consistency::Session => f.write_str("session"),
            Consistency::Linearizable => f.write_str("linearizable"),
            Consistency::MaxLag(lag) => write!(f, "max-lag {}", lag.as_millis()),
        }
    }
}

impl Scope {
    fn concerns(&self, number: u16) -> bool {
        match self {
            Scope::Partitions(partitions) => partitions.iter().any(|at| at.database == number),
            Scope::Everything => true,
            Scope::Unknown(database) => *database == number,
        }
    }

    /// True if it matters which databases exist by now.
    fn needs_topics(&self) -> bool {
        !matches!(self, Scope::Partitions(_))
    }
}

impl Default for Reads {
    fn default() -> Self {
        Reads {
            default: AtomicU64::new(Consistency::Session.encode()),
            asking: Mutex::default(),
            answered: Notify::new(),
        }
    }
}

impl Reads {
    /// The mode of connections that did not choose one.
    pub fn default_mode(&self) -> Consistency {
        Consistency::decode(self.default.load(Ordering::Relaxed))
    }

    pub fn set_default_mode(&self, mode: Consistency) {
        self.default.store(mode.encode(), Ordering::Relaxed);
    }

    fn newest(&self) -> Option<Arc<Answer>> {
        self.asking.lock().newest.clone()
    }

    fn failure(&self) -> Option<String> {
        self.asking.lock().failure.clone()
    }
}

/// A question that panicked has failed. The reads that wait ask again.
struct Unanswered<'s>(&'s Service);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut asking = self.0.reads.asking.lock();
            asking.running = false;
            asking.over = asking.begun;
            asking.failure = Some("the question panicked".into());
            drop(asking);
            self.0.reads.answered.notify_waiters();
        }
    }
}

impl Service {
    /// The scope of a read of these keys of a database.
    pub fn scope<'k>(&self, database: u16, keys: impl Iterator<Item = &'k [u8]>) -> Scope {
        if self.databases[database as usize].partitions().is_empty() {
            return Scope::Unknown(database);
        }
        let mut partitions: SmallVec<[TopicPartition; 2]> = keys
            .map(|key| TopicPartition {
                database,
                partition: self.log.partition(database, key),
            })
            .collect();
        partitions.sort_unstable();
        partitions.dedup();
        Scope::Partitions(partitions)
    }

    /// True if everything is already visible here that a linearizable read needs that came at
    /// `since`.
    pub fn is_fresh(&self, scope: &Scope, since: Instant) -> bool {
        self.log.chains()
            || self
                .reads
                .newest()
                .is_some_and(|answer| self.has_applied(&answer, scope, since) && self.check_whole(scope).is_ok())
    }

    /// An error if a database in the scope cannot be read completely here: no wait would help.
    fn check_whole(&self, scope: &Scope) -> Result<(), Fault> {
        let concerned = (0..self.database_count()).filter(|number| scope.concerns(*number));
        match concerned.filter_map(|number| self.log.incomplete(number)).next() {
            Some(why) => Err(Fault::error(format!("STALE {why}"))),
            None => Ok(()),
        }
    }

    /// Waits until everything that the log had at `since` is visible here, or until the time is
    /// over.
    pub async fn fresh(self: &Arc<Self>, scope: &Scope, since: Instant) -> Result<(), Fault> {
        self.check_whole(scope)?;
        let patience = self.write_timeout();
        let reached = async {
            // Wait for this answer, not for newer ones that come meanwhile: they would move the
            // goal on and on.
            let answer = self.answer(scope, since).await;
            loop {
                let progress = self.progress.notified();
                if self.has_applied(&answer, scope, since) {
                    return;
                }
                progress.await;
            }
        };
        let waited = tokio::time::timeout(patience, reached).await;
        waited.map_err(|_| {
            let seconds = patience.as_secs();
            Fault::error(match self.reads.failure() {
                Some(cause) => format!("STALE the log did not tell its end within {seconds} s: {cause}"),
                None => {
                    let held_up = self
                        .log
                        .held_up(None)
                        .map_or(String::new(), |cause| format!(": {cause}"));
                    format!(
                        "STALE this node did not apply within {seconds} s what the log had when the read came{held_up}"
                    )
                }
            })
        })
    }

    /// The answer to a question that began at `since` or later.
    async fn answer(self: &Arc<Self>, scope: &Scope, since: Instant) -> Arc<Answer> {
        let mut number = 0;
        loop {
            let answered = self.reads.answered.notified();
            if let Some(answer) = self.reads.newest().filter(|answer| answer.is_for(scope, since)) {
                return answer;
            }
            // The first time, and after our own question has failed.
            if self.reads.asking.lock().over >= number {
                number = self.ask(scope);
            }
            answered.await;
        }
    }

    /// True if nothing that is older than `lag` is missing here. Asks the log often enough for
    /// that.
    pub fn is_within(self: &Arc<Self>, scope: &Scope, lag: Duration) -> bool {
        if self.log.chains() {
            return true;
        }
        let due = {
            let asking = self.reads.asking.lock();
            let interval = (lag / 4).max(SHORTEST_INTERVAL);
            asking.last_begun.is_none_or(|begun| begun.elapsed() >= interval)
        };
        if due {
            self.ask(scope);
        }
        self.lag(scope).is_some_and(|behind| behind <= lag) && self.check_whole(scope).is_ok()
    }

    /// Waits until nothing that is older than `lag` is missing here: for about that time at most,
    /// and not longer than a write may take.
    pub async fn within(self: &Arc<Self>, scope: &Scope, lag: Duration) -> Result<(), Fault> {
        self.check_whole(scope)?;
        let reached = async {
            loop {
                let (answered, progress) = (self.reads.answered.notified(), self.progress.notified());
                if self.is_within(scope, lag) {
                    return;
                }
                // An answer can be too old, or not applied. The tick is for a question that is not
                // due yet.
                tokio::select! {
                    () = answered => {}
                    () = progress => {}
                    () = tokio::time::sleep(SHORTEST_INTERVAL) => {}
                }
            }
        };
        // If nothing is known to be wrong, a question may take its full time: the last one may be
        // long ago.
        let least = match self.reads.failure() {
            Some(_) => SHORTEST_INTERVAL,
            None => QUESTION,
        };
        let patience = lag.max(least).min(self.write_timeout());
        let waited = tokio::time::timeout(patience, reached).await;
        waited.map_err(|_| {
            let behind = match self.lag(scope) {
                Some(behind) => format!("STALE this node is {} ms behind the log", behind.as_millis()),
                None => "STALE it is not known how far this node is behind the log".to_owned(),
            };
            let why = self.reads.failure().map_or(String::new(), |cause| format!(": {cause}"));
            Fault::error(format!("{behind}, more than the {} ms allowed{why}", lag.as_millis()))
        })
    }

    /// How long ago the oldest record that is missing here may have been written; `None` if the log
    /// was never asked.
    pub fn lag(&self, scope: &Scope) -> Option<Duration> {
        if self.log.chains() {
            return Some(Duration::ZERO);
        }
        let mut asking = self.reads.asking.lock();
        self.note_applied(&mut asking);
        let oldest = match scope {
            Scope::Partitions(partitions) => {
                let known = partitions.iter().map(|at| asking.as_of.get(at).copied());
                known
                    .min()
                    .unwrap_or_else(|| asking.newest.as_ref().map(|answer| answer.asked))
            }
            Scope::Everything => asking.as_of.values().min().copied().min(asking.topics_as_of),
            Scope::Unknown(_) => asking.topics_as_of,
        };
        oldest.map(|asked| asked.elapsed())
    }

    /// How far every partition of every database is. Asks the log first, and uses the answer if one
    /// comes.
    pub async fn lags(self: &Arc<Self>) -> Vec<Lag> {
        let asked = self.answer(&Scope::Everything, Instant::now());
        // Without an answer, the values known from before are returned.
        let _ = tokio::time::timeout(QUESTION, asked).await;
        let mut asking = self.reads.asking.lock();
        self.note_applied(&mut asking);
        let mut lags = Vec::new();
        for (database, known) in (0..).zip(&self.databases) {
            for (partition, _) in (0..).zip(known.partitions()) {
                let at = TopicPartition { database, partition };
                let end = asking.newest.as_ref().and_then(|answer| answer.ends.get(&at).copied());
                lags.push(Lag {
                    at,
                    applied: self.applied(at),
                    end,
                    age: asking.as_of.get(&at).map(Instant::elapsed),
                });
            }
        }
        lags
    }

    /// Requests a question that begins after now. Returns its number.
    fn ask(self: &Arc<Self>, scope: &Scope) -> u64 {
        let mut asking = self.reads.asking.lock();
        let number = asking.begun + 1;
        asking.wanted = number;
        asking.topics |= scope.needs_topics();
        if !std::mem::replace(&mut asking.running, true) {
            let service = self.clone();
            supervise::start_blocking(&supervise::LOG_ENDS, move || service.put_questions());
        }
        number
    }

    /// Asks the log as long as a question is wanted. Blocking.
    fn put_questions(&self) {
        let _panicked = Unanswered(self);
        loop {
            let (asked, topics) = {
                let mut asking = self.reads.asking.lock();
                if asking.wanted <= asking.begun || self.is_stopping() {
                    asking.running = false;
                    return;
                }
                asking.begun += 1;
                let now = Instant::now();
                asking.last_begun = Some(now);
                (now, std::mem::take(&mut asking.topics))
            };
            supervise::inject_panic(&supervise::LOG_ENDS);
            let looked = if topics { self.log.look(QUESTION) } else { Ok(()) };
            let outcome = looked.and_then(|()| self.log.ends(QUESTION));
            self.notice_databases();
            let failed = outcome.is_err();
            {
                let mut asking = self.reads.asking.lock();
                asking.over = asking.begun;
                match outcome {
                    Ok(ends) => asking.answer(Answer { asked, topics, ends }),
                    Err(error) => {
                        asking.failure = Some(error.to_string());
                        asking.topics |= topics;
                    }
                }
                self.note_applied(&mut asking);
            }
            self.reads.answered.notify_waiters();
            if failed {
                std::thread::sleep(AFTER_FAILURE);
            }
        }
    }

    /// Advances `as_of` as far as answers have been applied.
    fn note_applied(&self, asking: &mut Asking) {
        let Asking { unapplied, as_of, .. } = asking;
        unapplied.retain(|answer| {
            let mut left = false;
            for (&at, &end) in &answer.ends {
                if self.applied(at) >= end {
                    as_of.insert(at, answer.asked);
                } else {
                    left = true;
                }
            }
            left
        });
    }

    fn applied(&self, at: TopicPartition) -> u64 {
        let partition = self.databases[at.database as usize]
            .partitions()
            .get(at.partition as usize);
        partition.map_or(0, |partition| partition.applied.load(Ordering::Acquire))
    }

    fn has_applied(&self, answer: &Answer, scope: &Scope, since: Instant) -> bool {
        let applied = |at: &TopicPartition| answer.ends.get(at).is_none_or(|&end| self.applied(*at) >= end);
        answer.is_for(scope, since)
            && match scope {
                Scope::Partitions(partitions) => partitions.iter().all(applied),
                Scope::Everything => answer.ends.keys().all(applied),
                Scope::Unknown(database) => answer.ends.keys().filter(|at| at.database == *database).all(applied),
            }
    }
}

impl Answer {
    fn is_for(&self, scope: &Scope, since: Instant) -> bool {
        self.asked >= since && (self.topics || !scope.needs_topics())
    }
}

impl Asking {
    fn answer(&mut self, answer: Answer) {
        let answer = Arc::new(answer);
        self.failure = None;
        if answer.topics {
            self.topics_as_of = Some(answer.asked);
        }
        self.newest = Some(answer.clone());
        if self.unapplied.len() >= REMEMBERED {
            let mut odd = false;
            self.unapplied.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.unapplied.push(answer);
    }
}

/// What one session wrote or may have seen of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    database: u16,
    topic_id: String,
    positions: Vec<u64>,
}

impl Service {
    /// The position of a session whose writes are all acknowledged, as a text. A client that has
    /// waited for it sees all that this session wrote or saw. The format is `hw1`, then for each
    /// database `~number:positions:topic id`, the positions by partition with dots between them. It
    /// holds nothing that a header or a cookie could not hold.
    pub fn token(&self) -> String {
        let mut token = TOKEN.to_owned();
        for (number, database) in self.databases.iter().enumerate() {
            let Some(identity) = self.log.identity(number as u16) else {
                continue;
            };
            let positions: Vec<String> = database
                .partitions()
                .iter()
                .map(|p| {
                    p.applied
                        .load(Ordering::Acquire)
                        .max(p.acknowledged.load(Ordering::Acquire))
                })
                .map(|position| position.to_string())
                .collect();
            if positions.iter().any(|position| position != "0") {
                let _ = write!(token, "~{number}:{}:{}", positions.join("."), identity.id);
            }
        }
        token
    }

    /// Waits until everything that the token's session wrote or saw is visible here.
    pub async fn reach(self: &Arc<Self>, token: &str, patience: Duration) -> Result<(), Fault> {
        let wanted = parse_token(token)
            .ok_or("ERR this is no token; HIGHWATER TOKEN gives one")
            .map_err(Fault::from)?;
        let reached = async {
            for seen in &wanted {
                self.reach_one(seen).await?;
            }
            Ok(())
        };
        tokio::time::timeout(patience, reached).await.unwrap_or_else(|_| {
            let milliseconds = patience.as_millis();
            Err(Fault::error(format!(
                "STALE this node did not reach the token's position within {milliseconds} ms"
            )))
        })
    }

    async fn reach_one(self: &Arc<Self>, seen: &Seen) -> Result<(), Fault> {
        let number = seen.database;
        if number >= self.database_count() {
            return Err(Fault::error(format!(
                "ERR the token is about database {number}, which this node does not have"
            )));
        }
        // A database that another node has just created is noticed when the log is asked about it.
        if self.log.identity(number).is_none() && !self.log.chains() {
            self.fresh(&Scope::Unknown(number), Instant::now()).await?;
        }
        self.check_topic(seen)?;
        for (&position, partition) in seen.positions.iter().zip(0..) {
            let at = TopicPartition {
                database: number,
                partition,
            };
            self.applied_to(at, position).await;
        }
        // The topic may not have existed before.
        self.check_topic(seen)
    }

    fn check_topic(&self, seen: &Seen) -> Result<(), Fault> {
        let number = seen.database;
        match self.log.identity(number).filter(|now| now.id != seen.topic_id) {
            None => Ok(()),
            Some(now) => Err(Fault::error(format!(
                "ERR the token is of another topic than {} (database {number}) is now: that was deleted and made again, or the token is of another log",
                now.topic
            ))),
        }
    }
}

fn parse_token(token: &str) -> Option<Vec<Seen>> {
    let mut parts = token.split('~');
    if parts.next() != Some(TOKEN) {
        return None;
    }
    parts.map(parse_seen).collect()
}

fn parse_seen(part: &str) -> Option<Seen> {
    let mut fields = part.splitn(3, ':');
    let database = fields.next()?.parse().ok()?;
    let positions = fields.next()?.split('.').map(|position| position.parse().ok());
    Some(Seen {
        database,
        positions: positions.collect::<Option<_>>()?,
        topic_id: fields.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_kept_in_a_number() {
        for mode in [
            Consistency::Eventual,
            Consistency::Session,
            Consistency::Linearizable,
            Consistency::MaxLag(Duration::ZERO),
            Consistency::MaxLag(Duration::from_millis(1_234)),
        ] {
            assert_eq!(Consistency::decode(mode.encode()), mode);
        }
    }

    #[test]
    fn tokens_are_read_as_they_are_written() {
        let parsed = parse_token("hw1~0:12.7:a+b/c:d==~3:1:x").expect("a token");
        assert_eq!((parsed[0].database, &parsed[0].positions[..]), (0, &[12, 7][..]));
        assert_eq!(parsed[0].topic_id, "a+b/c:d==");
        assert_eq!((parsed[1].database, &parsed[1].positions[..]), (3, &[1][..]));
        assert_eq!(parse_token("hw1"), Some(Vec::new()));
        for wrong in [
            "",
            "hw2~0:1:x",
            "hw1~",
            "hw1~0",
            "hw1~0:1",
            "hw1~0:x:y",
            "hw1~70000:1:x",
            "hw1~0::x",
            "hw1~0:-1:x",
        ] {
            assert_eq!(parse_token(wrong), None, "{wrong}");
        }
    }
}
