//! Makes `redis-compat.md` from the tables of commands and settings, and tests the table of
//! commands as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::table::{self, CommandEntry};
use super::{Compatibility, REDIS_VERSION, Run, events, flag};
use crate::config::table::{Effect, SETTINGS};

const GROUPS: &[(&str, &str)] = &[
    ("string", "Strings"),
    ("bitmap", "Bits"),
    ("generic", "Keys"),
    ("transactions", "Transactions"),
    ("connection", "Connection"),
    ("server", "Server"),
    ("hash", "Hashes"),
    ("list", "Lists"),
    ("set", "Sets"),
    ("sorted-set", "Sorted sets"),
    ("stream", "Streams"),
    ("geo", "Geo"),
    ("hyperloglog", "HyperLogLog"),
    ("pubsub", "Pub/Sub"),
    ("scripting", "Scripts and functions"),
    ("cluster", "Cluster"),
    (OWN, "Highwater's own"),
];

/// The group of commands that Redis does not have.
const OWN: &str = "highwater";

const INTRODUCTION: &str = "\
A command that is there takes the arguments and gives the replies and errors of Redis, in RESP2 and RESP3; that is tested side by side with \
redis-server. *Full* means that no difference is known, *partial* says what is missing or different, and *not yet* is answered as Redis \
answers an unknown command and is not listed by COMMAND.

This file is made from the table of commands: `UPDATE_DOCS=1 cargo test compat` writes it anew.
";

