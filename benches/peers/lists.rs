//! The event list as JSON, compared with copying its bytes.

use oddscache::EventList;
use oddscache_testkit::{bench::median, plain};

use crate::{
    data::{self, EVENTS},
    measure::timed,
};

const ROUNDS: i64 = 41;

pub fn measure() {
    let (cache, mut writer) = data::filled();
    let mut list = EventList::new(data::INLINE);
    let json = list.render(&cache.view());
    assert_eq!(
        json,
        plain::list(&cache.view()),
        "the list differs from the one that serde_json writes"
    );
    let mut copy = json.to_vec();
    let mut times: [Vec<f64>; 6] = Default::default();
    for round in 1..=ROUNDS {
        let json = list.render(&cache.view());
        copy.resize(json.len(), 0);
        times[0].push(timed(|| copy.copy_from_slice(std::hint::black_box(&json))));
        drop(json);
        times[1].push(timed(|| list.render(&cache.view())));

        for event_id in data::updated(round) {
            data::put(&mut writer, event_id, |offer| {
                data::snapshot(event_id, offer, round)
            });
        }
        writer.publish();
        times[2].push(timed(|| list.render(&cache.view())));

        // Confirm a thousand snapshots: those of a third of the events.
        let mut confirmed = 0;
        for event_id in 1..=EVENTS / 3 {
            let event_id = (event_id * 3 + round) % EVENTS + 1;
            let view = cache.view();
            let held = view.event(event_id).expect("held");
            let generation = held.betpawa().get(1).expect("its own").snapshot_id() % 1000;
            let at = data::time() + chrono::TimeDelta::milliseconds(round * 10_007 + event_id);
            data::put(&mut writer, event_id, |offer| {
                confirmed += 1;
                oddscache::SnapshotInput {
                    last_confirmed_at: Some(at),
                    ..data::snapshot(event_id, offer, generation)
                }
            });
        }
        assert!(confirmed > 1000);
        writer.publish();
        let before = list.fragments_written();
        times[3].push(timed(|| list.render(&cache.view())));
        assert_eq!(list.fragments_written(), before, "confirmations wrote odds");

        let mut cold = EventList::new(data::INLINE);
        times[4].push(timed(|| cold.render(&cache.view())));
        if round % 10 == 0 {
            times[5].push(timed(|| plain::list(&cache.view())));
        }
    }
    assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    let floor = median(&mut times[0]);
    let best_floor = times[0][0];
    println!(
        "\nThe event list with inline odds as JSON, {:.2} MB; the renderer holds {:.2} MB beside the cache\n",
        json.len() as f64 / 1e6,
        list.memory_bytes() as f64 / 1e6
    );
    println!("| after | median ms | best | beside a copy of its bytes |\n|---|---|---|---|");
    let names = [
        "(a copy of its bytes)",
        "nothing",
        "150 changed snapshots",
        "1,098 confirmations",
        "all: the first list",
        "(owned structs, sorted, through serde_json)",
    ];
    for (name, times) in names.into_iter().zip(&mut times) {
        let time = median(times);
        let best = times[0];
        println!(
            "| {name} | {:.4} | {:.4} | x{:.2}, best x{:.2} |",
            time * 1e3,
            best * 1e3,
            time / floor,
            best / best_floor
        );
    }
}
