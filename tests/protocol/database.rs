//! The protocol between PostgreSQL and a follower: xids, snapshots, the change log, the wait lock, notifications.
//!
//! Each step cites the function that it stands for. A step is atomic, and any other may come between two steps.
//!
//! A transaction writes a row under each of two keys, as a scrape does for two events, and logs both keys. Where log
//! rows may be coarse, some write under one key only, and some log a block of keys or the whole table. A set of rows is
//! a bit mask over the transactions that wrote them. So a view that shows half of a transaction, or that misses one,
//! differs from the truth in a bit.
//!
//! A partition comes with rows under some keys, and transactions may write into it. All of these rows go with it.

use stateright::{Model, Property};

use crate::explore::{assert_found, assert_sound, is_large};

/// A set of transactions, one bit each, in the order in which they began.
type Rows = u8;

/// A set of keys, one bit each.
type Keys = u8;

const BOTH: Keys = 0b11;

/// A bug to plant. Each stands for a line that src could do without, or could have wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// `change_log::exactly_new` selects rows by `xmax` alone, and forgets the transactions that were in progress.
    CursorByXmaxAlone,
    /// `log_change()` writes the id of the subtransaction into the log row, not that of the transaction.
    LogRowOfSubtransaction,
    /// `log_change()` looks for the wait lock before the transaction has its id (W1).
    LookBeforeId,
    /// `wait_sql` asks for the next id before it has the lock (W2).
    AskBeforeLock,
    /// `wait_sql` asks for `xmax` of the snapshot, which is smaller than the next id while transactions are open (W2).
    NotifiesFromXmax,
    /// `Polling::read` never begins an overlap (W3).
    NoOverlap,
    /// A read of everything does not tell `Polling`, so it begins no overlap (W3). src had this bug: the read that
    /// the lock had woken found a reason to read everything, and the follower then waited for notifications.
    ReloadWithoutOverlap,
    /// `Polling` keeps `settled` when the server's history is lost. After a crash another lock may have the same
    /// `notifies_from`.
    SettledAcrossCrash,
    /// After a lost connection the follower goes on from its cursor, without a look at the server's history.
    ResumeAfterLostCommits,
    /// `Evidence::prove` does not look for the log rows that were read (CC3).
    RowsNotCompared,
    /// `Evidence::prove` does not look for log rows under ids that the cursor has passed (CC4).
    PassedIdsNotCompared,
    /// `Evidence::is_pruned` is always false (CC5).
    PrunedEvidence,
    /// `Server::has_run_on_since` is always true, so a crash behind a pooler stays unseen.
    ServerNotCompared,
    /// The state after a lost connection is published in the same epoch.
    SameEpochAfterCrash,
    /// `read_changes` applies and publishes before `end` has compared the partitions and committed.
    PublishBeforeCommit,
    /// `read_changes` moves the cursor before COMMIT, so a failed read has moved it (R2).
    CursorBeforeCommit,
    /// `Cursor::is_pruned` is always false.
    PruneUnnoticed,
    /// `prune()` deletes rows above the horizon, as it would if it went by their time.
    PruneAboveHorizon,
    /// `Cursor::is_at` compares `xmax` alone (R5).
    EqualXmaxProves,
    /// The age counts from the end of the read, not from before its snapshot.
    AgeFromEnd,
    /// `Touched::add_to` does not look up the rows that lie within the bounds now (KP2).
    NewPartitionTakenForEmpty,
    /// `Touched::add_to` forgets the rows that are held and lie within the bounds (KP2).
    RowsOfOldPartitionKept,
    /// The fingerprint tells whether there is a partition, not which one (KP1).
    OtherPartitionUnnoticed,
    /// `Keys::contains` knows of a block only its first key (F3).
    BlockTakenForFirstKey,
    /// `ChangeSet::add` ignores a log row without keys, which means the whole table (F3).
    WholeTableIgnored,
    /// `Since` has the `xmax` of the snapshot, so it forgets the transactions that were in progress (RV2).
    WrittenSinceXmax,
    /// `Since` has the `xmin` of the read before COMMIT (RV1).
    WrittenSinceThisRead,
}

/// How much may happen. Every interleaving of that is explored.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// Transactions of the writers, altogether.
    transactions: usize,
    /// How many of them are in progress at once.
    writers: usize,
    /// Whether a transaction may have a savepoint.
    savepoints: bool,
    /// Whether a transaction may roll back.
    rollbacks: bool,
    /// Whether COMMIT may be asynchronous, so that a crash loses it.
    crashes: u8,
    /// Whether a crash is the return of a machine to a snapshot with its memory: the server says that it has run on.
    put_back: bool,
    /// Lost connections of the reader and of the listener, and reads that fail.
    faults: u8,
    /// Whether a notification may be lost.
    losses: bool,
    /// How often `prune()` runs.
    prunes: u8,
    /// Whether a pruned log leads to a look for rows that were written since, instead of a read of everything. It stands
    /// for the look of `read::versions`, which the follower makes while changes are not logged.
    versions: bool,
    /// How often a partition is attached or detached, altogether.
    ddl: u8,
    /// Whether log rows may name a block of keys or the whole table.
    coarse: bool,
    /// Whether the overlap may be given up, as it is after `OVERLAP_FOR`.
    give_up: bool,
}

const QUIET: Bound = Bound {
    transactions: 3,
    writers: 2,
    savepoints: false,
    rollbacks: false,
    crashes: 0,
    put_back: false,
    faults: 0,
    losses: false,
    prunes: 0,
    versions: false,
    ddl: 0,
    coarse: false,
    give_up: false,
};

/// `pg_snapshot`, as `pg_current_snapshot()` returns it: it lists top-level transactions only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Snapshot {
    xmin: u8,
    xmax: u8,
    /// Bit mask over xids.
    in_progress: u16,
}

