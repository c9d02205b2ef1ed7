//! A slow network: the page says what it does, and never shows old odds as new.

use oddscache_testkit::followed::run;
use serde_json::json;

use super::{
    Page, loaded,
    proxy::Valve,
    stale::{PRICE, STALE, UPDATE},
};

const NOTE: &str = "document.getElementById('detail-note').textContent";
const PROGRESS: &str = "document.getElementById('progress')";

/// A list that took longer than ten seconds never came: the page gave up, and began again for ever.
#[tokio::test]
async fn a_list_that_comes_slowly_comes() {
    let Some(page) = Page::closed(1_000).await else {
        return;
    };
    let (served, browser) = (&page.served, &page.browser);
    browser.open(&format!("{}/openapi.json", served.base)).await;
    browser.slow(300, 10_000).await;
    browser.open(&served.base).await;
    let number =
        format!("Number(/loading the odds: (\\d+) kB so far/.exec({PROGRESS}.textContent)?.[1])");
    let begun = format!("!{PROGRESS}.hidden && {number} > 0");
    browser.until("it says how much came", &begun).await;
    // The first events are there before the others. Nothing calls them current.
    let preview = "document.querySelector('#board tr[data-event=\"1\"] td.best')
        && document.getElementById('count').textContent === '' && document.body.dataset.state !== 'current'";
    browser.until("the first events", preview).await;
    let first = browser.eval(&number).await;
    browser
        .until("more came", &format!("{number} > {first}"))
        .await;
    let words = format!(
        "{STALE} && document.getElementById('banner').textContent.includes('is still coming, over a slow network')"
    );
    browser.until("it says why", &words).await;
    browser.screenshot("slow").await;
    let there = "document.getElementById('count').textContent === '1,000 events'";
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

/// An open event says that it waits for newer prices. A page that comes back over a slow network calls its old prices
/// old, until the changes that it missed are there, and not only the service's word that all is well.
#[tokio::test]
async fn a_slow_page_never_shows_an_old_price_as_new() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let valve = Valve::before(served).await;
    browser.open(&format!("{}/#event=3", valve.base)).await;
    browser.until("the list", &loaded(12)).await;
    let plain = format!("{NOTE} === '5 markets'");
    browser.until("the event", &plain).await;
    browser.slow(3_000, -1).await;
    run(app, UPDATE).await;
    let old = "document.getElementById('detail').classList.contains('old')";
    let waits = format!(
        "{old} && {NOTE}.includes('These prices have changed, and the new ones are being loaded.')"
    );
    browser.until("the event waits", &waits).await;
    let there = format!(
        "!{old} && {plain} && [...document.querySelectorAll('#detail td.price')]
            .some((cell) => cell.textContent.startsWith('55.50'))"
    );
    browser.until("the event is there", &there).await;

    // The browser may keep a stream that is open.
    valve.changes.send_replace(false);
    browser.offline(true).await;
    browser.until("stale", STALE).await;
    run(app, &UPDATE.replace("55.5", "44.5")).await;
    // The browser and the database have the same clock. The page writes its age twice a second, and rounded.
    browser.eval("window.committed = Date.now()").await;
    // A busy browser draws late.
    let late = "window.requestAnimationFrame = (draw) => setTimeout(draw, 700)";
    browser.eval(late).await;
    let watch = format!(
        "window.lies = []; setInterval(() => {{
            const text = document.getElementById('age').textContent;
            const [, number, unit] = /^([0-9.]+) (ms|s)$/.exec(text) ?? [];
            const proven = Date.now() - Number(number) * (unit === 's' ? 1000 : 1);
            const isOld = {PRICE} !== '44.50' && document.body.dataset.state === 'current';
            if (isOld && proven > window.committed + 1_000) window.lies.push(text); }}, 20)"
    );
    browser.eval(&watch).await;
    browser.slow(1_500, -1).await;
    let behind = format!("{STALE} && document.getElementById('status').textContent === 'behind'");
    browser.until("the service answers", &behind).await;
    valve.changes.send_replace(true);
    let new = format!("{} && {PRICE} === '44.50'", loaded(12));
    browser.until("the new price", &new).await;
    assert_eq!(browser.eval("window.lies").await, json!([]));
    browser.is_content_but_for_the_network();
}
