//! The campaign with a relay. Two publishers follow the database and publish to NATS; subscribers follow the relay.
//! Faults of NATS, of its streams and of everybody's network come and go. Readers check the subscribers as they check a
//! cache that follows the database.

mod faults;
mod hostile;
mod pause;
mod scene;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    Broken, Until, environment, plan::Plan, readers, report::Figures, workload::Application,
    world::World,
};
use scene::Scene;

/// The rounds of a short campaign. Not every kind of fault occurs in them.
const ROUNDS: usize = 3;

/// The number of connections that write.
const CLIENTS: usize = 5;

/// How long clients write in each round after the faults.
const CALM: Duration = Duration::from_secs(1);

/// The same in a long campaign: changes come fastest while nothing fails.
const LONG_CALM: Duration = Duration::from_secs(30);

/// Runs a campaign of one seed. `None` without nats-server.
fn campaign(seed: u64, until: Until) -> Option<Result<Figures, Box<Broken>>> {
    println!("campaign of seed {seed}, with a relay");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let world = Arc::new(World::new(seed));
    world.quick.store(true, Ordering::Relaxed);
    let played = runtime.block_on(play(&world, until));
    runtime.shutdown_timeout(Duration::from_secs(10));
    played?;
    let mut figures = std::mem::take(&mut *world.report.figures());
    figures.seeds = vec![seed];
    Some(match world.violation() {
        None => Ok(figures),
        Some(what) => Err(Box::new(Broken { what, figures })),
    })
}

async fn play(world: &Arc<World>, until: Until) -> Option<()> {
    let scene = Scene::start(world).await?;
    let readers: Vec<_> = (0..)
        .zip(&scene.subscribers)
        .map(|(number, subscriber)| {
            let (cache, seed) = (&subscriber.embedded.cache, world.seed ^ number);
            readers::spawn(world, cache, &subscriber.mismatches, seed, false)
        })
        .collect();
    let mut applications: Vec<Application> = (0..CLIENTS)
        .map(|number| Application::new(world, number))
        .collect();
    let mut plan = Plan::new(world.seed, true);
    scene.pause(None).await;
    while world.violation().is_none() {
        let done = match until {
            Until::Rounds(rounds) => world.report.figures().rounds >= rounds as u64,
            Until::Deadline(deadline) => Instant::now() >= deadline,
        };
        if done {
            break;
        }
        let round = plan.round();
        world.round.store(round.number as u64, Ordering::Relaxed);
        let writing = Application::begin(world, &mut applications, round.seed);
        for lanes in &round.halves {
            scene.inflict(lanes).await;
        }
        scene.recovered().await;
        let calm = match until {
            Until::Rounds(_) => CALM,
            Until::Deadline(_) => LONG_CALM,
        };
        tokio::time::sleep(calm).await;
        applications = writing.end(world).await;
        scene.pause(Some(&round.unseen)).await;
        world.report.figures().rounds += 1;
    }
    scene.count();
    world.ended.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().expect("no reader panics");
    }
    Some(())
}

fn judge(seed: u64, result: Result<Figures, Box<Broken>>) -> Figures {
    match result {
        Ok(figures) => figures,
        Err(broken) => panic!(
            "VIOLATION with seed {seed}: {}\n\n\
             Again: CAMPAIGN_SEED={seed} cargo test --test campaign -- --nocapture --exact relay::short\n\n{}",
            broken.what,
            broken.figures.relayed_text(1)
        ),
    }
}

const FIXED_SEED: u64 = 1;

/// All promises hold for subscribers of a relay. `CAMPAIGN_SEED` runs another seed.
#[test]
fn short() {
    let _alone = crate::alone();
    let seed = environment("CAMPAIGN_SEED").unwrap_or(FIXED_SEED);
    let Some(result) = campaign(seed, Until::Rounds(ROUNDS)) else {
        return;
    };
    let figures = judge(seed, result);
    println!("{}", figures.relayed_text(0));
    assert!(
        figures.faults.len() > 15,
        "{} kinds of fault",
        figures.faults.len()
    );
    assert!(figures.shown > 100, "{} publications", figures.shown);
    assert!(figures.found > 0, "no forged message was found");
}

/// The same for `CAMPAIGN_MINUTES` (60), with a new seed every `CAMPAIGN_MINUTES_EACH` (10) minutes. Writes its report to
/// `target/relay-campaign-report.txt`.
#[test]
#[ignore = "takes CAMPAIGN_MINUTES minutes"]
fn long() {
    crate::repeat(
        "relay-campaign-report.txt",
        Figures::relayed_text,
        |seed, until| campaign(seed, until).map(|result| judge(seed, result)),
    );
}
