//! What the application knows of its commits. For each group of events, the ledger records every generation, whether
//! its COMMIT was sent, and when its COMMIT was answered. Readers check views against it without the database.

use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The state of a group in a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Generation(u64),
    /// All events of the group are outside the window.
    Absent,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    generation: u64,
    /// Whether the group's events are inside the window after this transaction.
    present: bool,
    /// Whether COMMIT was sent. From then on a view may show the generation.
    sent: bool,
    /// When COMMIT was answered. A read that begins later must see the generation.
    returned: Option<Instant>,
}

/// The entries of a group in the order of the commits. A transaction holds the group's lock until it ends, so the order
/// is certain.
#[derive(Debug, Default)]
struct Group {
    entries: Vec<Entry>,
    dropped: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    groups: Vec<Mutex<Group>>,
    next: AtomicU64,
}

/// A group with more entries than this drops the older half.
const KEPT: usize = 8_192;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with it")
}

impl Ledger {
    /// All groups begin with generation 1, which is committed before any reader starts.
    pub(crate) fn new(groups: usize) -> Ledger {
        let first = Entry {
            generation: 1,
            present: true,
            sent: true,
            returned: Some(Instant::now()),
        };
        let group = || {
            Mutex::new(Group {
                entries: vec![first],
                dropped: false,
            })
        };
        Ledger {
            groups: (0..groups).map(|_| group()).collect(),
            next: AtomicU64::new(2),
        }
    }

    /// Returns a new generation for these groups. The caller's transaction must hold their locks.
    pub(crate) fn begin(&self, groups: &[usize]) -> u64 {
        let generation = self.next.fetch_add(1, Ordering::Relaxed);
        for group in groups {
            let mut group = locked(&self.groups[*group]);
            if group.entries.len() > KEPT {
                group.entries.drain(..KEPT / 2);
                group.dropped = true;
            }
            group.entries.push(Entry {
                generation,
                present: true,
                sent: false,
                returned: None,
            });
        }
        generation
    }

    fn change(&self, groups: &[usize], generation: u64, change: impl Fn(&mut Entry)) {
        for group in groups {
            let mut group = locked(&self.groups[*group]);
            if let Some(entry) = group
                .entries
                .iter_mut()
                .rev()
                .find(|entry| entry.generation == generation)
            {
                change(entry);
            }
        }
    }

    /// Records that COMMIT is about to be sent.
    pub(crate) fn sending(&self, groups: &[usize], generation: u64, present: bool) {
        self.change(groups, generation, |entry| {
            entry.sent = true;
            entry.present = present;
        });
    }

    /// Records that COMMIT was answered. Must not be called for an asynchronous commit, because a crash may undo it.
    pub(crate) fn returned(&self, groups: &[usize], generation: u64) {
        let now = Instant::now();
        self.change(groups, generation, |entry| entry.returned = Some(now));
    }

    /// Whether a view that shows this state of a group contains the rows of a generation's transaction.
    pub(crate) fn contains(&self, group: usize, shown: Shown, generation: u64) -> bool {
        let ledger = locked(&self.groups[group]);
        match shown {
            Shown::Generation(shown) => shown >= generation,
            Shown::Absent => ledger
                .entries
                .iter()
                .any(|entry| entry.generation >= generation && entry.sent && !entry.present),
        }
    }

    /// Fails if the group cannot have had this state at `proven` or later. Otherwise returns the age of the oldest
    /// commit that the view lacks, or `None` if the view lacks no commit.
    pub(crate) fn judge(
        &self,
        group: usize,
        shown: Shown,
        proven: Option<Instant>,
    ) -> Result<Option<Duration>, String> {
        let ledger = locked(&self.groups[group]);
        let entries = &ledger.entries;
        let committed_by = |moment: Instant| {
            entries
                .iter()
                .rposition(|entry| entry.returned.is_some_and(|at| at <= moment))
        };
        let required = proven.and_then(committed_by);
        let place = match shown {
            Shown::Generation(generation) => {
                match entries.binary_search_by_key(&generation, |entry| entry.generation) {
                    Ok(place) if entries[place].sent => place,
                    Ok(_) => {
                        return Err(format!(
                            "group {group} shows generation {generation}, whose COMMIT was never sent"
                        ));
                    }
                    // The reader held this view so long that the ledger has dropped its entry.
                    Err(0) if ledger.dropped => return Ok(None),
                    Err(_) => {
                        return Err(format!(
                            "group {group} shows generation {generation}, which no transaction wrote"
                        ));
                    }
                }
            }
            Shown::Absent => {
                let absent = entries
                    .iter()
                    .rposition(|entry| entry.sent && !entry.present);
                match absent {
                    Some(place) => place,
                    None if ledger.dropped => return Ok(None),
                    None => return Err(format!("group {group} is missing")),
                }
            }
        };
        if let Some(required) = required
            && place < required
        {
            let lacking = &entries[required];
            let ago = lacking.returned.map(|at| at.elapsed());
            return Err(format!(
                "age understated: group {group} shows {shown:?}, but generation {} was committed {ago:?} ago, before \
                 the moment at which the view claims to be current ({:?} ago)",
                lacking.generation,
                proven.map(|at| at.elapsed())
            ));
        }
        let first_lacking = entries[place + 1..].iter().find_map(|entry| entry.returned);
        Ok(first_lacking.map(|at| at.elapsed()))
    }
}

/// The ledger accepts a view that may lack a commit, and rejects one that must show it.
#[test]
fn a_view_must_show_every_commit_before_it_was_proven() {
    let ledger = Ledger::new(1);
    let before = Instant::now();
    let second = ledger.begin(&[0]);
    assert!(ledger.judge(0, Shown::Generation(second), None).is_err());
    ledger.sending(&[0], second, true);
    let judge = |shown, proven| ledger.judge(0, shown, proven);
    assert!(judge(Shown::Generation(second), Some(Instant::now())).is_ok());
    assert!(judge(Shown::Generation(1), Some(Instant::now())).is_ok());
    ledger.returned(&[0], second);
    assert!(judge(Shown::Generation(1), Some(Instant::now())).is_err());
    assert!(judge(Shown::Generation(1), Some(before)).is_ok_and(|lacks| lacks.is_some()));
    assert!(judge(Shown::Absent, None).is_err());
    assert!(judge(Shown::Generation(7), None).is_err());
    let third = ledger.begin(&[0]);
    ledger.sending(&[0], third, false);
    ledger.returned(&[0], third);
    assert!(judge(Shown::Absent, Some(Instant::now())).is_ok());
    assert!(judge(Shown::Generation(second), Some(Instant::now())).is_err());
}
