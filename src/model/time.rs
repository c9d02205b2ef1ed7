use chrono::{DateTime, Utc};

/// A point in time in 8 bytes: microseconds since 1970-01-01 00:00 UTC, PostgreSQL's own resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Micros(pub(crate) i64);

/// PostgreSQL counts from 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl Micros {
    /// In place of a time that must be there and is not: as old as can be.
    pub(crate) const UNKNOWN: Micros = Micros(0);

    /// From PostgreSQL's binary form. `infinity` and times that chrono cannot hold become the last (first) time it can.
    pub(crate) fn from_postgres(micros: i64) -> Micros {
        Micros(micros.saturating_add(POSTGRES_EPOCH)).clamped()
    }

    pub(crate) fn to_postgres(self) -> i64 {
        self.0.saturating_sub(POSTGRES_EPOCH)
    }

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
        // Clamped when made, so the fallback is never taken.
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::<Utc>::MAX_UTC)
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
    fn infinity_is_the_last_time_there_is() {
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
