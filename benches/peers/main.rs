//! The cache compared with what could be used in its place: the same data, the same work, one run, one table.
//!
//! ```sh
//! cargo bench --bench peers
//! ```
//!
//! The stores in this process hold the cache's own packed snapshots behind an `Arc` per event, so that only the
//! containers are compared. The last of them holds plain objects. Redis (`redis-server`) and PostgreSQL are private
//! servers on Unix sockets. The benchmark leaves out what is not installed, and says so. The figures are medians of
//! interleaved rounds.
#![allow(clippy::expect_used, unreachable_pub, missing_docs)]

mod data;
mod lists;
mod measure;
mod postgres;
mod redis;
mod stores;

use std::{
    alloc::System,
    hint::black_box,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use measure::timed;
use oddscache::OddsCache;
use oddscache_testkit::bench::median;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stores::{Handle, Held, Map, Store};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROUNDS: usize = 15;
const SPAN: Duration = Duration::from_millis(700);

/// A line of the table. NaN stands for a figure that does not exist.
struct Line {
    name: &'static str,
    /// In seconds.
    one: f64,
    speed_up: f64,
    /// In nanoseconds.
    p99: [f64; 2],
    many: f64,
    inline: f64,
    update: f64,
    bytes_each: f64,
    torn: Option<(u64, u64)>,
}

/// A name, a store, and the bytes per market that it holds.
type Made = (&'static str, Box<dyn Store>, f64);

fn made<S: Store + 'static>(name: &'static str, make: impl FnOnce() -> S) -> Made {
    let region = Region::new(ALLOCATOR);
    let store = make();
    let change = region.change();
    let bytes = change.bytes_allocated - change.bytes_deallocated;
    (name, Box::new(store), bytes as f64 / data::ALL_MARKETS)
}

/// Entries that share no memory with a cache, because their cache is dropped afterwards. Each entry is allocated right
/// after its snapshots, so it lies beside them in memory, as an event of the cache does.
fn entries() -> impl Iterator<Item = (i64, Arc<data::Entry>)> {
    let (cache, mut writer) = OddsCache::detached();
    let entries: Vec<_> = (1..=data::EVENTS)
        .map(|id| {
            data::put(&mut writer, id, |offer| data::snapshot(id, offer, 0));
            writer.publish();
            let view = cache.view();
            (
                id,
                Arc::new(data::Entry::new(view.event(id).expect("published"))),
            )
        })
        .collect();
    entries.into_iter()
}

fn stores(publishing: &Arc<Mutex<Vec<f64>>>) -> Vec<Made> {
    let objects = || (1..=data::EVENTS).map(|id| (id, stores::ObjectEvent::new(id, 0)));
    vec![
        made("plain `hashbrown` map, never written (the floor)", || {
            stores::Plain(entries().collect::<Map>())
        }),
        made("**oddscache**, a held view", || {
            Held(data::filled().0.view())
        }),
        made("**oddscache**, `read` through the handle", || {
            let (cache, writer) = data::filled();
            Handle {
                cache,
                writer: Mutex::new(writer),
                publishing: Arc::clone(publishing),
            }
        }),
        made("`std` RwLock of a map", || {
            stores::StdLock(RwLock::new(entries().collect()))
        }),
        made("`parking_lot` RwLock of a map", || {
            stores::ParkingLot(parking_lot::RwLock::new(entries().collect()))
        }),
        made("`dashmap`", || stores::DashMap(entries().collect())),
        made("`papaya`", || stores::Papaya(entries().collect())),
        made("`moka`", || {
            let builder =
                moka::sync::Cache::builder().max_capacity(10 * data::EVENTS.unsigned_abs());
            let cache = builder.build_with_hasher(Default::default());
            entries().for_each(|(id, entry)| cache.insert(id, entry));
            cache.run_pending_tasks();
            stores::Moka(cache)
        }),
        made(
            "objects (`String`, `serde_json::Value`) in an RwLock",
            || stores::Objects(RwLock::new(objects().collect())),
        ),
    ]
}

/// Fails unless two sums of all inline odds are equal.
fn assert_same(sum: f64, expected: f64, name: &str) {
    let is_same = (sum / expected - 1.0).abs() < 1e-9;
    assert!(is_same, "{name} holds other odds");
}

fn in_process() -> Vec<Line> {
    let ids = data::scattered();
    let fifty = &ids[..50];
    let publishing = Arc::default();
    let stores = stores(&publishing);
    let sums: Vec<f64> = stores.iter().map(|(_, store, _)| store.inline()).collect();
    for (sum, (name, ..)) in sums.iter().zip(&stores) {
        assert_same(*sum, sums[0], name);
    }
    let mut times: Vec<[Vec<f64>; 6]> = stores.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for ((_, store, _), times) in stores.iter().zip(&mut times) {
            store.pass(&ids);
            let pass = |_| store.pass(black_box(&ids));
            let passes = || (0..50).map(pass).sum::<usize>();
            times[0].push(timed(passes) / (50.0 * ids.len() as f64));
            let batch = |_| store.many(black_box(fifty));
            let batches = || (0..200).map(batch).sum::<usize>();
            times[1].push(timed(batches) / 200.0);
            times[2].push(timed(|| store.inline()));
        }
    }
    // Measure these after the loop above, because an update leaves other snapshots behind.
    for round in 0..5 {
        for ((_, store, _), times) in stores.iter().zip(&mut times) {
            times[3].push(measure::p99(&**store, &ids, SPAN / 5));
            times[4].push(measure::speed_up(&**store, &ids));
        }
        for ((_, store, _), times) in stores.iter().zip(&mut times) {
            for n in 0..8 {
                let begun = store.update(round * 8 + n + 1);
                times[5].extend(begun.map(|begun| begun.elapsed().as_secs_f64()));
            }
        }
    }
    let publish = median(&mut publishing.lock().expect("times"));
    println!("of oddscache's update `publish` is {}", time(publish));
    let mut stormy: Vec<Vec<f64>> = stores.iter().map(|_| Vec::new()).collect();
    for _ in 0..5 {
        for ((_, store, _), stormy) in stores.iter().zip(&mut stormy) {
            stormy.push(measure::p99_beside_a_writer(&**store, &ids, SPAN / 5));
        }
    }
    let mut lines = Vec::new();
    for (((name, store, bytes_each), mut times), mut stormy) in
        stores.into_iter().zip(times).zip(stormy)
    {
        let written = !times[5].is_empty();
        if !written {
            stormy.clear();
        }
        lines.push(Line {
            name,
            one: median(&mut times[0]),
            many: median(&mut times[1]),
            inline: median(&mut times[2]),
            // Without a measurement this is NaN.
            p99: [median(&mut times[3]), median(&mut stormy)],
            speed_up: median(&mut times[4]),
            update: median(&mut times[5]),
            bytes_each: if name.ends_with("held view") {
                f64::NAN
            } else {
                bytes_each
            },
            torn: written.then(|| measure::torn(&*store, SPAN)),
        });
    }
    lines
}

