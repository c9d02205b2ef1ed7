//! A slow network: the page says what it does, and never shows old odds as new.

use oddscache_testkit::followed::run;
use serde_json::json;

use super::{
    Page, loaded,
    stale::{PRICE, STALE, UPDATE, is_current},
};

const NOTE: &str = "document.getElementById('detail-note').textContent";
const PROGRESS: &str = "document.getElementById('progress')";

/// A list that took longer than ten seconds never came: the page gave up, and began again for ever.
#[tokio::test]
async fn a_list_that_comes_slowly_comes() {
    let Some(page) = Page::closed(1_500).await else {
        return;
    };
    let (served, browser) = (&page.served, &page.browser);
    browser.open(&format!("{}/openapi.json", served.base)).await;
    browser.slow(300, 14_000).await;
    browser.open(&served.base).await;
    let number =
        format!("Number(/loading the odds: (\\d+) kB so far/.exec({PROGRESS}.textContent)?.[1])");
    let begun = format!("!{PROGRESS}.hidden && {number} > 0");
    browser.until("it says how much came", &begun).await;
    assert_eq!(
        browser
            .eval("document.querySelectorAll('#board tr[data-event]').length")
            .await,
        0
    );
    let first = browser.eval(&number).await;
    browser
        .until("more came", &format!("{number} > {first}"))
        .await;
    let words = format!(
        "{STALE} && document.getElementById('banner').textContent.includes('is still coming, over a slow network')"
    );
    browser.until("it says why", &words).await;
    browser.screenshot("slow").await;
    let there = "document.getElementById('count').textContent === '1,500 events'";
    browser.until("the list", there).await;
    let lists = "performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('/v1/list')).map(({ duration }) => duration > 10_000)";
    assert_eq!(
        browser.eval(lists).await,
        json!([true]),
        "one list, and a slow one"
    );
    browser.slow(0, -1).await;
    let current = format!("document.body.dataset.state === 'current' && {PROGRESS}.hidden");
    browser.until("current", &current).await;
    browser.is_content();
}

/// While a price on the page is older than the database's, the page's age says so. An open event says that it waits.
#[tokio::test]
async fn a_slow_page_never_shows_an_old_price_as_new() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    browser.eval("location.hash = '#event=3'").await;
    browser
        .until("the event", &format!("{NOTE} === '5 markets'"))
        .await;
    browser.slow(3_000, -1).await;
    // Samples: whether the board has the new price, and the moment at which the page claims that it was current.
    let watch = format!(
        "window.samples = []; setInterval(() => {{
            const [, number, unit] = /^([0-9.]+) (ms|s)$/.exec(document.getElementById('age').textContent) ?? [];
            const age = Number(number) * (unit === 's' ? 1000 : 1);
            const claim = document.body.dataset.state === 'current' ? Date.now() - age : 0;
            window.samples.push([{PRICE} === '55.50', claim]);
        }}, 20)"
    );
    browser.eval(&watch).await;
    run(app, UPDATE).await;
    // The browser and the database have the same clock.
    browser.eval("window.committed = Date.now()").await;
    let waits = format!(
        "{NOTE}.includes('These prices have changed, and the new ones are being loaded.')
        && document.getElementById('detail').classList.contains('old')"
    );
    browser.until("the event waits", &waits).await;
    let there = format!("{NOTE} === '5 markets' && !document.getElementById('detail').classList.contains('old')
        && [...document.querySelectorAll('#detail td.price')].some((cell) => cell.textContent.startsWith('55.50'))");
    browser.until("the event is there", &there).await;
    // A second of tolerance: the page writes its age twice a second, and rounded.
    let wrong =
        "window.samples.filter(([isNew, claim]) => !isNew && claim > window.committed + 1_000)";
    assert_eq!(browser.eval(wrong).await, json!([]));

    // A page that comes back over a slow network shows its old prices as old, until it knows more.
    browser.offline(true).await;
    browser.until("stale", STALE).await;
    run(app, &UPDATE.replace("55.5", "44.5")).await;
    let watch = format!("window.lies = 0; setInterval(() => {{
        if ({PRICE} !== '44.50' && document.body.dataset.state === 'current') window.lies += 1; }}, 20)");
    browser.eval(&watch).await;
    browser.slow(1_500, -1).await;
    let new = format!("{} && {PRICE} === '44.50'", loaded(12));
    browser.until("the new price", &new).await;
    assert_eq!(browser.eval("window.lies").await, 0);
    browser.slow(0, -1).await;
    run(app, UPDATE).await;
    is_current(browser).await;
    browser.is_content_but_for_the_network();
}
