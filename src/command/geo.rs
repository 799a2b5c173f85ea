//! Places: <https://redis.io/docs/latest/commands/?group=geo>.
//!
//! They are members of a sorted set, and the score of a member says where it is ([`cells`]). So
//! commands on sorted sets work on them too.

mod cells;
mod search;

use super::args::{SYNTAX, is};
use super::changing::Changing;
use super::float::float;
use super::key_specs::access::{self, READS, SETS};
use super::key_specs::{Begin, Find};
use super::sorted::Sorted;
use super::{Args, Command, Compatibility, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::model::Scores;
use crate::resp::format_decimal;
use cells::Point;

const READ: &[KeySpec] = &[KeySpec::at(1, READS)];

const READS_ALL: &str = "O(N), N being the number of members.";
const SEARCHES: &str = "O(N log N), N being the number of members.";

/// The key behind a word that stands among the options: at this argument or later.
const fn stored(word: &'static str, from: usize) -> KeySpec {
    KeySpec {
        access: SETS,
        begin: Begin::Keyword(word, from),
        find: Find::Range { last: 0, step: 1 },
    }
}

/// How searches differ from Redis, which sorts a part of the members in a way that is not stable.
const SEARCH_DIFFERS: Compatibility =
    Compatibility::Partial("with COUNT, members at the same distance may come in another order");

/// What the rows have in common.
const ROW: Command = Command {
    flags: flag::READONLY,
    keys: READ,
    categories: &["geo"],
    group: "geo",
    since: "3.2.0",
    complexity: READS_ALL,
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "geoadd",
        arity: -5,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        complexity: "O(N), N being the number of members of the sorted set: it is written whole.",
        summary: "Adds places or moves them.",
        run: Run::Data(geoadd),
        ..ROW
    },
    Command {
        name: "geodist",
        arity: -4,
        summary: "Returns the distance of two places.",
        run: Run::Data(geodist),
        ..ROW
    },
    Command {
        name: "geohash",
        arity: -2,
        summary: "Returns places as geohashes.",
        run: Run::Data(geohash),
        ..ROW
    },
    Command {
        name: "geopos",
        arity: -2,
        summary: "Returns longitude and latitude of places.",
        run: Run::Data(geopos),
        ..ROW
    },
    Command {
        name: "georadius",
        arity: -6,
        flags: flag::WRITE | flag::DENYOOM | flag::MOVABLEKEYS,
        keys: &[KeySpec::at(1, READS), stored("STORE", 6), stored("STOREDIST", 6)],
        complexity: SEARCHES,
        summary: "Finds places around a point, or stores them.",
        compatibility: SEARCH_DIFFERS,
        run: Run::Data(search::georadius),
        ..ROW
    },
    Command {
        name: "georadius_ro",
        arity: -6,
        since: "3.2.10",
        complexity: SEARCHES,
        summary: "Finds places around a point.",
        compatibility: SEARCH_DIFFERS,
        run: Run::Data(search::georadius_ro),
        ..ROW
    },
    Command {
        name: "georadiusbymember",
        arity: -5,
        flags: flag::WRITE | flag::DENYOOM | flag::MOVABLEKEYS,
        keys: &[KeySpec::at(1, READS), stored("STORE", 5), stored("STOREDIST", 5)],
        complexity: SEARCHES,
        summary: "Finds places around one of them, or stores them.",
        compatibility: SEARCH_DIFFERS,
        run: Run::Data(search::georadiusbymember),
        ..ROW
    },
    Command {
        name: "georadiusbymember_ro",
        arity: -5,
        since: "3.2.10",
        complexity: SEARCHES,
        summary: "Finds places around one of them.",
        compatibility: SEARCH_DIFFERS,
        run: Run::Data(search::georadiusbymember_ro),
        ..ROW
    },
    Command {
        name: "geosearch",
        arity: -7,
        since: "6.2.0",
        complexity: SEARCHES,
        summary: "Finds places in a circle or a box.",
        compatibility: SEARCH_DIFFERS,
        run: Run::Data(search::geosearch),
        ..ROW
    },
    Command {
        name: "geosearchstore",
        arity: -8,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, SETS), KeySpec::at(2, READS)],
        since: "6.2.0",
        complexity: SEARCHES,
        summary: "Stores the places in a circle or a box.",
        compatibility: SEARCH_DIFFERS,
        run: Run::Data(search::geosearchstore),
        ..ROW
    },
];