impl Snapshot {
    /// `PgSnapshot::shows`.
    fn shows(self, xid: u8) -> bool {
        xid < self.xmin || xid < self.xmax && self.in_progress & 1 << xid == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    InProgress,
    /// Visible to new snapshots. A crash takes it back unless it is flushed.
    Committed {
        flushed: bool,
    },
    /// Rolled back, or lost in a crash.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Transaction {
    /// `None` while a writer with [`Bug::LookBeforeId`] has only looked.
    xid: Option<u8>,
    subxid: Option<u8>,
    phase: Phase,
    /// Whether the writer found the wait lock, once it has looked.
    looked: Option<bool>,
    /// Whether its log rows are there. Prune deletes them.
    logged: bool,
    /// What its log rows name.
    named: Named,
    /// The keys under which it writes a row. If it attaches a partition: the keys that have a row there.
    keys: Keys,
    /// The partition into which it writes: the place in `transactions` of the DDL that attached it.
    within: Option<u8>,
    /// What it does to the partition, if it is DDL. It has no log row then.
    ddl: Option<Ddl>,
}

/// What log rows name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Named {
    /// Each key.
    Keys,
    /// The block in which both keys lie.
    Block,
    Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ddl {
    Attach,
    Detach,
}

impl Transaction {
    fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Committed { .. })
    }

    fn is_seen_by(&self, snapshot: Snapshot) -> bool {
        self.is_committed() && self.xid.is_some_and(|xid| snapshot.shows(xid))
    }

    /// Whether its rows are in a partition, so that they come and go with it.
    fn is_in_partition(&self) -> bool {
        self.ddl.is_some() || self.within.is_some()
    }
}

/// What a read does: `transaction::peek`, `read::changes` or `read::everything`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Peek,
    Changes,
    Everything { new_epoch: bool },
}

/// What the follower's next step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Disconnected,
    /// `Follower::wait`.
    Waiting,
    /// The transaction is sent, and has no snapshot yet.
    Begun(Begun),
    /// The transaction has its snapshot, and the answers to the first queries.
    Opened(Opened),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Begun {
    kind: Kind,
    /// Whether a notification ended the wait.
    notified: bool,
    /// `ReadStart::began`: what was committed at the moment from which the age will count.
    began: Rows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Opened {
    begun: Begun,
    snapshot: Snapshot,
    /// What was committed when the server took the snapshot, and the rows of each key then.
    history: Rows,
    truth: [Rows; 2],
    run: u8,
    /// The fingerprint: which partition was attached at the snapshot.
    attached: Option<u8>,
    /// Whether there were new log rows.
    has_news: bool,
    /// The transactions whose log rows are new.
    news: Rows,
    /// The evidence after this read.
    evidence: Evidence,
    /// The keys that this read reads.
    keys: Keys,
    /// Those of them that it has not read yet.
    unread: Keys,
    rows: [Rows; 2],
}

/// `ReadState::at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Cursor {
    snapshot: Snapshot,
    run: u8,
    attached: Option<u8>,
    evidence: Evidence,
}

/// `continuity::Evidence`, with `pruned_below` of that read. Kept only where a machine may be put back, so that there
/// are fewer states elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Evidence {
    /// The transactions whose log rows the last read found that found any, unless they were pruned.
    rows: Rows,
    /// The least and the greatest id of these. The first is the greatest plus one if there are none.
    first: u8,
    newest_xid: u8,
    pruned_below: u8,
}

/// What readers see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct View {
    epoch: u8,
    rows: [Rows; 2],
    /// What was committed at the snapshot of the cut, and the rows of each key then.
    history: Rows,
    truth: [Rows; 2],
    /// What was committed at the moment from which the age counts.
    proven: Rows,
}

/// `polling::Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mode {
    Notified,
    Polling,
    Overlap,
}

