//! An event's full markets that cannot be had: neither old prices nor an empty note stand for them.

use std::sync::atomic::Ordering;

use oddscache_testkit::connect;
use serde_json::Value;

use super::{
    Served,
    browser::Browser,
    loaded,
    proxy::Valve,
    stale::{UPDATE, but_network},
    with_odds,
};

const NOTE: &str = "document.getElementById('detail-note').textContent";

#[tokio::test]
async fn an_open_event_that_goes_or_does_not_come_is_told_until_it_is_there() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    let valve = Valve::before(&served).await;
    browser.open(&format!("{}/#event=9", valve.base)).await;
    browser.until("the list", &loaded(12)).await;
    let ages = format!("{NOTE}.includes('last confirmed')");
    let prices = "document.querySelectorAll('#detail td.price').length";
    browser
        .until("the event", &format!("{ages} && {prices} > 0"))
        .await;

    app.batch_execute(
        "delete from odds_snapshots where event_id = 9; delete from competitor_events where betpawa_event_id = 9",
    )
    .await
    .unwrap();
    let gone = format!("{NOTE}.startsWith('event 9 is not held') && {prices} === 0");
    browser.until("it is gone", &gone).await;
    // It stands: what draws the ages comes each second.
    let stands = "new Promise((resolve) => setTimeout(resolve, 2_000))";
    browser.eval(stands).await;
    assert_eq!(browser.eval(&gone).await, true);

    // Not answered, after a change: what is shown stays, and is not passed off as current.
    browser
        .open(&format!("{}/?again#event=3", valve.base))
        .await;
    browser
        .until("the event", &format!("{ages} && {prices} > 0"))
        .await;
    valve.event.store(false, Ordering::Relaxed);
    app.batch_execute(UPDATE).await.unwrap();
    let old = format!("{NOTE}.startsWith('What you see may be old: the valve is shut')");
    browser.until("it is not answered", &old).await;
    browser.eval(stands).await;
    assert_eq!(browser.eval(&old).await, true);
    valve.event.store(true, Ordering::Relaxed);
    let there = "[...document.querySelectorAll('#detail td.price')]
        .some((cell) => cell.textContent.startsWith('55.50'))";
    browser
        .until("it is there", &format!("{ages} && {there}"))
        .await;
    assert_eq!(browser.complaints(but_network), Vec::<Value>::new());
}
