//! One client's large answer beside what all others ask for.

use reqwest::{Client, header::ACCEPT_ENCODING};

use super::{Served, lifecycle::with_large_odds};

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
