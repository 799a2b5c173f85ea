//! The functions of the library `string` that can take long: in place of Lua's own, which cannot be
//! stopped. The rest of the library is Lua's.

use std::sync::Arc;

use mlua::{Function, Lua, LuaString, MultiValue, Table, Value};

use super::control::{Control, Stop};
use super::library::{Answer, Problem, add, bad, count, integer, string, text, type_name};
use super::pattern::{Capture, Failure, Matcher};

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Pattern(text) => Problem::Says(text.to_owned()),
            Failure::Stopped(stop) => stop.into(),
        }
    }
}

/// Adds the functions, by their names in `string`. The prelude makes `gmatch` of `gmatch_next` and
/// `check_text`.
pub fn add_to(lua: &Lua, table: &Table, control: &Arc<Control>, memory: usize) -> mlua::Result<()> {
    let (of_rep, of_find, of_match) = (control.clone(), control.clone(), control.clone());
    add(lua, table, "rep", move |lua, args| repeat(lua, args, &of_rep, memory))?;
    add(lua, table, "find", move |lua, args| find(lua, args, "find", &of_find))?;
    add(lua, table, "match", move |lua, args| {
        find(lua, args, "match", &of_match)
    })?;
    let (of_gmatch, of_gsub) = (control.clone(), control.clone());
    add(lua, table, "gmatch_next", move |lua, args| next(lua, args, &of_gmatch))?;
    add(lua, table, "gsub", move |lua, args| {
        replace(lua, args, &of_gsub, memory)
    })?;
    for (name, change) in [
        ("lower", <[u8]>::make_ascii_lowercase as fn(&mut [u8])),
        ("upper", <[u8]>::make_ascii_uppercase),
        ("reverse", <[u8]>::reverse),
    ] {
        let watch = control.clone();
        add(lua, table, name, move |lua, args| {
            watch.check()?;
            let mut bytes = text(lua, args, 0, name)?.as_bytes().to_vec();
            change(&mut bytes);
            Ok(vec![string(lua, bytes)?])
        })?;
    }
    let of_concat = control.clone();
    add(lua, table, "concat", move |lua, args| {
        concat(lua, args, &of_concat, memory)
    })?;
    add(lua, table, "check_text", |lua, args| {
        text(lua, args, 0, "gmatch")?;
        text(lua, args, 1, "gmatch")?;
        Ok(Vec::new())
    })
}

/// `table.concat`.
fn concat(lua: &Lua, args: &[Value], control: &Control, memory: usize) -> Answer {
    let Some(Value::Table(items)) = args.first() else {
        let got = type_name(args.first());
        return Err(bad("concat", 0, &format!("table expected, got {got}")));
    };
    let between = match args.get(1) {
        None | Some(Value::Nil) => Vec::new(),
        Some(_) => text(lua, args, 1, "concat")?.as_bytes().to_vec(),
    };
    let first = integer(lua, args, 2, 1, "concat")?;
    let last = integer(lua, args, 3, items.raw_len() as i64, "concat")?;
    let mut all = Vec::new();
    for place in first..=last {
        let item: Value = items.raw_get(place)?;
        match &item {
            Value::String(text) => all.extend_from_slice(&text.as_bytes()),
            Value::Number(_) | Value::Integer(_) => {
                all.extend_from_slice(&text(lua, &[item], 0, "concat")?.as_bytes());
            }
            other => {
                let kind = type_name(Some(other));
                return Err(format!("invalid value ({kind}) at index {place} in table for 'concat'").into());
            }
        }
        if place < last {
            all.extend_from_slice(&between);
        }
        if all.len() > memory {
            control.stop(Stop::Memory);
        }
        control.check()?;
    }
    Ok(vec![string(lua, all)?])
}

