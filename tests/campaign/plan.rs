//! What will happen: a pure function of the seed. When exactly it happens, and between which of the application's
//! statements, is not: that is the machine's.

use std::time::Duration;

use fastrand::Rng;

macro_rules! kinds {
    ($($lane:ident { $($kind:ident $name:literal,)+ })+) => {
        /// The kinds of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Kind {
            $($($kind,)+)+
        }

        impl Kind {
            pub(crate) const ALL: &[Kind] = &[$($(Kind::$kind,)+)+];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $($(Kind::$kind => $name,)+)+
                }
            }

            fn lane(self) -> Lane {
                match self {
                    $($(Kind::$kind)|+ => Lane::$lane,)+
                }
            }
        }
    };
}

/// Faults of one lane follow each other; those of different lanes overlap. The first three are of a round's rough half,
/// in which the embedded follower will mostly lose its connection; the others of its second half, in which it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Server,
    Network,
    Service,
    Database,
    Delivery,
    Application,
    /// One a round, while nothing else happens: what only the audit finds.
    Unseen,
}

impl Lane {
    /// Of the rough half and of the other, with how many faults a round.
    const HALVES: [[(Lane, usize); 3]; 2] = [
        [(Lane::Server, 2), (Lane::Network, 2), (Lane::Service, 1)],
        [
            (Lane::Database, 2),
            (Lane::Delivery, 2),
            (Lane::Application, 3),
        ],
    ];
}

kinds! {
    Server {
        TerminateReader "terminate the reading backend",
        RestartFast "restart, fast",
        RestartImmediate "restart, immediate",
        KillPostmaster "kill -9 of the postmaster",
        AsyncCrash "kill -9 with synchronous_commit = off",
        TriggersDisabled "triggers disabled and enabled",
        RightsRevoked "rights revoked and restored",
        Cancel "any statements of the followers cancelled",
        Migration "migration holding ACCESS EXCLUSIVE",
    }
    Network {
        BlackHole "black hole, both ways",
        HalfOpenUp "half open: nothing reaches the server",
        HalfOpenDown "half open: nothing reaches the follower",
        Slow "slow socket",
        Cut "cut in the middle of a message",
        Refuse "connections refused, and reset",
        Reset "connections reset",
        Freeze "network frozen and thawed",
        Stall "follower's thread blocked",
    }
    Service {
        Stopped "SIGSTOP and SIGCONT of the service",
        ClockJump "clock jump of the service",
        Killed "SIGKILL of the service",
    }
    Database {
        TerminateListener "terminate the listening backend",
        Partitions "partitions attached, detached, dropped",
        PrunedCursor "log pruned beyond a stalled cursor",
        LogDdl "DDL on the log",
        Spoof "NOTIFY from a role that may only connect",
        CancelReads "statements that read rows cancelled",
        Resync "reading everything asked for",
    }
    Delivery {
        Latency "latency",
        NoticesDropped "notifications dropped",
        NoticesDoubled "notifications doubled",
        NoticesDelayed "notifications delayed",
        NoticesForged "notifications forged",
    }
    Application {
        Truncates "TRUNCATE and rewriting of whole tables",
        Late "late commits, inverted ids",
        Savepoints "savepoints and rollbacks",
        Replica "session_replication_role = replica",
        Leaves "rows written straight into partitions",
        BellOff "writers with the bell off",
        ManyKeys "statements of more than 20,000 keys",
        Links "competitor events linked anew",
        Window "events postponed out of the window and back",
    }
    Unseen {
        LostLogRow "log row lost",
        BareLeaf "rows written straight into a partition without triggers",
    }
}

impl Kind {
    /// Whether the embedded follower may lose its connection by it, and so begin a new epoch.
    pub(crate) fn is_rough(self) -> bool {
        matches!(self.lane(), Lane::Server | Lane::Network)
    }

    /// Whether it may keep the in-process follower from reading, so that its view grows old.
    pub(crate) fn may_stall(self) -> bool {
        !matches!(
            self,
            Kind::Spoof
                | Kind::TerminateListener
                | Kind::NoticesDropped
                | Kind::NoticesDoubled
                | Kind::NoticesDelayed
                | Kind::NoticesForged
                | Kind::Late
                | Kind::Savepoints
                | Kind::Replica
                | Kind::Leaves
                | Kind::BellOff
                | Kind::Links
                | Kind::Window
                | Kind::LostLogRow
                | Kind::BareLeaf
                | Kind::Stopped
                | Kind::ClockJump
                | Kind::Killed
        )
    }
}

/// A fault, and how long to wait before it and keep it up.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) after: Duration,
    pub(crate) lasts: Duration,
    /// What it chooses at random, it chooses by this.
    pub(crate) seed: u64,
}

/// What happens between two comparisons with the oracle.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: usize,
    /// The rough half's lanes, and the other's.
    pub(crate) halves: [Vec<Vec<Fault>>; 2],
    /// In the pause.
    pub(crate) unseen: Fault,
    /// The seed of each client's transactions is made from this.
    pub(crate) seed: u64,
}

impl Round {
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let faults = self.halves.iter().flatten().flatten();
        faults
            .chain([&self.unseen])
            .map(|fault| fault.kind)
            .collect()
    }
}

/// Deals the kinds of each lane from a shuffled deck, so that a few rounds have all of them.
#[derive(Debug)]
pub(crate) struct Plan {
    rng: Rng,
    decks: [Vec<Kind>; 7],
    next: usize,
}

/// After so many rounds each kind had its turn.
pub(crate) const WHOLE_DECK: usize = 5;

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        Plan {
            rng: Rng::with_seed(seed),
            decks: Default::default(),
            next: 1,
        }
    }

    fn deal(&mut self, lane: Lane) -> Fault {
        let deck = &mut self.decks[lane as usize];
        if deck.is_empty() {
            deck.extend(Kind::ALL.iter().filter(|kind| kind.lane() == lane));
            self.rng.shuffle(deck);
        }
        let kind = deck.pop().expect("just filled");
        Fault {
            kind,
            after: Duration::from_millis(self.rng.u64(30..250)),
            lasts: Duration::from_millis(self.rng.u64(250..800)),
            seed: self.rng.u64(..),
        }
    }

    pub(crate) fn round(&mut self) -> Round {
        let halves = Lane::HALVES.map(|lanes| {
            lanes
                .into_iter()
                .map(|(lane, faults)| (0..faults).map(|_| self.deal(lane)).collect())
                .collect()
        });
        let number = self.next;
        self.next += 1;
        Round {
            number,
            halves,
            unseen: self.deal(Lane::Unseen),
            seed: self.rng.u64(..),
        }
    }
}

#[test]
fn the_plan_is_the_seed_s_and_soon_has_every_kind() {
    let rounds = |seed| -> Vec<Round> {
        let mut plan = Plan::new(seed);
        (0..WHOLE_DECK).map(|_| plan.round()).collect()
    };
    assert_eq!(format!("{:?}", rounds(7)), format!("{:?}", rounds(7)));
    assert_ne!(format!("{:?}", rounds(7)), format!("{:?}", rounds(8)));
    let mut dealt: Vec<Kind> = rounds(7).iter().flat_map(Round::kinds).collect();
    dealt.sort_unstable();
    dealt.dedup();
    assert_eq!(dealt, Kind::ALL);
    assert!(Kind::ALL.len() >= 15);
}
