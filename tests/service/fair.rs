//! One client gets a large response, and the others must not wait for it.

use oddscache_testkit::{connect, process::memory, service::Service};
use reqwest::{Client, header::ACCEPT_ENCODING};

use super::lifecycle::{under_way, with_large_odds};

/// Compressing or selecting fields of a large response must yield to other requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_responses_hold_up_no_other_request() {
    let database = with_large_odds();
    // With one thread, a request that does not yield would hold up all others.
    let one_thread = [("TOKIO_WORKER_THREADS", "1")];
    let served = Service::start_with(&database.dsn(), &[], &one_thread).await;
    served.ready().await;
    for (path, encoding) in [
        ("/v1/dump", "gzip"),
        #[cfg(feature = "zstd")]
        ("/v1/dump", "zstd"),
        ("/v1/events?fields=betpawa.snapshot_id", "identity"),
        ("/v1/events?fields=betpawa.snapshot_id", "gzip"),
    ] {
        let request = Client::new().get(format!("{}{path}", served.base));
        let request = request.header(ACCEPT_ENCODING, encoding);
        let large = tokio::spawn(async move {
            let answer = request.send().await.expect("an answer");
            answer.bytes().await.expect("a body").len()
        });
        let (other, url) = (Client::new(), format!("{}/livez", served.base));
        let mut answers = 0;
        while !large.is_finished() {
            let answer = other.get(&url).send().await.expect("an answer");
            assert_eq!(answer.text().await.expect("a body"), "alive\n");
            answers += 1;
        }
        let bytes = large.await.expect("an answer");
        println!("{path}, {encoding}: {bytes} bytes, {answers} other answers meanwhile");
        assert!(answers > 12, "{path}, {encoding}: {answers}");
    }
}

/// A hundred slow readers of a hundred different lists take much less memory than a hundred lists.
#[tokio::test]
async fn slow_readers_of_the_list_take_little_memory() {
    const READERS: u64 = 100;
    let database = with_large_odds();
    let app = connect(&database.dsn()).await;
    let more = ["--inline-markets", "m1,m2,m3", "--stall-timeout", "1h"];
    let served = Service::warm(&database.dsn(), &more).await;
    let list = served.get("/v1/list").await.1.len();
    assert!(list > 3_000_000, "{list}");
    let before = memory(served.pid());
    let mut slow = Vec::new();
    for _ in 0..READERS {
        let write = "with s as (insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)) select pg_current_xact_id()::text";
        let row = app.query_one(write, &[]).await.unwrap();
        let path = format!("/v1/list?wait_for={}", row.get::<_, String>(0));
        slow.push(under_way(&served, &path).await);
    }
    let after = memory(served.pid());
    let grown = after.resident.saturating_sub(before.resident);
    println!(
        "{grown} KiB for {READERS} readers of {list} bytes each; {before} before, {after} after"
    );
    // The service holds a few old lists, and a few pieces for each reader.
    assert!(grown < 60 * 1024 + READERS * 600, "{before}; {after}");
    assert_eq!(served.get("/v1/list").await.0, 200);
}
