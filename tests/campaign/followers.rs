//! The two followers: the library in this process, behind the proxy, and the service in its own process.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use oddscache::{Config, OddsCache};
use oddscache_testkit::{
    cluster::Cluster,
    normal,
    programs::missing,
    proxy::{Proxy, Setting},
    service::command,
};
use serde_json::Value;

use crate::world::World;

/// A read that takes longer counts as a dead connection.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Short enough that the audit finds a difference within a pause.
const AUDIT_CYCLE: Duration = Duration::from_secs(3);

/// The way from the embedded follower to the two servers that its connection string names. One of them is the primary.
#[derive(Debug)]
pub(crate) struct Network([Proxy; 2]);

impl Network {
    pub(crate) async fn before(cluster: &Cluster) -> Network {
        let [primary, standby] = [Proxy::before(cluster).await, Proxy::before(cluster).await];
        standby.switch_to(None);
        Network([primary, standby])
    }

    /// Changes the setting of both ways.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Setting)) {
        let [one, other] = &self.0;
        let mut changed = Setting::PASS;
        one.set(|setting| {
            change(setting);
            changed = *setting;
        });
        other.set(|setting| *setting = changed);
    }

    pub(crate) fn heal(&self) {
        for proxy in &self.0 {
            proxy.heal();
        }
    }

    /// Puts the standby of the nth failover behind the proxy that is free.
    pub(crate) fn add_standby(&self, nth: u64, standby: &Cluster) {
        self.0[(nth % 2) as usize].switch_to(Some(standby));
    }

    /// The connection string that names both servers.
    pub(crate) fn dsn(&self) -> String {
        let [one, other] = self.0.each_ref().map(|proxy| proxy.address.port());
        format!(
            "host=127.0.0.1,127.0.0.1 port={one},{other} user=oddscache dbname=postgres sslmode=disable \
             target_session_attrs=primary"
        )
    }
}

/// A follower of the library on its own thread, which a fault can block.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub(crate) cache: OddsCache,
    block: tokio::sync::mpsc::UnboundedSender<Duration>,
}

impl Embedded {
    pub(crate) async fn start(network: &Network) -> Embedded {
        let config = Config::new(&network.dsn())
            .expect("dsn")
            .poll_interval(Duration::from_millis(150))
            .read_timeout(READ_TIMEOUT)
            .audit_cycle(AUDIT_CYCLE)
            .audit_budget(0.3);
        let embedded = Embedded::of(config);
        embedded.cache.ready().await.expect("warm");
        embedded
    }

    /// Follows with any configuration. The cache may not be warm yet.
    pub(crate) fn of(config: Config) -> Embedded {
        let (cache, follower) = OddsCache::connect(config);
        let (block, mut blocks) = tokio::sync::mpsc::unbounded_channel::<Duration>();
        let (begun, beginning) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let following = tokio::spawn(follower.run());
                begun.send(()).expect("the caller waits");
                while let Some(duration) = blocks.recv().await {
                    thread::sleep(duration);
                }
                following.abort();
            });
        });
        beginning.recv().expect("the thread starts");
        Embedded { cache, block }
    }

    /// Blocks the follower's thread for this time.
    pub(crate) fn block(&self, duration: Duration) {
        let _ = self.block.send(duration);
    }
}

/// A running `oddscache serve` whose clock the campaign can set.
#[derive(Debug)]
pub(crate) struct Service {
    dsn: String,
    /// More arguments.
    more: Vec<String>,
    base: String,
    port: u16,
    /// libfaketime. Without it, clock jumps have no effect.
    library: Option<PathBuf>,
    clock: PathBuf,
    child: Mutex<Option<Child>>,
    /// How many differences the audit may find, because the campaign made them.
    mismatches: AtomicU64,
    http: reqwest::Client,
}

impl Service {
    pub(crate) fn start(world: &World) -> Service {
        Service::with(world, world.address(), Vec::new())
    }

