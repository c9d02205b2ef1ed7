//! The protocol between publishers, JetStream and a subscriber: lease, fence, deltas in parts, states, questions.
//!
//! Each step names the module of `src/relay` that it stands for. Content is a bit mask over commits, held twice: once
//! for each of two keys, because a delta and a state have two parts. So content that mixes two states differs from the
//! truth in one of its halves.

use stateright::{Model, Property};

use crate::explore::{assert_found, assert_sound, is_large};

/// A set of commits, one bit each.
type Content = u8;

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A part is applied and shown when it comes, not when the last one has come (subscribe.rs).
    PartAppliedEarly,
    /// Parts are published without `Nats-Expected-Last-Sequence`, and the subscriber ignores terms and collects parts
    /// by their number alone (send.rs, subscribe.rs).
    OldLeaderBelieved,
    /// A delta is applied to whatever the subscriber holds (subscribe.rs).
    GapIgnored,
    /// The age counts from the moment at which the answer came, not from the question (subscribe.rs).
    AgeFromMessage,
    /// An answer proves whatever the subscriber shows (subscribe.rs).
    ProofOfAnotherVersion,
    /// A new leader keeps the epoch although its cut is older, and the subscriber takes any cut (lease.rs).
    SameEpochWithOlderCut,
    /// The epoch stays when the server's history was lost (leader.rs).
    HistoryNotCompared,
    /// A new leader appends an empty delta without comparing digests (lease.rs).
    DigestNotCompared,
    /// A new leader writes its state before the stream has taken the delta that begins its term (leader.rs). Nothing
    /// fences a state, so a leader that the stream refuses has then shown it to subscribers.
    StateBeforeStart,
    /// After a purge a new leader takes the epoch of the state's head, although later deltas may have had a
    /// later cut or epoch (lease.rs).
    PurgeForgotten,
    /// A part of a state is taken although it names another state (subscribe/read_state.rs).
    PartOfAnotherState,
}

/// How much may happen. Every interleaving of that is explored.
#[derive(Debug, Clone, Copy)]
struct Bound {
    commits: u8,
    /// How often the database loses its last commit.
    histories: u8,
    /// How often a publisher begins to lead.
    terms: u8,
    /// How often a publisher is killed.
    kills: u8,
    /// Messages that come twice, and messages that do not come.
    faults: u8,
    purges: u8,
    /// How many states are written beside those that begin a term.
    states: u8,
    questions: u8,
}

const ONE_LEADER: Bound = Bound {
    commits: 2,
    histories: 0,
    terms: 1,
    kills: 0,
    faults: 0,
    purges: 0,
    states: 0,
    questions: 0,
};

/// Incarnation and version. Nothing has the incarnation 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Id {
    incarnation: u8,
    version: u8,
}

/// What each delta and state says of the content after it (message.rs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Header {
    id: Id,
    term: u8,
    epoch: u8,
    history: u8,
    cut: u8,
    /// Stands for the digest, and is the truth that P1 compares with.
    digest: Content,
}

/// A part of a delta (message.rs). An empty delta, and one that begins a term, has one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Message {
    sequence: u8,
    header: Header,
    prev: Id,
    part: u8,
    is_last: bool,
    /// What changes in the key of this part.
    change: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Head {
    slot: u8,
    header: Header,
    /// The sequence of the last delta that the state contains.
    position: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Local {
    history: u8,
    cut: u8,
    content: Content,
    version: u8,
    proven: u8,
}

/// What a leader appends next (leader.rs, send.rs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// Appends the delta that begins its term: an empty one after this version, or one that no version precedes.
    Begin {
        prev: Option<Id>,
    },
    /// Publishes the second part of this delta.
    Delta {
        header: Header,
        change: Content,
    },
}

/// A state that a leader sends while it goes on with deltas (states.rs): next comes this part, or the head after both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sending {
    part: u8,
    header: Header,
    /// The tail when the state was taken.
    position: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Leader {
    incarnation: u8,
    term: u8,
    /// The sequence after which the next part must come.
    tail: u8,
    /// What it has published.
    header: Header,
    slot: u8,
    doing: Doing,
    sending: Option<Sending>,
}

