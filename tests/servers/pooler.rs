//! PgBouncer between the cache and its server: in each pool mode, full, restarted, and with requests that it refuses.

use std::time::{Duration, Instant};

use oddscache::{Config, Error, OddsCache, Status};
use oddscache_testkit::{
    cluster::Cluster,
    connect, eventually,
    followed::{Followed, rarely, run},
    pgbouncer::PgBouncer,
};
use tokio_postgres::NoTls;

use crate::set_line;

/// Settings that other clients leave behind in a session, which PgBouncer then gives to the follower.
const LEFT_BEHIND: &str = "set search_path = nowhere; set default_transaction_isolation = 'serializable';
    set datestyle = 'German'; set intervalstyle = 'iso_8601'; set timezone = '<+09>-9'; set extra_float_digits = -15;
    set bytea_output = 'escape'; set standard_conforming_strings = off; set lock_timeout = '1 ms'; set row_security = off;
    set xmloption = 'document'; set default_transaction_deferrable = on; set enable_indexscan = off; set jit = on;
    deallocate all; prepare oracle as select 1; listen elsewhere";

/// Checks that the cache stays correct by polling, whatever other clients leave behind.
async fn polled(settings: &[&str]) {
    let cluster = Cluster::seeded(&[]);
    let settings = [&["pool_mode = transaction"], settings].concat();
    let Some(pooler) = PgBouncer::start(&cluster, &settings).await else {
        return;
    };
    let followed = Followed::beside(&pooler.dsn(), &cluster.dsn("postgres"), |c| c).await;
    let mut others = Vec::new();
    for line in 1..10 {
        let other = connect(&pooler.dsn()).await;
        run(&other, LEFT_BEHIND).await;
        others.push(other);
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        followed.changes(&sql).await;
        let status = followed.cache.status();
        assert!(matches!(status, Status::PollingOnly { .. }), "{status}");
    }
    // LISTEN succeeds, but no notification ever arrives.
    followed.polling(&Error::Pooled.to_string()).await;
    let counters = followed.cache.counters();
    assert_eq!((counters.failures, counters.reloads), (0, 1));
    assert_eq!(followed.epoch(), 1);
}

/// In transaction mode notifications do not arrive, so the follower must poll.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_mode_is_polled_and_the_status_says_why() {
    // All clients share one session. So the follower gets all that the others leave behind.
    polled(&["default_pool_size = 1"]).await;
}

/// With a reset query the pooler drops LISTEN after each transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_mode_with_a_reset_query_is_polled_too() {
    polled(&["default_pool_size = 3", "server_reset_query_always = 1"]).await;
}

/// In session mode notifications arrive. The follower goes on after a restart of the pooler. A restart of the server
/// begins a new epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_mode_is_live_until_pooler_or_server_restart() {
    let cluster = Cluster::seeded(&[]);
    let Some(mut pooler) = PgBouncer::start(&cluster, &["pool_mode = session"]).await else {
        return;
    };
    // Only a notification can bring a change in time.
    let app = cluster.dsn("postgres");
    let mut followed = Followed::beside(&pooler.dsn(), &app, rarely).await;
    let mut before = followed.check("the seed").await;
    for (round, epoch) in [(1, 1), (2, 1), (3, 2)] {
        followed.live().await;
        set_line(&followed.app, 112, round).await;
        let after = followed.check("by notification").await;
        assert_ne!(before, after);
        before = after;
        assert_eq!(followed.epoch(), epoch);
        match round {
            1 => {
                pooler.stop();
                followed.ages(&before, epoch, Instant::now()).await;
                pooler.boot().await;
            }
            2 => {
                cluster.stop("immediate").expect("stops");
                followed.ages(&before, epoch, Instant::now()).await;
                cluster.boot().expect("starts");
                followed.app = connect(&cluster.dsn("postgres")).await;
            }
            _ => return,
        }
        set_line(&followed.app, 222, round).await;
        let epoch = if round == 1 { 1 } else { 2 };
        before = followed.check_epoch(epoch, "after a restart").await;
        assert_eq!(followed.cache.counters().resumed, 1);
    }
}

