//! A private nginx in front of a service, with nginx's defaults except for what a test says.

use std::{
    fmt::Display,
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{eventually, programs::optional};

/// A running nginx. It ends when this value is dropped, and also when this process ends, even by SIGKILL.
#[derive(Debug)]
pub struct Nginx {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Nginx {
    /// Starts it in front of the service at `upstream`, an address or `unix:` and the path of a socket. `location` has the lines of `location /`, which may name the
    /// service `http://oddscache`. nginx buffers little of an answer that its client has not taken.
    ///
    /// `None` where nginx is not installed.
    pub async fn start(upstream: impl Display, location: &str) -> Option<Nginx> {
        let program = optional(&["nginx"], "nginx")?;
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid pid;\nerror_log log info;\nevents {{}}\nhttp {{\naccess_log off;\n\
             {temporary}upstream oddscache {{ server {upstream}; }}\n\
             server {{\nlisten {address} sndbuf=64k;\nlocation / {{ {location} }}\n}}\n}}\n"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, text).expect("written");
        // The shell kills nginx at the end of its input. Only this process holds the other end of that pipe, so nginx
        // ends with this process.
        let script = r#""$1" -p "$2" -c "$3" -e log & cat >/dev/null; kill -9 $!; wait $!"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "nginx"]).arg(program);
        shell.arg(folder.path()).arg(&file);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        shell.process_group(0);
        let process = shell.spawn().expect("a shell");
        eventually("nginx starts", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
        Some(Nginx {
            address,
            process,
            _folder: folder,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
