//! What the system says of this process, under the names that all of Prometheus' clients use. Linux; elsewhere nothing.

use std::fs;

use super::Text;

/// What times in `/proc` are counted in, for programs on every architecture of ours.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn write(text: &mut Text) {
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory of the process.";
        text.of_process("resident_memory_bytes", "gauge", help, bytes);
    }
    if let Some((cpu, started)) = times() {
        let help = "Processor time used, in user and kernel mode.";
        text.of_process("cpu_seconds_total", "counter", help, cpu);
        let help = "When the process began, since 1970.";
        text.of_process("start_time_seconds", "gauge", help, started);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let help = "Open files and sockets.";
        text.of_process("open_fds", "gauge", help, open.count());
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Seconds of processor time, and when it began.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name before may contain anything; it ends at the last parenthesis. The next field is the third.
    let (_, rest) = stat.rsplit_once(") ")?;
    let field = |number: usize| rest.split(' ').nth(number - 3)?.parse::<f64>().ok();
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    let cpu = (field(14)? + field(15)?) / TICKS_PER_SECOND;
    Some((cpu, boot + field(22)? / TICKS_PER_SECOND))
}
