//! What must not grow with the number of events: publishing one event, a lookup, and a page of the list.

use std::{hint::black_box, time::Instant};

use oddscache::{OddsCache, Writer};
use oddscache_testkit::{
    bench::{REAL, SOURCES, event_ids, filled, median, mix, shuffled, snapshot},
    demo::Size,
    service::Service,
};

use crate::{
    line::{Line, time},
    world::World,
};

const ROUNDS: u64 = 400;
const LOOKUPS: usize = 1_000;
const PAGES: usize = 300;

struct Filled {
    cache: OddsCache,
    writer: Writer,
    ids: Vec<i64>,
    order: Vec<i64>,
}

impl Filled {
    fn new(events: usize) -> Filled {
        let ids = event_ids(events);
        let (cache, writer) = filled(&ids, 20);
        let order = shuffled(&ids);
        Filled {
            cache,
            writer,
            ids,
            order,
        }
    }

    /// Publishes three decoded snapshots of one event.
    fn publish(&mut self, round: u64) -> f64 {
        let event_id = self.ids[mix(round) as usize % self.ids.len()];
        let [own, others @ ..] =
            [0, 1, 2].map(|bookmaker| snapshot(event_id, bookmaker, 0, round as i64 + 2));
        let begun = Instant::now();
        self.writer.put_betpawa_snapshot(&own, None);
        for (source, other) in SOURCES.iter().zip(&others) {
            self.writer.put_competitor_snapshot(source, other, None);
        }
        self.writer.publish();
        begun.elapsed().as_secs_f64()
    }

    /// The time of one lookup in a held view, of many.
    fn look_up(&self, round: u64) -> f64 {
        let view = self.cache.view();
        let from = mix(round) as usize % self.order.len();
        let ids = self.order.iter().cycle().skip(from).take(LOOKUPS);
        let ids: Vec<i64> = ids.copied().collect();
        let begun = Instant::now();
        for id in &ids {
            black_box(view.event(*id));
        }
        begun.elapsed().as_secs_f64() / LOOKUPS as f64
    }
}

pub(crate) fn in_memory(events: usize) {
    let mut filled = Filled::new(events);
    let mut real = (events != REAL).then(|| Filled::new(REAL));
    let mut times = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        times[0].push(filled.publish(round));
        times[1].push(filled.look_up(round));
        if let Some(real) = &mut real {
            times[2].push(real.publish(round));
            times[3].push(real.look_up(round));
        }
    }
    let [publish, look_up, real_publish, real_look_up] = times.map(|mut times| median(&mut times));
    for (what, ours, theirs) in [
        (
            "publishing three snapshots of one event",
            publish,
            real_publish,
        ),
        ("a lookup in a held view", look_up, real_look_up),
    ] {
        print(what, ours, real.is_some().then_some(theirs), "");
    }
}

fn print(what: &str, figure: f64, real: Option<f64>, note: &str) {
    let line = Line::seconds(what, figure).note(note);
    match real {
        Some(real) => line.beside_seconds(real, "1,100 events"),
        None => line,
    }
    .print();
}

/// A service, and the target of a page of 50 events that comes after the first thousand.
struct Pages {
    service: Service,
    client: reqwest::Client,
    target: String,
}

impl Pages {
    async fn new(dsn: &str) -> Pages {
        let service = Service::measured(dsn, &["--audit-cycle", "1000h"]).await;
        service.ready().await;
        let answer = service.ask("/v1/list?limit=1000", &[]).await;
        let next = answer
            .headers()
            .get("link")
            .map(|link| link.to_str().expect("a link").to_owned());
        let path = next
            .as_deref()
            .and_then(|link| link.split(['<', '>']).nth(1));
        let path = path.unwrap_or("/v1/list?limit=1000");
        let target = format!("{}{}", service.base, path.replace("limit=1000", "limit=50"));
        let client = reqwest::Client::new();
        Pages {
            service,
            client,
            target,
        }
    }

    async fn ask(&self) -> (f64, usize) {
        let begun = Instant::now();
        let answer = self
            .client
            .get(&self.target)
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200, "{}", self.target);
        let bytes = answer.bytes().await.expect("a body").len();
        (begun.elapsed().as_secs_f64(), bytes)
    }
}

pub(crate) async fn pages(world: &World, size: &Size) {
    let pages = Pages::new(&world.dsn).await;
    let real = if size.events as usize == REAL {
        None
    } else {
        let size = Size {
            events: REAL as u32,
            history: 1,
            history_with_markets: 1,
            ..size.clone()
        };
        Some(Pages::new(&world.beside("real", &size).await).await)
    };
    let (mut times, mut floor, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..PAGES {
        let (took, length) = pages.ask().await;
        times.push(took);
        bytes = length;
        if let Some(real) = &real {
            floor.push(real.ask().await.0);
        }
    }
    let warm = pages.service.json("/v1/stats").await["last_warmup"]["seconds"].as_f64();
    let note = format!(
        "{bytes} bytes over HTTP; the service was warm after {}",
        time(warm.expect("warm"))
    );
    let floor = real.is_some().then(|| median(&mut floor));
    print(
        "the list as JSON, a page of 50 after the first thousand",
        median(&mut times),
        floor,
        &note,
    );
}
