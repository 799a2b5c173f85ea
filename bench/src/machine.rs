//! What the system tells: CPU time and memory of processes, and what machine this is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit, setrlimit};

/// What a clock tick of `/proc/PID/stat` is on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// CPU time, user and system, of a process group with its children that have ended: a server that forks to rewrite its
/// file works there.
pub fn cpu(group: u32) -> Result<Duration> {
    let mut ticks = None;
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if let Some(stat) = is_process
            .then(|| fs::read_to_string(entry.path().join("stat")).ok())
            .flatten()
            && let Some(own) = ticks_in(&stat, group)
        {
            ticks = Some(ticks.unwrap_or(0) + own);
        }
    }
    let ticks = ticks.with_context(|| format!("no process in group {group}"))?;
    Ok(TICK * ticks)
}

/// The CPU time in a line of `/proc/PID/stat` if that process is in the group.
fn ticks_in(stat: &str, group: u32) -> Option<u32> {
    // The second field is the name in parentheses, in which there may be spaces.
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    let number = |field: usize| fields.get(field)?.parse::<u32>().ok();
    (number(2)? == group).then_some(())?;
    (11..15).map(number).sum()
}

/// Whether a child still runs (one that has ended is there until it is waited for).
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|fields| !fields.is_empty() && !fields.starts_with(['Z', 'X']))
}

/// Allows this process and its children as many open files as it may have: each client is one.
pub fn raise_file_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raise the limit of open files")
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read a process's memory")?;
    Ok(field(&status, "VmRSS").context("no VmRSS in /proc/PID/status")? << 10)
}

/// What a directory holds, in bytes.
pub fn disk(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk(&entry.path()),
        Ok(metadata) => metadata.len(),
        // It went away meanwhile.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// The machine in one line.
pub fn describe() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or(0) as f64 / f64::from(1 << 20);
    format!(
        "{cores} cores of {}, {memory:.0} GiB, Linux {}",
        model.unwrap_or("an unknown CPU"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The first line that a program prints.
pub fn first_line(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The kibibytes of a line such as `VmRSS:   1234 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
