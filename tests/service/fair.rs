//! One client's large answer beside what all others ask for.

use oddscache_testkit::{connect, load::process};
use reqwest::{Client, header::ACCEPT_ENCODING};

use super::{
    Served,
    lifecycle::{under_way, with_large_odds},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_hold_up_nobody() {
    let database = with_large_odds();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
    // Whatever is not given up, nobody else has.
    let one_thread = [("TOKIO_WORKER_THREADS", "1")];
    let served = Served::start_with(&database.dsn(), &arguments, &one_thread).await;
    served.warm().await;
    for (path, encoding) in [
        ("/v1/dump", "gzip"),
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

/// Each of another view.
#[tokio::test]
async fn slow_readers_of_the_list_share_or_have_their_pieces() {
    const READERS: u64 = 100;
    let database = with_large_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(
        &database.dsn(),
        &["--inline-markets", "m1,m2,m3", "--stall-timeout", "1h"],
    )
    .await;
    served.warm().await;
    let list = served.get("/v1/list").await.1.len();
    assert!(list > 3_000_000, "{list}");
    let before = process::memory(served.child.id().unwrap());
    let mut slow = Vec::new();
    for _ in 0..READERS {
        let write = "with s as (insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)) select pg_current_xact_id()::text";
        let row = app.query_one(write, &[]).await.unwrap();
        let path = format!("/v1/list?wait_for={}", row.get::<_, String>(0));
        slow.push(under_way(&served, &path).await);
    }
    let after = process::memory(served.child.id().unwrap());
    let grown = after.resident.saturating_sub(before.resident);
    println!(
        "{grown} KiB for {READERS} readers of {list} bytes each; {before} before, {after} after"
    );
    // Some old lists, and of each a few pieces.
    assert!(grown < 60 * 1024 + READERS * 600, "{before}; {after}");
    assert_eq!(served.get("/v1/list").await.0, 200);
}
