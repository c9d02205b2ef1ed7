//! Random sequences of writes to a primary, followed on its standby.

use oddscache_testkit::{
    connect,
    followed::run,
    writes::{self, Ids, Step, Transaction, execute},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use tokio_postgres::Client;

use crate::standby::Behind;

const CASES: usize = 10;

/// After any sequence of writes, the cache equals the rows that the standby shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_followed_through_any_writes() {
    let behind = Behind::new(&["hot_standby_feedback = on"]).await;
    let app = &behind.followed.app;
    run(app, writes::PREPARE).await;
    let late = connect(&behind.primary.dsn("postgres")).await;
    run(&late, writes::PATIENCE).await;
    let (mut runner, mut committed, mut changed) = (TestRunner::default(), 0, 0);
    for _ in 0..CASES {
        let case = writes::case().new_tree(&mut runner);
        let case = case.expect("a case").current();
        // The test harness shows this if the test fails.
        println!("{}\n", case.script());
        run(&late, "rollback").await;
        writes::reset(app).await;
        let mut before = behind.check_all("the beginning").await;
        let mut ids = Ids::default();
        for (step, pause) in &case.0 {
            match step {
                Step::Alone(transaction) => committed += alone(app, transaction, &mut ids).await,
                Step::Beside(transaction, others) => {
                    let (first, rest) = transaction.halves(&mut ids);
                    let begun = execute(&late, &first).await;
                    for other in others {
                        committed += alone(app, other, &mut ids).await;
                    }
                    // Compare at the current point of replay, while the first transaction is in progress.
                    behind.look("beside").await;
                    let ended = begun && execute(&late, &rest).await;
                    committed += usize::from(ended && transaction.commits());
                }
            }
            if *pause {
                let after = behind.check("a pause").await;
                changed += usize::from(before != after);
                before = after;
            }
        }
        let after = behind.check_all("the end").await;
        changed += usize::from(before != after);
    }
    let counters = behind.followed.cache.counters();
    println!("{committed} committed, {changed} changes seen, {counters:?}");
    assert!(changed > CASES, "{changed}");
    assert!(committed > CASES, "{committed}");
    // The follower read much of it by its rule, and not only by reading everything again.
    assert!(counters.log_rows > 3 * CASES as u64, "{counters:?}");
}

async fn alone(client: &Client, transaction: &Transaction, ids: &mut Ids) -> usize {
    let ended = execute(client, &transaction.sql(ids)).await;
    usize::from(ended && transaction.commits())
}