fn repeat(lua: &Lua, args: &[Value], control: &Control, memory: usize) -> Answer {
    let part = text(lua, args, 0, "rep")?;
    if args.len() < 2 {
        return Err(bad("rep", 1, "number expected, got no value"));
    }
    // Lua takes 32 bits of it.
    let times = integer(lua, args, 1, 0, "rep")? as i32;
    let part = part.as_bytes();
    let bytes = part.len().saturating_mul(usize::try_from(times).unwrap_or(0));
    if bytes > memory {
        control.stop(Stop::Memory);
        return Err(Stop::Memory.into());
    }
    Ok(vec![string(
        lua,
        part.repeat(if bytes == 0 { 0 } else { times as usize }),
    )?])
}

/// Where a search begins: the third argument counts from 1, or from the end.
fn start(init: i64, length: usize) -> usize {
    let length = length as i64;
    let init = if init < 0 {
        (length + init + 1).max(1)
    } else {
        init.max(1)
    };
    (init.min(length.saturating_add(1)) - 1) as usize
}

fn find(lua: &Lua, args: &[Value], function: &'static str, control: &Control) -> Answer {
    let (subject, pattern) = (text(lua, args, 0, function)?, text(lua, args, 1, function)?);
    let init = integer(lua, args, 2, 1, function)?;
    let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
    let from = start(init, subject.len());
    let plain = matches!(args.get(3), Some(value) if !matches!(value, Value::Nil | Value::Boolean(false)));
    let finds = function == "find";
    if finds && (plain || !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))) {
        return Ok(match position(&subject[from..], &pattern, control)? {
            Some(at) => vec![count(from + at + 1), count(from + at + pattern.len())],
            None => vec![Value::Nil],
        });
    }
    let mut matcher = Matcher::new(&subject, &pattern, control);
    let Some((begin, end)) = matcher.find(from)? else {
        return Ok(vec![Value::Nil]);
    };
    if !finds {
        return values(lua, &subject, &matcher.captures(begin, end)?);
    }
    let mut found = vec![count(begin + 1), count(end)];
    found.extend(values(lua, &subject, &matcher.own_captures()?)?);
    Ok(found)
}

/// Where a text is in another. Looks now and then whether to stop.
fn position(within: &[u8], wanted: &[u8], control: &Control) -> Result<Option<usize>, Problem> {
    const PART: usize = 1 << 16;
    let Some(last) = within.len().checked_sub(wanted.len()) else {
        return Ok(None);
    };
    let Some((first, rest)) = wanted.split_first() else {
        return Ok(Some(0));
    };
    let mut compared = 0;
    for at in 0..=last {
        if within[at] == *first {
            if within[at + 1..].starts_with(rest) {
                return Ok(Some(at));
            }
            compared += rest.len().min(64);
        }
        compared += 1;
        if compared > PART {
            control.check()?;
            compared = 0;
        }
    }
    Ok(None)
}

fn values(lua: &Lua, subject: &[u8], captures: &[Capture]) -> Answer {
    let value = |capture: &Capture| match capture {
        Capture::Text(start, end) => string(lua, &subject[*start..*end]),
        Capture::Place(place) | Capture::Open(place) => Ok(count(place + 1)),
    };
    captures.iter().map(value).collect()
}

/// One match of gmatch from a place on: where the next search begins, and the captures. Nothing if
/// there is none. A `^` has no meaning of its own here.
fn next(lua: &Lua, args: &[Value], control: &Control) -> Answer {
    let (subject, pattern) = (text(lua, args, 0, "gmatch")?, text(lua, args, 1, "gmatch")?);
    let from = integer(lua, args, 2, 0, "gmatch")?;
    let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
    let mut begin = usize::try_from(from).unwrap_or(0);
    let mut matcher = Matcher::new(&subject, &pattern, control);
    while begin <= subject.len() {
        if let Some(end) = matcher.match_at(begin, false)? {
            let after = if end == begin { end + 1 } else { end };
            let mut answer = vec![count(after)];
            answer.extend(values(lua, &subject, &matcher.captures(begin, end)?)?);
            return Ok(answer);
        }
        begin += 1;
    }
    Ok(Vec::new())
}

