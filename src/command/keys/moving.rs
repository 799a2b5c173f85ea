//! What a key holds, under another name or in another database: RENAME, COPY, MOVE, SWAPDB.

use std::collections::HashSet;

use bytes::Bytes;

use super::scan::CHUNK;
use crate::command::args::{SYNTAX, int32, is};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::Transaction;
use crate::database::hot::own;
use crate::database::transaction::Taken;

/// The most that SWAPDB copies, both databases together. Each key takes two records of one group.
const MAX_SWAP_KEYS: usize = 50_000;
const MAX_SWAP_BYTES: usize = 64 << 20;

const SAME_OBJECT: &str = "ERR source and destination objects are the same";
const NO_DATABASE: &str = "ERR DB index is out of range";

pub(super) fn rename(data: &mut Data, args: Args) -> Outcome {
    rename_key(data, args, true)?;
    Ok(Reply::Ok)
}

pub(super) fn renamenx(data: &mut Data, args: Args) -> Outcome {
    Ok(Reply::Int(i64::from(rename_key(data, args, false)?)))
}

fn rename_key(data: &mut Data, args: Args, replace: bool) -> Result<bool, Fault> {
    let (from, to) = (args[1], args[2]);
    let entry = data.get(from)?.ok_or("ERR no such key")?;
    if from == to || (!replace && data.exists(to)?) {
        return Ok(false);
    }
    let database = data.database;
    let taken = data.transaction.take(database, from, entry)?;
    data.transaction.give(database, to, taken)?;
    data.delete(from);
    Ok(true)
}

fn database_index(data: &Data, index: i32) -> Result<u16, Fault> {
    u16::try_from(index)
        .ok()
        .filter(|database| *database < data.transaction.service().database_count())
        .ok_or_else(|| NO_DATABASE.into())
}

pub(super) fn copy(data: &mut Data, args: Args) -> Outcome {
    let (from, to) = (args[1], args[2]);
    let database = data.database;
    let (mut target, mut replace) = (database, false);
    let mut options = args[3..].iter();
    while let Some(option) = options.next() {
        if is(option, "replace") {
            replace = true;
        } else if let (true, Some(index)) = (is(option, "db"), options.as_slice().first()) {
            target = database_index(data, int32(index)?)?;
            options.next();
        } else {
            return Err(SYNTAX.into());
        }
    }
    if target == database && from == to {
        return Err(SAME_OBJECT.into());
    }
    let Some(entry) = data.read(from)? else {
        return Ok(Reply::Int(0));
    };
    if !replace && data.transaction.exists(target, to)? {
        return Ok(Reply::Int(0));
    }
    let taken = data.transaction.take(database, from, entry)?;
    data.transaction.give(target, to, taken)?;
    Ok(Reply::Int(1))
}

pub(super) fn move_key(data: &mut Data, args: Args) -> Outcome {
    let (database, key) = (data.database, args[1]);
    let target = database_index(data, int32(args[2])?)?;
    if target == database {
        return Err(SAME_OBJECT.into());
    }
    let Some(entry) = data.get(key)? else {
        return Ok(Reply::Int(0));
    };
    if data.transaction.exists(target, key)? {
        return Ok(Reply::Int(0));
    }
    let taken = data.transaction.take(database, key, entry)?;
    data.transaction.give(target, key, taken)?;
    data.delete(key);
    Ok(Reply::Int(1))
}

pub(super) fn swapdb(data: &mut Data, args: Args) -> Outcome {
    let first = int32(args[1]).map_err(|_| Fault::from("ERR invalid first DB index"))?;
    let second = int32(args[2]).map_err(|_| Fault::from("ERR invalid second DB index"))?;
    let (first, second) = (database_index(data, first)?, database_index(data, second)?);
    if first == second {
        return Ok(Reply::Ok);
    }
    let mut room = SwapRoom {
        keys: MAX_SWAP_KEYS,
        bytes: MAX_SWAP_BYTES,
    };
    let of_first = room.take(data.transaction, first)?;
    let of_second = room.take(data.transaction, second)?;
    let names: HashSet<Bytes> = of_first.iter().map(|(key, _)| key.clone()).collect();
    for (key, taken) in of_first {
        data.transaction.delete(first, &key);
        data.transaction.give(second, &key, taken)?;
    }
    for (key, taken) in of_second {
        if !names.contains(&key) {
            data.transaction.delete(second, &key);
        }
        data.transaction.give(first, &key, taken)?;
    }
    Ok(Reply::Ok)
}

/// What SWAPDB may still take into memory and write in one batch.
struct SwapRoom {
    keys: usize,
    bytes: usize,
}

impl SwapRoom {
    /// Takes all keys of a database, with their states.
    fn take(&mut self, transaction: &mut Transaction, database: u16) -> Result<Vec<(Bytes, Taken)>, Fault> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(start) = from {
            let mut names = Vec::new();
            from = transaction.scan_keys(database, start, CHUNK, &mut |key| names.push(own(key)))?;
            for key in names {
                let Some(entry) = transaction.get(database, &key)? else {
                    continue;
                };
                let taken = transaction.take(database, &key, entry)?;
                let bytes = key.len() + taken.bytes();
                match (self.keys.checked_sub(taken.records()), self.bytes.checked_sub(bytes)) {
                    (Some(keys), Some(bytes)) => (self.keys, self.bytes) = (keys, bytes),
                    _ => {
                        return Err(Fault::error(format!(
                            "ERR SWAPDB writes both databases anew and takes at most {MAX_SWAP_KEYS} keys and {MAX_SWAP_BYTES} bytes in both together; nothing was changed"
                        )));
                    }
                }
                all.push((key, taken));
            }
        }
        Ok(all)
    }
}
