//! A real Prometheus scrapes real services, with the files of `examples/deploy`, while things go wrong. Exactly those
//! alerts fire that should, each at the service that it is about, and they end after the repair.
//!
//! One service of its own stands for each incident, so all incidents run at once.
//!
//! **Durations are shortened.** The rules wait for minutes and look back for hours. [`shortened`] replaces each duration
//! of the files by a twentieth of it, and by at most ten seconds. Nothing else of an expression changes: no metric, no
//! label, no bound. The audit of the services runs more often for the same reason.
//!
//! `cargo test --test service -- --nocapture prometheus::` prints the table that `examples/deploy/README.md` has.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    io::{PipeReader, Read, pipe},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use oddscache_testkit::{
    Database, cases, cluster,
    cluster::Cluster,
    eventually,
    programs::optional,
    prometheus::Prometheus,
    servers::timeless,
    service::{SERVE, Service, command},
};
use serde_json::Value;
use tokio::{net::TcpStream, process::Child};

use super::{own_cluster, with_odds};

/// The short name of each incident, what goes wrong, and the alerts that must fire because of it.
const INCIDENTS: &str = "
    quiet => nothing: an application writes =>
    stopped => the database is stopped; a reader asks for fresh odds => Disconnected Stale HttpErrors AuditStuck
    killed => the service is killed => Down
    degraded => a trigger is disabled => Degraded ErrorsLogged
    polling => an application writes with notifications off => PollingOnly
    malformed => an application writes outcomes that are no list => MalformedRows
    bypassed => a row changes past the triggers => AuditMismatch ErrorsLogged
    unpruned => nobody prunes the log, and much is written => LogNotPruned
    reloading => somebody calls resync() again and again => Reloads
    put_back => the machine of the database is put back to an earlier state => WentBack
    crowded => clients open more connections than fit => HttpTurnedAway
    unread => nobody reads standard error => LogDropped
";

/// What all these services share: an audit that also ends its passes within the shortened ranges.
const AUDIT: [&str; 4] = ["--audit-cycle", "1s", "--audit-budget", "0.2"];

fn deployed(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy");
    fs::read_to_string(folder.join(name)).expect(name)
}

/// The same text with shorter durations: a twentieth, and at most ten seconds. Durations are what follows `for:`,
/// `offset`, an opening bracket or the intervals of `prometheus.yml`.
fn shortened(text: &str) -> String {
    let mut text = text.to_owned();
    for before in ["for: ", "offset ", "[", "_interval: "] {
        let mut parts = text.split(before);
        let mut done = parts.next().expect("a part").to_owned();
        for part in parts {
            let end = part.find(|letter: char| !letter.is_ascii_alphanumeric());
            let (word, rest) = part.split_at(end.unwrap_or(part.len()));
            done.push_str(before);
            match milliseconds(word) {
                Some(long) => done.push_str(&format!("{}ms", (long / 20).min(10_000))),
                None => done.push_str(word),
            }
            done.push_str(rest);
        }
        text = done;
    }
    text
}

/// A duration with one unit, as the files have them.
fn milliseconds(word: &str) -> Option<u64> {
    let (number, unit) = word.split_at_checked(word.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * unit)
}