fn with_redis(expected: f64) -> Result<Line, String> {
    let server = redis::Server::start()?;
    let mut client = server.connect();
    let bytes_each = redis::fill(&mut client);
    assert_same(redis::inline(&mut client), expected, "Redis");
    let ids = data::scattered();
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..7 {
        let mut one = |id: &i64| redis::one(&mut client, *id);
        let pass = || ids[..100].iter().map(&mut one).sum::<usize>();
        times[0].push(timed(pass) / 100.0);
        times[1].push(timed(|| redis::many(&mut client, &ids[..50])));
        times[2].push(timed(|| redis::inline(&mut client)));
        let begun = redis::update(&mut client, round + 1);
        times[3].push(begun.elapsed().as_secs_f64());
    }
    let [one, many, inline, update] = times.each_mut().map(|times| median(times));
    Ok(Line {
        name: "Redis, JSON of an event a key, parsed",
        one,
        speed_up: f64::NAN,
        p99: [f64::NAN; 2],
        many,
        inline,
        update,
        bytes_each,
        torn: Some(redis::torn(&server, SPAN)),
    })
}

fn with_postgres(server: &mut postgres::Server, name: &'static str) -> Line {
    let ids = postgres::event_ids(data::scattered().into_iter());
    let all = postgres::event_ids(1..=data::EVENTS);
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..5 {
        let one = |id: &i32| server.read(&[*id], false).0;
        let pass = || ids[..10].iter().map(one).sum::<usize>();
        times[0].push(timed(pass) / 10.0);
        times[1].push(timed(|| server.read(&ids[..50], false)));
        times[2].push(timed(|| server.read(&all, true)));
        times[3].push(server.update(round + 1).elapsed().as_secs_f64());
    }
    let [one, many, inline, update] = times.each_mut().map(|times| median(times));
    Line {
        name,
        one,
        speed_up: f64::NAN,
        p99: [f64::NAN; 2],
        many,
        inline,
        update,
        bytes_each: server.bytes_each,
        torn: Some(server.torn(Duration::from_secs(3))),
    }
}

