//! What the system says of this process and its machine. Linux's /proc and /sys; where they are missing, 0.

use std::time::Duration;

/// Bytes of memory in use (resident set).
pub fn resident_bytes() -> u64 {
    field("/proc/self/status", "VmRSS:").map_or(0, |kib| kib << 10)
}

/// Most bytes of memory that were ever in use.
pub fn peak_resident_bytes() -> u64 {
    field("/proc/self/status", "VmHWM:").map_or(0, |kib| kib << 10)
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

/// Raises the limit of open files towards `wanted`; what holds now.
pub fn raise_open_files(wanted: u64) -> u64 {
    // SAFETY: plain data and calls that only read or write it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 0;
        }
        if limit.rlim_cur >= wanted {
            return limit.rlim_cur;
        }
        let raised = libc::rlimit {
            rlim_cur: wanted,
            rlim_max: limit.rlim_max.max(wanted),
        };
        let up_to_hard = libc::rlimit {
            rlim_cur: wanted.min(limit.rlim_max),
            rlim_max: limit.rlim_max,
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            return raised.rlim_cur;
        }
        if libc::setrlimit(libc::RLIMIT_NOFILE, &up_to_hard) == 0 {
            return up_to_hard.rlim_cur;
        }
        limit.rlim_cur
    }
}
