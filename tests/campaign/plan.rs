//! The plan of faults. It depends on the seed alone. The exact moment of each fault depends on the machine as well, so
//! a fault may hit another statement in a replay.

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

/// Faults of one lane follow each other. Faults of different lanes overlap. The first four lanes run in the rough half
/// of a round, in which the embedded follower may lose its connection. The next four run in the gentle half, in which
/// it must keep its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Server,
    Network,
    Service,
    Settings,
    Database,
    Delivery,
    Application,
    Schema,
    /// One fault a round, in the pause: a write that only the audit finds.
    Unseen,
    /// The following are only in a campaign with a relay.
    Nats,
    Stream,
    Hostile,
    Leader,
    Subscriber,
    /// One fault a round, in the pause: a message that only its digest shows to be wrong.
    Forged,
}

impl Lane {
    /// The lanes of the rough half and of the gentle half, each with its number of faults per round.
    const HALVES: [[(Lane, usize); 4]; 2] = [
        [
            (Lane::Server, 2),
            (Lane::Network, 2),
            (Lane::Service, 1),
            (Lane::Settings, 1),
        ],
        [
            (Lane::Database, 2),
            (Lane::Delivery, 2),
            (Lane::Application, 3),
            (Lane::Schema, 1),
        ],
    ];

    /// The same for a campaign with a relay.
    const RELAYED: [[(Lane, usize); 3]; 2] = [
        [(Lane::Nats, 1), (Lane::Leader, 2), (Lane::Subscriber, 2)],
        [(Lane::Stream, 2), (Lane::Hostile, 1), (Lane::Server, 1)],
    ];
}

kinds! {
    Server {
        TerminateReader "terminate the reading backend",
        RestartFast "restart, fast",
        RestartImmediate "restart, immediate",
        KillPostmaster "kill -9 of the postmaster",
        AsyncCrash "kill -9 with synchronous_commit = off",
        Failover "failover to a standby",
        Reinstalled "feed uninstalled and installed",
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
    Settings {
        HostileSettings "hostile settings of the role and the database",
    }
    Database {
        TerminateListener "terminate the listening backend",
        Partitions "partitions attached, detached, dropped",
        PrunedCursor "log pruned beyond a stalled cursor",
        LogDdl "DDL on the log",
        Spoof "NOTIFY from a role that may only connect",
        CancelReads "statements that read rows cancelled",
        Resync "reload requested",
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
        Leaves "rows written directly into partitions",
        BellOff "writers with notify off",
        ManyKeys "statements of more than 20,000 keys",
        Links "competitor events relinked",
        Window "events postponed out of the window and back",
    }
    Schema {
        TriggerStates "triggers disabled, only enabled, dropped",
        Poisoned "rows that the server cannot send",
        Publications "publications and replica identities",
        OddPartitions "partitions and child tables of odd kinds",
    }
    Unseen {
        LostLogRow "log row lost",
        BareLeaf "rows written directly into a partition without triggers",
    }
    Nats {
        NatsKilled "SIGKILL of nats-server",
        NatsEmptied "nats-server comes back without its files",
    }
    Stream {
        Purged "streams purged",
        Deleted "streams deleted",
        BucketDeleted "bucket of the lease deleted",
        Full "stream full: old changes are dropped",
        Refusing "stream full: new changes are refused",
    }
    Hostile {
        Garbage "garbage on the relay's subjects",
        Repeated "messages doubled, reordered and cut off",
    }
    Forged {
        ForgedChange "a change with another price",
        ForgedState "a state with another price",
    }
    Leader {
        LeaderKilled "publisher killed",
        LeaderStopped "publisher stopped and continued",
        LeaderCutOff "publisher cut off from its database",
        LeaderNetwork "publisher's way to NATS disturbed",
        LeaderClock "clock jump of a publisher",
    }
    Subscriber {
        SubscriberNetwork "subscriber's way to NATS disturbed",
        SubscriberSlow "slow socket of a subscriber",
        SubscriberBlocked "subscriber's thread blocked",
        SubscriberResync "state requested again",
    }
}

impl Kind {
    /// Whether a campaign with a relay has this fault, or one without.
    pub(crate) fn is_in(self, relayed: bool) -> bool {
        match self.lane() {
            Lane::Server => !relayed || Kind::SERVER_OF_RELAY.contains(&self),
            Lane::Nats
            | Lane::Stream
            | Lane::Hostile
            | Lane::Leader
            | Lane::Subscriber
            | Lane::Forged => relayed,
            _ => !relayed,
        }
    }

    /// The kinds of a campaign with a relay, or of one without.
    pub(crate) fn of(relayed: bool) -> impl Iterator<Item = Kind> {
        let all = Kind::ALL.iter().copied();
        all.filter(move |kind| kind.is_in(relayed))
    }

    const SERVER_OF_RELAY: [Kind; 5] = [
        Kind::TerminateReader,
        Kind::RestartFast,
        Kind::RestartImmediate,
        Kind::KillPostmaster,
        Kind::AsyncCrash,
    ];

    /// Whether this fault may cost the embedded follower its connection, so that a new epoch begins.
    pub(crate) fn is_rough(self) -> bool {
        matches!(self.lane(), Lane::Server | Lane::Network | Lane::Settings)
    }

    /// Whether this fault may keep the embedded follower from reading, so that its view grows old.
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
                | Kind::Poisoned
                | Kind::Publications
                | Kind::Stopped
                | Kind::ClockJump
                | Kind::Killed
        )
    }
}

