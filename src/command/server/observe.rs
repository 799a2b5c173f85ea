//! SLOWLOG and LATENCY.

use std::sync::Arc;

use crate::command::args::{parse_int, text, unknown_subcommand};
use crate::command::table::{self, CommandEntry};
use crate::command::{Args, Command, Fault, Outcome, Reply, Run, Session, Shared, flag, help_of};

const ADMIN: u32 = flag::ADMIN | flag::LOADING | flag::STALE;
const HELP: u32 = flag::LOADING | flag::STALE;

const ROW: Command = Command {
    flags: ADMIN,
    group: "server",
    since: "2.2.12",
    ..Command::DEFAULT
};

pub const SLOWLOG: &[Command] = &[
    Command {
        name: "slowlog|get",
        arity: -2,
        complexity: "O(N), N being the number of entries.",
        summary: "Returns the newest entries.",
        run: Run::Session(slowlog_get),
        ..ROW
    },
    Command {
        name: "slowlog|help",
        arity: 2,
        flags: HELP,
        since: "6.2.0",
        summary: "Lists the subcommands.",
        run: Run::Session(slowlog_help),
        ..ROW
    },
    Command {
        name: "slowlog|len",
        arity: 2,
        summary: "Returns the number of entries.",
        run: Run::Session(slowlog_len),
        ..ROW
    },
    Command {
        name: "slowlog|reset",
        arity: 2,
        complexity: "O(N), N being the number of entries.",
        summary: "Forgets all entries.",
        run: Run::Session(slowlog_reset),
        ..ROW
    },
];

const EVENTS: Command = Command {
    flags: ADMIN | flag::NOSCRIPT,
    since: "2.8.13",
    ..ROW
};

pub const LATENCY: &[Command] = &[
    Command {
        name: "latency|doctor",
        arity: 2,
        summary: "Tells in words which events took long.",
        run: Run::Session(latency_doctor),
        ..EVENTS
    },
    Command {
        name: "latency|graph",
        arity: 3,
        summary: "Draws the samples of an event.",
        run: Run::Session(latency_graph),
        ..EVENTS
    },
    Command {
        name: "latency|help",
        arity: 2,
        flags: HELP,
        summary: "Lists the subcommands.",
        run: Run::Session(latency_help),
        ..EVENTS
    },
    Command {
        name: "latency|histogram",
        arity: -2,
        since: "7.0.0",
        complexity: "O(N), N being the number of commands.",
        summary: "Returns how long commands took, as histograms.",
        run: Run::Session(latency_histogram),
        ..EVENTS
    },
    Command {
        name: "latency|history",
        arity: 3,
        summary: "Returns the samples of an event.",
        run: Run::Session(latency_history),
        ..EVENTS
    },
    Command {
        name: "latency|latest",
        arity: 2,
        summary: "Returns the last sample of every event.",
        run: Run::Session(latency_latest),
        ..EVENTS
    },
    Command {
        name: "latency|reset",
        arity: -2,
        summary: "Forgets events.",
        run: Run::Session(latency_reset),
        ..EVENTS
    },
];

pub(super) fn number(value: u64) -> Reply {
    Reply::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn slowlog_get(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    const USUAL: usize = 10;
    let count = match &args[2..] {
        [] => USUAL,
        [count] => match parse_int(count) {
            Some(-1) => usize::MAX,
            Some(count) if count >= 0 => count as usize,
            _ => return Err("ERR count should be greater than or equal to -1".into()),
        },
        _ => return Err(unknown_subcommand("slowlog", args[1])),
    };
    let entries = shared.stats.slowlog.latest(count);
    let described = entries.into_iter().map(|entry| {
        Reply::Array(vec![
            number(entry.id),
            number(entry.time),
            number(entry.microseconds),
            Reply::Array(entry.arguments.into_iter().map(Reply::Bulk).collect()),
            Reply::bulk(entry.client_address),
            Reply::Bulk(entry.client_name),
        ])
    });
    Ok(Reply::Array(described.collect()))
}

fn slowlog_len(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    Ok(number(shared.stats.slowlog.len() as u64))
}

fn slowlog_reset(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    shared.stats.slowlog.reset();
    Ok(Reply::Ok)
}

fn slowlog_help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("slowlog", SLOWLOG))
}

