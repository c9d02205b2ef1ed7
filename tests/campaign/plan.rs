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

/// Faults of one lane follow each other; those of different lanes overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Server,
    Network,
    Application,
}

kinds! {
    Server {
        TerminateReader "terminate the reading backend",
        TerminateListener "terminate the listening backend",
        RestartFast "restart, fast",
        RestartImmediate "restart, immediate",
        KillPostmaster "kill -9 of the postmaster",
        AsyncCrash "kill -9 with synchronous_commit = off",
        TriggersDisabled "triggers disabled and enabled",
        Partitions "partitions attached, detached, dropped",
        PrunedCursor "log pruned beyond a stalled cursor",
        RightsRevoked "rights revoked and restored",
        LogDdl "DDL on the log",
        Migration "migration holding ACCESS EXCLUSIVE",
        Spoof "NOTIFY from a role that may only connect",
    }
    Network {
        BlackHole "black hole, both ways",
        HalfOpenUp "half open: nothing reaches the server",
        HalfOpenDown "half open: nothing reaches the follower",
        Slow "slow socket",
        Latency "latency",
        Cut "cut in the middle of a message",
        Refuse "connections refused, then reset",
        Reset "connections reset",
        Freeze "network frozen and thawed",
        NoticesDropped "notifications dropped",
        NoticesDoubled "notifications doubled",
        NoticesDelayed "notifications delayed",
        NoticesForged "notifications forged",
        Stall "follower's thread blocked",
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
        Stopped "SIGSTOP and SIGCONT of the service",
        ClockJump "clock jump of the service",
        Killed "SIGKILL of the service",
    }
}

impl Kind {
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
                | Kind::Stopped
                | Kind::ClockJump
                | Kind::Killed
        )
    }

    /// Whether the in-process follower may lose its connection by it, and so begin a new epoch.
    pub(crate) fn may_disconnect(self) -> bool {
        self.may_stall()
            && !matches!(
                self,
                Kind::Partitions
                    | Kind::PrunedCursor
                    | Kind::LogDdl
                    | Kind::Truncates
                    | Kind::ManyKeys
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
    pub(crate) lanes: [Vec<Fault>; 3],
    /// The seed of each client's transactions is made from this.
    pub(crate) seed: u64,
}

/// Deals the kinds of each lane from a shuffled deck, so that a few rounds have all of them.
#[derive(Debug)]
pub(crate) struct Plan {
    rng: Rng,
    decks: [Vec<Kind>; 3],
    next: usize,
}

const PER_ROUND: usize = 3;

/// After so many rounds each kind had its turn.
pub(crate) const WHOLE_DECK: usize = Kind::ALL.len().div_ceil(3 * PER_ROUND) + 1;

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        Plan {
            rng: Rng::with_seed(seed),
            decks: Default::default(),
            next: 1,
        }
    }

    fn deal(&mut self, lane: Lane) -> Kind {
        let deck = &mut self.decks[lane as usize];
        if deck.is_empty() {
            deck.extend(Kind::ALL.iter().filter(|kind| kind.lane() == lane));
            self.rng.shuffle(deck);
        }
        deck.pop().expect("just filled")
    }

    pub(crate) fn round(&mut self) -> Round {
        let mut lane = |lane| {
            let mut faults = Vec::new();
            for _ in 0..PER_ROUND {
                faults.push(Fault {
                    kind: self.deal(lane),
                    after: Duration::from_millis(self.rng.u64(50..350)),
                    lasts: Duration::from_millis(self.rng.u64(250..900)),
                    seed: self.rng.u64(..),
                });
            }
            faults
        };
        let lanes = [
            lane(Lane::Server),
            lane(Lane::Network),
            lane(Lane::Application),
        ];
        let number = self.next;
        self.next += 1;
        Round {
            number,
            lanes,
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
    let mut dealt: Vec<Kind> = rounds(7)
        .iter()
        .flat_map(|round| round.lanes.iter().flatten())
        .map(|fault| fault.kind)
        .collect();
    dealt.sort_unstable();
    dealt.dedup();
    assert_eq!(dealt, Kind::ALL);
    assert!(Kind::ALL.len() >= 15);
}