const DIFFERENCES: &[&str] = &[
    "**OK means that the log has it.** A write is answered when the log has acknowledged it. Two errors that Redis does not have tell of a write that \
     was not: `NOTWRITTEN` (it certainly is not in the log; try again freely) and `UNCERTAIN` (it may be there, or may still arrive).",
    "**A node says when it cannot be right.** While the local store is filled from the log, commands on data answer `LOADING` with the progress. \
     A database that shows a topic read-only answers writes with `READONLY`.",
    "**On Kafka, commands whose outcome rests on a read, or that write several keys** (INCR, SET NX, EXPIRE, MSET, RENAME, MULTI … EXEC and \
     their like) are optimistic Kafka transactions: atomic against every other node and producer, and across a crash. When others change their \
     keys again and again until the write timeout they answer NOTWRITTEN. The number that DEL and UNLINK reply is what this node knew; EXEC may answer null where \
     nothing but a conflict on an unwatched key was the cause, if keys are watched.",
    "**On Kafka, FLUSHDB and FLUSHALL** put a marker into the topic that every Highwater hides the older records by at once; other consumers of the topic \
     see those until their tombstones have come, which are written in the background.",
    "**A small hash, set, sorted set or list is one record**: a write of it sends the whole record. A large one has a record for each element, and so has one \
     that several nodes write (`split-collections`), and every stream. On Kafka DBSIZE and SCAN may show a list for some seconds after its last item has gone.",
    "**On Kafka, a push or a pop of a list that has a record for each item** rests on what it takes and on its end of the list. The length that a push replies, \
     and how many items a pop with a count takes, are what this node knew.",
    "**Consumers of a group have no record.** Those with pending entries are known from these on every node; others only to the node that they have asked, \
     until it restarts. A trim that removes more than 100,000 entries at once is an error, also one of XADD with an exact MAXLEN or MINID. XREADGROUP gives \
     at most 10,000 entries at once.",
    "**Memory is a cache.** `maxmemory` bounds the keys and values that are kept in memory; all keys are in the local store, and none is ever evicted. \
     `used_memory` of INFO is what `maxmemory` bounds; the resident set, with the store's cache and all else, is `used_memory_rss`.",
    "**Clients that do not read** are not buffered for without a bound: while their replies cannot be sent none of their further commands is run, but up to 64 MB of requests \
     are taken in. With `client-output-buffer-limit normal` they are run up to the limit and closed above it, as in Redis; a reply larger than the limit is not sent at all.",
    "**Bounds that Redis does not have:** MULTI queues at most 256 MB, and a transaction writes at most 256 MB; WATCH takes at most 100,000 keys of 64 MB together; \
     a command that waits takes at most 10,000 keys; a script publishes at most 10,000 messages of 64 MB together; the distinct values \
     in one reply of MGET or EXEC may take 1 GB; KEYS and SCAN give up patterns that take seconds to compare. `maxmemory-clients 0` is a quarter of the machine's memory, not \
     unlimited. Commands that take long wait for each other: of those that go on for seconds (KEYS, LCS, SWAPDB, more than 10,000 arguments, more than 1 GB of values), \
     and of those that take a fraction of a second (more than 4 MB of values, large parts of SCAN), so many are computed at one time as half of `--threads` allows.",
    "**Client-side caching:** an invalidation may come without need. What waits for a client that tracks or monitors is bounded by \
     `client-output-buffer-limit pubsub`. A script counts as a reader of the keys that it reads, and of those that it declares if it reads any. \
     CLIENT TRACKING ON is refused inside MULTI. CLIENT CACHING YES inside MULTI holds for the whole transaction, and CLIENT CACHING NO has no effect there.",
    "**Keyspace events** stay on their node. What other nodes and producers write has an event by its outcome (`set`, `hset`, `rpush`, `sadd`, `zadd`, `del`, \
     `expired`; see docs/guarantees.md). `expired` comes when the key is deleted in the background. There is no `evicted`, and of newer versions than 7.2 no class.",
    "**Expired keys** are never shown, and deleted in the background; until then they count in DBSIZE and INFO.",
    "**Fields of a hash that have expired** are never shown, and are removed in the background. Until then Redis counts them in HLEN and in the reply of HDEL, \
     and shows a hash without any other field to EXISTS, TYPE and RENAME; here such a hash does not exist for them, but counts in DBSIZE, KEYS and SCAN. \
     Fields stay in the order in which they came. OBJECT ENCODING is listpackex only while a field expires. INFO does not count expired fields.",
    "**A record has a size limit** (`max.message.bytes` of the topic, 16 MiB for topics that were created here), below Redis's 512 MB.",
    "**Nodes follow the log** instead of each other: there is no replication between servers and no cluster. Every node answers as a master without replicas that is in \
     no cluster; what would change that is an error. \
     How new reads on a node are is chosen by server and by connection (`read-consistency`, HIGHWATER CONSISTENCY; see docs/guarantees.md).",
    "**Commands about the connection or the server in a transaction** (CONFIG, CLIENT, INFO …) run once, when the commands about data have been \
     computed: a CONFIG SET has no effect on commands of the same transaction. SELECT has.",
    "**CLIENT REPLY in a transaction** takes effect behind EXEC, whose reply is always whole. Redis leaves replies out of it that its length counts, so that \
     its client takes the next reply for a part of it. QUIT closes the connection also while replies are off.",
    "**SLOWLOG, LATENCY and `INFO latencystats`** tell how long the client waited: for the command to be computed, and for what it waits for (the log, other \
     writes of its keys, room in the store), but not for CLIENT PAUSE. `INFO commandstats` tells both: `cmdstat_` lines the time of computing, as in Redis, \
     `cmdwait_` lines the time that clients waited.",
    "**Secrets.** CONFIG GET shows `requirepass` and the like to everyone who may ask for it, as Redis does, but no secret among the properties of Kafka. They stand in no log.",
    "**Users** belong to a node: nodes of a topic do not share them (docs/decisions/acl.md). ACL LOAD closes the connections of users that are gone or changed, not \
     those of all users. ACL LOG keeps 1,024 bytes of a name. SORT GET # needs no right to read every key. A connection of gRPC or HTTP, \
     whose calls have users of their own, is shown as that of the user of its last call, and ends with that user. A failed login is answered late. What EXEC runs \
     behind an AUTH has the rights of the new user as it is when EXEC begins.",
    "**CONFIG REWRITE** leaves a line as it stands if its value holds. It writes `dir` only if it was given elsewhere, nothing that a file gives which is included, and keeps the \
     mode of the file. Nothing is written if a start could not read the result, and while a file that is included defines users.",
    "**Commands of one connection** are run in order, those of several connections at the same time on all cores. DEBUG SLEEP \
     holds up its own connection alone, and so does a long computation (KEYS, LCS, BITOP of large values): it runs beside the threads that serve the others.",
    "**Commands of newer versions than 7.2** are there as their version has them: fields that expire (7.4), HSETEX and its kin (8.0), XDELEX, XACKDEL, the options \
     of XADD and XTRIM, and BITOP DIFF, DIFF1, ANDOR and ONE (8.2), SET with IFEQ, IFNE, IFDEQ and IFDNE, DELEX, DIGEST and MSETEX (8.4), INCREX (8.8, and its NX and XX of Valkey 9.2), \
     and DELIFEQ (Valkey 9.0). Those after 8.0 are tested by what their documentation says, not side by side.",
    "**Words of help are our own**: summaries, HELP, LOLWUT, MEMORY DOCTOR and LATENCY DOCTOR say it differently.",
];

fn document() -> String {
    let mut text = format!("# Compatibility with Redis {REDIS_VERSION}\n\n{INTRODUCTION}");
    counts(&mut text);
    for (group, title) in GROUPS {
        commands(group, title, &mut text);
    }
    text.push_str("\n## Known differences\n\n");
    for difference in DIFFERENCES {
        let _ = writeln!(text, "- {difference}");
    }
    settings(&mut text);
    suite(&mut text);
    text
}

fn counts(text: &mut String) {
    let count = |wanted: fn(Compatibility) -> bool| {
        table::all()
            .iter()
            .filter(|c| c.group != OWN && wanted(c.compatibility))
            .count()
    };
    let _ = writeln!(
        text,
        "\nCommands without their subcommands: {} full, {} partial, {} not yet.",
        count(|c| c == Compatibility::Full),
        count(|c| matches!(c, Compatibility::Partial(_))),
        count(|c| c == Compatibility::NotYet),
    );
}

