//! `--cors-origin`: which pages of other origins may read the answers in a browser.

use oddscache_testkit::service::{Service, run};
use reqwest::{Client, Method, Response};

use super::{access::put, with_odds};

const BOARD: &str = "https://board.example";

async fn send(served: &Service, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = Client::new().request(method, format!("{}{path}", served.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("an answer")
}

fn allowed(answer: &Response) -> Option<&str> {
    let header = answer.headers().get("access-control-allow-origin")?;
    Some(header.to_str().expect("text"))
}

fn has(answer: &Response, name: &str, word: &str) -> bool {
    let mut values = answer.headers().get_all(name).iter();
    values.any(|value| {
        value
            .to_str()
            .expect("text")
            .to_ascii_lowercase()
            .contains(word)
    })
}

/// Only pages of the named origins may read, and only by GET and HEAD.
#[tokio::test]
async fn only_named_origins_may_read() {
    let database = with_odds();
    let folder = tempfile::tempdir().unwrap();
    let token = "one-token-0123456789abcdef";
    let file = put(folder.path(), "token", token);
    let origins = "http://localhost:3000,https://board.example";
    let more = ["--cors-origin", origins, "--token-file", &file];
    let served = Service::warm(&database.dsn(), &more).await;
    // A browser sends no token with a preflight request.
    let asks = ("access-control-request-method", "GET");
    for (origin, expected) in [(BOARD, Some(BOARD)), ("https://other.example", None)] {
        let wants = ("access-control-request-headers", "authorization");
        let headers = [("origin", origin), asks, wants];
        let preflight = send(&served, Method::OPTIONS, "/v1/list", &headers).await;
        assert!(preflight.status().is_success(), "{preflight:?}");
        assert_eq!(allowed(&preflight), expected, "{origin}");
        assert!(has(
            &preflight,
            "access-control-allow-headers",
            "authorization"
        ));
        assert!(has(&preflight, "access-control-allow-methods", "get,head"));
        assert!(!has(&preflight, "access-control-allow-methods", "post"));
        assert!(
            !preflight
                .headers()
                .contains_key("access-control-allow-credentials")
        );
    }
    let bearer = format!("Bearer {token}");
    for (headers, status) in [
        (&[("origin", BOARD), ("authorization", &bearer)][..], 200),
        // The page learns that its token is wrong.
        (&[("origin", BOARD)], 401),
    ] {
        let answer = send(&served, Method::GET, "/v1/events/3", headers).await;
        assert_eq!(answer.status(), status);
        assert_eq!(allowed(&answer), Some(BOARD));
        assert!(has(
            &answer,
            "access-control-expose-headers",
            "oddscache-as-of"
        ));
        assert!(has(&answer, "vary", "origin"), "{answer:?}");
    }
    // A cache must not give another origin an answer without the header.
    let plain = send(&served, Method::GET, "/livez", &[]).await;
    assert_eq!(allowed(&plain), None);
    assert!(has(&plain, "vary", "origin"));
    let post = send(&served, Method::POST, "/v1/events", &[("origin", BOARD)]).await;
    assert_eq!(post.status(), 405);
}

/// Without the flag no answer has such a header. With a token, `*` is refused.
#[tokio::test]
async fn it_is_off_by_default() {
    let database = with_odds();
    let served = Service::warm(&database.dsn(), &[]).await;
    let asks = ("access-control-request-method", "GET");
    let preflight = send(
        &served,
        Method::OPTIONS,
        "/v1/list",
        &[("origin", BOARD), asks],
    )
    .await;
    assert_eq!(preflight.status(), 405);
    let answer = send(&served, Method::GET, "/v1/list", &[("origin", BOARD)]).await;
    assert_eq!(allowed(&answer), None);
    assert!(!has(&answer, "vary", "origin"));

    let any = Service::warm(&database.dsn(), &["--cors-origin", "*"]).await;
    let answer = send(&any, Method::GET, "/v1/list", &[("origin", BOARD)]).await;
    assert_eq!(allowed(&answer), Some("*"));
    let token = "one-token-0123456789abcdef";
    let both = ["serve", "--cors-origin", "*", "--token", token];
    run(&both, &database.dsn()).with(2, &["--cors-origin", "name the origins"]);
    let wrong = ["serve", "--cors-origin", "https://board.example/"];
    run(&wrong, &database.dsn()).with(2, &["--cors-origin", "without a path"]);
}
