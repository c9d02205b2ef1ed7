//! Runs the checker: over all states of a model without a bug, or up to the first counterexample of one with a bug.

use std::{collections::BTreeSet, env, fmt::Debug, hash::Hash, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// Whether to explore the large bounds. They take minutes in release, and hours in debug.
pub(crate) fn is_large() -> bool {
    env::var("ODDSCACHE_PROTOCOL_BOUND").is_ok_and(|bound| bound == "large")
}

/// Explores every state of a model. Asserts that each `always` property holds in all of them, and that each `sometimes`
/// property holds in one. Without the latter a model in which nothing happens would pass.
pub(crate) fn assert_sound<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let begun_at = Instant::now();
    // The search must not end early, so it does not end when every `sometimes` property has its example.
    let never = HasDiscoveries::AllOf(BTreeSet::from(["no property has this name"]));
    let checker = model.checker().threads(2).finish_when(never);
    let checker = checker.spawn_bfs().join();
    println!(
        "{name}: {} states, the longest path has {} steps, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth() - 1,
        begun_at.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

/// Asserts that the checker finds a state that violates `property`. Prints the number of steps of a
/// short path to it.
pub(crate) fn assert_found<M>(name: &str, model: M, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    // One thread, so that each run finds the same path. It may be a little longer than a shortest one, because the
    // search goes on to the end of a block of states and keeps the last path that it finds.
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = model.checker().threads(1).finish_when(found);
    let checker = checker.spawn_bfs().join();
    let states = checker.unique_state_count();
    let path = checker.discovery(property);
    let path = path.unwrap_or_else(|| {
        panic!(
            "{name}: {property} holds in all {states} states, so the model does not find the bug"
        )
    });
    let actions = path.into_actions();
    println!(
        "{name}: {property} after {} steps, {states} states",
        actions.len()
    );
    if env::var_os("ODDSCACHE_PROTOCOL_TRACE").is_some() {
        for action in actions {
            println!("    {action:?}");
        }
    }
}
