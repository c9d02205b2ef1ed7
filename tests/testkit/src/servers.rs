//! Servers with a history: crashes, standbys, promotions, backups. Each test has clusters of its own, for it destroys them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use tokio_postgres::Client;

use super::{cluster::Cluster, eventually, followed::SEED};

/// What all of them need, and settings that make a crash lose what is not written yet.
const SETTINGS: [&str; 4] = [
    "fsync = off",
    "autovacuum = off",
    "max_prepared_transactions = 10",
    "max_standby_streaming_delay = 5s",
];

impl Cluster {
    /// A running server whose database `postgres` has the application's tables, the change feed and [`SEED`].
    pub fn seeded(settings: &[&str]) -> Cluster {
        static TEMPLATE: OnceLock<Cluster> = OnceLock::new();
        let template = TEMPLATE.get_or_init(|| {
            let template = Cluster::start(&SETTINGS).expect("a cluster");
            template.seed();
            template.stop("fast").expect("stops");
            template
        });
        Cluster::filled(settings, |cluster| {
            cluster.copy(&template.data(), &cluster.data())
        })
    }

    /// Makes the tables and their rows.
    pub fn seed(&self) {
        self.install("postgres");
        self.sql(SEED);
    }

    /// Makes the application's tables and the change feed.
    pub fn install(&self, database: &str) {
        for script in ["src/demo/schema.sql", "sql/install.sql"] {
            self.psql_ok(database, &["-qf", script]);
        }
    }

    /// A running server, whose database `postgres` has the application's tables, the change feed and what `sql` makes.
    pub fn with_feed(sql: &str) -> Cluster {
        let cluster = Cluster::start(&["fsync = off"]).expect("a cluster");
        cluster.install("postgres");
        cluster.sql(sql);
        cluster
    }

    fn filled(settings: &[&str], fill: impl FnOnce(&Cluster)) -> Cluster {
        let mut cluster = Cluster::create().expect("a cluster's directory");
        fill(&cluster);
        let settings: Vec<&str> = SETTINGS.iter().chain(settings).copied().collect();
        cluster.configure(&settings).expect("configured");
        cluster.start_on_free_port().expect("starts");
        cluster
    }

    /// A hot standby that streams from this server.
    pub fn standby(&self, settings: &[&str]) -> Cluster {
        let upstream = format!("primary_conninfo = '{}'", self.conninfo());
        let settings: Vec<&str> = [upstream.as_str()]
            .into_iter()
            .chain(settings.iter().copied())
            .collect();
        Cluster::filled(&settings, |cluster| {
            let mut backup = cluster.client("pg_basebackup").expect("pg_basebackup");
            backup.arg("-D").arg(cluster.data()).arg("-d");
            backup.arg(self.conninfo()).args(["-R", "-c", "fast"]);
            cluster.run(&mut backup).expect("a base backup");
        })
    }

    fn conninfo(&self) -> String {
        let dir = self.socket_dir().display();
        format!("host={dir} port={} user=postgres", self.port())
    }

    /// Ends recovery; returns when the server takes writes.
    pub fn promote(&self) {
        let mut promote = self.command("pg_ctl");
        promote.args(["promote", "-w", "-t", "60", "-D"]);
        self.run(promote.arg(self.data())).expect("promoted");
    }

    /// A copy of the data of a stopped server, beside it.
    pub fn backup(&self, name: &str) -> PathBuf {
        let path = self.socket_dir().join(name);
        self.copy(&self.data(), &path);
        path
    }

    /// Gives a stopped server other data, and the settings of its own; the data it had stay under the name `old`.
    pub fn replace_data(&self, by: &Path) {
        let settings = self.data().join("postgresql.auto.conf");
        fs::copy(settings, by.join("postgresql.auto.conf")).expect("the settings");
        fs::rename(self.data(), self.socket_dir().join("old")).expect("renamed");
        fs::rename(by, self.data()).expect("renamed");
    }

    /// Adds lines to the settings, for the next start.
    pub fn add_settings(&self, lines: &[&str]) {
        let path = self.data().join("postgresql.auto.conf");
        let before = fs::read_to_string(&path).expect("the settings");
        fs::write(&path, format!("{before}{}\n", lines.join("\n"))).expect("written");
    }

