//! Servers with a history: crashes, standbys, promotions, backups. Each test has clusters of its own, because it
//! destroys them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use tokio_postgres::Client;

use super::{cluster::Cluster, eventually, followed::SEED};

/// The settings of all these servers.
const SETTINGS: [&str; 4] = [
    "fsync = off",
    "autovacuum = off",
    "max_prepared_transactions = 10",
    "max_standby_streaming_delay = 5s",
];

impl Cluster {
    /// A running server. Its database `postgres` has the application's tables, the change feed and [`SEED`].
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

    /// Creates the application's tables, the change feed and the rows of [`SEED`].
    pub fn seed(&self) {
        self.install("postgres");
        self.sql(SEED);
    }

    /// Creates the application's tables and the change feed.
    pub fn install(&self, database: &str) {
        for script in ["src/demo/schema.sql", "sql/install.sql"] {
            self.psql_ok(database, &["-qf", script]);
        }
    }

    /// A running server. Its database `postgres` has the application's tables, the change feed and what `sql` creates.
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

    /// Promotes a standby. Returns when it accepts writes.
    pub fn promote(&self) {
        let mut promote = self.command("pg_ctl");
        promote.args(["promote", "-w", "-t", "60", "-D"]);
        self.run(promote.arg(self.data())).expect("promoted");
    }

    /// Copies the data of a stopped server into a folder of this name. Returns its path.
    pub fn backup(&self, name: &str) -> PathBuf {
        let path = self.socket_dir().join(name);
        self.copy(&self.data(), &path);
        path
    }

    /// Replaces the data of a stopped server, but keeps its settings. The former data stay in the folder `old`.
    pub fn replace_data(&self, by: &Path) {
        let settings = self.data().join("postgresql.auto.conf");
        fs::copy(settings, by.join("postgresql.auto.conf")).expect("the settings");
        fs::rename(self.data(), self.socket_dir().join("old")).expect("renamed");
        fs::rename(by, self.data()).expect("renamed");
    }

    /// Adds lines to the settings. They take effect at the next start.
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

    /// Runs psql and returns the rows. Fails the test unless psql succeeds.
    pub fn psql_ok(&self, database: &str, args: &[&str]) -> String {
        let output = self.psql(database, args).expect("psql starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "psql {args:?}: {errors}");
        let rows = String::from_utf8_lossy(&output.stdout);
        rows.trim_end().to_owned()
    }

    /// The id of the process of this `pg_stat_activity.backend_type`.
    pub fn process(&self, backend_type: &str) -> String {
        self.sql(&format!(
            "select pid from pg_stat_activity where backend_type = '{backend_type}'"
        ))
    }

    /// Stops the WAL writer. From now on a crash undoes asynchronous commits, unless another process flushes the
    /// write-ahead log.
    pub fn stop_writing_ahead(&self) {
        signal("STOP", &self.process("walwriter"));
    }

    /// Kills the postmaster and all its processes, as a power failure would.
    pub fn kill(&self) {
        let lock = self.data().join("postmaster.pid");
        let lines = fs::read_to_string(&lock).expect("a server");
        let postmaster = lines.lines().next().expect("a process id").to_owned();
        // Stop the postmaster first, so that no process notices that others are gone. Otherwise the next server finds
        // their shared memory in use.
        signal("STOP", &postmaster);
        let children = children_of(&postmaster);
        for pid in children.iter().chain([&postmaster]) {
            signal("KILL", pid);
        }
        let gone = |pid: &String| stat(pid).is_none_or(|(state, _)| state == "Z");
        while !children.iter().chain([&postmaster]).all(gone) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // After a reboot these files would name a process that no longer exists. Here the process may still exist, as a
        // child that nobody has waited for. So remove the files.
        let socket = format!(".s.PGSQL.{}.lock", self.port());
        for lock in [lock, self.socket_dir().join(socket)] {
            fs::remove_file(&lock).expect("removed");
        }
    }

    /// Kills one process. The postmaster stays, ends all connections and recovers.
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

    /// Pauses replay. Returns the time of the standby once it is paused.
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

/// Makes the server report the same start and the same reset of statistics for ever. So a server that goes on with older
/// data looks like a virtual machine that was put back to an earlier state with all its processes.
pub fn timeless(cluster: &Cluster) {
    cluster.sql(
        "create or replace function pg_catalog.pg_postmaster_start_time() returns timestamptz
             language sql as $$ select timestamptz '2000-01-01' $$;
         create or replace function pg_catalog.pg_stat_get_bgwriter_stat_reset_time() returns timestamptz
             language sql as $$ select timestamptz '2000-01-01' $$",
    );
}

/// Waits until a standby has replayed all that its primary has written.
pub async fn replayed(primary: &Client, standby: &Client) {
    let row = primary
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await;
    let lsn: String = row.expect("a primary").get(0);
    // The primary sends an asynchronous commit once it is flushed. A standby replays a commit before its snapshots show
    // it.
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
    // Use the shell's own `kill`, because there may be no other. A process that has already ended is no error.
    let script = format!("kill -{name} {pid} 2>/dev/null");
    let status = Command::new("sh").args(["-c", &script]).status();
    status.expect("a shell");
}

/// The state and the parent of a process: fields 3 and 4 of `/proc/PID/stat`.
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
