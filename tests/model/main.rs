//! Random mixes of everything the application does to its tables, each followed by a comparison with the oracle.
//!
//! The number of cases is `PROPTEST_CASES`, 64 unless set. A failure is shrunk, and printed as the SQL that shows it.

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
    // Triggers saw everything, or the audit would have found it.
    assert_eq!(counters.audit_mismatches, 0);
    assert!(counters.audit_passes > 10, "{counters:?}");
    println!("{} cases: {seen:?}", config.cases);
    // Mixes in which little happens would prove little.
    assert!(seen.changed * 2 > seen.checks, "{seen:?}");
    assert!(seen.committed > 4 * seen.refused, "{seen:?}");
}

/// What all cases together did.
#[derive(Debug, Default)]
struct Seen {
    committed: usize,
    rolled_back: usize,
    /// By the server: a lock of the other transaction, a foreign key.
    refused: usize,
    checks: usize,
    changed: usize,
}

/// Plays cases on one database with one follower: the TRUNCATE between two cases is followed too.
struct Player {
    followed: Followed,
    /// For transactions that are open beside those of `followed.app`.
    beside: Client,
    seen: Seen,
    changes: Changes,
    /// Fed by the changes alone.
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

    /// `late` is open while the others come and go.
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
        // Published before the view was taken, so it is there already.
        while let Ok(change) = timeout(Duration::ZERO, self.changes.next()).await {
            let change = change.expect("following").expect("in time");
            self.replica.apply(&change, &view);
        }
        let told = self.replica.equals(&view);
        told.expect("changes tell everything");
        if let Some(before) = before {
            self.seen.checks += 1;
            self.seen.changed += usize::from(before != after);
        }
        after
    }
}