/// What gsub puts in the place of a match.
enum With {
    Text(LuaString),
    Table(Table),
    Function(Function),
}

fn replace(lua: &Lua, args: &[Value], control: &Control, memory: usize) -> Answer {
    let (subject, pattern) = (text(lua, args, 0, "gsub")?, text(lua, args, 1, "gsub")?);
    let with = match args.get(2) {
        Some(Value::String(_) | Value::Number(_) | Value::Integer(_)) => With::Text(text(lua, args, 2, "gsub")?),
        Some(Value::Table(table)) => With::Table(table.clone()),
        Some(Value::Function(function)) => With::Function(function.clone()),
        _ => return Err(bad("gsub", 2, "string/function/table expected")),
    };
    let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
    let most = integer(lua, args, 3, subject.len() as i64 + 1, "gsub")?;
    let anchored = pattern.first() == Some(&b'^');
    let mut matcher = Matcher::new(&subject, &pattern, control);
    let (mut result, mut at, mut times) = (Vec::new(), 0, 0);
    while times < most {
        let end = matcher.match_at(at, anchored)?;
        if let Some(end) = end {
            times += 1;
            let captures = matcher.captures(at, end)?;
            match &with {
                With::Text(with) => put(&mut result, &with.as_bytes(), &subject, &captures, (at, end))?,
                other => put_found(lua, &mut result, other, &subject, &captures, (at, end))?,
            }
            if result.len() > memory {
                control.stop(Stop::Memory);
            }
            control.check()?;
        }
        match end {
            Some(end) if end > at => at = end,
            _ if at < subject.len() => {
                result.push(subject[at]);
                at += 1;
            }
            _ => break,
        }
        if anchored {
            break;
        }
    }
    result.extend_from_slice(subject.get(at..).unwrap_or_default());
    Ok(vec![string(lua, result)?, Value::Number(times as f64)])
}

/// Appends what a table has for the first capture, or what a function returns for all of them. The
/// match itself stays where that is nil or false.
fn put_found(
    lua: &Lua,
    result: &mut Vec<u8>,
    with: &With,
    subject: &[u8],
    captures: &[Capture],
    (begin, end): (usize, usize),
) -> Result<(), Problem> {
    let values = values(lua, subject, captures)?;
    let found: Value = match with {
        With::Function(function) => function.call(MultiValue::from_vec(values))?,
        With::Table(table) => table.get(values.into_iter().next().unwrap_or(Value::Nil))?,
        With::Text(text) => Value::String(text.clone()),
    };
    match &found {
        Value::Nil | Value::Boolean(false) => result.extend_from_slice(&subject[begin..end]),
        Value::String(text) => result.extend_from_slice(&text.as_bytes()),
        Value::Number(_) | Value::Integer(_) => {
            result.extend_from_slice(&text(lua, &[found], 0, "gsub")?.as_bytes());
        }
        other => return Err(format!("invalid replacement value (a {})", type_name(Some(other))).into()),
    }
    Ok(())
}

/// Appends the replacement of one match. `%0` is the match, `%1` its first capture.
fn put(
    result: &mut Vec<u8>,
    with: &[u8],
    subject: &[u8],
    captures: &[Capture],
    (begin, end): (usize, usize),
) -> Result<(), Problem> {
    let mut rest = with;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            result.push(*byte);
            continue;
        }
        let Some((next, after)) = rest.split_first() else {
            // Lua takes the zero that ends its strings.
            result.push(0);
            break;
        };
        rest = after;
        match next {
            b'0' => result.extend_from_slice(&subject[begin..end]),
            b'1'..=b'9' => match captures.get(usize::from(next - b'1')) {
                Some(Capture::Text(start, end)) => result.extend_from_slice(&subject[*start..*end]),
                Some(Capture::Place(place) | Capture::Open(place)) => {
                    result.extend_from_slice((place + 1).to_string().as_bytes());
                }
                None => return Err("invalid capture index".into()),
            },
            other => result.push(*other),
        }
    }
    Ok(())
}
