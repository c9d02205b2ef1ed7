//! Random sequences of the application's writes, each followed by a comparison of the cache with the oracle.
//!
//! `PROPTEST_CASES` (64) is the number of cases. proptest shrinks a failing case, and the test prints it as SQL.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use oddscache::{Changes, View};
use oddscache_testkit::{
    Database, connect,
    followed::{Followed, run},
    normal,
    writes::{self, Case, Ids, Step, Transaction},
};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::Value;
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
    assert!(counters.audit_passes > 10, "{counters:?}");
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
    replica: Replica,
}

/// A copy of all events. It updates only those events that a change names.
struct Replica {
    changes: Changes,
    events: BTreeMap<i64, Value>,
}

impl Replica {
    fn new(followed: &Followed) -> Replica {
        let changes = followed.cache.changes();
        let mut replica = Replica {
            changes,
            events: BTreeMap::new(),
        };
        let view = followed.cache.view();
        for id in view.event_ids() {
            replica.take(&view, id);
        }
        replica
    }

    fn take(&mut self, view: &View, id: i64) {
        match view.event(id) {
            Some(event) => self
                .events
                .insert(id, normal(serde_json::to_value(event).expect("JSON"))),
            None => self.events.remove(&id),
        };
    }

    /// Takes all changes that are due and compares the copy with `view`. Nobody writes meanwhile.
    async fn check(&mut self, view: &View) {
        // The changes were published before the view was taken, so they are in the queue already.
        while let Ok(change) = tokio::time::timeout(Duration::ZERO, self.changes.next()).await {
            let change = change.expect("following").expect("in time");
            for id in change.event_ids() {
                self.take(view, id);
            }
        }
        let held: Vec<Value> = self.events.values().cloned().collect();
        assert!(
            held == oddscache_testkit::dump(view),
            "the changes did not name every event that changed"
        );
    }
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
        // A statement that waits for a lock of the other transaction fails, which ends its own transaction.
        run(&beside, "set lock_timeout = '100 ms'").await;
        run(&followed.app, "set lock_timeout = '100 ms'").await;
        let replica = Replica::new(&followed);
        Player {
            followed,
            beside,
            seen: Seen::default(),
            replica,
        }
    }

    async fn play(&mut self, case: &Case) {
        run(&self.beside, "rollback").await;
        let reset = format!(
            "rollback; set lock_timeout = 0; {}; set lock_timeout = '100 ms'",
            writes::RESET
        );
        run(&self.followed.app, &reset).await;
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
        let mut statements = late.sql(ids);
        let rest = statements.split_off(statements.len() / 2);
        let begun = execute(&self.beside, &statements).await;
        for transaction in others {
            self.alone(transaction, ids).await;
        }
        let ended = match begun {
            true => execute(&self.beside, &rest).await,
            false => false,
        };
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
        self.replica.check(&self.followed.cache.view()).await;
        if let Some(before) = before {
            self.seen.checks += 1;
            self.seen.changed += usize::from(before != after);
        }
        after
    }
}

/// Runs statements one by one. Rolls back at the first that the server refuses. Returns whether it accepted all.
async fn execute(client: &Client, statements: &[String]) -> bool {
    for sql in statements {
        if let Err(error) = client.batch_execute(sql).await {
            let code = error
                .code()
                .unwrap_or_else(|| panic!("{sql}: {error:?}"))
                .code();
            // The server may refuse a statement for a lock, for a key, or for a partition that exists already, does not
            // exist, or does not fit the rows. Any other error is a mistake in the model.
            let expected = [
                "55P03", "40P01", "40001", "23503", "23505", "23514", "42P01", "42809", "42P16",
            ];
            assert!(expected.contains(&code), "{sql}: {error:?}");
            run(client, "rollback").await;
            return false;
        }
    }
    true
}
