//! The services, one for each incident, and what happens to them.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{PipeReader, Read, pipe},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use oddscache_testkit::{
    Database, cases, cluster,
    cluster::Cluster,
    eventually,
    service::{SERVE, Service, command},
};
use tokio::{net::TcpStream, process::Child};

use super::super::{own_cluster, with_odds};

/// What all these services share: an audit that also ends its passes within the shortened ranges.
const AUDIT: [&str; 4] = ["--audit-cycle", "1s", "--audit-budget", "0.2"];

/// The services with what they read, by the short names of [`INCIDENTS`](super::INCIDENTS).
pub(super) struct Scene {
    databases: BTreeMap<&'static str, Database>,
    clusters: BTreeMap<&'static str, Cluster>,
    services: BTreeMap<&'static str, Service>,
    /// Where Prometheus scrapes each of them: its label `instance`.
    pub(super) instances: BTreeMap<&'static str, String>,
    /// Open connections to the service `crowded`.
    crowd: VecDeque<TcpStream>,
    unread: Unread,
}

impl Scene {
    pub(super) async fn new() -> Scene {
        // They take seconds to create, so this goes on beside the rest.
        let clusters = ["stopped", "restored"].map(|name| (name, thread::spawn(own_cluster)));
        // Four of them may read the same.
        let shared = with_odds();
        let mut scene = Scene {
            databases: BTreeMap::new(),
            clusters: BTreeMap::new(),
            services: BTreeMap::new(),
            instances: BTreeMap::new(),
            crowd: VecDeque::new(),
            unread: Unread::start(&shared).await,
        };
        let address = scene.unread.address.clone();
        scene.instances.insert("unread", address);
        for (name, cluster) in clusters {
            let cluster = cluster.join().expect("a cluster");
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
            let database = match name {
                "quiet" | "killed" => shared.clone(),
                _ => with_odds(),
            };
            let dsn = match name {
                // By default the role of `oddscache sql grants` may not prune.
                "unpruned" => cluster().dsn_as(&database.reader(), &database.name),
                _ => database.dsn(),
            };
            let service = Service::start(&dsn, &AUDIT).await;
            scene.serve(name, service);
            scene.databases.insert(name, database);
        }
        let few = ["--most-connections", "2", "--admin-listen", "127.0.0.1:0"];
        let mut serve = command(&[&SERVE[..], &AUDIT, &few].concat());
        serve.env("DATABASE_URL", shared.dsn());
        let (service, operators) = Service::spawn_with_admin(serve).await;
        for service in scene.services.values() {
            service.ready().await;
        }
        operators.ready().await;
        scene.serve("crowded", service);
        let address = operators.base.trim_start_matches("http://").to_owned();
        scene.instances.insert("crowded", address);
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
    pub(super) async fn begin(&mut self) {
        self.unread.stop();
        self.clusters["stopped"].stop("fast").expect("stops");
        let cluster = &self.clusters["restored"];
        cluster.stop("fast").expect("stops");
        let backup = cluster.backup("backup");
        cluster.boot().expect("starts");
        for _ in 0..20 {
            cluster.sql("update events set name = 'lost' where id = 1");
        }
        let service = &self.services["restored"];
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
    pub(super) async fn go_on(&mut self) {
        let (status, _) = self.services["stopped"].get("/v1/events?max_age=1s").await;
        assert!([200, 503].contains(&status), "{status}");
        for [name, sql] in cases(
            "quiet => update market_odds set line = coalesce(line, 0) + 1 where snapshot_id = 1
            unpruned => do $$ begin for n in 1 .. 500 loop update events set name = n where id = 1; commit; end loop; end $$
            reloading => select oddscache.resync('again')",
        ) {
            self.psql(name, sql);
        }
        let open = TcpStream::connect(self.services["crowded"].address()).await;
        self.crowd.push_back(open.expect("connects"));
        if self.crowd.len() > 9 {
            self.crowd.pop_front();
        }
    }

    /// Mostly what the annotations of the alerts tell operators to do.
    pub(super) async fn repair(&mut self) {
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
}

impl Unread {
    async fn start(database: &Database) -> Unread {
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
        thread::spawn(move || {
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