#[test]
fn only_durations_are_shortened() {
    for [long, short] in cases(
        "for: 1m => for: 3000ms
         (increase(x_total{a=\"5m\"}[30m]) > 5 => (increase(x_total{a=\"5m\"}[10000ms]) > 5
         avg_over_time(x[1d] offset 1d) + 50e6 => avg_over_time(x[10000ms] offset 10000ms) + 50e6
         scrape_interval: 10s => scrape_interval: 500ms
         For 30 minutes [see] => For 30 minutes [see]",
    ) {
        assert_eq!(shortened(long), short);
    }
    let alerts = deployed("alerts.yml");
    let ranges = alerts.matches("ms]").count() + alerts.matches(": 1m\n").count();
    assert!(ranges > 0 && shortened(&alerts).matches("ms").count() > ranges);
}

/// The services with what they read, by the short names of [`INCIDENTS`].
struct Scene {
    databases: BTreeMap<&'static str, Database>,
    clusters: BTreeMap<&'static str, Cluster>,
    services: BTreeMap<&'static str, Service>,
    /// Where Prometheus scrapes each of them: its label `instance`.
    instances: BTreeMap<&'static str, String>,
    /// Open connections to the service `crowded`.
    crowd: VecDeque<TcpStream>,
    unread: Unread,
}

impl Scene {
    async fn new() -> Scene {
        let mut scene = Scene {
            databases: BTreeMap::new(),
            clusters: BTreeMap::new(),
            services: BTreeMap::new(),
            instances: BTreeMap::new(),
            crowd: VecDeque::new(),
            unread: Unread::start().await,
        };
        let address = scene.unread.address.clone();
        scene.instances.insert("unread", address);
        for name in ["stopped", "put_back"] {
            let cluster = own_cluster();
            if name == "put_back" {
                timeless(&cluster);
            }
            let service = Service::start(&cluster.dsn("postgres"), &AUDIT).await;
            scene.serve(name, service);
            scene.clusters.insert(name, cluster);
        }
        for name in [
            "quiet",
            "killed",
            "degraded",
            "polling",
            "malformed",
            "bypassed",
            "unpruned",
            "reloading",
        ] {
            let database = with_odds();
            let dsn = match name {
                // By default the role of `oddscache sql grants` may not prune.
                "unpruned" => cluster().dsn_as(&database.reader(), &database.name),
                _ => database.dsn(),
            };
            let service = Service::start(&dsn, &AUDIT).await;
            scene.serve(name, service);
            scene.databases.insert(name, database);
        }
        let database = with_odds();
        let few = ["--most-connections", "2", "--admin-listen", "127.0.0.1:0"];
        let mut serve = command(&[&SERVE[..], &AUDIT, &few].concat());
        serve.env("DATABASE_URL", database.dsn());
        let (service, operators) = Service::spawn_with_admin(serve).await;
        for service in scene.services.values() {
            service.ready().await;
        }
        operators.ready().await;
        scene.serve("crowded", service);
        let address = operators.base.trim_start_matches("http://").to_owned();
        scene.instances.insert("crowded", address);
        scene.databases.insert("crowded", database);
        scene
    }

    fn serve(&mut self, name: &'static str, service: Service) {
        let address = service.address().to_string();
        self.instances.insert(name, address);
        self.services.insert(name, service);
    }

    fn psql(&self, name: &str, sql: &str) {
        self.databases[name].psql(sql);
    }

    /// Each incident begins.
    async fn begin(&mut self) {
        self.unread.stop();
        self.clusters["stopped"].stop("fast").expect("stops");
        let cluster = &self.clusters["put_back"];
        cluster.stop("fast").expect("stops");
        let backup = cluster.backup("backup");
        cluster.boot().expect("starts");
        for _ in 0..20 {
            cluster.sql("update events set name = 'lost' where id = 1");
        }
        let service = &self.services["put_back"];
        eventually("it shows what will be lost", async || {
            service.json("/v1/events/1").await["name"] == "lost"
        })
        .await;
        cluster.stop("fast").expect("stops");
        cluster.replace_data(&backup);
        cluster.boot().expect("starts");

        let killed = self.services.get_mut("killed").expect("served");
        killed.signal("-KILL");
        killed.ended().await;
        for [name, sql] in cases(
            r#"degraded => alter table events disable trigger oddscache_update
            polling => begin; set local oddscache.notify = off; update events set name = 'x' where id = 1; commit
            malformed => update market_odds set outcomes = '{"1": 2.5}' where id = 1
            bypassed => begin; update market_odds set line = 9 where id = 1; delete from oddscache.change_log; commit"#,
        ) {
            self.psql(name, sql);
        }
    }

    /// A part of those incidents that last only while something happens again and again.
    async fn go_on(&mut self) {
        let (status, _) = self.services["stopped"].get("/v1/events?max_age=1s").await;
        assert!([200, 503].contains(&status), "{status}");
        for [name, sql] in cases(
            "quiet => update odds_snapshots set last_confirmed_at = now() where id = 1
            unpruned => do $$ begin for n in 1 .. 500 loop update events set name = n where id = 1; commit; end loop; end $$
            reloading => select oddscache.resync('again')",
        ) {
            self.psql(name, sql);
        }
        let open = TcpStream::connect(self.services["crowded"].address()).await;
        self.crowd.push_back(open.expect("connects"));
        self.crowd.truncate(9);
    }

    /// Mostly what the annotations of the alerts tell operators to do.
    async fn repair(&mut self) {
        self.crowd.clear();
        self.unread.read();
        self.clusters["stopped"].boot().expect("starts");
        for [name, sql] in cases(
            "degraded => alter table events enable always trigger oddscache_update
            polling => update events set name = 'y' where id = 1
            malformed => update market_odds set outcomes = '[]' where id = 1
            unpruned => select oddscache.prune('0')",
        ) {
            self.psql(name, sql);
        }
        let address = &self.instances["killed"];
        let flags = ["serve", "--listen", address, "--log-format", "json"];
        let mut serve = command(&[&flags[..], &AUDIT].concat());
        serve.env("DATABASE_URL", self.databases["killed"].dsn());
        let service = Service::spawn(serve).await;
        self.serve("killed", service);
    }
}

/// A service that logs everything. While nobody reads, its queue soon overflows.
struct Unread {
    address: String,
    log: Arc<PipeReader>,
    is_read: Arc<AtomicBool>,
    _process: Child,
    _database: Database,
}

impl Unread {
    async fn start() -> Unread {
        let database = with_odds();
        // Choose the port here, because the log is not looked at.
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let (log, errors) = pipe().expect("a pipe");
        let mut serve = command(&["serve", "--listen", &address, "--log", "trace"]);
        serve.args(["--log-repeats", "0", "--poll-interval", "10ms"]);
        serve.args(AUDIT).env("DATABASE_URL", database.dsn());
        let mut serve = tokio::process::Command::from(serve);
        let process = serve.stderr(errors).kill_on_drop(true).spawn();
        let unread = Unread {
            address,
            log: Arc::new(log),
            is_read: Arc::default(),
            _process: process.expect("the binary runs"),
            _database: database,
        };
        unread.read();
        eventually("ready", async || {
            let answer = reqwest::get(format!("http://{}/readyz", unread.address)).await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        unread
    }

    /// Reads the log, until [`Unread::stop`].
    fn read(&self) {
        let (log, is_read) = (self.log.clone(), self.is_read.clone());
        is_read.store(true, Ordering::Relaxed);
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while is_read.load(Ordering::Relaxed)
                && (&*log).read(&mut buffer).is_ok_and(|count| count > 0)
            {}
        });
    }

    fn stop(&self) {
        self.is_read.store(false, Ordering::Relaxed);
    }
}

/// The instances and alerts of the series of an expression.
async fn alerts(prometheus: &Prometheus, expression: &str) -> BTreeSet<(String, String)> {
    let text = |series: &Value, label: &str| {
        series["metric"][label]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let found = prometheus.query(expression).await;
    let found = found.iter();
    found
        .map(|series| (text(series, "instance"), text(series, "alertname")))
        .collect()
}

/// The alerts that fired at any time since Prometheus began.
const FIRED: &str = "max_over_time(ALERTS{alertstate=\"firing\"}[1h])";

async fn now(prometheus: &Prometheus) -> f64 {
    let data = prometheus.api("query", &[("query", "time()")]).await;
    data["result"][0].as_f64().expect("a time")
}

/// An alert that stays silent hides an incident. One that fires without reason is soon ignored.
#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_alerts_of_an_incident_fire_and_end_with_it() {
    if optional(&["prometheus"], "prometheus").is_none() {
        return;
    }
    let mut scene = Scene::new().await;
    let expected: BTreeSet<_> = cases(INCIDENTS)
        .iter()
        .flat_map(|[name, _, alerts]| alerts.split_whitespace().map(|alert| (*name, alert)))
        .map(|(name, alert)| (scene.instances[name].clone(), format!("Oddscache{alert}")))
        .collect();
    let prometheus = started(&scene).await;

    let services = scene.instances.len();
    // A counter must have been scraped before it grows, or Prometheus sees no growth.
    let scraped = format!("count(count_over_time(oddscache_warm[1m]) > 2) == {services}");
    eventually("every service is scraped", async || {
        !prometheus.query(&scraped).await.is_empty()
    })
    .await;
    let early = alerts(&prometheus, FIRED).await;
    assert!(early.is_empty(), "before the incidents: {early:?}");

    let begun = now(&prometheus).await;
    scene.begin().await;
    let mut lacking = expected.clone();
    let mut polls = 0;
    while !lacking.is_empty() {
        polls += 1;
        scene.go_on().await;
        let fired = alerts(&prometheus, FIRED).await;
        lacking.retain(|alert| !fired.contains(alert));
        assert!(
            now(&prometheus).await < begun + 120.0,
            "these did not fire: {lacking:?}, {:?}",
            scene.instances
        );
    }
    let _ = polls;

    let repaired = now(&prometheus).await;
    scene.repair().await;
    eventually("no alert fires any more", async || {
        alerts(&prometheus, "ALERTS{alertstate=\"firing\"}")
            .await
            .is_empty()
    })
    .await;
    let fired = alerts(&prometheus, FIRED).await;
    let wrong: Vec<_> = fired.difference(&expected).collect();
    assert!(
        wrong.is_empty(),
        "these must not fire: {wrong:?}, {:?}",
        scene.instances
    );
    println!(
        "{} s until all fired, {} s until none",
        repaired - begun,
        now(&prometheus).await - repaired
    );
}

/// Prometheus with the deployed files, which scrapes all services of the scene.
async fn started(scene: &Scene) -> Prometheus {
    let targets: Vec<_> = scene.instances.values().collect();
    let deployed_target = r#"["127.0.0.1:7979"]"#;
    let configuration = deployed("prometheus.yml");
    assert_eq!(configuration.matches(deployed_target).count(), 1);
    let configuration = configuration.replace(deployed_target, &format!("{targets:?}"));
    let rules = shortened(&deployed("alerts.yml"));
    let files = [("alerts.yml", &*rules)];
    let started = Prometheus::start(&shortened(&configuration), &files).await;
    started.expect("it is installed")
}
