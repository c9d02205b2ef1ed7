//! A standby takes over. It may lack commits that the cache has shown.

use std::time::Instant;

use oddscache_testkit::{
    cluster::Cluster,
    connect, eventually,
    followed::{Followed, run},
    pgbouncer::PgBouncer,
    servers::replayed,
};
use tokio_postgres::Client;

use crate::{set_line, use_again};

/// A primary, its standby, and a connection string that names the standby first.
struct Pair {
    primary: Cluster,
    standby: Cluster,
}

impl Pair {
    fn new() -> Pair {
        let primary = Cluster::seeded(&[]);
        let standby = primary.standby(&[]);
        Pair { primary, standby }
    }

    fn dsn(&self, attributes: &str) -> String {
        format!(
            "host={},{} port={},{} user=postgres dbname=postgres target_session_attrs={attributes}",
            self.standby.socket_dir().display(),
            self.primary.socket_dir().display(),
            self.standby.port(),
            self.primary.port(),
        )
    }

    /// Stops replication. The standby lacks all later writes of the primary.
    async fn part(&self, primary: &Client) {
        let standby = connect(&self.standby.dsn("postgres")).await;
        replayed(primary, &standby).await;
        run(&standby, "alter system set primary_conninfo = ''").await;
        run(&standby, "select pg_reload_conf()").await;
        eventually("parted", async || {
            let sql = "select not exists (select from pg_stat_wal_receiver)";
            standby.query_one(sql, &[]).await.expect("a standby").get(0)
        })
        .await;
    }
}

/// Readers must not go on seeing commits that the promoted standby lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lagged_replaces_the_state() {
    let pair = Pair::new();
    let (dsn, app) = (pair.dsn("read-write"), pair.primary.dsn("postgres"));
    let mut followed = Followed::beside(&dsn, &app, |config| config).await;
    followed.live().await;
    let seed = followed.check("the primary, though it is named last").await;
    pair.part(&followed.app).await;
    let mut lost = Vec::new();
    for line in 1..10 {
        lost.push(set_line(&followed.app, 112, line).await);
    }
    let before = followed.check("what will be lost").await;
    assert_ne!(seed, before);
    pair.primary.kill();
    // The standby accepts connections, but no writes yet.
    followed.ages(&before, 1, Instant::now()).await;
    pair.standby.promote();
    followed.app = connect(&pair.standby.dsn("postgres")).await;
    use_again(&followed.app, &lost).await;
    let after = followed.check_epoch(2, "promoted").await;
    assert_ne!(before, after);
    assert_ne!(seed, after);
    // The first checkpoint writes the new timeline into the control file. That must not look like another history.
    followed.run("checkpoint").await;
    set_line(&followed.app, 222, 99).await;
    followed.check_epoch(2, "after a checkpoint").await;
}

/// A pooler hides the failover, so the follower must notice the other server by its answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_behind_a_pooler_replaces_the_state_without_a_lost_connection() {
    let pair = Pair::new();
    let Some(pooler) = PgBouncer::start(&pair.primary, &["pool_mode = transaction"]).await else {
        return;
    };
    let mut followed = Followed::beside(&pooler.dsn(), &pair.primary.dsn("postgres"), |c| c).await;
    let seed = followed.check("the seed").await;
    pair.part(&followed.app).await;
    let mut lost = Vec::new();
    for line in 1..10 {
        lost.push(set_line(&followed.app, 112, line).await);
    }
    assert_ne!(seed, followed.check("what will be lost").await);
    let failures = followed.cache.counters().failures;
    pooler.command("PAUSE").await;
    pair.primary.kill();
    pair.standby.promote();
    followed.app = connect(&pair.standby.dsn("postgres")).await;
    use_again(&followed.app, &lost).await;
    pooler.switch_to(&pair.standby).await;
    pooler.command("RESUME").await;
    let after = followed.check_epoch(2, "promoted").await;
    assert_ne!(seed, after);
    assert_eq!(followed.cache.counters().failures, failures);
}

/// `target_session_attrs` applies to the reading and to the listening connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_attributes_choose_the_server() {
    let pair = Pair::new();
    let choices = [
        ("any", &pair.standby),
        ("read-only", &pair.standby),
        ("read-write", &pair.primary),
    ];
    for (attributes, server) in choices {
        let name = attributes.replace('-', "_");
        let dsn = format!("{} application_name={name}", pair.dsn(attributes));
        let followed = Followed::beside(&dsn, &pair.primary.dsn("postgres"), |c| c).await;
        set_line(&followed.app, 112, name.len() as i32).await;
        followed.check(attributes).await;
        // The listening connection uses the same connection string.
        let sql =
            format!("select count(*) from pg_stat_activity where application_name = '{name}'");
        for candidate in [&pair.primary, &pair.standby] {
            let connections: u8 = candidate.sql(&sql).parse().expect("a number");
            let is_chosen = std::ptr::eq(candidate, server);
            assert_eq!(connections > 0, is_chosen, "{attributes}");
        }
    }
}
