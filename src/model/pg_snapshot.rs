//! Which transactions a snapshot of PostgreSQL shows.

/// PostgreSQL's `pg_snapshot`: which transactions a read saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PgSnapshot {
    /// Every transaction below this id had ended: its changes are visible, or it was rolled back.
    pub(crate) xmin: u64,
    /// No transaction from this id on is visible.
    pub(crate) xmax: u64,
    /// The transactions between `xmin` and `xmax` that were in progress. A standby always reports none.
    in_progress: Vec<u64>,
}

impl PgSnapshot {
    /// Parses PostgreSQL's text form `xmin:xmax:xip,...`; `None` if the text has another form.
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

    /// `xmax` and the list of transactions in progress, as arguments for PostgreSQL: a number and an array.
    pub(crate) fn bounds(&self) -> (String, String) {
        let in_progress: Vec<String> = self.in_progress.iter().map(u64::to_string).collect();
        (
            self.xmax.to_string(),
            format!("{{{}}}", in_progress.join(",")),
        )
    }

    /// Whether the snapshot shows what transaction `xid` wrote, provided that it committed.
    ///
    /// A standby reports no transaction in progress, so there only ids below `xmin` are certain.
    pub(crate) fn shows(&self, xid: u64, standby: bool) -> bool {
        xid < self.xmin || !standby && xid < self.xmax && !self.in_progress.contains(&xid)
    }

    /// Whether this snapshot shows every transaction that `before` shows. Both must be of the same server.
    pub(crate) fn shows_all_of(&self, before: &PgSnapshot) -> bool {
        let hides = |xid: &u64| before.shows(*xid, false);
        self.xmin >= before.xmin && self.xmax >= before.xmax && !self.in_progress.iter().any(hides)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn snapshots_parse_as_postgres_prints_them() {
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

    /// Whether the text parses. If it does, the snapshot holds exactly the numbers of the text, and printing it in
    /// PostgreSQL's form parses to the same snapshot.
    fn parses_to_its_own_numbers(text: &str) -> bool {
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
        fn any_text_parses_to_its_own_numbers_or_not_at_all(
            text in "\\PC{0,20}",
            near in "[0-9]{0,3}:[0-9]{1,20}:[0-9,:+ -]{0,12}",
        ) {
            parses_to_its_own_numbers(&text);
            parses_to_its_own_numbers(&near);
        }

        #[test]
        fn all_that_postgres_prints_parses(
            xmin in any::<u64>(),
            xmax in any::<u64>(),
            list in "([0-9]{1,9}(,[0-9]{1,9}){0,4})?",
        ) {
            prop_assert!(parses_to_its_own_numbers("10:20:10,14,15"));
            let text = format!("{xmin}:{xmax}:{list}");
            prop_assert!(parses_to_its_own_numbers(&text));
        }
    }
}
