//! Runs the real binary, which the tests stop and kill.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use oddscache_testkit::eventually;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as AsyncCommand},
    time::timeout,
};

/// A running `oddscache serve` on a free port. Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    base: String,
}

impl Process {
    /// Starts the process and waits until it is warm.
    pub(crate) async fn start(dsn: &str) -> Process {
        let mut command = AsyncCommand::new(env!("CARGO_BIN_EXE_oddscache"));
        // Remove the variables of the test's own environment that would configure the process.
        for (name, _) in std::env::vars() {
            if name.starts_with("PG") || name.starts_with("ODDSCACHE") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .env("DATABASE_URL", dsn)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = loop {
            let line = timeout(Duration::from_secs(60), log.next_line()).await;
            let line = line.expect("it logs").unwrap();
            let line: Value =
                serde_json::from_str(&line.expect("it says where it listens")).unwrap();
            if let Some(address) = line["fields"]["address"].as_str() {
                break address.to_owned();
            }
        };
        // Keep reading the log. The process would block on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let process = Process {
            child,
            base: format!("http://{address}"),
        };
        eventually("warm", async || process.get("/readyz").await.is_some()).await;
        process
    }

    /// The body of a response with status 200, otherwise `None`.
    async fn get(&self, path: &str) -> Option<String> {
        let answer = reqwest::get(format!("{}{path}", self.base)).await.ok()?;
        if answer.status() != 200 {
            return None;
        }
        answer.text().await.ok()
    }

    /// The line of market 1121, as the process serves it.
    pub(crate) async fn line_of_market_1121(&self) -> Option<f64> {
        let event: Value = serde_json::from_str(&self.get("/v1/events/1").await?).unwrap();
        event["betpawa"]["1"]["markets"][0]["line"].as_f64()
    }

    /// Sends a signal, for instance `-STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().expect("not waited for").to_string();
        let status = Command::new("kill").args([name, &pid]).status();
        assert!(status.expect("kill").success(), "kill {name}");
    }
}