impl Leader {
    fn send_state(&mut self) {
        self.sending = Some(Sending {
            part: 0,
            header: self.header,
            position: self.tail,
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Publisher {
    local: Local,
    /// Set while it believes that it leads. A paused one goes on believing.
    leader: Option<Leader>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct View {
    header: Header,
    content: [Content; 2],
    proven: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Subscriber {
    shown: View,
    /// What deltas are applied to. Shown unless its cut is older.
    draft: View,
    next: u8,
    /// The first part of a delta.
    collected: Option<Message>,
    greatest_term: u8,
    wants_state: bool,
    /// The head that was read, and the first part once it was read.
    reading: Option<(Head, Option<Content>)>,
    /// When it asked.
    asked: Option<u8>,
    /// An answer on its way: what the publisher holds, and its age.
    answer: Option<(Id, u8)>,
    /// A proof of a version that it does not hold yet.
    kept: Option<(Id, u8)>,
    went_back: bool,
    /// The last message of the stream did not come, and nothing has told the subscriber yet.
    lost_tail: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// The content of the database at each moment. A moment is a commit or a loss of history.
    moments: Vec<Content>,
    history: u8,
    cut: u8,
    commits: u8,
    publishers: [Publisher; 2],
    lease: Option<usize>,
    terms: u8,
    stream: Vec<Message>,
    last_sequence: u8,
    slots: [[Option<(Id, Content)>; 2]; 2],
    head: Option<Head>,
    subscriber: Subscriber,
    kills: u8,
    faults: u8,
    purges: u8,
    states: u8,
    questions: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Commit,
    /// The database loses its last commit: a crash, or a failover to a standby that lags.
    LoseHistory,
    /// The publisher's own follower reads.
    Follow(usize),
    /// lease.rs: `create` succeeds; the publisher reads the tail.
    Lead(usize),
    /// lease.rs: the entry expires. The leader may be paused and not know.
    Expire,
    /// lease.rs: the leader finds that its last renewal is too old.
    StepDown(usize),
    Kill(usize),
    /// send.rs: the next part of a delta.
    Publish(usize),
    /// states.rs: begins to send a state.
    BeginState(usize),
    /// states.rs: the next part of a state, or its head.
    SendState(usize),
    Purge,
    /// subscribe.rs: the consumer delivers the next message.
    Receive,
    /// The next message does not come.
    Lose,
    /// A message comes again.
    Repeat(usize),
    /// subscribe/read_state.rs: reads the head of the state, its first part, its second part.
    ReadState,
    /// subscribe.rs: the subscriber asks.
    Ask,
    /// leader.rs: a publisher that believes that it leads answers.
    Answer(usize),
    /// subscribe.rs: the answer comes.
    ReceiveAnswer,
}

#[derive(Debug, Clone, Copy)]
struct Relay {
    bound: Bound,
    bug: Bug,
}

const P1: &str = "P1: a subscriber shows a state that one leader published whole";
const P2: &str = "P2: cuts never go back within an epoch";
const P3: &str = "P3: a subscriber that was sent everything shows what the leader holds";
const P4: &str = "P4: a view is no older than its age says";

impl State {
    fn now(&self) -> u8 {
        u8::try_from(self.moments.len() - 1).unwrap()
    }

    fn content(&self) -> Content {
        *self.moments.last().unwrap()
    }
}

impl Relay {
    /// Publishes a message after the leader's tail. Returns whether the stream took it.
    fn append(&self, state: &mut State, index: usize, mut message: Message) -> bool {
        let leader = state.publishers[index].leader.as_mut().unwrap();
        if leader.tail != state.last_sequence && self.bug != Bug::OldLeaderBelieved {
            // lease.rs: another one leads.
            state.publishers[index].leader = None;
            return false;
        }
        state.last_sequence += 1;
        message.sequence = state.last_sequence;
        leader.tail = state.last_sequence;
        state.stream.push(message);
        true
    }

    /// leader.rs (`begin`), streams.rs (`tail`): what a new leader makes of the tail. `None` while it must wait.
    fn lead(&self, state: &mut State, index: usize) -> Option<()> {
        let local = state.publishers[index].local;
        let last = state.stream.last().copied();
        // After a purge the head of the state says how far the relay was, if no delta came after it. Each delta that
        // nobody knows any more raised the epoch by one at most.
        let position = state.head.map_or(0, |head| head.position);
        let unknown = match last {
            None if self.bug != Bug::PurgeForgotten => state.last_sequence - position,
            _ => 0,
        };
        let tail = last
            .map(|last| last.header)
            .or(state.head.map(|head| head.header))
            .unwrap_or_default();
        let same_history = local.history == tail.history && unknown == 0;
        let continues = same_history || self.bug == Bug::HistoryNotCompared;
        if continues && local.cut < tail.cut && self.bug != Bug::SameEpochWithOlderCut {
            return None;
        }
        let is_whole = last.is_some_and(|last| last.is_last);
        state.lease = Some(index);
        state.terms += 1;
        let (incarnation, term) = (state.terms, tail.term + 1);
        let header = Header {
            id: Id {
                incarnation,
                version: local.version,
            },
            term,
            epoch: if continues {
                tail.epoch.max(1)
            } else {
                tail.epoch + 1 + unknown
            },
            history: local.history,
            cut: local.cut,
            digest: local.content,
        };
        let equal = tail.digest == local.content || self.bug == Bug::DigestNotCompared;
        let prev = (equal && is_whole).then_some(tail.id);
        let mut leader = Leader {
            incarnation,
            term,
            tail: state.last_sequence,
            header,
            slot: state.head.map_or(0, |head| 1 - head.slot),
            doing: Doing::Begin { prev },
            sending: None,
        };
        if prev.is_none() && self.bug == Bug::StateBeforeStart {
            leader.send_state();
        }
        state.publishers[index].leader = Some(leader);
        Some(())
    }

    /// send.rs
    fn publish(&self, state: &mut State, index: usize) -> Option<()> {
        let Publisher { local, leader } = state.publishers[index];
        let mut leader = leader?;
        match leader.doing {
            Doing::Nothing => {
                let before = leader.header;
                if before.id.version == local.version {
                    return None;
                }
                let lost = before.history != local.history && self.bug != Bug::HistoryNotCompared;
                let header = Header {
                    id: Id {
                        incarnation: leader.incarnation,
                        version: local.version,
                    },
                    term: leader.term,
                    epoch: before.epoch + u8::from(lost),
                    history: local.history,
                    cut: local.cut,
                    digest: local.content,
                };
                let change = before.digest ^ local.content;
                leader.doing = Doing::Delta { header, change };
                state.publishers[index].leader = Some(leader);
                let part = Message {
                    sequence: 0,
                    header,
                    prev: before.id,
                    part: 0,
                    is_last: false,
                    change,
                };
                self.append(state, index, part);
            }
            Doing::Begin { prev } => {
                leader.doing = Doing::Nothing;
                state.publishers[index].leader = Some(leader);
                let begin = Message {
                    sequence: 0,
                    header: leader.header,
                    prev: prev.unwrap_or_default(),
                    part: 0,
                    is_last: true,
                    change: 0,
                };
                let is_taken = self.append(state, index, begin);
                if is_taken && prev.is_none() && leader.sending.is_none() {
                    state.publishers[index].leader.as_mut()?.send_state();
                }
            }
            Doing::Delta { header, change } => {
                let prev = leader.header.id;
                leader.doing = Doing::Nothing;
                leader.header = header;
                state.publishers[index].leader = Some(leader);
                let part = Message {
                    sequence: 0,
                    header,
                    prev,
                    part: 1,
                    is_last: true,
                    change,
                };
                self.append(state, index, part);
            }
        }
        Some(())
    }

    /// states.rs
    fn send_state(state: &mut State, index: usize) -> Option<()> {
        let leader = state.publishers[index].leader.as_mut()?;
        let sending = leader.sending.as_mut()?;
        let header = sending.header;
        if sending.part < 2 {
            let part = &mut state.slots[usize::from(leader.slot)][usize::from(sending.part)];
            *part = Some((header.id, header.digest));
            sending.part += 1;
            return Some(());
        }
        state.head = Some(Head {
            slot: leader.slot,
            header,
            position: sending.position,
        });
        leader.slot = 1 - leader.slot;
        leader.sending = None;
        Some(())
    }

    /// subscribe.rs: a message came.
    fn receive(&self, subscriber: &mut Subscriber, message: Message) {
        let header = message.header;
        let believes = self.bug == Bug::OldLeaderBelieved;
        if header.term < subscriber.greatest_term && !believes {
            return;
        }
        subscriber.greatest_term = subscriber.greatest_term.max(header.term);
        if self.bug == Bug::PartAppliedEarly
            && !message.is_last
            && message.prev == subscriber.draft.header.id
        {
            let mut early = subscriber.draft;
            early.content[0] ^= message.change;
            early.header = Header {
                id: subscriber.shown.header.id,
                ..header
            };
            Relay::show(self, subscriber, early);
        }
        if !message.is_last {
            subscriber.collected = Some(message);
            return;
        }
        let first = subscriber.collected.take();
        let draft = subscriber.draft;
        if header.id == draft.header.id {
            return;
        }
        let changes = match (message.part, first) {
            (0, _) => [0, 0],
            (_, Some(first)) if first.header.id == header.id || believes => {
                [first.change, message.change]
            }
            _ => {
                subscriber.wants_state = true;
                return;
            }
        };
        // A message that comes again.
        let is_old = header.id.incarnation == draft.header.id.incarnation
            && header.id.version < draft.header.id.version;
        if is_old {
            return;
        }
        if message.prev != draft.header.id && self.bug != Bug::GapIgnored {
            subscriber.wants_state = true;
            return;
        }
        subscriber.draft = View {
            header,
            content: [draft.content[0] ^ changes[0], draft.content[1] ^ changes[1]],
            // A later version was read later, so the age is never too young.
            proven: draft.proven,
        };
        self.show(subscriber, subscriber.draft);
    }

    /// Shows a view unless its cut is older within the epoch.
    fn show(&self, subscriber: &mut Subscriber, view: View) {
        let (before, after) = (subscriber.shown.header, view.header);
        let is_older =
            after.epoch < before.epoch || after.epoch == before.epoch && after.cut < before.cut;
        if is_older && self.bug != Bug::SameEpochWithOlderCut {
            return;
        }
        let loses = (0..2).any(|key| subscriber.shown.content[key] & !view.content[key] != 0);
        subscriber.went_back |= after.epoch < before.epoch || after.epoch == before.epoch && loses;
        subscriber.shown = view;
        self.prove(subscriber);
    }

    /// Takes the kept proof if it is of the version that is held.
    fn prove(&self, subscriber: &mut Subscriber) {
        let Some((id, proven)) = subscriber.kept else {
            return;
        };
        let is_shown = id == subscriber.shown.header.id || self.bug == Bug::ProofOfAnotherVersion;
        if is_shown {
            subscriber.shown.proven = subscriber.shown.proven.max(proven);
            subscriber.kept = None;
        }
        if id == subscriber.draft.header.id {
            subscriber.draft.proven = subscriber.draft.proven.max(proven);
        }
    }

    /// subscribe/read_state.rs: reads the state.
    fn read_state(&self, state: &mut State) -> Option<()> {
        let subscriber = &mut state.subscriber;
        let Some((head, first)) = subscriber.reading else {
            subscriber.reading = Some((state.head?, None));
            return Some(());
        };
        let part = usize::from(first.is_some());
        let (id, content) = state.slots[usize::from(head.slot)][part]?;
        if id != head.header.id && self.bug != Bug::PartOfAnotherState {
            subscriber.reading = None;
            return Some(());
        }
        let Some(first) = first else {
            subscriber.reading = Some((head, Some(content)));
            return Some(());
        };
        subscriber.reading = None;
        subscriber.wants_state = false;
        subscriber.collected = None;
        subscriber.next = head.position + 1;
        subscriber.draft = View {
            header: head.header,
            content: [first, content],
            proven: 0,
        };
        self.show(subscriber, subscriber.draft);
        Some(())
    }
}

impl Model for Relay {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            moments: vec![0],
            history: 1,
            cut: 1,
            commits: 0,
            publishers: [Publisher {
                local: Local {
                    history: 1,
                    cut: 1,
                    version: 1,
                    ..Local::default()
                },
                leader: None,
            }; 2],
            lease: None,
            terms: 0,
            stream: Vec::new(),
            last_sequence: 0,
            slots: [[None; 2]; 2],
            head: None,
            subscriber: Subscriber {
                wants_state: true,
                next: 1,
                ..Subscriber::default()
            },
            kills: 0,
            faults: 0,
            purges: 0,
            states: 0,
            questions: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let bound = &self.bound;
        if state.commits < bound.commits {
            actions.push(Action::Commit);
        }
        if state.history <= bound.histories && state.content() != 0 {
            actions.push(Action::LoseHistory);
        }
        if state.lease.is_some() && state.terms < bound.terms {
            actions.push(Action::Expire);
        }
        for (index, publisher) in state.publishers.iter().enumerate() {
            if publisher.local.content != state.content()
                || bound.questions > 0 && publisher.local.proven < state.now()
            {
                actions.push(Action::Follow(index));
            }
            let Some(leader) = publisher.leader else {
                // Publishers are alike, so the first one leads first.
                if state.lease.is_none()
                    && state.terms < bound.terms
                    && (state.terms > 0 || index == 0)
                {
                    actions.push(Action::Lead(index));
                }
                continue;
            };
            actions.push(Action::Publish(index));
            if state.lease != Some(index) {
                actions.push(Action::StepDown(index));
            }
            if state.kills < bound.kills {
                actions.push(Action::Kill(index));
            }
            if leader.sending.is_some() {
                actions.push(Action::SendState(index));
            } else if leader.doing == Doing::Nothing && state.states < bound.states {
                actions.push(Action::BeginState(index));
            }
            if state.subscriber.asked.is_some() && state.subscriber.answer.is_none() {
                actions.push(Action::Answer(index));
            }
        }
        if state.purges < bound.purges && !state.stream.is_empty() {
            actions.push(Action::Purge);
        }
        let subscriber = &state.subscriber;
        if subscriber.wants_state {
            actions.push(Action::ReadState);
        } else if state
            .stream
            .iter()
            .any(|message| message.sequence >= subscriber.next)
        {
            actions.push(Action::Receive);
            if state.faults < bound.faults {
                actions.push(Action::Lose);
            }
        }
        if state.faults < bound.faults && !subscriber.wants_state {
            let old = state
                .stream
                .iter()
                .enumerate()
                .filter(|(_, old)| old.sequence < subscriber.next);
            actions.extend(old.map(|(index, _)| Action::Repeat(index)));
        }
        if state.questions < bound.questions && subscriber.asked.is_none() {
            actions.push(Action::Ask);
        }
        if subscriber.answer.is_some() {
            actions.push(Action::ReceiveAnswer);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Commit => {
                state.moments.push(state.content() | 1 << state.commits);
                state.commits += 1;
                state.cut += 1;
            }
            Action::LoseHistory => {
                let last = 7 - u8::try_from(state.content().leading_zeros()).unwrap();
                state.moments.push(state.content() & !(1 << last));
                state.history += 1;
                state.cut -= 1;
            }
            Action::Follow(index) => {
                let (content, proven) = (state.content(), state.now());
                let local = &mut state.publishers[index].local;
                if (local.content, local.history) != (content, state.history) {
                    local.version += 1;
                }
                *local = Local {
                    history: state.history,
                    cut: state.cut,
                    content,
                    proven,
                    ..*local
                };
            }
            Action::Lead(index) => self.lead(&mut state, index)?,
            Action::Expire => state.lease = None,
            Action::StepDown(index) => state.publishers[index].leader = None,
            Action::Kill(index) => {
                state.kills += 1;
                state.publishers[index].leader = None;
            }
            Action::Publish(index) => self.publish(&mut state, index)?,
            Action::BeginState(index) => {
                state.states += 1;
                state.publishers[index].leader.as_mut()?.send_state();
            }
            Action::SendState(index) => Self::send_state(&mut state, index)?,
            Action::Purge => {
                state.purges += 1;
                state.stream.clear();
            }
            Action::Receive | Action::Lose => {
                let next = state.subscriber.next;
                let message = *state
                    .stream
                    .iter()
                    .find(|message| message.sequence >= next)?;
                state.subscriber.next = message.sequence + 1;
                if action == Action::Lose {
                    state.faults += 1;
                    state.subscriber.lost_tail = true;
                } else {
                    state.subscriber.lost_tail = false;
                    self.receive(&mut state.subscriber, message);
                }
            }
            Action::Repeat(index) => {
                state.faults += 1;
                let message = state.stream[index];
                self.receive(&mut state.subscriber, message);
            }
            Action::ReadState => self.read_state(&mut state)?,
            Action::Ask => {
                state.questions += 1;
                state.subscriber.asked = Some(state.now());
            }
            Action::Answer(index) => {
                let Publisher { local, leader } = state.publishers[index];
                let id = Id {
                    incarnation: leader?.incarnation,
                    version: local.version,
                };
                state.subscriber.answer = Some((id, state.now() - local.proven));
            }
            Action::ReceiveAnswer => {
                let now = state.now();
                let subscriber = &mut state.subscriber;
                let ((id, age), asked) = (subscriber.answer.take()?, subscriber.asked.take()?);
                let from = if self.bug == Bug::AgeFromMessage {
                    now
                } else {
                    asked
                };
                subscriber.kept = Some((id, from.saturating_sub(age)));
                self.prove(subscriber);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Relay>> {
        vec![
            Property::always(P1, |_, state: &State| {
                let shown = &state.subscriber.shown;
                shown.content == [shown.header.digest; 2]
            }),
            Property::always(P2, |_, state: &State| !state.subscriber.went_back),
            Property::always(P3, |_, state: &State| {
                let subscriber = &state.subscriber;
                let has_all = !subscriber.wants_state
                    && !subscriber.lost_tail
                    && state
                        .stream
                        .last()
                        .is_some_and(|last| last.sequence == state.last_sequence)
                    && subscriber.next > state.last_sequence;
                let leader = state.lease.and_then(|index| state.publishers[index].leader);
                let leader = leader.filter(|leader| {
                    leader.doing == Doing::Nothing && leader.tail == state.last_sequence
                });
                !has_all || leader.is_none_or(|leader| subscriber.shown.header == leader.header)
            }),
            Property::always(P4, |_, state: &State| {
                let shown = &state.subscriber.shown;
                let since = &state.moments[usize::from(shown.proven)..];
                shown.header.epoch == 0 || since.contains(&shown.content[0])
            }),
            Property::sometimes(
                "the subscriber shows all commits, from the last leader",
                |model, state: &State| {
                    let shown = &state.subscriber.shown;
                    shown.content[0].count_ones() == u32::from(model.bound.commits)
                        && shown.header.id.incarnation == model.bound.terms
                },
            ),
        ]
    }
}

const TWO: Bound = Bound {
    terms: 2,
    ..ONE_LEADER
};

const SMALL: [(&str, Bound); 6] = [
    (
        "one leader, states",
        Bound {
            states: 2,
            faults: 1,
            ..ONE_LEADER
        },
    ),
    (
        "two leaders, one is killed",
        Bound {
            kills: 1,
            states: 1,
            ..TWO
        },
    ),
    (
        "two leaders, a message lost or repeated",
        Bound { faults: 1, ..TWO },
    ),
    ("two leaders, purge", Bound { purges: 1, ..TWO }),
    (
        "two leaders, history lost",
        Bound {
            histories: 1,
            ..TWO
        },
    ),
    (
        "two leaders, a question",
        Bound {
            commits: 2,
            questions: 1,
            ..TWO
        },
    ),
];

const LARGE: [(&str, Bound); 2] = [
    (
        "two leaders, history lost, a question",
        Bound {
            commits: 1,
            histories: 1,
            questions: 1,
            ..TWO
        },
    ),
    (
        "two leaders, a message lost or repeated, purge",
        Bound {
            faults: 1,
            purges: 1,
            ..TWO
        },
    ),
];

#[test]
fn without_a_bug_every_promise_holds() {
    for (name, bound) in if is_large() { &LARGE[..] } else { &SMALL[..] } {
        assert_sound(
            &format!("relay, {name}"),
            Relay {
                bound: *bound,
                bug: Bug::None,
            },
        );
    }
}

#[test]
fn each_bug_breaks_its_promise() {
    let history = Bound {
        histories: 1,
        ..TWO
    };
    let question = Bound {
        questions: 1,
        ..ONE_LEADER
    };
    let bugs = [
        (Bug::PartAppliedEarly, ONE_LEADER, P1),
        (Bug::OldLeaderBelieved, TWO, P1),
        (
            Bug::GapIgnored,
            Bound {
                faults: 2,
                ..ONE_LEADER
            },
            P1,
        ),
        (Bug::AgeFromMessage, question, P4),
        (Bug::ProofOfAnotherVersion, question, P4),
        (Bug::SameEpochWithOlderCut, TWO, P2),
        (Bug::HistoryNotCompared, history, P2),
        (Bug::DigestNotCompared, TWO, P1),
        (Bug::StateBeforeStart, Bound { states: 1, ..TWO }, P3),
        (Bug::PurgeForgotten, Bound { purges: 1, ..TWO }, P3),
        (
            Bug::PartOfAnotherState,
            Bound {
                states: 2,
                ..ONE_LEADER
            },
            P1,
        ),
    ];
    for (bug, bound, property) in bugs {
        assert_found(&format!("relay, {bug:?}"), Relay { bound, bug }, property);
    }
}
