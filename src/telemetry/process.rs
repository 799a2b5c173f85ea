//! What the system reports about this process and its machine, from Linux's /proc and /sys. Where
//! they are missing, 0.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes of memory in use (resident set).
pub fn resident_bytes() -> u64 {
    field("/proc/self/status", "VmRSS:").map_or(0, |kib| kib << 10)
}

/// Time that all threads spent in the kernel, and outside of it.
pub fn cpu_times() -> (Duration, Duration) {
    // SAFETY: `rusage` is plain data that the call fills; on failure the zeros stay.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let duration = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
    (duration(usage.ru_stime), duration(usage.ru_utime))
}

/// A field `Name:  123 kB` of a file in /proc.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_ascii_whitespace().next()?.parse().ok()
}

/// Raises the limit of open files towards `wanted`. Returns the limit in force.
pub fn raise_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let may = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    if may(limit.current) {
        return limit.current.unwrap_or(u64::MAX);
    }
    let hard = limit.maximum;
    // Root may raise the hard limit too.
    let raised = Rlimit {
        current: Some(wanted),
        maximum: hard.map(|hard| hard.max(wanted)),
    };
    let up_to_hard = Rlimit {
        current: Some(hard.map_or(wanted, |hard| hard.min(wanted))),
        maximum: hard,
    };
    let set = [raised, up_to_hard]
        .into_iter()
        .find(|limit| setrlimit(Resource::Nofile, *limit).is_ok());
    set.and_then(|limit| limit.current).or(limit.current).unwrap_or(0)
}
