//! How the page's files are served.

use super::{Served, with_odds};

#[tokio::test]
async fn the_page_is_whole_guarded_and_not_sent_twice() {
    let database = with_odds(1);
    let served = Served::start(&database.dsn()).await;
    let client = reqwest::Client::new();
    let mut asked = vec!["/".to_owned()];
    let mut seen = 0;
    while let Some(path) = asked.pop() {
        let answer = client
            .get(format!("{}{path}", served.base))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let headers = answer.headers().clone();
        let policy = headers["content-security-policy"].to_str().unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        let again = client
            .get(format!("{}{path}", served.base))
            .header("if-none-match", &headers["etag"])
            .send()
            .await
            .unwrap();
        assert_eq!(again.status(), 304, "{path}");
        assert!(again.bytes().await.unwrap().is_empty());
        if path == "/" {
            let text = answer.text().await.unwrap();
            let files = text.split("\"/page/").skip(1);
            asked.extend(
                files
                    .filter_map(|rest| rest.split('"').next())
                    .map(|file| format!("/page/{file}")),
            );
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
    let none = reqwest::get(format!("{}/page/none.js", served.base))
        .await
        .unwrap();
    assert_eq!(none.status(), 404);
    assert!(none.text().await.unwrap().contains("none.js"));
}