fn commands(group: &str, title: &str, text: &mut String) {
    let mut entries: Vec<&CommandEntry> = table::all().iter().filter(|entry| entry.group == group).collect();
    entries.sort_by_key(|entry| entry.name);
    let _ = write!(
        text,
        "\n## {title}\n\n| command | since | compatibility |\n|---|---|---|\n"
    );
    for entry in entries {
        line(entry, text);
        let mut subcommands: Vec<&CommandEntry> = entry.subcommands.iter().collect();
        subcommands.sort_by_key(|entry| entry.name);
        subcommands.into_iter().for_each(|sub| line(sub, text));
    }
}

fn line(entry: &CommandEntry, text: &mut String) {
    let compatibility = match entry.compatibility {
        _ if entry.group == OWN => format!("not in Redis: {}", cell(entry.summary)),
        Compatibility::Full => "full".to_string(),
        Compatibility::Partial(what) => format!("partial: {}", cell(what)),
        Compatibility::NotYet => "not yet".to_string(),
    };
    let name = entry.name.to_ascii_uppercase().replace('|', " ");
    let _ = writeln!(text, "| {name} | {} | {compatibility} |", entry.since);
}

/// Escapes text for a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*")
}

/// Settings without effect, grouped by the reason; then settings that accept only their default.
fn settings(text: &mut String) {
    text.push_str(
        "\n## Settings without effect\n\nThese settings of Redis are taken and returned by CONFIG, for redis.conf files and tools that set them, and do nothing here.\n\n\
         | why | settings |\n|---|---|\n",
    );
    let mut ignored: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut refused: Vec<(&str, &str)> = Vec::new();
    for setting in SETTINGS.iter() {
        match setting.effect {
            Effect::Works => {}
            Effect::None(why) => ignored.entry(why).or_default().push(setting.name),
            Effect::OnlyDefault(why) => refused.push((setting.name, why)),
        }
    }
    for (why, names) in ignored {
        let _ = writeln!(text, "| {} | {} |", cell(why), names.join(" "));
    }
    text.push_str("\nThese take nothing but their default, because ignoring them could do harm:\n\n| setting | why |\n|---|---|\n");
    for (name, why) in refused {
        let _ = writeln!(text, "| {name} | {} |", cell(why));
    }
}

/// Tests of Redis's own suite that need not pass, grouped by the reason, from
/// `tests/redis-suite-skips.txt`.
fn suite(text: &mut String) {
    let skips = read("tests/redis-suite-skips.txt");
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in skips.lines().filter(|line| !line.starts_with('#')) {
        let parts: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
        if let [_, unit, name, why] = parts[..] {
            reasons.entry(why).or_default().push(format!("{unit}: {name}"));
        }
    }
    if reasons.is_empty() {
        return;
    }
    text.push_str("\n## Tests of Redis's own suite that do not hold here\n\n| why | tests |\n|---|---|\n");
    for (why, tests) in reasons {
        let _ = writeln!(text, "| {} | {} |", cell(why), cell(&tests.join("; ")));
    }
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_default()
}

#[test]
fn compat_document_is_up_to_date() {
    let document = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path("redis-compat.md"), &document).expect("redis-compat.md can be written");
    }
    assert!(
        read("redis-compat.md") == document,
        "redis-compat.md is stale; write it anew with: UPDATE_DOCS=1 cargo test compat"
    );
}

#[test]
fn no_command_has_two_rows() {
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> = table::with_subcommands()
        .map(|e| e.name)
        .filter(|name| !seen.insert(*name))
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// Commands that delete keys only, or whose writes have no events.
const WITHOUT_EVENTS: &[&str] = &[
    "del",
    "unlink",
    "getdel",
    "delex",
    "delifeq",
    "flushall",
    "flushdb",
    "swapdb",
    "pfdebug",
    "pfcount",
    "xack",
    "xautoclaim",
    "xclaim",
    "xgroup|createconsumer",
    "xreadgroup",
];

#[test]
fn every_command_that_writes_keys_has_events() {
    let writes = |entry: &&CommandEntry| entry.is_there() && entry.has(flag::WRITE) && !entry.keys.is_empty();
    let names = table::with_subcommands().filter(writes).map(|entry| entry.name);
    let lacking: Vec<&str> = names
        .filter(|name| !events::has_rule(name) && !WITHOUT_EVENTS.contains(name))
        .collect();
    assert!(lacking.is_empty(), "{lacking:?}");
}

#[test]
fn rows_are_complete() {
    for entry in table::with_subcommands() {
        let name = entry.name;
        assert!(
            entry.arity != 0 && !entry.summary.is_empty() && !entry.since.is_empty(),
            "{name}"
        );
        assert!(
            GROUPS.iter().any(|(group, _)| *group == entry.group),
            "{name}: group {}",
            entry.group
        );
        assert_eq!(
            matches!(entry.run, Run::NotYet),
            entry.compatibility == Compatibility::NotYet,
            "{name}: not yet, or is it?"
        );
        assert_eq!(table::name_of(entry.number), Some(name));
    }
    for entry in table::all() {
        for sub in &entry.subcommands {
            assert_eq!(
                sub.name.split_once('|').map(|(container, _)| container),
                Some(entry.name)
            );
        }
    }
}