fn latency_latest(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let events = shared.stats.latency.latest();
    let described = events.into_iter().map(|event| {
        Reply::Array(vec![
            Reply::bulk(event.event),
            number(event.last.time),
            number(event.last.milliseconds),
            number(event.max),
        ])
    });
    Ok(Reply::Array(described.collect()))
}

fn latency_history(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let samples = shared.stats.latency.history(args[2]);
    let described = samples
        .into_iter()
        .map(|sample| Reply::Array(vec![number(sample.time), number(sample.milliseconds)]));
    Ok(Reply::Array(described.collect()))
}

fn latency_reset(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    Ok(number(shared.stats.latency.reset(&args[2..]) as u64))
}

/// The first line is as in Redis. Then there is one bar for each sample, oldest first.
fn latency_graph(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    const WIDEST: u64 = 60;
    const LINE: usize = 80;
    let (latency, name) = (&shared.stats.latency, text(args[2]));
    let samples = latency.history(args[2]);
    let times = || samples.iter().map(|sample| sample.milliseconds);
    let (Some(most), Some(least)) = (times().max(), times().min()) else {
        return Err(Fault::error(format!("ERR No samples available for event '{name}'")));
    };
    let latest = latency.latest().into_iter().find(|latest| latest.event == name);
    let ever = latest.map_or(most, |latest| latest.max);
    let now = crate::database::now_ms() / 1_000;
    let mut drawing = format!("{name} - high {most} ms, low {least} ms (all time high {ever} ms)\n");
    drawing.push_str(&"-".repeat(LINE));
    drawing.push('\n');
    for sample in &samples {
        let width = (sample.milliseconds * WIDEST).div_ceil(most.max(1)) as usize;
        let ago = now.saturating_sub(sample.time);
        drawing.push_str(&format!(
            "{ago:>6}s ago {:>6} ms {}\n",
            sample.milliseconds,
            "#".repeat(width)
        ));
    }
    Ok(Reply::verbatim(drawing))
}

fn latency_doctor(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    if shared.config.latency_monitor_threshold() == 0 {
        return Ok(Reply::verbatim(
            "Slow events are not noted. CONFIG SET latency-monitor-threshold <milliseconds> turns that on.\n".into(),
        ));
    }
    let events = shared.stats.latency.latest();
    if events.is_empty() {
        return Ok(Reply::verbatim("No slow event was noted.\n".into()));
    }
    let mut report = String::from("Slow events:\n");
    for event in events {
        report.push_str(&format!(
            "- {}: last {} ms, at most {} ms\n",
            event.event, event.last.milliseconds, event.max
        ));
    }
    report.push_str("SLOWLOG GET tells which commands took long.\n");
    Ok(Reply::verbatim(report))
}

/// How long clients waited, by command. The name of a container includes its subcommands.
fn latency_histogram(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    let named: Vec<&CommandEntry> = match &args[2..] {
        [] => table::with_subcommands().collect(),
        names => names
            .iter()
            .filter_map(|name| table::find_there(name))
            .flat_map(|entry| std::iter::once(entry).chain(&entry.subcommands))
            .collect(),
    };
    let mut told = Vec::new();
    for entry in named {
        let waits = entry.waits();
        if waits.total > 0 {
            let buckets = waits.buckets().into_iter();
            let histogram = buckets.map(|(time, count)| (number(time), number(count))).collect();
            let pairs = vec![
                (Reply::bulk("calls"), number(waits.total)),
                (Reply::bulk("histogram_usec"), Reply::Map(histogram)),
            ];
            told.push((Reply::bulk(entry.name), Reply::Map(pairs)));
        }
    }
    Ok(Reply::Map(told))
}

fn latency_help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("latency", LATENCY))
}
