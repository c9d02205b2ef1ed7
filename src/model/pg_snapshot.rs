//! Which transactions a snapshot of PostgreSQL shows.

/// A `pg_snapshot`: which transactions a read could see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PgSnapshot {
    /// All below are visible, or rolled back.
    pub(crate) xmin: u64,
    /// All from here on are not.
    pub(crate) xmax: u64,
    /// Those between that were in progress. Always empty on a standby.
    in_progress: Vec<u64>,
}

impl PgSnapshot {
    /// Reads `xmin:xmax:xip,...`
    pub(crate) fn parse(text: &str) -> Option<PgSnapshot> {
        let mut parts = text.split(':');
        let (xmin, xmax, list) = (
            parts.next()?.parse().ok()?,
            parts.next()?.parse().ok()?,
            parts.next()?,
        );
        let in_progress: Option<Vec<u64>> = list
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(|xid| xid.parse().ok())
            .collect();
        parts.next().is_none().then_some(PgSnapshot {
            xmin,
            xmax,
            in_progress: in_progress?,
        })
    }

    /// `xmax`, and what was in progress, as PostgreSQL reads them.
    pub(crate) fn bounds(&self) -> (String, String) {
        let in_progress: Vec<String> = self.in_progress.iter().map(u64::to_string).collect();
        (
            self.xmax.to_string(),
            format!("{{{}}}", in_progress.join(",")),
        )
    }

    /// Whether what a transaction wrote is seen, if it committed.
    pub(crate) fn shows(&self, xid: u64, standby: bool) -> bool {
        xid < self.xmin || !standby && xid < self.xmax && !self.in_progress.contains(&xid)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn snapshots_are_read_as_postgres_prints_them() {
        let snapshot = |xmin, xmax, in_progress: &[u64]| {
            Some(PgSnapshot {
                xmin,
                xmax,
                in_progress: in_progress.to_vec(),
            })
        };
        assert_eq!(
            PgSnapshot::parse("10:20:10,14,15"),
            snapshot(10, 20, &[10, 14, 15])
        );
        assert_eq!(PgSnapshot::parse("20:20:"), snapshot(20, 20, &[]));
        for wrong in ["", "10", "10:20", "10:20:x", "10:20:10:", "-1:2:"] {
            assert_eq!(PgSnapshot::parse(wrong), None, "{wrong}");
        }
    }

    /// What is read are the text's numbers, all of them, and PostgreSQL's form of them is read the same.
    fn says_what_it_read(text: &str) -> bool {
        let Some(snapshot) = PgSnapshot::parse(text) else {
            return false;
        };
        let PgSnapshot {
            xmin,
            xmax,
            in_progress,
        } = &snapshot;
        let plain: Vec<u64> = text
            .split([':', ','])
            .filter(|number| !number.is_empty())
            .map(|number| number.parse().unwrap())
            .collect();
        assert_eq!([&[*xmin, *xmax], in_progress.as_slice()].concat(), plain);
        let list: Vec<String> = in_progress.iter().map(u64::to_string).collect();
        let printed = format!("{xmin}:{xmax}:{}", list.join(","));
        assert_eq!(PgSnapshot::parse(&printed), Some(snapshot));
        true
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_says_or_not_at_all(text in "\\PC{0,20}", near in "[0-9]{0,3}:[0-9]{1,20}:[0-9,:+ -]{0,12}") {
            says_what_it_read(&text);
            says_what_it_read(&near);
        }

        #[test]
        fn whatever_postgres_prints_is_read(xmin in any::<u64>(), xmax in any::<u64>(), list in "([0-9]{1,9}(,[0-9]{1,9}){0,4})?") {
            prop_assert!(says_what_it_read("10:20:10,14,15"));
            let text = format!("{xmin}:{xmax}:{list}");
            prop_assert!(says_what_it_read(&text));
        }
    }
}