/// A time as text, in a suitable unit.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds.is_nan() => "-".to_owned(),
        seconds if seconds < 1e-6 => format!("{:.1} ns", seconds * 1e9),
        seconds if seconds < 1e-3 => format!("{:.1} us", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

fn print(lines: &[Line]) {
    println!(
        "| | one event | 2 readers | p99 alone, beside a writer | 50 events | inline odds of all | update visible | bytes a market | torn views |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let Some(floor) = lines.first() else { return };
    let cell = |seconds: f64, floor: f64| match seconds / floor {
        ratio if ratio.is_nan() => "-".to_owned(),
        ratio if ratio < 100.0 => format!("{}, x{ratio:.1}", time(seconds)),
        ratio => format!("{}, x{ratio:.0}", time(seconds)),
    };
    let or_dash = |number: f64, text: String| match number.is_nan() {
        true => "-".to_owned(),
        false => text,
    };
    for line in lines {
        let p99 = if line.p99[1].is_nan() {
            or_dash(line.p99[0], format!("{:.0} ns", line.p99[0]))
        } else {
            format!("{:.0}, {:.0} ns", line.p99[0], line.p99[1])
        };
        println!(
            "| {} | {} | {} | {p99} | {} | {} | {} | {} | {} |",
            line.name,
            cell(line.one, floor.one),
            or_dash(line.speed_up, format!("x{:.2}", line.speed_up)),
            cell(line.many, floor.many),
            cell(line.inline, floor.inline),
            time(line.update),
            or_dash(line.bytes_each, format!("{:.1}", line.bytes_each)),
            line.torn.map_or_else(
                || "-".to_owned(),
                |(torn, views)| format!("{torn} of {views}")
            ),
        );
    }
}

fn main() {
    // The arguments choose among `process`, `redis`, `postgres` and `list`. Without arguments, all run.
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    let wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    println!("{}\ncargo bench --bench peers\n", measure::cpu());
    let expected = stores::Plain(entries().collect()).inline();
    let mut lines = Vec::new();
    if wanted("process") {
        lines.extend(in_process());
    }
    if wanted("redis") {
        match with_redis(expected) {
            Ok(line) => {
                println!("Redis {}", redis::version());
                lines.push(line);
            }
            Err(reason) => println!("Redis left out: {reason}"),
        }
    }
    if wanted("postgres") {
        match postgres::Server::start() {
            Ok(mut server) => {
                println!("PostgreSQL {}", server.version);
                let all = postgres::event_ids(1..=data::EVENTS);
                let (_, sum) = server.read(&all, true);
                assert_same(sum, expected, "PostgreSQL");
                lines.push(with_postgres(&mut server, "PostgreSQL, GROUP BY"));
                server.make_indexes();
                lines.push(with_postgres(
                    &mut server,
                    "PostgreSQL, GROUP BY, with `sql/indexes.sql`",
                ));
            }
            Err(reason) => println!("PostgreSQL left out: {reason}"),
        }
    }
    println!();
    print(&lines);
    if wanted("list") {
        lists::measure();
    }
}
