//! Requests at a fixed rate, however fast the service responds. Each request is due at a fixed time, and its latency
//! counts from then. So a slow response also counts for the requests that queue behind it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache_testkit::load::client::{Client, Counts};
use tokio::{sync::mpsc, task::JoinSet};

/// The number of connections that send the requests.
const CONNECTIONS: usize = 64;

/// The bound of the queue of requests that are due and not sent. A request beyond it counts as an error.
const MOST_WAITING: usize = 20_000;

/// The kinds of request: path, share of 10,000, and accepted statuses. `gzip` after a path asks for compression, and
/// `fields` asks for a single field of all events.
const MIX: [(&str, u64, &[u16]); 10] = [
    // 404 is right for an event that left the window meanwhile.
    ("/v1/events/{id}", 9_027, &[200, 404]),
    ("/v1/events?ids=", 400, &[200]),
    ("/readyz", 300, &[200]),
    ("/v1/stats", 100, &[200]),
    ("/metrics", 100, &[200]),
    ("/v1/list", 20, &[200, 304]),
    ("/v1/list gzip", 40, &[200]),
    ("/v1/events fields", 10, &[200]),
    ("/v1/dump", 1, &[200]),
    ("/v1/dump gzip", 2, &[200]),
];

/// The counts of each kind of request, in the order of [`MIX`].
pub(crate) type CountsByKind = Arc<Mutex<Vec<(&'static str, Counts)>>>;

pub(crate) struct Load {
    pub(crate) by_kind: CountsByKind,
    /// Requests that were due when the queue was full.
    pub(crate) unsent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    scheduler: std::thread::JoinHandle<()>,
    workers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, rate: u64, ids: Vec<i64>) -> Load {
        let by_kind = MIX.iter().map(|(kind, ..)| (*kind, Counts::default()));
        let by_kind = Arc::new(Mutex::new(by_kind.collect()));
        let (send, due) = mpsc::channel(MOST_WAITING);
        let due = Arc::new(tokio::sync::Mutex::new(due));
        let (stop, unsent) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let scheduler = schedule(rate, send, Arc::clone(&stop), Arc::clone(&unsent));
        let mut workers = JoinSet::new();
        let ids = Arc::new(ids);
        for number in 0..CONNECTIONS as u64 {
            let (due, by_kind, ids) = (Arc::clone(&due), Arc::clone(&by_kind), Arc::clone(&ids));
            workers.spawn(async move {
                let (client, mut rng) = (Client::new(address), fastrand::Rng::with_seed(number));
                let mut list_tag = None;
                loop {
                    let Some(at) = due.lock().await.recv().await else {
                        return;
                    };
                    let kind = choose(&mut rng);
                    let path = path(MIX[kind].0, &ids, &mut rng);
                    let header = list_tag.clone().filter(|_| MIX[kind].0 == "/v1/list");
                    let header = match MIX[kind].0.ends_with(" gzip") {
                        true => Some(("accept-encoding", "gzip")),
                        false => header.as_deref().map(|tag| ("if-none-match", tag)),
                    };
                    let result = client.take(&path, header).await;
                    if let (Ok((_, tag, _)), "/v1/list") = (&result, MIX[kind].0) {
                        list_tag = tag.clone();
                    }
                    let mut by_kind: std::sync::MutexGuard<'_, Vec<(&str, Counts)>> =
                        by_kind.lock().expect("a lock");
                    by_kind[kind]
                        .1
                        .add(Instant::now() - at, MIX[kind].2, result);
                }
            });
        }
        Load {
            by_kind,
            unsent,
            stop,
            scheduler,
            workers,
        }
    }

    /// Ends the load. Waits for the responses to the requests that were already due.
    pub(crate) async fn stop(mut self) -> CountsByKind {
        self.stop.store(true, Ordering::Relaxed);
        // The thread sees the flag at its next request, at most a second later.
        let scheduler = self.scheduler;
        tokio::task::spawn_blocking(move || scheduler.join())
            .await
            .expect("a thread")
            .expect("the scheduler");
        while self.workers.join_next().await.is_some() {}
        self.by_kind
    }
}

/// Queues a request at each due time. It uses a thread, because the runtime's timer only counts whole milliseconds.
fn schedule(
    rate: u64,
    send: mpsc::Sender<Instant>,
    stop: Arc<AtomicBool>,
    unsent: Arc<AtomicU64>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (begun, mut number) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let due = begun + Duration::from_nanos(1_000_000_000 / rate * number);
            number += 1;
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            if send.try_send(due).is_err() {
                unsent.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

/// A random index into [`MIX`], weighted by share.
fn choose(rng: &mut fastrand::Rng) -> usize {
    let mut number = rng.u64(0..10_000);
    for (kind, (_, share, _)) in MIX.iter().enumerate() {
        if number < *share {
            return kind;
        }
        number -= share;
    }
    0
}

fn path(kind: &str, ids: &[i64], rng: &mut fastrand::Rng) -> String {
    let mut id = || ids[rng.usize(0..ids.len())].to_string();
    match kind {
        "/v1/events/{id}" => format!("/v1/events/{}", id()),
        "/v1/events?ids=" => {
            let list: Vec<String> = (0..10).map(|_| id()).collect();
            format!("/v1/events?ids={}", list.join(","))
        }
        "/v1/events fields" => "/v1/events?fields=betpawa.snapshot_id&limit=1000".to_owned(),
        path => path.trim_end_matches(" gzip").to_owned(),
    }
}
