//! Runs the binary as its users do: commands that end, and the service as a process.

use std::{
    net::SocketAddr,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use reqwest::Response;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as AsyncCommand},
    sync::mpsc,
    time::timeout,
};

use crate::eventually;

/// A deadline for what a process does by itself, on a machine that is busy with other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Half of the stack that a thread gets. A build without optimisation copies futures on the stack, so it needs far more
/// of it than a release build: a program that runs with this has a margin.
const STACK: &str = "1048576";

/// `oddscache` with these arguments, and without those variables of our own environment that it reads.
pub fn command(arguments: &[&str]) -> Command {
    let binary = std::env::var_os("CARGO_BIN_EXE_oddscache");
    let mut command = Command::new(binary.expect("`cargo test` and `cargo bench` name the binary"));
    command.args(arguments).env("RUST_MIN_STACK", STACK);
    isolate(&mut command);
    command
}

/// Removes those variables of our own environment that the binary reads.
pub fn isolate(command: &mut Command) {
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("PG") || name.starts_with("ODDSCACHE") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
}

/// The exit code and the output of a command.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub errors: String,
}

/// Runs a command to its end. Blocks the thread.
pub fn ended(command: &mut Command) -> Ended {
    Ended::of(&command.output().expect("the binary runs"))
}

/// Runs `oddscache` with these arguments on a database, to its end. Blocks the thread.
pub fn run(arguments: &[&str], dsn: &str) -> Ended {
    ended(command(arguments).env("DATABASE_URL", dsn))
}

impl Ended {
    pub fn of(output: &std::process::Output) -> Ended {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: output.status.code(),
            out: text(&output.stdout),
            errors: text(&output.stderr),
        }
    }

    /// Fails the test unless the exit code is 0.
    #[track_caller]
    pub fn ok(self) -> Ended {
        self.with(0, &[])
    }

    /// Fails the test unless the exit code is this one and the output contains all of these words.
    #[track_caller]
    pub fn with(self, code: i32, words: &[&str]) -> Ended {
        let Ended { out, errors, .. } = &self;
        assert_eq!(self.code, Some(code), "{out}{errors}");
        for word in words {
            let is_said = out.contains(word) || errors.contains(word);
            assert!(is_said, "no {word:?} in {out}{errors}");
        }
        self
    }
}

pub fn kill(signal: &str, pid: u32) {
    // The shell's own `kill`, because there may be no other.
    let script = format!("kill {signal} {pid}");
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.expect("kill").success(), "kill {signal} {pid}");
}

/// A running `oddscache serve`. Dropping it kills the process.
#[derive(Debug)]
pub struct Service {
    pub child: Child,
    /// `http://` and its address.
    pub base: String,
    log: mpsc::UnboundedReceiver<String>,
}

/// The arguments for a free port, and for a log that [`Service::line`] reads.
pub const SERVE: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];

impl Service {
    /// Starts it with [`SERVE`] and more arguments. Returns once it listens.
    pub async fn start(dsn: &str, more: &[&str]) -> Service {
        Service::start_with(dsn, more, &[]).await
    }

    /// The same, with environment variables.
    pub async fn start_with(dsn: &str, more: &[&str], variables: &[(&str, &str)]) -> Service {
        let mut command = command(&[&SERVE, more].concat());
        command
            .env("DATABASE_URL", dsn)
            .envs(variables.iter().copied());
        Service::spawn(command).await
    }

    /// Starts it and waits until it is warm.
    pub async fn warm(dsn: &str, more: &[&str]) -> Service {
        let service = Service::start(dsn, more).await;
        service.ready().await;
        service
    }

    /// Starts it for benchmarks, almost without a log. The allocator is set as in the unit and the container of
    /// examples/deploy, unless the benchmark is run with another setting.
    pub async fn measured(dsn: &str, more: &[&str]) -> Service {
        let log = "warn,oddscache::server::commands::serve=info";
        let threshold = std::env::var("MALLOC_MMAP_THRESHOLD_");
        let threshold = threshold.unwrap_or_else(|_| "131072".to_owned());
        let variables = [("MALLOC_MMAP_THRESHOLD_", &*threshold)];
        Service::start_with(dsn, &[&["--log", log], more].concat(), &variables).await
    }

