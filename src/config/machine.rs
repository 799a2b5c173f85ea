//! The memory of the machine, for defaults that depend on it. Read from Linux's /proc and /sys;
//! where they are missing, a gibibyte.

/// Memory that this process may use: the machine's, or less if its control group says so.
pub fn memory() -> u64 {
    let total = total_memory().unwrap_or(1 << 30);
    let limit = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    total.min(limit.unwrap_or(u64::MAX))
}

fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