    pub fn copy(&self, from: &Path, to: &Path) {
        let mut copy = self.command("/bin/cp");
        self.run(copy.arg("-a").arg(from).arg(to)).expect("copied");
    }

    /// Runs psql on the database `postgres` and returns the rows.
    pub fn sql(&self, sql: &str) -> String {
        self.psql_ok("postgres", &["-qAtc", sql])
    }

    /// Runs psql, which must succeed, and returns the rows.
    pub fn psql_ok(&self, database: &str, args: &[&str]) -> String {
        let output = self.psql(database, args).expect("psql starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "psql {args:?}: {errors}");
        let rows = String::from_utf8_lossy(&output.stdout);
        rows.trim_end().to_owned()
    }

    /// The process of a kind that `pg_stat_activity.backend_type` names.
    pub fn process(&self, backend_type: &str) -> String {
        self.sql(&format!(
            "select pid from pg_stat_activity where backend_type = '{backend_type}'"
        ))
    }

    /// Keeps what is committed asynchronously out of the write-ahead log for as long as nobody else flushes it: a crash takes it back.
    pub fn stop_writing_ahead(&self) {
        signal("STOP", &self.process("walwriter"));
    }

    /// SIGKILL for the postmaster and all its processes: what the machine's loss of power is to a server whose disk is safe.
    pub fn kill(&self) {
        let lock = self.data().join("postmaster.pid");
        let lines = fs::read_to_string(&lock).expect("a server");
        let postmaster = lines.lines().next().expect("a process id").to_owned();
        // None may notice that the others are gone, or the next server finds their shared memory in use.
        signal("STOP", &postmaster);
        let children = children_of(&postmaster);
        for pid in children.iter().chain([&postmaster]) {
            signal("KILL", pid);
        }
        let gone = |pid: &String| stat(pid).is_none_or(|(state, _)| state == "Z");
        while !children.iter().chain([&postmaster]).all(gone) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // As after a reboot: a process id that nobody has any more, not even as a child to be waited for.
        let socket = format!(".s.PGSQL.{}.lock", self.port());
        for lock in [lock, self.socket_dir().join(socket)] {
            fs::remove_file(&lock).expect("removed");
        }
    }

    /// SIGKILL for one process: the server ends all connections and recovers, with the same postmaster.
    pub async fn crash(&self, pid: &str) {
        let before = self.process("checkpointer");
        signal("KILL", pid);
        let sql = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
        eventually("recovered", async || {
            let output = self.psql("postgres", &["-qAtc", sql]).expect("psql starts");
            let now = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success() && !now.is_empty() && now != before
        })
        .await;
    }

    /// Stops replaying at wherever it is, and returns the standby's time then.
    pub async fn pause_replay(&self, standby: &Client) -> chrono::DateTime<chrono::Utc> {
        let pause = "select pg_wal_replay_pause()";
        standby.execute(pause, &[]).await.expect("a standby");
        eventually("replay pauses", async || {
            let sql = "select pg_get_wal_replay_pause_state() = 'paused'";
            standby.query_one(sql, &[]).await.expect("a standby").get(0)
        })
        .await;
        let row = standby.query_one("select clock_timestamp()", &[]).await;
        let now: std::time::SystemTime = row.expect("a time").get(0);
        now.into()
    }
}

/// Waits until a standby has replayed all that its primary has written.
pub async fn replayed(primary: &Client, standby: &Client) {
    let row = primary
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await;
    let lsn: String = row.expect("a primary").get(0);
    // What was committed asynchronously is sent once it is flushed, and a commit that can be seen is replayed before its
    // snapshot shows it.
    let sql = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
    eventually("replayed", async || {
        standby
            .query_one(&sql, &[])
            .await
            .expect("a standby")
            .get(0)
    })
    .await;
}

fn signal(name: &str, pid: &str) {
    // The shell's own: there may be no other. A process that is gone by itself is all the same.
    let script = format!("kill -{name} {pid} 2>/dev/null");
    let status = Command::new("sh").args(["-c", &script]).status();
    status.expect("a shell");
}

/// Fields 3 and 4 of `/proc/PID/stat` are state and parent.
fn stat(pid: &str) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
}

fn children_of(pid: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|child| stat(child).is_some_and(|(_, parent)| parent == pid))
        .collect()
}
