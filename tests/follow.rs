//! The followed cache equals the oracle after warmup and after every kind of change.

mod common;

use std::time::Duration;

use common::{Database, assert_same, connect, dump, eventually, oracle};
use oddscache::{Config, OddsCache, Status};
use tokio_postgres::Client;

/// A followed cache beside a connection that plays the application.
struct Followed {
    cache: OddsCache,
    app: Client,
    follower: tokio::task::JoinHandle<Result<(), oddscache::Error>>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Followed {
    async fn new(database: &Database) -> Followed {
        let app = connect(&database.dsn()).await;
        Followed::with(database, app, |config| config).await
    }

    async fn with(
        database: &Database,
        app: Client,
        change: impl FnOnce(Config) -> Config,
    ) -> Followed {
        let config = Config::new(&database.dsn()).expect("dsn");
        let (cache, follower) = OddsCache::connect(change(config));
        let follower = tokio::spawn(follower.run());
        cache.ready().await.expect("warm");
        Followed {
            cache,
            app,
            follower,
        }
    }

    async fn run(&self, sql: &str) {
        self.app
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until the view shows what was committed before, and compares it with the oracle.
    async fn check(&self, what: &str) {
        let row = self
            .app
            .query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[])
            .await
            .expect("xmax");
        let xmax: u64 = row.get::<_, String>(0).parse().expect("xid8");
        eventually(what, async || {
            let snapshot = self.cache.view().cut().snapshot.clone();
            let seen = snapshot
                .split(':')
                .nth(1)
                .and_then(|xmax| xmax.parse::<u64>().ok());
            seen >= Some(xmax)
        })
        .await;
        let view = self.cache.view();
        let expected = oracle(&self.app, view.cut().window_start).await;
        assert_same(&dump(&view), &expected, what);
    }
}

const TWO_EVENTS: &str = r#"
    insert into bookmakers (id, name, slug) values (1, 'betpawa', 'betpawa');
"#;

#[tokio::test]
async fn a_change_arrives() {
    let database = Database::with_feed();
    let followed = Followed::new(&database).await;
    followed.run(TWO_EVENTS).await;
    followed.check("nothing").await;
    assert_eq!(followed.cache.status(), Status::Live);
    let _ = Duration::ZERO;
}