/// While the pooler has no session for it, the follower cannot read, and the age of the view says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pooler_makes_the_view_old_but_never_wrong() {
    let cluster = Cluster::seeded(&[]);
    let settings = [
        "pool_mode = transaction",
        "default_pool_size = 1",
        "query_wait_timeout = 1",
    ];
    let Some(pooler) = PgBouncer::start(&cluster, &settings).await else {
        return;
    };
    let followed = Followed::beside(&pooler.dsn(), &cluster.dsn("postgres"), |c| c).await;
    let before = followed.check("the seed").await;
    let greedy = connect(&pooler.dsn()).await;
    run(&greedy, "begin; select 1").await;
    let gone = Instant::now();
    set_line(&followed.app, 112, 7).await;
    let is_it = |error: &Error| error.to_string().contains("query_wait_timeout");
    followed.disconnected_by(is_it).await;
    followed.ages(&before, 1, gone).await;
    run(&greedy, "commit").await;
    assert_ne!(followed.check("room again").await, before);
    assert_eq!((followed.reloads(), followed.epoch()), (1, 1));
}

/// The error with which a follower ends before it is warm.
async fn refused(dsn: &str) -> Error {
    let (cache, follower) = OddsCache::connect(Config::new(dsn).expect("dsn"));
    let follower = tokio::spawn(follower.run());
    let ready = tokio::time::timeout(Duration::from_secs(30), cache.ready()).await;
    let error = match ready {
        Ok(ready) => ready.expect_err("refused"),
        Err(_) => panic!("waits for ever: {}", cache.status()),
    };
    follower.await.expect("no panic").expect_err("refused");
    error
}

/// Statement mode, an unknown parameter and an unknown user are errors that waiting does not fix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_what_a_pooler_refuses() {
    let cluster = Cluster::seeded(&[]);
    let Some(pooler) = PgBouncer::start(&cluster, &["pool_mode = statement"]).await else {
        return;
    };
    let dsn = pooler.dsn();
    let geqo = format!("{dsn} options='-c geqo=off'");
    let nobody = dsn.replace("user=postgres", "user=nobody");
    for (dsn, words) in [
        (&dsn, &["statement", "pool_mode"][..]),
        (&geqo, &["unsupported startup parameter: options"]),
        (&nobody, &["authentication failed"]),
    ] {
        let error = refused(dsn).await.to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    }
}

/// A pooler reports a missing server as an error of its own. Waiting fixes that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_waits_for_a_server_that_is_away_behind_a_pooler() {
    let cluster = Cluster::seeded(&[]);
    for known in [false, true] {
        let Some(pooler) = PgBouncer::start(&cluster, &["pool_mode = transaction"]).await else {
            return;
        };
        if known {
            // A pooler that has reached the server before accepts clients while the server is away.
            run(&connect(&pooler.dsn()).await, "select 1").await;
        }
        cluster.stop("fast").expect("stops");
        let dsn = format!("{} connect_timeout=1", pooler.dsn());
        let config = Config::new(&dsn)
            .expect("dsn")
            .read_timeout(Duration::from_secs(1));
        let (cache, follower) = OddsCache::connect(config);
        let follower = tokio::spawn(follower.run());
        eventually("tried", async || cache.counters().failures >= 2).await;
        let status = cache.status();
        assert!(matches!(status, Status::Disconnected { .. }), "{status}");
        println!("{status}");
        cluster.boot().expect("starts");
        cache.ready().await.expect("warm");
        follower.abort();
    }
}

/// A pooler without room refuses the login. Waiting fixes that, unlike a wrong password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_waits_for_a_pooler_with_too_many_clients() {
    let cluster = Cluster::seeded(&[]);
    let settings = ["pool_mode = transaction", "max_client_conn = 1"];
    let Some(pooler) = PgBouncer::start(&cluster, &settings).await else {
        return;
    };
    let mut only = None;
    // The connection that tested whether the pooler runs may still count for a moment.
    eventually("the only client", async || {
        only = tokio_postgres::connect(&pooler.dsn(), NoTls).await.ok();
        only.is_some()
    })
    .await;
    let (cache, follower) = OddsCache::connect(Config::new(&pooler.dsn()).expect("dsn"));
    let follower = tokio::spawn(follower.run());
    eventually("the reason", async || {
        assert!(!follower.is_finished(), "{}", cache.status());
        cache.status().to_string().contains("max_client_conn")
    })
    .await;
    drop(only);
    cache.ready().await.expect("warm");
    follower.abort();
}
