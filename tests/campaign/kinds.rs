//! The kinds of transaction, and how often the application runs each.

use fastrand::Rng;

/// The kinds of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// New snapshots with all their markets.
    Batch,
    /// The same, but with the markets written by COPY.
    Copy,
    InPlace,
    OnConflict,
    DeleteNewest,
    Retention,
    Savepoint,
    Rollback,
    TwoPhase,
    /// Takes its transaction id early and commits late.
    Late,
    Leaf,
    Relink,
    Window,
    BellOff,
    Replica,
    Truncate,
    ManyKeys,
    Transfer,
    Confirm,
    Free,
}

/// Each kind with its name and its weight.
const KINDS: &[(Kind, &str, u32)] = &[
    (Kind::Batch, "scrape batch", 8),
    (Kind::Copy, "scrape batch by COPY", 3),
    (Kind::InPlace, "prices updated in place", 8),
    (Kind::OnConflict, "ON CONFLICT DO UPDATE", 3),
    (Kind::DeleteNewest, "newest snapshots deleted", 4),
    (Kind::Retention, "retention", 3),
    (Kind::Savepoint, "savepoint rolled back", 4),
    (Kind::Rollback, "rolled back", 3),
    (Kind::TwoPhase, "PREPARE, COMMIT PREPARED", 3),
    (Kind::Late, "late commit", 3),
    (Kind::Leaf, "directly into a partition", 3),
    (Kind::Relink, "competitor events relinked", 4),
    (Kind::Window, "postponed out of the window, or back", 3),
    (Kind::BellOff, "notify off", 3),
    (Kind::Replica, "session_replication_role = replica", 2),
    (Kind::Truncate, "table truncated and rewritten", 1),
    (Kind::ManyKeys, "more than 20,000 keys", 1),
    (Kind::Transfer, "transfer of amounts", 14),
    (Kind::Confirm, "confirmation by id list", 4),
    (Kind::Free, "anything to free events", 22),
];

pub(crate) fn name(kind: Kind) -> &'static str {
    let found = KINDS.iter().find(|(other, ..)| *other == kind);
    found.map_or("", |(_, name, _)| name)
}

/// Draws a kind at random, by weight. If there is a `bias`, draws that kind more often.
pub(crate) fn draw(rng: &mut Rng, bias: Option<Kind>) -> Kind {
    if let Some(kind) = bias {
        // Bias the heaviest kinds less. Otherwise the other kinds would get no turn.
        let often = match kind {
            Kind::Truncate => 0.15,
            Kind::ManyKeys => 0.08,
            _ => 0.5,
        };
        if rng.f64() < often {
            return kind;
        }
    }
    let all: u32 = KINDS.iter().map(|(.., weight)| weight).sum();
    let mut point = rng.u32(..all);
    for (kind, _, weight) in KINDS {
        if point < *weight {
            return *kind;
        }
        point -= weight;
    }
    Kind::Free
}
