//! Random sequences of the application's writes, each followed by a comparison of the cache with the oracle.
//!
//! `PROPTEST_CASES` (64) is the number of cases. proptest shrinks a failing case, and the test prints it as SQL.

use std::{cell::RefCell, time::Duration};

use oddscache::Changes;
use oddscache_testkit::{
    Database, connect,
    followed::{Followed, run},
    replica::Replica,
    writes::{self, Case, Ids, Step, Transaction, execute},
};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::Value;
use tokio::time::timeout;
use tokio_postgres::Client;

/// After any sequence of writes the cache equals an independent query, and a replica fed by changes equals the cache.
#[test]
fn the_cache_equals_the_oracle_after_any_writes() {
    let mut config = Config {
        failure_persistence: None,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let player = RefCell::new(runtime.block_on(Player::new()));
    let outcome = TestRunner::new(config.clone()).run(&writes::case(), |case| {
        runtime.block_on(player.borrow_mut().play(&case));
        Ok(())
    });
    let player = player.into_inner();
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{reason}\n\nThe shortest case found:\n{}", case.script())
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    let Player { seen, followed, .. } = player;
    let counters = followed.cache.counters();
    // If a trigger had missed a write, the audit would have found a difference.
    assert_eq!(counters.audit_mismatches, 0);
    let passes = counters.audit_passes + counters.audit_headers_passes;
    assert!(passes > 5 && counters.audit_passes > 1, "{counters:?}");
    println!("{} cases: {seen:?}", config.cases);
    // Cases that change little would prove little.
    assert!(seen.changed * 2 > seen.checks, "{seen:?}");
    assert!(seen.committed > 4 * seen.refused, "{seen:?}");
}

/// Totals over all cases.
#[derive(Debug, Default)]
struct Seen {
    committed: usize,
    rolled_back: usize,
    /// Transactions that the server refused: for a lock of the other transaction, or for a foreign key.
    refused: usize,
    checks: usize,
    changed: usize,
}

/// Plays all cases on one database with one follower, which also follows the TRUNCATE between two cases.
struct Player {
    followed: Followed,
    /// A second client, whose transaction stays open while those of `followed.app` run.
    beside: Client,
    seen: Seen,
    changes: Changes,
    /// A copy of all events. It updates only those events that a change names.
    replica: Replica,
}

impl Player {
    async fn new() -> Player {
        let database = Database::with_feed();
        database.psql(writes::PREPARE);
        let often = Duration::from_millis(20);
        let followed = Followed::with(&database.dsn(), |config| {
            let config = config.poll_interval(often);
            config.audit_cycle(Duration::from_secs(2)).audit_budget(0.5)
        })
        .await;
        let beside = connect(&database.dsn()).await;
        run(&beside, writes::PATIENCE).await;
        let changes = followed.cache.changes();
        Player {
            replica: Replica::of(&followed.cache.view()),
            changes,
            followed,
            beside,
            seen: Seen::default(),
        }
    }

    async fn play(&mut self, case: &Case) {
        run(&self.beside, "rollback").await;
        writes::reset(&self.followed.app).await;
        let mut ids = Ids::default();
        let mut before = self.check(None).await;
        for (step, pause) in &case.0 {
            match step {
                Step::Alone(transaction) => self.alone(transaction, &mut ids).await,
                Step::Beside(late, others) => self.beside(late, others, &mut ids).await,
            }
            if *pause {
                before = self.check(Some(before)).await;
            }
        }
        self.check(Some(before)).await;
    }

    async fn alone(&mut self, transaction: &Transaction, ids: &mut Ids) {
        let ended = execute(&self.followed.app, &transaction.sql(ids)).await;
        self.count(transaction, ended);
    }

    /// Runs the first half of `late`, then the other transactions, then the rest of `late`.
    async fn beside(&mut self, late: &Transaction, others: &[Transaction], ids: &mut Ids) {
        let (first, rest) = late.halves(ids);
        let begun = execute(&self.beside, &first).await;
        for transaction in others {
            self.alone(transaction, ids).await;
        }
        let ended = begun && execute(&self.beside, &rest).await;
        self.count(late, ended);
    }

    fn count(&mut self, transaction: &Transaction, ended: bool) {
        let counter = match (ended, transaction.commits()) {
            (false, _) => &mut self.seen.refused,
            (true, true) => &mut self.seen.committed,
            (true, false) => &mut self.seen.rolled_back,
        };
        *counter += 1;
    }

    async fn check(&mut self, before: Option<Vec<Value>>) -> Vec<Value> {
        let after = self.followed.check("a pause").await;
        let view = self.followed.cache.view();
        // The changes were published before the view was taken, so they are in the queue already.
        while let Ok(change) = timeout(Duration::ZERO, self.changes.next()).await {
            let change = change.expect("following").expect("in time");
            self.replica.apply(&change, &view);
        }
        let told = self.replica.equals(&view);
        told.expect("changes name every event that changed");
        if let Some(before) = before {
            self.seen.checks += 1;
            self.seen.changed += usize::from(before != after);
        }
        after
    }
}