/// A fault, with the wait before it and its duration.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) after: Duration,
    pub(crate) lasts: Duration,
    /// The seed of the fault's own random choices.
    pub(crate) seed: u64,
}

/// The faults between two pauses.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: usize,
    /// The lanes of the rough half and of the gentle half.
    pub(crate) halves: [Vec<Vec<Fault>>; 2],
    /// The fault in the pause.
    pub(crate) unseen: Fault,
    /// Each client derives the seed of its transactions from this one.
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

/// Draws the kinds of each lane from a shuffled deck, so that a few rounds contain all of them.
#[derive(Debug)]
pub(crate) struct Plan {
    rng: Rng,
    relayed: bool,
    decks: [Vec<Kind>; 15],
    next: usize,
}

/// After this number of rounds every kind has occurred.
pub(crate) const WHOLE_DECK: usize = 5;

impl Plan {
    pub(crate) fn new(seed: u64, relayed: bool) -> Plan {
        Plan {
            rng: Rng::with_seed(seed),
            relayed,
            decks: Default::default(),
            next: 1,
        }
    }

    fn deal(&mut self, lane: Lane) -> Fault {
        let deck = &mut self.decks[lane as usize];
        if deck.is_empty() {
            deck.extend(Kind::of(self.relayed).filter(|kind| kind.lane() == lane));
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
        let halves: [&[(Lane, usize)]; 2] = match self.relayed {
            true => [&Lane::RELAYED[0], &Lane::RELAYED[1]],
            false => [&Lane::HALVES[0], &Lane::HALVES[1]],
        };
        let halves = halves.map(|lanes| {
            lanes
                .iter()
                .map(|(lane, faults)| (0..*faults).map(|_| self.deal(*lane)).collect())
                .collect()
        });
        let number = self.next;
        self.next += 1;
        Round {
            number,
            halves,
            unseen: self.deal(match self.relayed {
                true => Lane::Forged,
                false => Lane::Unseen,
            }),
            seed: self.rng.u64(..),
        }
    }
}

/// A seed can be replayed, and a few rounds contain every kind of fault.
#[test]
fn the_plan_depends_on_the_seed_and_contains_every_kind() {
    for relayed in [false, true] {
        let rounds = |seed| -> Vec<Round> {
            let mut plan = Plan::new(seed, relayed);
            (0..WHOLE_DECK).map(|_| plan.round()).collect()
        };
        assert_eq!(format!("{:?}", rounds(7)), format!("{:?}", rounds(7)));
        assert_ne!(format!("{:?}", rounds(7)), format!("{:?}", rounds(8)));
        let mut dealt: Vec<Kind> = rounds(7).iter().flat_map(Round::kinds).collect();
        dealt.sort_unstable();
        dealt.dedup();
        assert_eq!(dealt, Kind::of(relayed).collect::<Vec<_>>());
    }
    assert!(Kind::ALL.len() >= 70);
}
