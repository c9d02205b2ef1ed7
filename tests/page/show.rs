//! `oddscache demo` as a show: what happens to the cache is seen on the page.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command as AsyncCommand,
    time::timeout,
};

use super::browser::Browser;

#[tokio::test]
async fn an_incident_of_the_demo_is_seen_on_the_page() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_oddscache"));
    demo.args(["demo", "--events", "40", "--markets", "6", "--history", "2"])
        .args(["--listen", "127.0.0.1:0", "--cycle", "5s"])
        .args(["--incident", "restart", "--incident-after", "20s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for (name, _) in std::env::vars() {
        // The demo takes the same server as the tests.
        let is_read = name.starts_with("PG") || name.starts_with("ODDSCACHE");
        if is_read && name != "ODDSCACHE_PG_BIN" {
            demo.env_remove(name);
        }
    }
    let mut demo = AsyncCommand::from(demo)
        .kill_on_drop(true)
        .spawn()
        .expect("the binary runs");
    let browser = Browser::start().await;
    let mut lines = BufReader::new(demo.stdout.take().expect("piped")).lines();
    let mut line = async || {
        let line = timeout(Duration::from_secs(120), lines.next_line()).await;
        line.expect("it goes on")
            .unwrap()
            .expect("it does not end by itself")
    };
    // On a slow machine it may be over before the test looks.
    let source = "window.states = new Set();
        new MutationObserver(() => window.states.add(document.body.dataset.state))
            .observe(document, { subtree: true, attributes: true, attributeFilter: ['data-state'] });";
    browser
        .call(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({ "source": source }),
        )
        .await;
    // The address of the page stands below.
    while line().await != "open the page" {}
    browser.open(line().await.trim()).await;
    browser
        .until(
            "odds",
            "document.body.dataset.state === 'current' && document.querySelector('td.best')",
        )
        .await;
    browser
        .until(
            "a price that moved",
            "document.querySelector('#board td[data-moved=up], #board td[data-moved=down]')",
        )
        .await;
    browser.scheme("dark").await;
    browser.screenshot("demo").await;

    let stale = "document.body.dataset.state === 'stale'";
    browser
        .until("the server is away", "window.states.has('stale')")
        .await;
    if browser.eval(stale).await == true {
        browser.screenshot("demo-stale").await;
    }
    browser
        .until(
            "it is back",
            "document.body.dataset.state === 'current' && Number(document.getElementById('epoch').textContent) > 1",
        )
        .await;
    while !line()
        .await
        .contains("incident restart is over, and the promise held")
    {}
    assert_eq!(
        browser.complaints(|_| true),
        Vec::<serde_json::Value>::new()
    );
}
