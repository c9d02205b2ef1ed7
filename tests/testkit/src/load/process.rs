//! The service as a process of its own, seen from outside.

use std::{
    fmt, fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

/// Clock ticks a second in /proc/PID/stat, on every Linux there is.
const TICKS: f64 = 100.0;

pub struct Service {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the system says of a process.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Kilobytes in memory.
    pub resident: u64,
    /// The most there ever were.
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

impl Service {
    pub fn start(binary: &str, dsn: &str, more: &[&str]) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let threshold = std::env::var("MALLOC_MMAP_THRESHOLD_");
        let threshold = threshold.unwrap_or_else(|_| "131072".to_owned());
        let child = Command::new(binary)
            .args(["serve", "--listen", &address.to_string()])
            .args(more)
            .env("DATABASE_URL", dsn)
            // As the unit and the container in examples/deploy have it, unless something else is to be tried.
            .env("MALLOC_MMAP_THRESHOLD_", threshold)
            .env("ODDSCACHE_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .expect("the service starts");
        Service { child, address }
    }

    /// Fails if it has ended, which it never should.
    pub fn assert_runs(&mut self) {
        let ended = self.child.try_wait().expect("the process");
        assert!(ended.is_none(), "the service ended: {ended:?}");
    }

    pub fn memory(&self) -> Memory {
        memory(self.child.id())
    }

    /// Seconds of a core that it has taken.
    pub fn cpu(&self) -> f64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name in parentheses may hold anything.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<f64>().ok())
        };
        (ticks(12).unwrap_or_default() + ticks(13).unwrap_or_default()) / TICKS
    }
}
