//! What Linux knows about this process, under the names that all clients of Prometheus use. Empty on other systems.

use std::{
    fs,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use super::text::Text;

/// The unit of times in `/proc`, on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// When the program began. The program calls [`begin`] first of all. Linux also has the time, but in a file that the
/// systemd unit hides from the service.
static BEGAN: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// Takes the time, at the beginning of the program.
pub(crate) fn begin() {
    LazyLock::force(&BEGAN);
}

pub(super) fn write(text: &mut Text) {
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory of the process.";
        text.of_process("resident_memory_bytes", "gauge", help, bytes);
    }
    if let Some(seconds) = processor_seconds() {
        let help = "Processor time used, in user and kernel mode.";
        text.of_process("cpu_seconds_total", "counter", help, seconds);
    }
    if let Ok(began) = BEGAN.duration_since(UNIX_EPOCH) {
        let help = "When the process began, since 1970.";
        text.of_process("start_time_seconds", "gauge", help, began.as_secs_f64());
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

fn processor_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name may contain anything, so its end is the last parenthesis. After it comes the third field.
    let (_, rest) = stat.rsplit_once(") ")?;
    let field = |number: usize| rest.split(' ').nth(number - 3)?.parse::<f64>().ok();
    Some((field(14)? + field(15)?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    /// The unit's `ProcSubset=pid` hides all other files, such as `/proc/stat` with the time of the boot.
    #[test]
    fn only_the_process_own_files_are_read() {
        let source = include_str!("process.rs");
        let paths = source.split("(\"/proc/").skip(1);
        let others: Vec<&str> = paths.filter(|path| !path.starts_with("self/")).collect();
        assert!(source.contains("(\"/proc/self/stat\")"));
        assert!(others.is_empty(), "{others:?}");
    }
}