    /// Starts it on a database with more arguments.
    pub(crate) fn with(world: &World, dsn: String, more: Vec<String>) -> Service {
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let port = port.expect("a free port").port();
        let service = Service {
            dsn,
            more,
            base: format!("http://127.0.0.1:{port}"),
            port,
            library: faketime(),
            clock: world.home.path().join("clock"),
            child: Mutex::default(),
            mismatches: AtomicU64::new(0),
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(5))
                .build()
                .expect("an HTTP client"),
        };
        service.jump(0);
        service.spawn();
        service
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("not poisoned")
    }

    pub(crate) fn spawn(&self) {
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = command(&["serve", "--listen", &listen]);
        let log = match std::env::var_os("CAMPAIGN_LOG") {
            Some(_) => Stdio::inherit(),
            None => Stdio::null(),
        };
        command
            .args(["--poll-interval", "200ms", "--read-timeout", "3s"])
            .args(["--audit-cycle", "3s", "--audit-budget", "0.3"])
            .args(&self.more)
            .env("DATABASE_URL", &self.dsn)
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(library) = &self.library {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", &self.clock)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.mismatches.store(0, Ordering::Relaxed);
        *self.child() = Some(command.spawn().expect("the binary runs"));
    }

    /// Sets the service's clock to the real time plus this many seconds.
    pub(crate) fn jump(&self, seconds: i64) {
        fs::write(&self.clock, format!("{seconds:+}\n")).expect("the clock's file");
    }

    pub(crate) fn signal(&self, signal: &str) {
        if let Some(child) = &*self.child() {
            kill(signal, child.id());
        }
    }

    /// Kills the process, without a chance to clean up.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.child().as_mut()?.try_wait().ok()?
    }

    async fn audit_mismatches(&self) -> Option<u64> {
        let answer = self
            .http
            .get(format!("{}/v1/stats", self.base))
            .send()
            .await;
        let stats: Value = answer.ok()?.json().await.ok()?;
        stats["counters"]["audit_mismatches"].as_u64()
    }

    /// Accepts the differences that the audit has found so far.
    pub(crate) async fn excuse_audit(&self) {
        if let Some(found) = self.audit_mismatches().await {
            self.mismatches.store(found, Ordering::Relaxed);
        }
    }

    /// Fails if the audit found more differences than the campaign made.
    pub(crate) async fn check_audit(&self) -> Result<(), String> {
        let found = self.audit_mismatches().await.unwrap_or_default();
        let excused = self.mismatches.load(Ordering::Relaxed);
        if found > excused {
            return Err(format!(
                "the service's audit found {found} events that differ; the campaign made {excused} of them differ"
            ));
        }
        Ok(())
    }

    /// All events that the service holds. An error if it does not respond.
    pub(crate) async fn dump(&self) -> Result<Vec<Value>, String> {
        let url = format!("{}/v1/dump", self.base);
        let answer = self.http.get(url).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(answer.status().to_string());
        }
        let text = answer.text().await.map_err(|error| error.to_string())?;
        text.lines()
            .map(|line| serde_json::from_str(line).map(normal))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn kill(signal: &str, pid: u32) {
    // The shell's own `kill`, because there may be no other.
    let script = format!("kill {signal} {pid}");
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.is_ok(), "kill {signal} {pid}: {status:?}");
}

/// The path of libfaketime, in its version for processes with several threads.
fn faketime() -> Option<PathBuf> {
    let name = Path::new("faketime/libfaketimeMT.so.1");
    let direct = ["/usr/lib", "/usr/local/lib"].map(PathBuf::from);
    let by_machine = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut places = direct
        .into_iter()
        .chain(by_machine.map(|entry| entry.path()))
        .map(|directory| directory.join(name));
    let found = places.find(|path| path.is_file());
    if found.is_none() {
        missing("libfaketime for clock jumps", "apt-get install faketime");
    }
    found
}
