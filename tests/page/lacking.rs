//! A service of which a part does not arrive: the page says how old is what it shows, not what the service has.

use std::sync::atomic::Ordering;

use oddscache_testkit::connect;
use serde_json::{Value, json};

use super::{
    Served,
    browser::Browser,
    loaded,
    proxy::Valve,
    stale::{BANNER, PRICE, STALE, UPDATE, but_network},
    with_odds,
};

const STATUS: &str = "document.getElementById('status').textContent";

#[tokio::test]
async fn changes_that_do_not_arrive_make_the_page_stale() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    let valve = Valve::before(&served).await;
    browser.open(&valve.base).await;
    browser.until("the list", &loaded(12)).await;

    // The service has the change, and says so; the stream is open, and silent. Its end would be told in other words.
    valve.changes.send_replace(false);
    app.batch_execute(UPDATE).await.unwrap();
    browser
        .until("it says so", &format!("{STALE} && {STATUS} === 'behind'"))
        .await;
    let banner = browser.eval(BANNER).await;
    let expected = "changes do not arrive, though the service has them";
    assert!(banner.as_str().unwrap().contains(expected), "{banner}");
    assert_ne!(browser.eval(PRICE).await, "55.50");

    valve.changes.send_replace(true);
    let current = format!("{} && {PRICE} === '55.50'", loaded(12));
    browser.until("current again", &current).await;
    assert_eq!(browser.complaints(but_network), Vec::<Value>::new());
}

#[tokio::test]
async fn another_service_proves_nothing_of_what_is_on_the_page() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    let valve = Valve::before(&served).await;
    browser.open(&valve.base).await;
    browser.until("the list", &loaded(12)).await;
    // The page is ahead of what the other counts.
    for price in ["40.40", "41.41", "42.42"] {
        let update = UPDATE.replace("55.5", price);
        app.batch_execute(&update).await.unwrap();
        let shown = format!("{PRICE} === '{price}'");
        browser.until("the change", &shown).await;
    }
    let other = Served::start(&database.dsn()).await;
    valve.stats.send_replace(Some(other.base.clone()));
    valve.changes.send_replace(false);
    app.batch_execute(UPDATE).await.unwrap();
    browser.until("it says so", STALE).await;
    let banner = browser.eval(BANNER).await;
    let expected = "one service reports its health, and another one sends the changes";
    assert!(banner.as_str().unwrap().contains(expected), "{banner}");

    valve.stats.send_replace(None);
    valve.changes.send_replace(true);
    let current = format!("{} && {PRICE} === '55.50'", loaded(12));
    browser.until("current again", &current).await;
    assert_eq!(browser.complaints(but_network), Vec::<Value>::new());
}

#[tokio::test]
async fn a_list_that_does_not_come_is_told() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    let valve = Valve::before(&served).await;
    valve.list.store(false, Ordering::Relaxed);
    browser.open(&valve.base).await;
    browser.until("it says so", STALE).await;
    let banner = browser.eval(BANNER).await;
    let expected = "the list of odds does not come: the valve is shut. There is nothing to see yet";
    assert!(banner.as_str().unwrap().contains(expected), "{banner}");

    app.batch_execute(UPDATE).await.unwrap();
    valve.list.store(true, Ordering::Relaxed);
    let current = format!("{} && {PRICE} === '55.50'", loaded(12));
    browser.until("the list", &current).await;
    // That, and not that the page was starting.
    let bad = "[...document.querySelectorAll('#happened .bad')].every((line) => line.textContent.includes('valve'))";
    assert_eq!(browser.eval(bad).await, true);
    assert_eq!(browser.complaints(but_network), Vec::<Value>::new());
}

#[tokio::test]
async fn a_change_that_cannot_be_applied_is_not_left_out() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    // The first change comes with something that is no market.
    let source = "window.spoilt = 0; const parse = JSON.parse;
        JSON.parse = (text, ...rest) => {
            const value = parse(text, ...rest);
            if (value?.odds?.length && value.betpawa && window.spoilt === 0) {
                window.spoilt += 1;
                value.odds[0].odds[0].markets = [null];
            }
            return value; }";
    browser
        .call(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({ "source": source }),
        )
        .await;
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    app.batch_execute(UPDATE).await.unwrap();
    let current = format!(
        "window.spoilt === 1 && {} && {PRICE} === '55.50'",
        loaded(12)
    );
    browser.until("the change", &current).await;
    // It is in the console, for whoever mends it.
    assert_eq!(browser.complaints(|_| true).len(), 1);
}

#[tokio::test]
async fn a_database_that_a_lock_keeps_from_being_read_is_not_lost() {
    let database = with_odds(12);
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    let answer = |age: &str| {
        format!(
            "const json = Response.prototype.json;
             Response.prototype.json = async function () {{
                 const body = await json.call(this);
                 if (!('age_ms' in body)) return body;
                 return {{ ...body, {age} status: 'disconnected since 2026-01-01T00:00:00Z: a lock is in the way' }};
             }};"
        )
    };
    // First of its true age, which is that of a service that reads.
    browser.eval(&format!("{{ {} }}", answer(""))).await;
    browser
        .until(
            "the page hears of it",
            &format!("{STATUS} === 'disconnected'"),
        )
        .await;
    assert_eq!(browser.eval(STALE).await, false);
    browser
        .eval(&format!("{{ {} }}", answer("age_ms: 6000,")))
        .await;
    browser.until("it says so", STALE).await;
    let banner = browser.eval(BANNER).await;
    let expected = "the service cannot read the database: a lock is in the way";
    assert!(banner.as_str().unwrap().contains(expected), "{banner}");
    assert_eq!(browser.complaints(|_| true), Vec::<Value>::new());
}
