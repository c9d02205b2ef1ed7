use super::*;
use crate::{
    model::{BetpawaSnapshots, CompetitorSnapshots, MarketInput, OutcomeInput, SnapshotInput},
    relay::message::WireCut,
};

fn set_price(draft: &mut Draft, odds: f64) {
    let outcome = OutcomeInput {
        name: "1".to_owned(),
        odds: Some(odds),
        is_active: true,
        extra: serde_json::Map::new(),
    };
    let market = MarketInput {
        betpawa_market_id: "3743".to_owned(),
        outcomes: vec![outcome],
        ..MarketInput::default()
    };
    let snapshot = draft.packer.snapshot(&SnapshotInput {
        snapshot_id: 1,
        event_id: 7,
        bookmaker_id: 1,
        captured_at: chrono::DateTime::UNIX_EPOCH,
        last_confirmed_at: None,
        markets: vec![market],
    });
    let own = BetpawaSnapshots::new(vec![snapshot]);
    draft.set(7, None, own, CompetitorSnapshots::default());
}

/// No message can make a difference that a subscriber shows, because it compares before it shows. If one price is
/// wrong nevertheless, the next answer finds it.
#[test]
fn an_answer_finds_one_wrong_price() {
    let relay = Relay::new("nats://localhost").expect("a URL");
    let mut subscriber = Subscriber::new(relay, Publisher::new(Status::Warming).1);
    set_price(&mut subscriber.draft, 1.5);
    let digest = subscriber.draft.digest();
    let identity = Identity {
        incarnation: 1,
        version: 1,
    };
    let cut = WireCut::of(&Cut::default());
    let header = Header {
        term: 1,
        epoch: 1,
        from: identity,
        from_digest: digest,
        to: identity,
        digest,
        part: 0,
        is_last: true,
        cut: cut.clone(),
        unreadable: Vec::new(),
    };
    subscriber.hold(&header, 1, None);
    let answered = |subscriber: &mut Subscriber| {
        let answer = Answer {
            term: 1,
            identity,
            digest,
            age: Some(0),
            cut: cut.clone(),
            unreadable: Vec::new(),
        };
        let need = subscriber.answered(answer, Moment::now());
        (need, subscriber.publisher.counters().get().relay_mismatches)
    };
    assert_eq!(answered(&mut subscriber), (None, 0));
    assert!(subscriber.publisher.published().event(7).is_some());
    set_price(&mut subscriber.draft, 1.51);
    assert_eq!(answered(&mut subscriber), (Some(Need::Mismatch), 1));
    set_price(&mut subscriber.draft, 1.5);
    assert_eq!(answered(&mut subscriber), (None, 1));
}
