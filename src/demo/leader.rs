//! The incident in which the publisher that leads a relay is killed. Another one takes its place.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{
    incident::{BACK_WITHIN, Stage},
    observer::say,
};

/// The pause between two looks at the subscribers.
const PAUSE: Duration = Duration::from_millis(5);

impl Stage<'_> {
    /// Kills the publisher that leads, and starts it again when the subscribers follow the other one.
    pub(super) async fn leader(&mut self, begun: Instant) -> anyhow::Result<()> {
        let epoch = self.cache.view().epoch();
        let relayed = self.relayed.as_deref_mut().context("there is no relay")?;
        let killed_one = relayed.leader().await?;
        relayed.kill(killed_one);
        let killed = Instant::now();
        say(
            begun,
            format!("publisher {killed_one} led, and is killed (kill -9)"),
        );
        let mut waiting: BTreeMap<_, _> = (1..).zip(self.caches()).collect();
        while !waiting.is_empty() {
            // Something proved the view current after the kill, and only the other publisher can have done so.
            waiting.retain(|number, cache| {
                let since = killed.elapsed();
                let follows = cache.view().age() < since;
                if follows {
                    let seconds = since.as_secs_f64();
                    say(
                        begun,
                        format!("subscriber {number} follows the other one, {seconds:.2} s after the kill"),
                    );
                }
                !follows
            });
            ensure!(
                killed.elapsed() < BACK_WITHIN,
                "waited {} s in vain for the other publisher; the status of subscriber 1 is {}",
                BACK_WITHIN.as_secs(),
                self.cache.status()
            );
            sleep(PAUSE).await;
        }
        for (number, cache) in (1..).zip(self.caches()) {
            let now = cache.view().epoch();
            ensure!(
                now == epoch,
                "the epoch of subscriber {number} went from {epoch} to {now}, though no history was lost"
            );
        }
        let relayed = self.relayed.as_deref_mut().context("there is no relay")?;
        relayed.publish(killed_one).await?;
        say(
            begun,
            format!("still epoch {epoch}; publisher {killed_one} is started again, and stands by"),
        );
        Ok(())
    }
}
