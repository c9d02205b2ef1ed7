use chrono::{DateTime, Utc};

/// A point in time in 8 bytes: microseconds since 1970-01-01 00:00 UTC. PostgreSQL has the same resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Micros(pub(crate) i64);

/// Microseconds from 1970-01-01 to 2000-01-01, from which PostgreSQL counts.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl Micros {
    /// Replaces a required time that is missing. It is older than any real one.
    pub(crate) const UNKNOWN: Micros = Micros(0);

    /// Reads PostgreSQL's binary form: microseconds since 2000-01-01. `infinity` and times beyond chrono's range become
    /// the last (or first) time that chrono can hold.
    pub(crate) fn from_postgres(micros: i64) -> Micros {
        Micros(micros.saturating_add(POSTGRES_EPOCH)).clamped()
    }

    /// Microseconds since 2000-01-01, as PostgreSQL's binary form has them.
    pub(crate) fn to_postgres(self) -> i64 {
        self.0.saturating_sub(POSTGRES_EPOCH)
    }

    /// Whether PostgreSQL had exactly this time, so that a comparison there finds it. False for a missing time, and for
    /// one that chrono cannot hold.
    pub(crate) fn is_exact(self) -> bool {
        let (first, last) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
        self != Micros::UNKNOWN
            && first.timestamp_micros() < self.0
            && self.0 < last.timestamp_micros()
    }

    /// This time less `duration`; the first time that chrono can hold if that is earlier.
    pub(crate) fn minus(self, duration: std::time::Duration) -> Micros {
        Micros(
            self.0
                .saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
        .clamped()
    }

    pub(crate) fn from_utc(time: DateTime<Utc>) -> Micros {
        Micros(time.timestamp_micros())
    }

    pub(crate) fn to_utc(self) -> DateTime<Utc> {
        // Every constructor clamps, so the fallback is never taken.
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// A time from elsewhere; `None` if chrono cannot hold it.
    #[cfg(feature = "nats")]
    pub(crate) fn checked(micros: i64) -> Option<Micros> {
        (Micros(micros).clamped().0 == micros).then_some(Micros(micros))
    }

    fn clamped(self) -> Micros {
        let (first, last) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
        Micros(
            self.0
                .clamp(first.timestamp_micros(), last.timestamp_micros()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_times_become_utc() {
        assert_eq!(
            Micros::from_postgres(0).to_utc().to_rfc3339(),
            "2000-01-01T00:00:00+00:00"
        );
        assert_eq!(
            Micros::from_postgres(1).to_utc().timestamp_subsec_micros(),
            1
        );
    }

    #[test]
    fn infinity_becomes_the_last_time_that_chrono_holds() {
        assert_eq!(
            Micros::from_postgres(i64::MAX).to_utc().timestamp_micros(),
            DateTime::<Utc>::MAX_UTC.timestamp_micros()
        );
        assert_eq!(
            Micros::from_postgres(i64::MIN).to_utc(),
            DateTime::<Utc>::MIN_UTC
        );
    }
}
