//! `oddscache demo`: the page shows what happens to the cache.

use std::{process::Stdio, time::Duration};

use oddscache_testkit::service::command;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use super::browser::Browser;

/// A restart of the server makes the page stale. Afterwards it is current, in a new epoch.
#[tokio::test]
async fn the_page_shows_an_incident_of_the_demo() {
    let mut demo = command(&["demo", "--events", "40", "--markets", "6", "--history", "2"]);
    demo.args(["--listen", "127.0.0.1:0", "--cycle", "5s"])
        .args(["--incident", "restart", "--incident-after", "20s"])
        .stdout(Stdio::piped());
    // The demo uses the same PostgreSQL programs as the tests.
    if let Some(folder) = std::env::var_os("ODDSCACHE_PG_BIN") {
        demo.env("ODDSCACHE_PG_BIN", folder);
    }
    let demo = Command::from(demo).kill_on_drop(true).spawn();
    let mut demo = demo.expect("the binary runs");
    let Some(browser) = Browser::start().await else {
        return;
    };
    let mut lines = BufReader::new(demo.stdout.take().expect("piped")).lines();
    let mut line = async || {
        let line = timeout(Duration::from_secs(120), lines.next_line()).await;
        let line = line.expect("it goes on").unwrap();
        line.expect("it does not end by itself")
    };
    // Record the states of the page. On a slow machine the incident may be over before the test looks.
    let source = "window.states = new Set();
        new MutationObserver(() => window.states.add(document.body.dataset.state))
            .observe(document, { subtree: true, attributes: true, attributeFilter: ['data-state'] });";
    browser.before_scripts(source).await;
    // The next line is the address of the page.
    while line().await != "open the page" {}
    browser.open(line().await.trim()).await;
    let current = "document.body.dataset.state === 'current'";
    let odds = format!("{current} && document.querySelector('td.best')");
    browser.until("odds", &odds).await;
    let moved = "document.querySelector('#board td[data-moved=up], #board td[data-moved=down]')";
    browser.until("a price that moved", moved).await;
    browser.scheme("dark").await;
    browser.screenshot("demo").await;

    let was_stale = "window.states.has('stale')";
    browser.until("the server is away", was_stale).await;
    if browser.eval("document.body.dataset.state").await == "stale" {
        browser.screenshot("demo-stale").await;
    }
    let epoch = "Number(document.getElementById('epoch').textContent)";
    let back = format!("{current} && {epoch} > 1");
    browser.until("it is back", &back).await;
    let over = "incident restart is over, and the promise held";
    while !line().await.contains(over) {}
    browser.is_content();
}
