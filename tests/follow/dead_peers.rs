//! Connections that look alive but are dead. At the default settings the follower notices within 15 s, and meanwhile
//! the age of the view is true.

use std::time::{Duration, Instant};

use oddscache::{Config, Error, OddsCache, Status};
use oddscache_testkit::{
    Database, cluster, connect, dump, eventually,
    followed::{Followed, run},
    proxy::{Notices, Proxy, Way, Whose},
};
use tokio::task::JoinHandle;

/// The documented bound, and the additional time that a busy machine may need.
const PROMISE: Duration = Duration::from_secs(15);
const SLACK: Duration = Duration::from_secs(15);

/// A cache that follows through a proxy, at the default settings. The application connects without the proxy.
async fn behind_a_proxy(database: &Database) -> (Followed, Proxy) {
    let socket = cluster().socket_dir();
    let proxy = Proxy::start(socket.join(format!(".s.PGSQL.{}", cluster().port()))).await;
    let (port, name) = (proxy.address.port(), &database.name);
    let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname={name} sslmode=disable");
    let app = connect(&database.dsn()).await;
    let (cache, follower) = OddsCache::connect(Config::new(&dsn).expect("dsn"));
    let follower: JoinHandle<_> = tokio::spawn(follower.run());
    cache.ready().await.expect("warm");
    let followed = Followed {
        cache,
        app,
        follower,
    };
    eventually("live", async || followed.cache.status() == Status::Live).await;
    (followed, proxy)
}

/// Every byte of every connection vanishes, as behind a firewall that has lost their state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_noticed_and_the_age_counts_from_its_beginning() {
    let database = Database::seeded();
    let (followed, proxy) = behind_a_proxy(&database).await;
    let before = followed.check("the seed").await;
    proxy.set(|setting| (setting.up, setting.down) = (Way::BlackHole, Way::BlackHole));
    let begun = Instant::now();
    // The follower cannot see this commit.
    run(&followed.app, "delete from odds_snapshots where id = 112").await;
    let committed = Instant::now();
    eventually("noticed", async || {
        let view = followed.cache.view();
        let since = committed.elapsed();
        // A view that does not show the commit must be at least as old as the commit.
        assert!(
            dump(&view) != before || view.age() >= since,
            "{:?}",
            view.age()
        );
        matches!(followed.cache.status(), Status::Disconnected { .. })
    })
    .await;
    assert!(begun.elapsed() < PROMISE + SLACK, "{:?}", begun.elapsed());
    let error = followed
        .cache
        .view_within(Duration::from_secs(2))
        .map(|_| ());
    assert!(matches!(error, Err(Error::TooStale { .. })), "{error:?}");
    proxy.heal();
    assert_ne!(before, followed.check("found again").await);
    assert!(followed.cache.view().epoch() > 1);
}

/// The follower's queries reach the server, but the answers do not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed() {
    let database = Database::seeded();
    let (followed, proxy) = behind_a_proxy(&database).await;
    let before = followed.check("the seed").await;
    proxy.set(|setting| setting.down = Way::BlackHole);
    let begun = Instant::now();
    eventually("noticed", async || {
        matches!(followed.cache.status(), Status::Disconnected { .. })
    })
    .await;
    assert!(begun.elapsed() < PROMISE + SLACK, "{:?}", begun.elapsed());
    run(&followed.app, "delete from odds_snapshots where id = 112").await;
    proxy.heal();
    assert_ne!(before, followed.check("found again").await);
}

/// Only the listening connection dies. The follower sees changes by polling, and listens again by itself.
async fn polls_without_a_listener(kill: impl FnOnce(&Proxy)) {
    let database = Database::seeded();
    let (followed, proxy) = behind_a_proxy(&database).await;
    let before = followed.check("the seed").await;
    kill(&proxy);
    let begun = Instant::now();
    eventually("noticed", async || {
        matches!(followed.cache.status(), Status::PollingOnly { .. })
    })
    .await;
    assert!(begun.elapsed() < PROMISE + SLACK, "{:?}", begun.elapsed());
    run(&followed.app, "delete from odds_snapshots where id = 112").await;
    assert_ne!(before, followed.check("polled").await);
    proxy.heal();
    eventually("live again", async || {
        followed.cache.status() == Status::Live
    })
    .await;
    let counters = followed.cache.counters();
    assert_eq!((counters.reloads, followed.cache.view().epoch()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_in_a_black_hole_is_noticed() {
    polls_without_a_listener(|proxy| {
        proxy.set(|setting| {
            setting.whose = Whose::Listeners;
            (setting.up, setting.down) = (Way::BlackHole, Way::BlackHole);
        });
    })
    .await;
}

/// The connection works; only the notifications are lost on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_notifications_are_noticed() {
    polls_without_a_listener(|proxy| proxy.set(|setting| setting.notices = Notices::Drop)).await;
}
