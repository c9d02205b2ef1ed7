//! Standard output and standard error: full disks, readers that have gone, and readers that do not read.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read, Write, pipe},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use oddscache_testkit::service::{Ended, SERVE, Service, command, ended, kill};
use rustix::fs::{OFlags, fcntl_setfl};
use serde_json::Value;
use tokio::time::timeout;

use super::{eventually, with_odds};

const NOWHERE: &str = "host=/nowhere user=u dbname=d";

/// A disk without room.
fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe whose reader has gone.
fn closed() -> PipeWriter {
    pipe().unwrap().1
}

/// Runs a command with this output. Returns its exit code and what it wrote to standard error.
fn with_output(command: &mut Command, out: impl Into<Stdio>) -> Ended {
    let child = command.stdout(out).stderr(Stdio::piped()).spawn();
    Ended::of(&child.unwrap().wait_with_output().unwrap())
}

/// Exit codes are as documented even if standard error cannot be written. They once were 101, because of a panic.
#[tokio::test]
async fn exit_codes_do_not_depend_on_the_streams() {
    let database = with_odds();
    let service = Service::warm(&database.dsn(), &[]).await;
    let url = service.base.clone();
    let with_errors = |arguments: &[&str], errors: Stdio| {
        let mut command = command(arguments);
        command.env("DATABASE_URL", NOWHERE).stderr(errors);
        command.stdout(Stdio::null()).status().unwrap().code()
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "no-such-setting = 1").unwrap();
    let path = file.path().to_str().unwrap();
    for (arguments, code) in [
        (&["serve", "--config", path][..], 2),
        (&["serve", "--config", "/nowhere.toml"], 2),
        (&["serve", "--log", "oddscache=loud"], 2),
        (&["serve", "--no-such-flag"], 2),
        (&["serve", "--token", ""], 2),
        (&["serve", "--sslmode", "loud"], 2),
        (
            &["serve", "--listen", "127.0.0.1:0", "--tls-cert", "/nowhere"],
            1,
        ),
        (&["serve", "--listen", url.trim_start_matches("http://")], 1),
        (&["dump"], 1),
        (&["doctor"], 1),
        (&["explain", "1"], 1),
        (&["sql", "check", "--apply"], 1),
        (&["sql", "install", "--keep-indexes"], 2),
        (&["health", "--url", "http://127.0.0.1:1"], 1),
        (&["health", "--url", &url], 0),
        (&["config"], 0),
        (&["--help"], 0),
    ] {
        for errors in [full().into(), closed().into()] {
            assert_eq!(with_errors(arguments, errors), Some(code), "{arguments:?}");
        }
    }

    // If its output cannot be written, a command that prints has failed. If the reader has gone, it has not.
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["serve", "--help"], 0),
        (&["config"], 0),
        (&["sql", "install"], 0),
        (&["sql", "check", "--apply"], 0),
        (&["dump"], 0),
        (&["explain", "1", "--url", &url], 0),
        (&["explain", "1", "--url", &url, "--json"], 0),
        (&["doctor", "--quick"], 0),
        (&["doctor", "--quick", "--json"], 0),
    ] {
        let command = || {
            let mut command = command(arguments);
            command.env("DATABASE_URL", database.dsn());
            command
        };
        let code = match arguments[0] {
            // What it finds depends on the cluster.
            "doctor" => ended(&mut command()).code,
            _ => Some(code),
        };
        let Ended {
            code: found,
            errors,
            ..
        } = with_output(&mut command(), closed());
        assert_eq!(found, code, "{arguments:?}: {errors}");
        let Ended { code, errors, .. } = with_output(&mut command(), full());
        assert_eq!(code, Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains("No space left"), "{arguments:?}: {errors}");
    }

    // The answer of a probe is its exit code.
    for name in ["health", "ready"] {
        for out in [full().into(), closed().into()] {
            let probe: Stdio = out;
            with_output(&mut command(&[name, "--url", &url]), probe).ok();
        }
    }
}

/// The reader's end of a pipe, which is already full.
struct Stuck {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Stuck {
    fn new() -> Stuck {
        let (reader, writer) = pipe().unwrap();
        let mut stuck = Stuck { reader, writer };
        stuck.fill();
        stuck
    }

    /// A handle for the child, in blocking mode as usual.
    fn for_child(&self) -> Stdio {
        fcntl_setfl(&self.writer, OFlags::empty()).unwrap();
        self.writer.try_clone().unwrap().into()
    }

    /// Fills the pipe, so that the next write blocks.
    fn fill(&mut self) {
        // The flag belongs to the pipe's end, which the child shares.
        fcntl_setfl(&self.writer, OFlags::NONBLOCK).unwrap();
        for size in [4096, 1] {
            while self.writer.write(&b"\n".repeat(size)).is_ok() {}
        }
        fcntl_setfl(&self.writer, OFlags::empty()).unwrap();
    }

    /// Reads until a message contains these words.
    fn read_until(&mut self, words: &str) -> Value {
        let (mut text, mut buffer) = (Vec::new(), [0; 65536]);
        loop {
            let count = self.reader.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..count]);
            let all = String::from_utf8_lossy(&text);
            let mut lines = all
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            if let Some(line) = lines.find(|line| line.contains(words)) {
                return serde_json::from_str(line).unwrap();
            }
        }
    }
}

/// When standard error was full, every request once waited for its reader, and SIGTERM did nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_reader_of_the_log() {
    let database = with_odds();
    let mut stuck = Stuck::new();
    // Choose the port here, because nobody reads the log.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mut serve = command(&SERVE[..1]);
    serve.args([
        "--listen",
        &address,
        "--log-format",
        "json",
        "--log-repeats",
        "0",
    ]);
    // So much is logged that the queue overflows soon.
    serve.args(["--log", "trace", "--drain", "1s", "--poll-interval", "10ms"]);
    serve.env("DATABASE_URL", database.dsn());
    serve.stderr(stuck.for_child());
    let mut serve = tokio::process::Command::from(serve);
    let mut child = serve.kill_on_drop(true).spawn().unwrap();
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://{address}{path}")).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    };
    eventually("ready", async || {
        get("/readyz")
            .await
            .is_some_and(|(status, _)| status == 200)
    })
    .await;
    let dropped = async || {
        let (_, metrics) = get("/metrics").await.unwrap();
        let name = "\noddscache_log_lines_dropped_total ";
        let (_, value) = metrics.split_once(name).expect(name);
        value.lines().next().unwrap().parse::<u64>().unwrap()
    };
    eventually("messages are dropped", async || dropped().await > 0).await;
    for path in ["/livez", "/v1/dump", "/v1/events/1"] {
        assert_eq!(get(path).await.unwrap().0, 200, "{path}");
    }

    // When somebody reads again, the log says what is missing.
    let (told, mut stuck) =
        tokio::task::spawn_blocking(move || (stuck.read_until("messages were dropped"), stuck))
            .await
            .unwrap();
    assert!(told["fields"]["dropped"].as_u64() > Some(0), "{told}");
    assert!(dropped().await >= told["fields"]["dropped"].as_u64().unwrap());

    // The service also ends in time.
    stuck.fill();
    let begun = Instant::now();
    kill("-TERM", child.id().unwrap());
    let status = timeout(Duration::from_secs(20), child.wait()).await;
    let status = status.expect("it ends").unwrap();
    assert!(status.success(), "{status} after {:?}", begun.elapsed());
}
