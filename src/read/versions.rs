//! Finds the held snapshots whose market rows were written since a moment, without reading the markets. That takes a small
//! part of the time. The follower needs it when a trigger changed, and again and again while the feed is not whole, that
//! is, does not log every change.
//!
//! # Invariants
//! - RV1: At the snapshot of which [`Since`] has `xmin`, the draft equalled the database.
//! - RV2: A row that was written since then names, in its column `xmin`, a transaction that had not ended at that snapshot.
//!   So its id is not below the `xmin` of the snapshot. Rows that are older may look newer (after a wraparound of ids),
//!   never the other way round.
//! - RV3: A row that is gone, or belongs to another snapshot now, makes its snapshot have fewer rows than are held, unless
//!   another row has come, which RV2 finds.
//! - RV4: RV2 holds for the history of one server, and for rows in a heap. Row security, and tables that take the place of
//!   others, change what a role sees without writing a row. So after such changes the markets are read
//!   ([`crate::read::partitions`]).
//! - RV5: RV1 holds as long as all triggers were there, as `install.sql` makes them ([`crate::read::preflight`]). That a
//!   trigger goes or comes back does not put in doubt what was read before. But their function may have had another body,
//!   or a log row was lost. So when the function or the log changes, or log rows were pruned or are not understood,
//!   everything is read.

use hashbrown::HashMap;

use crate::{
    error::Error,
    model::PgSnapshot,
    read::{
        change_log::ChangeSet,
        keys::Coarser,
        rows::{Reader, Side},
    },
    store::draft::Draft,
};

/// Beyond this many transactions nothing is compared. A row has 32 bits of its writer's id, and twice as many transactions
/// later these no longer tell which of two ids is the older one.
const MOST_TRANSACTIONS: u64 = 1 << 30;

/// The last moment at which the draft equalled the database (RV1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Since {
    xmin: u64,
}

impl Since {
    pub(crate) fn new(snapshot: &PgSnapshot) -> Since {
        Since {
            xmin: snapshot.xmin,
        }
    }

    /// Whether transaction ids tell what was written between this moment and `now`.
    pub(crate) fn reaches(self, now: &PgSnapshot) -> bool {
        now.xmax.saturating_sub(self.xmin) < MOST_TRANSACTIONS
    }

    /// Adds to `change_set` the headers of all events, and the held snapshots whose markets may have changed since.
    pub(crate) async fn add_to(
        self,
        change_set: &mut ChangeSet,
        reader: Reader<'_>,
        draft: &Draft,
    ) -> Result<(), Error> {
        change_set.add_all_headers();
        for side in [Side::Betpawa, Side::Competitors] {
            // The statement cannot be halved around a row that the server cannot read.
            if reader.search.is_some() {
                change_set.of(side.markets()).add_all();
            }
            if change_set.of(side.markets()).is_all() {
                continue;
            }
            let mut unchanged = held(side, draft);
            let mut ids: Vec<i64> = unchanged.keys().copied().collect();
            ids.sort_unstable();
            let mut changed: Vec<i64> = Vec::new();
            for (id, rows, is_written) in reader.market_versions(side, &ids, self.xmin).await? {
                if unchanged.remove(&id) != Some(Some(rows)) || is_written {
                    changed.push(id);
                }
            }
            // The rest has no rows now.
            let gone = unchanged.into_iter().filter(|(_, rows)| *rows != Some(0));
            changed.extend(gone.map(|(id, _)| id));
            let keys = change_set.of(side.markets());
            keys.extend(changed, Coarser::Blocks);
        }
        Ok(())
    }
}

/// How many market rows each held snapshot has. `None` if two snapshots of one id differ in that.
fn held(side: Side, draft: &Draft) -> HashMap<i64, Option<i64>> {
    let mut held = HashMap::new();
    let mut note = |id: i64, rows: usize| {
        let rows = i64::try_from(rows).ok();
        let noted = held.entry(id).or_insert(rows);
        *noted = noted.filter(|noted| rows == Some(*noted));
    };
    for event in draft.events() {
        match side {
            Side::Betpawa => event
                .betpawa
                .iter()
                .for_each(|(_, held)| note(held.snapshot_id, held.packed.market_count())),
            Side::Competitors => event
                .competitors
                .iter()
                .for_each(|(_, held)| note(held.snapshot_id, held.packed.market_count())),
        }
    }
    held
}