/// The listener's session: `ListenerTask::listen` and `hold_wait_lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Listener {
    Away,
    /// LISTENs without the lock.
    Listening,
    /// Has the lock, and asks for the next id.
    Locked,
    /// Has the lock; `notifies_from` is set.
    Waited,
    /// Is about to release the lock; `notifies_from` is cleared.
    Releasing,
    /// With [`Bug::AskBeforeLock`]: has asked, and takes the lock next.
    Asked(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    transactions: Vec<Transaction>,
    next_xid: u8,
    /// `xmax` of a snapshot is the next id after this one, not the next that will be assigned.
    latest_completed: u8,
    /// Grows with each crash. `transaction::Server`.
    run: u8,
    pruned_below: u8,
    /// A notification is on its way.
    in_flight: bool,
    listener: Listener,
    notifies_from: Option<u8>,
    /// `listener::State::notified`: remembers one notification.
    notified: bool,
    reader: Reader,
    cursor: Cursor,
    /// `ReadState::unproven`.
    unproven: bool,
    view: View,
    mode: Mode,
    /// `Polling::settled`.
    settled: Option<u8>,
    /// A notification was lost, or DDL sent none. The poll interval is then the bound, so a waiting follower may miss
    /// the change until its next read.
    lost: bool,
    /// The overlap for this id was given up before all transactions below it had ended.
    given_up: Option<u8>,
    /// The cut went back within an epoch.
    went_back: bool,
    crashes: u8,
    faults: u8,
    prunes: u8,
    ddl: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// A trigger's first statement: the transaction gets its id and its log rows. `log_change()`, part 2.
    Begin {
        savepoint: bool,
        named: Named,
        keys: Keys,
        /// Whether it writes into the partition.
        within: bool,
    },
    /// `log_change()`, part 3.
    Look(usize),
    /// With [`Bug::LookBeforeId`]: the transaction gets its id after it has looked.
    GetId(usize),
    Commit {
        index: usize,
        notification_lost: bool,
    },
    RollBack(usize),
    /// The WAL writer flushes all commits so far.
    Flush,
    /// DDL attaches a partition that has a row under each of these keys.
    Attach(Keys),
    Detach,
    /// `oddscache.prune()`.
    Prune,
    /// The server loses what was not flushed, and assigns those ids again. If the machine may be put back, the flush
    /// stands for the snapshot of the machine.
    Crash {
        behind_pooler: bool,
    },
    LoseReader,
    LoseListener,
    /// A read fails, for instance by its time limit. The connection stays.
    FailRead,
    /// The notification reaches the listener. `State::note_notification`.
    Deliver,
    /// The next step of the listener: `ListenerTask::listen`, `hold_wait_lock`.
    Listen,
    /// `Follower::connect`, then `Follower::warm_up`.
    Connect,
    /// `Follower::wait` ends by a notification.
    WakeByNotification,
    /// `Follower::wait` ends by time.
    WakeByTime,
    /// The server takes the snapshot; the queries that are sent with BEGIN are answered. `read::open`, `Opened::news`.
    Open,
    /// Reads the rows of one key. `Rows::read`, `read::all_rows`.
    ReadKey,
    /// `read::end`, applying, `Follower::plan_next` and `Follower::publish`. `mode` is what time decides.
    End {
        mode: Mode,
        give_up: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Database {
    bound: Bound,
    bug: Bug,
}

const P1: &str = "P1: a view is one committed state";
const P2: &str = "P2: cuts never go back within an epoch";
const P3: &str = "P3: a follower that waits for notifications shows every commit";
const P4: &str = "P4: a view shows all that was committed when its age began";

impl State {
    fn committed(&self) -> Rows {
        self.rows(Transaction::is_committed)
    }

    /// The partition that is attached: the place in `transactions` of the DDL that attached it.
    fn partition(&self) -> Option<u8> {
        let last = self
            .transactions
            .iter()
            .rposition(|transaction| transaction.ddl.is_some())?;
        let is_attached = self.transactions[last].ddl == Some(Ddl::Attach);
        u8::try_from(last).ok().filter(|_| is_attached)
    }

    /// The rows of each key that are in the tables, of the transactions that `is_in` selects.
    fn rows_of_keys(&self, is_in: impl Fn(&Transaction) -> bool) -> [Rows; 2] {
        let partition = self.partition();
        let attached = partition.map_or(0, |index| 1 << index);
        let is_there = |transaction: &Transaction| {
            transaction.ddl.is_none()
                && is_in(transaction)
                && (transaction.within.is_none() || transaction.within == partition)
        };
        let rows = self.rows(is_there) | attached;
        [0, 1].map(|key| rows & self.rows(|transaction| transaction.keys & 1 << key != 0))
    }

    fn rows(&self, is_in: impl Fn(&Transaction) -> bool) -> Rows {
        let of = |(index, transaction)| Rows::from(is_in(transaction)) << index;
        self.transactions.iter().enumerate().map(of).sum()
    }

    fn in_progress(&self) -> impl Iterator<Item = &Transaction> {
        self.transactions
            .iter()
            .filter(|transaction| transaction.phase == Phase::InProgress)
    }

    /// `pg_current_snapshot()`.
    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let running = || self.in_progress().filter_map(|transaction| transaction.xid);
        Snapshot {
            xmin: running().min().unwrap_or(xmax).min(xmax),
            xmax,
            in_progress: running()
                .filter(|xid| *xid < xmax)
                .map(|xid| 1 << xid)
                .sum(),
        }
    }

    fn is_locked(&self) -> bool {
        matches!(
            self.listener,
            Listener::Locked | Listener::Waited | Listener::Releasing
        )
    }

    fn assign_id(&mut self, savepoint: bool) -> (u8, Option<u8>) {
        let xid = self.next_xid;
        self.next_xid += 1 + u8::from(savepoint);
        (xid, savepoint.then_some(xid + 1))
    }

    fn complete(&mut self, index: usize, phase: Phase) {
        let transaction = &mut self.transactions[index];
        transaction.phase = phase;
        let last = transaction.subxid.max(transaction.xid).unwrap_or(0);
        self.latest_completed = self.latest_completed.max(last);
    }

    fn lose_listener(&mut self) {
        self.listener = Listener::Away;
        self.notifies_from = None;
        self.in_flight = false;
    }

    /// The rows of each key that a query sees under a snapshot. Partitions are not looked up under the snapshot, so
    /// those of a partition that was attached since are seen, too.
    fn visible(&self, snapshot: Snapshot) -> [Rows; 2] {
        self.rows_of_keys(|transaction| transaction.is_seen_by(snapshot))
    }

    /// Gives readers a new state.
    fn publish(&mut self, view: View) {
        // Rows in a partition may go with it.
        let stay = !self.rows(Transaction::is_in_partition);
        let is_subset = self.view.history & !view.history == 0
            && (0..2).all(|key| self.view.rows[key] & stay & !view.rows[key] == 0);
        self.went_back |= view.epoch == self.view.epoch && !is_subset;
        self.view = view;
    }
}

impl Database {
    /// `read::open` and `Opened::news`.
    fn open(&self, state: &mut State, mut begun: Begun) {
        let (snapshot, history) = (state.snapshot(), state.committed());
        let truth = state.rows_of_keys(Transaction::is_committed);
        let attached = state.partition();
        let cursor = state.cursor;
        let same_run = self.bug == Bug::ServerNotCompared || cursor.run == state.run;
        // From here on this read shows what notifications did not tell.
        state.lost = false;
        if begun.kind == Kind::Peek {
            let is_at = match self.bug {
                Bug::EqualXmaxProves => cursor.snapshot.xmax == snapshot.xmax,
                _ => cursor.snapshot == snapshot,
            };
            if !(is_at && same_run) {
                // `prove_unchanged` returned `None`, so a read of changes follows.
                let began = state.committed();
                begun = Begun {
                    kind: Kind::Changes,
                    notified: begun.notified,
                    began,
                };
                state.reader = Reader::Begun(begun);
                state.lost = true;
                return;
            }
        }
        let (mut news, mut keys, mut is_unnamed) = (0, 0, false);
        if begun.kind == Kind::Changes {
            news = state.rows(|transaction| {
                let logged = match self.bug {
                    Bug::LogRowOfSubtransaction => transaction.subxid.or(transaction.xid),
                    _ => transaction.xid,
                };
                let Some(logged) = logged else {
                    return false;
                };
                let is_visible = transaction.is_seen_by(snapshot);
                let is_new = logged >= cursor.snapshot.xmax
                    || cursor.snapshot.in_progress & 1 << logged != 0
                        && self.bug != Bug::CursorByXmaxAlone;
                transaction.logged && is_visible && is_new
            });
            let is_pruned = cursor.snapshot.xmin < state.pruned_below;
            let went_back = cursor.snapshot.xmax > snapshot.xmax;
            if !same_run || went_back || !self.proves(state, snapshot) {
                begun.kind = Kind::Everything { new_epoch: true };
            } else if is_pruned && self.bound.versions {
                is_unnamed = true;
                keys = self.written_since(state, snapshot)
                    | self.named(state, news)
                    | self.touched(state, attached, snapshot);
            } else if is_pruned && self.bug != Bug::PruneUnnoticed {
                begun.kind = Kind::Everything { new_epoch: false };
            } else {
                keys = self.named(state, news) | self.touched(state, attached, snapshot);
            }
        }
        let everything = matches!(begun.kind, Kind::Everything { .. });
        if everything {
            keys = BOTH;
        }
        let named = Some(news).filter(|_| !everything && !is_unnamed);
        let evidence = self.evidence(state, snapshot, named);
        state.reader = Reader::Opened(Opened {
            evidence,
            begun,
            snapshot,
            history,
            truth,
            run: state.run,
            attached,
            has_news: news != 0,
            news,
            keys,
            unread: keys,
            rows: state.view.rows,
        });
        if self.bug == Bug::CursorBeforeCommit {
            state.cursor = Cursor {
                snapshot,
                run: state.run,
                attached,
                evidence,
            };
        }
    }

    /// `Since::add_to`: the keys that have a row now whose writer had not ended at the last read, by the id that wrote it.
    fn written_since(&self, state: &State, snapshot: Snapshot) -> Keys {
        let since = match self.bug {
            Bug::WrittenSinceXmax => state.cursor.snapshot.xmax,
            Bug::WrittenSinceThisRead => snapshot.xmin,
            _ => state.cursor.snapshot.xmin,
        };
        let is_written = |transaction: &Transaction| {
            let writer = transaction.subxid.or(transaction.xid);
            transaction.ddl.is_none() && writer.is_some_and(|writer| writer >= since)
        };
        let written = state.rows(is_written);
        let [one, other] = state.visible(snapshot).map(|rows| rows & written != 0);
        Keys::from(one) | Keys::from(other) << 1
    }

    /// `ChangeSet::add`: the keys that these transactions' log rows name.
    fn named(&self, state: &State, news: Rows) -> Keys {
        let of = |(index, transaction): (usize, &Transaction)| match transaction.named {
            _ if news & 1 << index == 0 => 0,
            Named::Keys => transaction.keys,
            Named::Block if self.bug == Bug::BlockTakenForFirstKey => 0b01,
            Named::Table if self.bug == Bug::WholeTableIgnored => 0,
            Named::Block | Named::Table => BOTH,
        };
        let all = state.transactions.iter().enumerate();
        all.map(of).fold(0, |keys, more| keys | more)
    }

    /// `Partitions::touched` and `Touched::add_to`: the keys whose rows may have come or gone with a partition. All
    /// partitions of the model have the same bounds, and only rows in partitions lie within these.
    ///
    /// Whether a partition is attached between the snapshot and the look-up makes no difference: if none was attached
    /// at the snapshot, nothing is looked up.
    fn touched(&self, state: &State, attached: Option<u8>, snapshot: Snapshot) -> Keys {
        let before = state.cursor.attached;
        let is_same = match self.bug {
            Bug::OtherPartitionUnnoticed => before.is_some() == attached.is_some(),
            _ => before == attached,
        };
        if is_same {
            return 0;
        }
        let within = state.rows(Transaction::is_in_partition);
        let with_rows = |rows: [Rows; 2]| -> Keys {
            let has_row = |key: usize| rows[key] & within != 0;
            Keys::from(has_row(0)) | Keys::from(has_row(1)) << 1
        };
        let there = match attached {
            Some(_) if self.bug != Bug::NewPartitionTakenForEmpty => {
                with_rows(state.visible(snapshot))
            }
            _ => 0,
        };
        let held = match self.bug {
            Bug::RowsOfOldPartitionKept => 0,
            _ => with_rows(state.view.rows),
        };
        there | held
    }

    /// `Evidence::newest` for a read of everything, otherwise `Evidence::read` with the transactions whose log rows are
    /// new.
    fn evidence(&self, state: &State, snapshot: Snapshot, news: Option<Rows>) -> Evidence {
        if !self.bound.put_back {
            return Evidence::default();
        }
        let before = state.cursor.evidence;
        let is_logged =
            |transaction: &Transaction| transaction.is_committed() && transaction.logged;
        let logged = state.rows(is_logged);
        let rows = match news {
            None => {
                let shown = |xid| snapshot.shows(xid);
                state.rows(|t| is_logged(t) && t.xid.is_some_and(shown))
            }
            Some(0) => before.rows & logged,
            Some(news) => news,
        };
        let xids = || {
            let all = state.transactions.iter().enumerate();
            let of = all.filter(move |(index, _)| rows & 1 << index != 0);
            of.filter_map(|(_, transaction)| transaction.xid)
        };
        let read_before = news.map_or(0, |_| before.newest_xid);
        let newest_xid = xids().max().unwrap_or(0).max(read_before);
        Evidence {
            rows,
            first: xids().min().unwrap_or(newest_xid + 1),
            newest_xid,
            pruned_below: state.pruned_below,
        }
    }

    /// What `continuity` asks beyond the run of the server: CC2 to CC5.
    fn proves(&self, state: &State, snapshot: Snapshot) -> bool {
        if !state.unproven || self.bug == Bug::ResumeAfterLostCommits || !self.bound.put_back {
            return true;
        }
        let Cursor {
            snapshot: before,
            evidence,
            ..
        } = state.cursor;
        let is_shown = (1..before.xmax).all(|xid| !before.shows(xid) || snapshot.shows(xid));
        let now = state.pruned_below;
        let is_pruned =
            now < evidence.pruned_below || now > evidence.pruned_below && now > evidence.first;
        let is_logged =
            |transaction: &Transaction| transaction.is_committed() && transaction.logged;
        let has_rows = evidence.rows & !state.rows(is_logged) == 0;
        let is_passed = |xid| xid > evidence.newest_xid && before.shows(xid) && snapshot.shows(xid);
        let passed = state.rows(|t| is_logged(t) && t.xid.is_some_and(is_passed));
        is_shown
            && (!is_pruned || self.bug == Bug::PrunedEvidence)
            && (has_rows || self.bug == Bug::RowsNotCompared)
            && (passed == 0 || self.bug == Bug::PassedIdsNotCompared)
    }

    /// What [`Database::end`] publishes.
    fn next_view(&self, state: &State, opened: &Opened) -> View {
        let new_epoch = opened.begun.kind == Kind::Everything { new_epoch: true }
            && (self.bug != Bug::SameEpochAfterCrash || state.view.epoch == 0);
        View {
            epoch: state.view.epoch + u8::from(new_epoch),
            rows: opened.rows,
            history: opened.history,
            truth: opened.truth,
            proven: match self.bug {
                Bug::AgeFromEnd => state.committed(),
                _ => opened.begun.began,
            },
        }
    }

    /// `read::end` succeeds only if the partitions are still those of the snapshot, in case rows were read.
    fn may_end(&self, state: &State, opened: &Opened) -> bool {
        opened.keys == 0 || state.partition() == opened.attached
    }

    fn end(&self, state: &mut State, opened: &Opened, (mode, give_up): (Mode, bool)) {
        state.cursor = Cursor {
            snapshot: opened.snapshot,
            run: opened.run,
            attached: opened.attached,
            evidence: opened.evidence,
        };
        state.unproven = false;
        state.reader = Reader::Waiting;
        if matches!(opened.begun.kind, Kind::Everything { .. }) {
            self.read_everything(state);
        } else {
            self.plan_next(state, opened.snapshot.xmin, (mode, give_up));
        }
        let view = self.next_view(state, opened);
        state.publish(view);
    }

    /// `Polling::reloaded`, after a read of everything.
    fn read_everything(&self, state: &mut State) {
        let is_new = self.bug != Bug::SettledAcrossCrash || state.notifies_from != state.settled;
        let waits = state.mode == Mode::Notified && state.notifies_from.is_some();
        if waits && is_new && self.bug != Bug::ReloadWithoutOverlap {
            state.mode = Mode::Overlap;
        }
        if self.bug != Bug::SettledAcrossCrash && self.bug != Bug::ReloadWithoutOverlap {
            state.settled = None;
        }
    }

    /// `Follower::plan_next` and `Polling::read`, after any other read.
    fn plan_next(&self, state: &mut State, xmin: u8, (mode, give_up): (Mode, bool)) {
        state.mode = mode;
        if mode == Mode::Overlap {
            let settled = state.notifies_from.is_some_and(|from| xmin >= from);
            if settled || give_up || self.bug == Bug::NoOverlap {
                state.settled = state.notifies_from;
                state.mode = Mode::Notified;
            }
            state.given_up = state.notifies_from.filter(|_| give_up && !settled);
        }
        state.given_up = state.given_up.filter(|from| xmin < *from);
    }

    /// The modes that `Polling::read` may choose after this read.
    fn modes(&self, state: &State, opened: &Opened) -> Vec<Mode> {
        if matches!(opened.begun.kind, Kind::Everything { .. }) {
            return vec![state.mode];
        }
        match state.mode {
            Mode::Polling if opened.has_news => vec![Mode::Polling],
            Mode::Polling => vec![Mode::Polling, Mode::Overlap],
            Mode::Overlap => vec![Mode::Overlap],
            Mode::Notified
                if state.notifies_from.is_some() && state.notifies_from != state.settled =>
            {
                vec![Mode::Overlap]
            }
            Mode::Notified if opened.begun.notified && opened.has_news => {
                vec![Mode::Notified, Mode::Polling]
            }
            Mode::Notified => vec![Mode::Notified],
        }
    }

    /// The next step of the listener, if it has one.
    fn listen(&self, state: &mut State) -> Option<()> {
        let wanted = state.mode != Mode::Polling;
        let next_xid = match self.bug {
            Bug::NotifiesFromXmax => state.latest_completed + 1,
            _ => state.next_xid,
        };
        let waits = |state: &mut State, from| {
            state.listener = Listener::Waited;
            state.notifies_from = Some(from);
            // No notification came for what was committed until now, so the follower must read once.
            state.notified = true;
        };
        match state.listener {
            Listener::Away => state.listener = Listener::Listening,
            Listener::Listening if wanted && self.bug == Bug::AskBeforeLock => {
                state.listener = Listener::Asked(next_xid);
            }
            Listener::Listening if wanted => state.listener = Listener::Locked,
            Listener::Asked(from) => waits(state, from),
            Listener::Locked => waits(state, next_xid),
            Listener::Waited if !wanted => {
                state.notifies_from = None;
                state.listener = Listener::Releasing;
            }
            Listener::Releasing => state.listener = Listener::Listening,
            Listener::Listening | Listener::Waited => return None,
        }
        Some(())
    }

    /// DDL on the partition commits.
    fn change_partition(&self, state: &mut State, ddl: Ddl, keys: Keys) {
        state.ddl += 1;
        let (xid, _) = state.assign_id(false);
        let index = state.transactions.len();
        state.transactions.push(Transaction {
            xid: Some(xid),
            keys,
            ddl: Some(ddl),
            ..GONE
        });
        let flushed = self.bound.crashes == 0;
        state.complete(index, Phase::Committed { flushed });
        // DDL fires no trigger. The next poll finds it by the fingerprint.
        state.lost = true;
    }

    fn crash(&self, state: &mut State, behind_pooler: bool) {
        state.crashes += 1;
        state.run += u8::from(!self.bound.put_back);
        let mut last = 0;
        for transaction in &mut state.transactions {
            match transaction.phase {
                Phase::Committed { flushed: true } => {
                    last = last.max(transaction.subxid.max(transaction.xid).unwrap_or(0));
                }
                Phase::Committed { flushed: false } | Phase::InProgress => {
                    *transaction = Transaction {
                        phase: Phase::Gone,
                        ..GONE
                    };
                }
                Phase::Gone => {}
            }
        }
        // The ids of transactions that left no trace in the WAL are assigned again.
        state.next_xid = (last + 1).max(state.pruned_below);
        state.latest_completed = state.next_xid - 1;
        state.lose_listener();
        if behind_pooler && state.reader != Reader::Disconnected {
            if state.reader != Reader::Waiting {
                self.fail(state);
            }
        } else {
            state.reader = Reader::Disconnected;
        }
    }

    /// `Follower::give_way`: the same read follows.
    fn fail(&self, state: &mut State) {
        let is_first = |begun: &Begun| {
            begun.kind == Kind::Everything { new_epoch: true } && state.view.epoch == 0
        };
        state.reader = match state.reader {
            Reader::Begun(begun) | Reader::Opened(Opened { begun, .. }) if is_first(&begun) => {
                Reader::Disconnected
            }
            _ => Reader::Waiting,
        };
        state.notified = true;
    }

    fn begin(&self, state: &mut State, kind: Kind, notified: bool) {
        let began = state.committed();
        state.reader = Reader::Begun(Begun {
            kind,
            notified,
            began,
        });
    }
}

/// A transaction of which nothing is left.
const GONE: Transaction = Transaction {
    xid: None,
    subxid: None,
    phase: Phase::Gone,
    looked: None,
    logged: false,
    named: Named::Keys,
    keys: 0,
    within: None,
    ddl: None,
};

impl Model for Database {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            transactions: Vec::new(),
            next_xid: 1,
            latest_completed: 0,
            run: 0,
            pruned_below: 0,
            in_flight: false,
            listener: Listener::Away,
            notifies_from: None,
            notified: false,
            reader: Reader::Disconnected,
            cursor: Cursor::default(),
            unproven: false,
            view: View::default(),
            mode: Mode::Notified,
            settled: None,
            lost: false,
            given_up: None,
            went_back: false,
            crashes: 0,
            faults: 0,
            prunes: 0,
            ddl: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let bound = &self.bound;
        let writers = state
            .transactions
            .iter()
            .filter(|t| t.logged || t.xid.is_some() || t.phase != Phase::Gone);
        let writers = writers.filter(|t| t.phase == Phase::InProgress).count();
        let begun = state.transactions.len() - usize::from(state.ddl);
        if begun < bound.transactions && writers < bound.writers {
            let begin = |savepoint, named, keys, within| Action::Begin {
                savepoint,
                named,
                keys,
                within,
            };
            actions.push(begin(false, Named::Keys, BOTH, false));
            if bound.savepoints {
                actions.push(begin(true, Named::Keys, BOTH, false));
            }
            if bound.coarse {
                actions.push(begin(false, Named::Keys, 0b01, false));
                // A block, and a table even more so, has keys that did not change.
                actions.push(begin(false, Named::Block, 0b10, false));
                actions.push(begin(false, Named::Table, 0b10, false));
            }
            // If the partition cannot go any more, it makes no difference where the rows are.
            if state.partition().is_some() && state.ddl < bound.ddl {
                actions.push(begin(false, Named::Keys, BOTH, true));
            }
        }
        for (index, transaction) in state.transactions.iter().enumerate() {
            if transaction.phase != Phase::InProgress {
                continue;
            }
            match (transaction.xid, transaction.looked) {
                (_, None) => actions.push(Action::Look(index)),
                (None, Some(_)) => actions.push(Action::GetId(index)),
                (Some(_), Some(finds_lock)) => {
                    actions.push(Action::Commit {
                        index,
                        notification_lost: false,
                    });
                    if finds_lock && bound.losses {
                        actions.push(Action::Commit {
                            index,
                            notification_lost: true,
                        });
                    }
                }
            }
            if bound.rollbacks {
                actions.push(Action::RollBack(index));
            }
        }
        if bound.crashes > 0
            && state
                .transactions
                .iter()
                .any(|t| t.phase == Phase::Committed { flushed: false })
        {
            actions.push(Action::Flush);
        }
        if state.ddl < bound.ddl {
            match state.partition() {
                None => actions.extend([0b01, BOTH].map(Action::Attach)),
                // DETACH waits for the locks of readers and of writers into the partition. ATTACH does not.
                Some(partition) => {
                    let is_read = matches!(state.reader, Reader::Opened(opened)
                        if opened.begun.kind != Kind::Peek);
                    let is_written = state.in_progress().any(|t| t.within == Some(partition));
                    if !is_read && !is_written {
                        actions.push(Action::Detach);
                    }
                }
            }
        }
        if state.prunes < bound.prunes && state.snapshot().xmin > state.pruned_below {
            actions.push(Action::Prune);
        }
        if state.crashes < bound.crashes {
            actions.push(Action::Crash {
                behind_pooler: false,
            });
            if state.reader != Reader::Disconnected && !bound.put_back {
                actions.push(Action::Crash {
                    behind_pooler: true,
                });
            }
        }
        if state.faults < bound.faults {
            if state.reader != Reader::Disconnected {
                actions.push(Action::LoseReader);
            }
            if matches!(state.reader, Reader::Begun(_) | Reader::Opened(_)) {
                actions.push(Action::FailRead);
            }
            if state.listener != Listener::Away {
                actions.push(Action::LoseListener);
            }
        }
        if state.in_flight {
            actions.push(Action::Deliver);
        }
        actions.push(Action::Listen);
        match state.reader {
            Reader::Disconnected => actions.push(Action::Connect),
            Reader::Waiting => {
                // `Wake::by_notification`.
                if state.notified && state.mode != Mode::Polling {
                    actions.push(Action::WakeByNotification);
                }
                actions.push(Action::WakeByTime);
            }
            Reader::Begun(_) => actions.push(Action::Open),
            Reader::Opened(opened) if opened.unread != 0 => actions.push(Action::ReadKey),
            Reader::Opened(opened) => {
                for mode in self.modes(state, &opened) {
                    actions.push(Action::End {
                        mode,
                        give_up: false,
                    });
                    if mode == Mode::Overlap && bound.give_up {
                        actions.push(Action::End {
                            mode,
                            give_up: true,
                        });
                    }
                }
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Begin {
                savepoint,
                named,
                keys,
                within,
            } => {
                let mut new = Transaction {
                    phase: Phase::InProgress,
                    logged: true,
                    named,
                    keys,
                    within: state.partition().filter(|_| within),
                    ..GONE
                };
                if self.bug == Bug::LookBeforeId {
                    new.looked = Some(state.is_locked());
                } else {
                    let (xid, subxid) = state.assign_id(savepoint);
                    (new.xid, new.subxid) = (Some(xid), subxid);
                }
                state.transactions.push(new);
            }
            Action::Look(index) => state.transactions[index].looked = Some(state.is_locked()),
            Action::GetId(index) => {
                let (xid, subxid) = state.assign_id(false);
                let transaction = &mut state.transactions[index];
                (transaction.xid, transaction.subxid) = (Some(xid), subxid);
            }
            Action::Commit {
                index,
                notification_lost,
            } => {
                // Without crashes all commits are flushed, which keeps the number of states small.
                let flushed = self.bound.crashes == 0;
                let notifies = state.transactions[index].looked.take() == Some(true);
                state.complete(index, Phase::Committed { flushed });
                if notifies && notification_lost {
                    state.lost = true;
                } else if notifies && state.listener != Listener::Away {
                    state.in_flight = true;
                }
            }
            Action::RollBack(index) => {
                state.complete(index, Phase::Gone);
                state.transactions[index] = GONE;
            }
            Action::Flush => {
                for transaction in &mut state.transactions {
                    if let Phase::Committed { flushed } = &mut transaction.phase {
                        *flushed = true;
                    }
                }
            }
            Action::Attach(keys) => self.change_partition(&mut state, Ddl::Attach, keys),
            Action::Detach => self.change_partition(&mut state, Ddl::Detach, 0),
            Action::Prune => {
                state.prunes += 1;
                let horizon = state.snapshot().xmin;
                state.pruned_below = horizon;
                for transaction in &mut state.transactions {
                    let is_below = transaction.xid.is_some_and(|xid| xid < horizon);
                    if transaction.is_committed()
                        && (is_below || self.bug == Bug::PruneAboveHorizon)
                    {
                        transaction.logged = false;
                    }
                    // Prune commits synchronously, so all commits before it are flushed.
                    if let Phase::Committed { flushed } = &mut transaction.phase {
                        *flushed = true;
                    }
                }
            }
            Action::Crash { behind_pooler } => self.crash(&mut state, behind_pooler),
            Action::LoseReader => {
                state.faults += 1;
                state.reader = Reader::Disconnected;
            }
            Action::LoseListener => {
                state.faults += 1;
                state.lose_listener();
            }
            Action::FailRead => {
                state.faults += 1;
                self.fail(&mut state);
            }
            Action::Deliver => {
                state.in_flight = false;
                state.notified = true;
            }
            Action::Listen => self.listen(&mut state)?,
            Action::Connect => {
                if self.bug == Bug::ResumeAfterLostCommits {
                    state.cursor.run = state.run;
                }
                let kind = match state.view.epoch > 0 {
                    // `Schedule::reconnected`.
                    true => {
                        state.unproven = true;
                        if self.bug != Bug::SettledAcrossCrash {
                            state.settled = None;
                        }
                        Kind::Changes
                    }
                    false => Kind::Everything { new_epoch: true },
                };
                self.begin(&mut state, kind, false);
            }
            Action::WakeByNotification => {
                state.notified = false;
                self.begin(&mut state, Kind::Changes, true);
            }
            Action::WakeByTime => {
                let kind = match state.unproven {
                    true => Kind::Changes,
                    false => Kind::Peek,
                };
                self.begin(&mut state, kind, false);
            }
            Action::Open => {
                let Reader::Begun(begun) = state.reader else {
                    return None;
                };
                self.open(&mut state, begun);
            }
            Action::ReadKey => {
                let Reader::Opened(mut opened) = state.reader else {
                    return None;
                };
                let key = opened.unread.trailing_zeros();
                opened.rows[key as usize] = state.visible(opened.snapshot)[key as usize];
                opened.unread &= !(1 << key);
                state.reader = Reader::Opened(opened);
                if self.bug == Bug::PublishBeforeCommit && opened.unread == 0 {
                    let view = self.next_view(&state, &opened);
                    state.publish(view);
                }
            }
            Action::End { mode, give_up } => {
                let Reader::Opened(opened) = state.reader else {
                    return None;
                };
                match self.may_end(&state, &opened) {
                    true => self.end(&mut state, &opened, (mode, give_up)),
                    false => self.fail(&mut state),
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Database>> {
        vec![
            Property::always(P1, |_, state: &State| state.view.rows == state.view.truth),
            Property::always(P2, |_, state: &State| !state.went_back),
            Property::always(P3, |_, state: &State| {
                let waits = state.reader == Reader::Waiting
                    && state.mode == Mode::Notified
                    && state.listener == Listener::Waited
                    && !state.notified
                    && !state.in_flight
                    && state.in_progress().next().is_none();
                let is_excused = state.lost || state.given_up.is_some();
                let shown = state.rows_of_keys(Transaction::is_committed);
                !waits || is_excused || state.view.rows == shown
            }),
            Property::always(P4, |_, state: &State| {
                // P1 says that the view shows this history.
                state.view.proven & !state.view.history == 0
            }),
            Property::sometimes(
                "it waits for notifications and shows all transactions",
                |model, state: &State| {
                    state.listener == Listener::Waited
                        && state.mode == Mode::Notified
                        && state.view.rows[0].count_ones() as usize == model.bound.transactions
                },
            ),
        ]
    }
}

/// The bounds that are explored whole, in debug within a minute.
const SMALL: [(&str, Bound); 9] = [
    (
        "three transactions",
        Bound {
            rollbacks: true,
            ..QUIET
        },
    ),
    (
        "savepoints, lost notifications, prune",
        Bound {
            transactions: 2,
            savepoints: true,
            losses: true,
            prunes: 1,
            ..QUIET
        },
    ),
    (
        "savepoints, prune, rows that tell their writers",
        Bound {
            transactions: 2,
            savepoints: true,
            prunes: 1,
            versions: true,
            ..QUIET
        },
    ),
    (
        "a crash, prune",
        Bound {
            transactions: 2,
            crashes: 1,
            prunes: 1,
            ..QUIET
        },
    ),
    (
        "a machine is put back, rollbacks, prune",
        Bound {
            transactions: 2,
            crashes: 1,
            put_back: true,
            rollbacks: true,
            prunes: 1,
            ..QUIET
        },
    ),
    (
        "two lost connections",
        Bound {
            transactions: 2,
            faults: 2,
            ..QUIET
        },
    ),
    (
        "a partition comes, an overlap given up",
        Bound {
            transactions: 2,
            ddl: 1,
            give_up: true,
            ..QUIET
        },
    ),
    (
        "a partition comes and goes, and another comes",
        Bound {
            transactions: 1,
            ddl: 3,
            ..QUIET
        },
    ),
    (
        "log rows of blocks and of the whole table",
        Bound {
            transactions: 2,
            coarse: true,
            ..QUIET
        },
    ),
];

/// For a machine with 16 GB, in release.
const LARGE: [(&str, Bound); 2] = [
    (
        "three transactions, a crash, prune, a lost connection",
        Bound {
            transactions: 3,
            crashes: 1,
            prunes: 1,
            faults: 1,
            ..QUIET
        },
    ),
    (
        "two transactions, a partition comes and goes",
        Bound {
            transactions: 2,
            ddl: 2,
            ..QUIET
        },
    ),
];

#[test]
fn without_a_bug_every_promise_holds() {
    for (name, bound) in if is_large() { &LARGE[..] } else { &SMALL[..] } {
        assert_sound(
            &format!("database, {name}"),
            Database {
                bound: *bound,
                bug: Bug::None,
            },
        );
    }
}

#[test]
fn each_bug_breaks_its_promise() {
    let two = Bound {
        transactions: 2,
        ..QUIET
    };
    let crash = Bound { crashes: 1, ..two };
    let prune = Bound { prunes: 1, ..two };
    let versions = Bound {
        versions: true,
        ..prune
    };
    let put_back = Bound {
        put_back: true,
        ..crash
    };
    let swap = Bound {
        transactions: 1,
        ddl: 3,
        ..QUIET
    };
    let coarse = Bound {
        coarse: true,
        ..two
    };
    let bugs = [
        (Bug::CursorByXmaxAlone, two, P1),
        (
            Bug::LogRowOfSubtransaction,
            Bound {
                savepoints: true,
                ..two
            },
            P1,
        ),
        (Bug::LookBeforeId, two, P3),
        (Bug::AskBeforeLock, two, P3),
        (Bug::NotifiesFromXmax, two, P3),
        (Bug::NoOverlap, two, P3),
        (Bug::ReloadWithoutOverlap, prune, P3),
        (Bug::SettledAcrossCrash, Bound { prunes: 1, ..crash }, P3),
        (Bug::ResumeAfterLostCommits, crash, P1),
        (Bug::RowsNotCompared, put_back, P1),
        (
            Bug::PassedIdsNotCompared,
            Bound {
                rollbacks: true,
                ..put_back
            },
            P1,
        ),
        (
            Bug::PrunedEvidence,
            Bound {
                transactions: 3,
                prunes: 1,
                rollbacks: true,
                ..put_back
            },
            P1,
        ),
        (Bug::ServerNotCompared, crash, P1),
        (Bug::SameEpochAfterCrash, crash, P2),
        (Bug::PublishBeforeCommit, Bound { ddl: 1, ..two }, P1),
        (Bug::CursorBeforeCommit, Bound { faults: 1, ..two }, P1),
        (Bug::PruneUnnoticed, prune, P1),
        (Bug::PruneAboveHorizon, prune, P1),
        (Bug::EqualXmaxProves, two, P1),
        (Bug::AgeFromEnd, two, P4),
        (Bug::NewPartitionTakenForEmpty, swap, P1),
        (Bug::RowsOfOldPartitionKept, swap, P1),
        (Bug::OtherPartitionUnnoticed, swap, P1),
        (Bug::BlockTakenForFirstKey, coarse, P1),
        (Bug::WholeTableIgnored, coarse, P1),
        (Bug::WrittenSinceXmax, versions, P1),
        (Bug::WrittenSinceThisRead, versions, P1),
    ];
    for (bug, bound, property) in bugs {
        assert_found(
            &format!("database, {bug:?}"),
            Database { bound, bug },
            property,
        );
    }
}
