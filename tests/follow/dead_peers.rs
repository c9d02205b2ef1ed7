//! Connections that look alive but are dead. At the default settings the follower notices within 15 s, and until then
//! the age of the view is true.

use std::time::{Duration, Instant};

use oddscache::{Config, Error, Status};
use oddscache_testkit::{
    Database, cluster, dump, eventually,
    followed::Followed,
    proxy::{Notices, Proxy, Way},
};

/// The documented bound, and the additional time that a busy machine may need.
const PROMISE: Duration = Duration::from_secs(15);
const SLACK: Duration = Duration::from_secs(15);

fn dsn(proxy: &Proxy, database: &Database) -> String {
    let (port, name) = (proxy.address.port(), &database.name);
    format!("host=127.0.0.1 port={port} user=postgres dbname={name} sslmode=disable")
}

/// A cache that follows through a proxy, at the default settings. The application connects without the proxy.
async fn behind_a_proxy(database: &Database) -> (Followed, Proxy) {
    let proxy = Proxy::before(cluster()).await;
    let config = Config::new(&dsn(&proxy, database)).expect("dsn");
    let followed = Followed::start(config, &database.dsn()).await;
    followed.live().await;
    (followed, proxy)
}

/// Every byte of every connection is lost, as behind a firewall that has forgotten the connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_noticed_and_the_age_counts_from_its_beginning() {
    let database = Database::seeded();
    let (followed, proxy) = behind_a_proxy(&database).await;
    let before = followed.check("the seed").await;
    proxy.set(|setting| (setting.up, setting.down) = (Way::BlackHole, Way::BlackHole));
    let begun = Instant::now();
    // The follower cannot see this commit.
    followed.delete(112).await;
    let committed = Instant::now();
    eventually("noticed", async || {
        let view = followed.cache.view();
        let since = committed.elapsed();
        // A view that does not show the commit must be at least as old as the commit.
        let age = view.age();
        assert!(dump(&view) != before || age >= since, "{age:?}");
        matches!(followed.cache.status(), Status::Disconnected { .. })
    })
    .await;
    assert!(begun.elapsed() < PROMISE + SLACK, "{:?}", begun.elapsed());
    let view = followed.cache.view_within(Duration::from_secs(2));
    let error = view.expect_err("too stale");
    assert!(matches!(error, Error::TooStale { .. }), "{error:?}");
    proxy.heal();
    assert_ne!(before, followed.check("found again").await);
    let counters = followed.cache.counters();
    let found = (counters.resumed, counters.reloads, followed.epoch());
    assert_eq!(found, (1, 1, 1));
}

/// The follower's queries reach the server, but the answers do not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed() {
    let database = Database::seeded();
    let (followed, proxy) = behind_a_proxy(&database).await;
    let before = followed.check("the seed").await;
    proxy.set(|setting| setting.down = Way::BlackHole);
    let begun = Instant::now();
    followed.disconnected().await;
    assert!(begun.elapsed() < PROMISE + SLACK, "{:?}", begun.elapsed());
    followed.delete(112).await;
    proxy.heal();
    assert_ne!(before, followed.check("found again").await);
}

/// Notifications are lost. A poll finds that out at the next change, and the follower listens again by itself.
async fn lost_notifications(followed: &Followed, proxy: &Proxy) {
    let began = Instant::now();
    followed
        .changes("delete from odds_snapshots where id = 112")
        .await;
    followed.polling("did not arrive").await;
    assert!(began.elapsed() < PROMISE + SLACK, "{:?}", began.elapsed());
    proxy.heal();
    eventually("live again", async || {
        followed.delete(222).await;
        followed
            .run("insert into odds_snapshots (id, event_id, bookmaker_id) values (222, 2, 2)")
            .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        followed.cache.status() == Status::Live
    })
    .await;
    let counters = followed.cache.counters();
    assert_eq!((counters.reloads, followed.epoch()), (1, 1));
}

/// A listening connection of its own dies silently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_in_a_black_hole_is_noticed() {
    let database = Database::seeded();
    let proxy = Proxy::before(cluster()).await;
    let listen = Config::new(&dsn(&proxy, &database)).expect("dsn");
    let config = Config::new(&database.dsn()).expect("dsn");
    let followed = Followed::start(config.listen_from(listen), &database.dsn()).await;
    followed.live().await;
    proxy.set(|setting| (setting.up, setting.down) = (Way::BlackHole, Way::BlackHole));
    lost_notifications(&followed, &proxy).await;
}

/// The connection works, but every notification is lost on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_notifications_are_noticed() {
    let database = Database::seeded();
    let (followed, proxy) = behind_a_proxy(&database).await;
    proxy.set(|setting| setting.notices = Notices::Drop);
    lost_notifications(&followed, &proxy).await;
}