    /// The same as [`Service::spawn`], for a command with `--admin-listen`. Also returns how operators reach it.
    pub async fn spawn_with_admin(command: Command) -> (Service, Operators) {
        let (service, admin) = Service::spawned(command).await;
        let base = format!("http://{}", admin.expect("it says where operators ask"));
        (service, Operators { base })
    }

    /// Runs a command that starts the service with a log in JSON. Reads from the log where it listens.
    pub async fn spawn(command: Command) -> Service {
        Service::spawned(command).await.0
    }

    async fn spawned(command: Command) -> (Service, Option<String>) {
        let mut command = AsyncCommand::from(command);
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (to, log) = mpsc::unbounded_channel();
        // Read all lines, even if no test wants them. The service would block on a full pipe.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = to.send(line);
            }
        });
        let mut service = Service {
            child,
            base: String::new(),
            log,
        };
        let mut admin = None;
        while service.base.is_empty() {
            let message = service.message().await.expect("it says where it listens");
            if let Some(address) = message["fields"]["admin_address"].as_str() {
                admin = Some(address.to_owned());
            }
            if let Some(address) = message["fields"]["address"].as_str() {
                service.base = format!("http://{address}");
            }
        }
        (service, admin)
    }

    pub fn address(&self) -> SocketAddr {
        let address = self.base.trim_start_matches("http://");
        address.parse().expect("an address")
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("not waited for")
    }

    pub fn signal(&self, name: &str) {
        kill(name, self.pid());
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = timeout(PATIENCE, self.child.wait()).await;
        status.expect("it ends").expect("a status")
    }

    /// Fails if it has ended.
    pub fn assert_runs(&mut self) {
        let ended = self.child.try_wait().expect("a process");
        assert!(ended.is_none(), "the service ended: {ended:?}");
    }

    /// Sends a request on a connection of its own.
    pub async fn try_ask(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Result<Response> {
        let mut request = reqwest::Client::new().get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await
    }

    pub async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.try_ask(path, headers).await.expect("an answer")
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.ask(path, &[]).await;
        let status = answer.status().as_u16();
        (status, answer.text().await.expect("a body"))
    }

    /// The JSON body of a response, whose status must be 200.
    pub async fn json(&self, path: &str) -> Value {
        json(path, self.get(path).await)
    }

    /// The value of a sample of `/metrics`, by its name and labels.
    pub async fn metric(&self, name: &str) -> f64 {
        sample(name, &self.get("/metrics").await.1)
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        eventually("ready", async || {
            let answer = self.try_ask("/readyz", &[]).await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// The next line of the log. `None` at its end.
    pub async fn line(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.log.recv()).await;
        line.expect("it logs, or ends")
    }

    /// The next line of the log as JSON. `None` at its end.
    pub async fn message(&mut self) -> Option<Value> {
        let line = self.line().await?;
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    /// Reads the log until a line contains all of these words. Returns that line.
    pub async fn logs(&mut self, words: &[&str]) -> String {
        loop {
            let line = self.line().await.expect("it runs");
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }

    /// The rest of the log, up to its end.
    pub async fn rest_of_log(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        lines
    }
}

/// The JSON body of an answer, whose status must be 200.
fn json(path: &str, (status, body): (u16, String)) -> Value {
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// The value of a sample of metrics, by its name and labels.
fn sample(name: &str, metrics: &str) -> f64 {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect(name).parse().expect("a number")
}

/// The operators' address of a service.
#[derive(Debug)]
pub struct Operators {
    /// `http://` and the address.
    pub base: String,
}

impl Operators {
    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("{}{path}", self.base)).await;
        let answer = answer.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.text().await.expect("a body"))
    }

    /// The JSON body of a response, whose status must be 200.
    pub async fn json(&self, path: &str) -> Value {
        json(path, self.get(path).await)
    }

    /// The value of a sample of `/metrics`, by its name and labels.
    pub async fn metric(&self, name: &str) -> f64 {
        sample(name, &self.get("/metrics").await.1)
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        eventually("ready", async || self.get("/readyz").await.0 == 200).await;
    }
}
