//! A private PgBouncer. It runs as an unprivileged user. Its files and its socket lie in the directory of its cluster.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, chown},
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{cluster::Cluster, connect, eventually, programs::optional};

/// A running PgBouncer. It ends when this value is dropped, and also when this process ends, even by SIGKILL.
#[derive(Debug)]
pub struct PgBouncer {
    program: PathBuf,
    dir: PathBuf,
    settings: Vec<String>,
    user: u32,
    process: Option<Child>,
}

/// The port only gives the socket its name.
const PORT: u16 = 6432;

impl PgBouncer {
    /// Starts it in front of a cluster. `settings` are lines of the section `[pgbouncer]`, such as `pool_mode =
    /// transaction`. `None` where PgBouncer is not installed.
    pub async fn start(cluster: &Cluster, settings: &[&str]) -> Option<PgBouncer> {
        let program = optional(&["pgbouncer"], "pgbouncer")?;
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = cluster.socket_dir().join(format!("pooler{number}"));
        let owner = fs::metadata(cluster.socket_dir()).expect("a cluster");
        let (user, group) = {
            use std::os::unix::fs::MetadataExt;
            (owner.uid(), owner.gid())
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .expect("mkdir");
        chown(&dir, Some(user), Some(group)).expect("chown");
        let settings = settings.iter().map(|line| (*line).to_owned()).collect();
        let mut pooler = PgBouncer {
            program,
            dir,
            settings,
            user,
            process: None,
        };
        pooler.configure(cluster);
        pooler.boot().await;
        Some(pooler)
    }

    fn configure(&self, cluster: &Cluster) {
        let (dir, settings) = (self.dir.display(), self.settings.join("\n"));
        let (socket, port) = (cluster.socket_dir().display(), cluster.port());
        let ini = format!(
            "[databases]\n* = host={socket} port={port}\n\
             [pgbouncer]\nlisten_port = {PORT}\nunix_socket_dir = {dir}\nlogfile = {dir}/log\n\
             auth_type = trust\nauth_file = {dir}/users\nadmin_users = postgres\nserver_login_retry = 1\n{settings}\n"
        );
        fs::write(self.dir.join("ini"), ini).expect("written");
        fs::write(self.dir.join("users"), "\"postgres\" \"\"\n").expect("written");
    }

    /// Starts the process, for instance again after [`PgBouncer::stop`].
    pub async fn boot(&mut self) {
        // The shell kills PgBouncer at the end of its input. Only this process holds the other end of that pipe, so
        // PgBouncer ends with this process.
        let script = r#""$1" -q "$2" & cat >/dev/null; kill -9 $!; wait $!"#;
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", script, "pooler"])
            .arg(&self.program)
            .arg(self.dir.join("ini"))
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        // PgBouncer refuses to run as root, as the server does.
        if fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
        {
            std::os::unix::process::CommandExt::uid(&mut shell, self.user);
        }
        self.process = Some(shell.spawn().expect("a shell"));
        let socket = self.dir.join(format!(".s.PGSQL.{PORT}"));
        eventually("PgBouncer starts", async || {
            tokio::net::UnixStream::connect(&socket).await.is_ok()
        })
        .await;
    }

    /// Kills it, as if its machine were lost.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            process.wait().expect("the shell ends");
        }
    }

    pub fn dsn(&self) -> String {
        let dir = self.dir.display();
        format!("host={dir} port={PORT} user=postgres dbname=postgres")
    }

    /// Connects to its administration console, which answers each command with rows.
    pub async fn console(&self) -> Client {
        let dir = self.dir.display();
        connect(&format!(
            "host={dir} port={PORT} user=postgres dbname=pgbouncer"
        ))
        .await
    }

    /// Runs a command on the console.
    pub async fn command(&self, command: &str) -> Vec<SimpleQueryMessage> {
        let console = self.console().await;
        let answer = console.simple_query(command).await;
        answer.unwrap_or_else(|error| panic!("{command}: {error:?}"))
    }

    /// Sends its clients to another server from their next transactions on. The clients do not notice.
    pub async fn switch_to(&self, cluster: &Cluster) {
        self.configure(cluster);
        self.command("RELOAD").await;
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.stop();
    }
}
