//! Memory and CPU time of a process, from /proc.

use std::{fmt, fs};

/// Clock ticks per second in /proc/PID/stat. They are the same on every Linux.
const TICKS: f64 = 100.0;

#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident memory, in kilobytes.
    pub resident: u64,
    /// The greatest resident memory so far, in kilobytes.
    pub peak: u64,
    pub threads: u64,
    pub descriptors: u64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} MiB resident (at most {:.1}), {} threads, {} descriptors",
            self.resident as f64 / 1024.0,
            self.peak as f64 / 1024.0,
            self.threads,
            self.descriptors
        )
    }
}

pub fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    Memory {
        resident: field("VmRSS:"),
        peak: field("VmHWM:"),
        threads: field("Threads:"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |list| list.count() as u64),
    }
}

/// CPU time of the process, in seconds.
pub fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may itself contain spaces and parentheses.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split(' ').skip(12).take(2);
    let ticks = times.filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// The process that started this one. 0 if it has ended.
pub fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let parent = fields.split(' ').nth(2);
    parent.and_then(|parent| parent.parse().ok()).unwrap_or(0)
}

/// CPU time of the main thread of a process and of each of its children, in seconds, finer than clock ticks. A child
/// that ends takes its time with it.
pub fn family_cpu(pid: u32) -> f64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let family = numbers.filter(|process| *process == pid || parent(*process) == pid);
    let nanoseconds = family.filter_map(|process| {
        let text = fs::read_to_string(format!("/proc/{process}/schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}
