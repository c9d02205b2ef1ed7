//! A private Prometheus, 2.42 or newer.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use reqwest::Url;
use serde_json::Value;
use tempfile::TempDir;

use crate::{eventually, programs::optional};

/// A running Prometheus. It ends when this value is dropped, and also when this process ends, even by SIGKILL.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts it with this text as its `prometheus.yml`. `files` are names and texts of the files that it names. Returns
    /// once Prometheus answers queries.
    ///
    /// `None` where Prometheus is not installed.
    pub async fn start(configuration: &str, files: &[(&str, &str)]) -> Option<Prometheus> {
        let program = optional(&["prometheus"], "prometheus")?;
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [&[("prometheus.yml", configuration)], files].concat() {
            fs::write(folder.path().join(name), text).expect("written");
        }
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        // The shell kills Prometheus at the end of its input. Only this process holds the other end of that pipe, so
        // Prometheus ends with this process. The shell would report that, so only Prometheus may write to standard error.
        let script = r#"cd "$2"; exec 3>&2 2>/dev/null; "$1" --config.file=prometheus.yml --storage.tsdb.path=data \
            --log.level=warn --web.listen-address="$3" 2>&3 & cat >/dev/null; kill -9 $!; wait $!"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "prometheus"]).arg(program);
        shell.arg(folder.path()).arg(address.to_string());
        shell.stdin(Stdio::piped()).stdout(Stdio::null());
        shell.process_group(0);
        let prometheus = Prometheus {
            address,
            process: shell.spawn().expect("a shell"),
            _folder: folder,
        };
        eventually("Prometheus is ready", async || {
            let answer = reqwest::get(format!("http://{address}/-/ready")).await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        Some(prometheus)
    }

    /// The `data` of an answer of its HTTP API, such as `alerts`. Fails the test if the answer is an error.
    pub async fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let url = Url::parse_with_params(&url, parameters).expect("an address");
        let answer = reqwest::get(url.clone()).await.expect("an answer");
        let mut answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["status"], "success", "{url}: {answer}");
        answer["data"].take()
    }

    /// The series that an expression gives now, each as `{"metric": labels, "value": [time, "number"]}`.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.api("query", &[("query", expression)]).await;
        data["result"].as_array().expect("series").clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
