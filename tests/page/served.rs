//! How the service serves the files of the page.

use oddscache_testkit::service::Service;

use super::with_odds;

/// The page loads nothing from elsewhere and runs no inline script. A browser that has its files does not load them
/// again.
#[tokio::test]
async fn all_files_of_the_page_are_served_with_a_policy_and_an_etag() {
    let database = with_odds(1);
    let served = Service::warm(&database.dsn(), &[]).await;
    let mut asked = vec!["/".to_owned()];
    let mut seen = 0;
    while let Some(path) = asked.pop() {
        let answer = served.ask(&path, &[]).await;
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
        let known = [("if-none-match", headers["etag"].to_str().unwrap())];
        let again = served.ask(&path, &known).await;
        assert_eq!(again.status(), 304, "{path}");
        assert!(again.bytes().await.unwrap().is_empty());
        if path == "/" {
            let text = answer.text().await.unwrap();
            let files = text.split("\"/page/").skip(1);
            let files = files.filter_map(|rest| rest.split('"').next());
            asked.extend(files.map(|file| format!("/page/{file}")));
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
    let (status, sentence) = served.get("/page/none.js").await;
    assert_eq!(status, 404);
    assert!(sentence.contains("none.js"), "{sentence}");
}
