//! A private NATS server with JetStream, nats-server 2.9 or newer.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{eventually, programs::optional};

/// A NATS server. It ends when this value is dropped, and also when this process ends, even by SIGKILL.
#[derive(Debug)]
pub struct Nats {
    address: SocketAddr,
    process: Option<Child>,
    folder: TempDir,
}

impl Nats {
    /// Starts it. `settings` are lines of its configuration, beside port and JetStream.
    ///
    /// `None` where nats-server is not installed.
    pub async fn start(settings: &str) -> Option<Nats> {
        optional(&["nats-server"], "nats-server")?;
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let store = folder.path().join("store");
        let text = format!(
            "listen: \"{address}\"\njetstream {{ store_dir: \"{}\" }}\n{settings}\n",
            store.display()
        );
        fs::write(folder.path().join("nats.conf"), text).expect("written");
        let mut nats = Nats {
            address,
            process: None,
            folder,
        };
        nats.boot().await;
        Some(nats)
    }

    /// Starts it again after [`Nats::kill`], on the same port and with the same files.
    pub async fn boot(&mut self) {
        let program = optional(&["nats-server"], "nats-server").expect("it was there");
        // The shell kills the server at the end of its input. Only this process holds the other end of that pipe, so the
        // server ends with this process.
        let script = r#""$1" -c "$2" & cat >/dev/null; kill -9 $!; wait $!"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "nats"]).arg(program);
        shell.arg(self.folder.path().join("nats.conf"));
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        shell.process_group(0);
        self.process = Some(shell.spawn().expect("a shell"));
        let address = self.address;
        eventually("nats-server starts", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }

    /// Deletes what its streams and buckets hold. Call it between [`Nats::kill`] and [`Nats::boot`].
    pub fn forget(&self) {
        let _ = fs::remove_dir_all(self.folder.path().join("store"));
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}