/// Reads the places at a key; `None` if the key is missing.
fn places(data: &mut Data, key: &[u8]) -> Result<Option<Sorted>, Fault> {
    let entry = data.read(key)?;
    entry.map(|entry| data.sorted_of(key, &entry)).transpose()
}

/// Where members are.
fn positions(data: &mut Data, key: &[u8], members: &[&[u8]]) -> Result<Vec<Option<Point>>, Fault> {
    let scores = data.several::<Scores>(key, members)?;
    Ok(scores.into_iter().map(|score| score.map(Point::of_score)).collect())
}

/// Reads a longitude and a latitude.
fn point(longitude: &[u8], latitude: &[u8]) -> Result<Point, Fault> {
    let point = Point {
        longitude: float(longitude)?,
        latitude: float(latitude)?,
    };
    match point.is_on_map() {
        true => Ok(point),
        false => Err(Fault::error(format!(
            "ERR invalid longitude,latitude pair {:.6},{:.6}",
            point.longitude, point.latitude
        ))),
    }
}

/// Metres of a unit of length.
fn unit(word: &[u8]) -> Result<f64, Fault> {
    match () {
        () if is(word, "m") => Ok(1.0),
        () if is(word, "km") => Ok(1000.0),
        () if is(word, "ft") => Ok(0.3048),
        () if is(word, "mi") => Ok(1609.34),
        () => Err("ERR unsupported unit provided. please use M, KM, FT, MI".into()),
    }
}

/// A distance with four decimals. Of two that are as near, the even one is taken.
fn distance_reply(distance: f64) -> Reply {
    let scaled = (distance * 10_000.0).round_ties_even() as u64;
    Reply::bulk(format!("{}.{:04}", scaled / 10_000, scaled % 10_000))
}

fn point_reply(point: Point) -> Reply {
    let decimal = |number| Reply::Decimal(format_decimal(number));
    Reply::Array(vec![decimal(point.longitude), decimal(point.latitude)])
}

fn geoadd(data: &mut Data, args: Args) -> Outcome {
    let (mut only_new, mut only_known, mut counts_changes) = (false, false, false);
    let mut rest = &args[2..];
    while let [word, behind @ ..] = rest {
        match () {
            () if is(word, "nx") => only_new = true,
            () if is(word, "xx") => only_known = true,
            () if is(word, "ch") => counts_changes = true,
            () => break,
        }
        rest = behind;
    }
    let (given, []) = rest.as_chunks() else {
        return Err(SYNTAX.into());
    };
    if given.is_empty() || (only_new && only_known) {
        return Err(SYNTAX.into());
    }
    // All points are read before the key is.
    let given = given
        .iter()
        .map(|[longitude, latitude, member]| Ok((point(longitude, latitude)?.score(), *member)));
    let given: Vec<(f64, &[u8])> = given.collect::<Result<_, Fault>>()?;
    let mut places = Changing::<Scores>::read(data, args[1])?;
    let (mut new, mut changed) = (0, 0);
    for (score, member) in given {
        match places.get(data, member)? {
            None if only_known => {}
            None => {
                places.put(data, member, score);
                new += 1;
            }
            Some(known) if only_new || known == score => {}
            Some(_) => {
                places.put(data, member, score);
                changed += 1;
            }
        }
    }
    places.write(data)?;
    Ok(Reply::Int(if counts_changes { new + changed } else { new }))
}

fn geodist(data: &mut Data, args: Args) -> Outcome {
    let unit = match args[4..] {
        [] => 1.0,
        [word] => unit(word)?,
        _ => return Err(SYNTAX.into()),
    };
    let positions = positions(data, args[1], &args[2..4])?;
    let distance = match positions[..] {
        [Some(one), Some(other)] => Some(one.distance(other) / unit),
        _ => None,
    };
    Ok(distance.map_or(Reply::Null, distance_reply))
}

fn geohash(data: &mut Data, args: Args) -> Outcome {
    let positions = positions(data, args[1], &args[2..])?.into_iter();
    let geohash = |point: Option<Point>| point.map_or(Reply::Null, |point| Reply::bulk(point.geohash()));
    Ok(Reply::Array(positions.map(geohash).collect()))
}

fn geopos(data: &mut Data, args: Args) -> Outcome {
    let positions = positions(data, args[1], &args[2..])?.into_iter();
    let point = |point: Option<Point>| point.map_or(Reply::NullArray, point_reply);
    Ok(Reply::Array(positions.map(point).collect()))
}
