//! Pauses between attempts.

use std::time::Duration;

/// Pauses that double from 100 ms to a bound. Half of each pause is random, so that a hundred followers do not come
/// back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Up to 10 s, for a server or a service that cannot be reached.
    pub(crate) fn for_connections() -> Backoff {
        Backoff {
            longest: Duration::from_secs(10),
            failures: 0,
        }
    }

    /// Pauses of up to 5 s, for a lock that another session holds. An attempt is cheap, and the view ages until then.
    pub(crate) fn for_locks() -> Backoff {
        Backoff {
            longest: Duration::from_secs(5),
            failures: 0,
        }
    }

    /// Pauses of up to 5 s, for a relay. Readers' views grow old until then.
    #[cfg(feature = "nats")]
    pub(crate) fn for_relays() -> Backoff {
        Backoff {
            longest: Duration::from_secs(5),
            failures: 0,
        }
    }

    /// The next pause, longer than the one before.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = Duration::from_millis(100)
            .saturating_mul(1 << self.failures.min(7))
            .min(self.longest);
        self.failures += 1;
        whole.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut backoff = Backoff::for_connections();
        let pauses: Vec<Duration> = (0..100).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= Duration::from_millis(100));
        assert!(
            pauses[10..]
                .iter()
                .all(|pause| (5.0..=10.0).contains(&pause.as_secs_f64()))
        );
    }
}
