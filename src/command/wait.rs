//! WAIT and WAITAOF: how many copies of this connection's writes there are. The log has every write
//! that was answered OK. How many copies that makes is a fixed property of the log, known at once.
//! A client that asks for more gets this number after its timeout.

use std::sync::Arc;
use std::time::Duration;

use super::args::{int, parse_int};
use super::blocked::unblocked;
use super::clients::Unblocked;
use super::{Args, Command, Compatibility, Fault, Reply, Run, Session, Shared, Waiting, flag};

const ROW: Command = Command {
    flags: flag::BLOCKING,
    categories: &["connection"],
    group: "generic",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "wait",
        arity: 3,
        since: "3.0.0",
        summary: "Tells how many further copies of this connection's writes there are, waiting for more.",
        compatibility: Compatibility::Partial(
            "a replica is a broker besides the first that has every acknowledged write: min.insync.replicas of the topic less one on Kafka, 0 on the embedded log. \
             That number does not grow, so asked for more it answers it after the timeout, and at once where Redis would wait forever; not inside MULTI",
        ),
        run: Run::Later(wait),
        ..ROW
    },
    Command {
        name: "waitaof",
        arity: 4,
        since: "7.2.0",
        summary: "Tells which copies of this connection's writes are known to be on disk, waiting for more.",
        compatibility: Compatibility::Partial(
            "the first number is 1 on the embedded log with fsync always, else 0 (with everysec and no the disk has it later; brokers of Kafka do not say), the second always 0. \
             The numbers do not grow, as with WAIT; on Kafka numlocal 1 is the error of a server without appendonly; not inside MULTI",
        ),
        run: Run::Later(wait_aof),
        ..ROW
    },
];

fn timeout(argument: &[u8]) -> Result<Duration, Fault> {
    let timeout = parse_int(argument).ok_or("ERR timeout is not an integer or out of range")?;
    let timeout = u64::try_from(timeout).map_err(|_| Fault::from("ERR timeout is negative"))?;
    Ok(Duration::from_millis(timeout))
}

fn wait(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Result<Waiting, Fault> {
    let wanted = int(args[1])?;
    let time = timeout(args[2])?;
    let there = i64::from(shared.service.log.durability(session.database).copies) - 1;
    Ok(answer(session, shared, time, there < wanted, Reply::Int(there)))
}

fn wait_aof(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Result<Waiting, Fault> {
    let local = int(args[1])?;
    if !(0..=1).contains(&local) {
        return Err("ERR value is out of range, must be between 0 and 1".into());
    }
    let replicas = int(args[2])?;
    if replicas < 0 {
        return Err("ERR value is out of range, must be positive".into());
    }
    let time = timeout(args[3])?;
    if local > 0 && !shared.service.log.chains() {
        return Err(match shared.config.appendonly() {
            false => "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.".into(),
            true => {
                "ERR WAITAOF cannot be used when numlocal is set: brokers of Kafka do not say what is on disk".into()
            }
        });
    }
    let there = i64::from(shared.service.log.durability(session.database).on_disk_here);
    let reply = Reply::Array(vec![Reply::Int(there), Reply::Int(0)]);
    Ok(answer(session, shared, time, there < local || replicas > 0, reply))
}

/// The reply, delayed by `time` if more was asked for than there is. The connection has waited for
/// its own writes before.
fn answer(session: &Session, shared: &Arc<Shared>, time: Duration, too_few: bool, reply: Reply) -> Waiting {
    let (client, shared) = (session.client.clone(), shared.clone());
    Box::pin(async move {
        if too_few {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = client.killed_or(|| client.unblocked().is_some()) => {}
                () = shared.shutdown.asked() => {}
            }
            if client.unblocked() == Some(Unblocked::WithError) {
                return unblocked();
            }
        }
        reply
    })
}
