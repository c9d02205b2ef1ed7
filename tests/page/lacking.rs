//! A service of which a part does not arrive: the page says how old is what it shows, not what the service has.

use std::sync::{Arc, atomic::Ordering};

use oddscache_testkit::{followed::run, service::Service};

use super::{
    Page, loaded,
    proxy::Valve,
    stale::{PRICE, STALE, UPDATE, is_current, is_stale},
};

const STATUS: &str = "document.getElementById('status').textContent";

/// A page that gets all it shows through a valve, which is open.
async fn behind_a_valve() -> (Page, Arc<Valve>) {
    let page = Page::closed(12).await;
    let valve = Valve::before(&page.served).await;
    page.browser.open(&valve.base).await;
    page.browser.until("the list", &loaded(12)).await;
    (page, valve)
}

#[tokio::test]
async fn changes_that_do_not_arrive_make_the_page_stale() {
    let (page, valve) = behind_a_valve().await;
    let Page { app, browser, .. } = &page;

    // The service has the change, and says so; the stream is open, and silent. Its end would be told in other words.
    valve.changes.send_replace(false);
    run(app, UPDATE).await;
    let behind = format!("{STALE} && {STATUS} === 'behind'");
    browser.until("it says so", &behind).await;
    let words = ["changes do not arrive, though the service has them"];
    is_stale(browser, &words).await;
    assert_ne!(browser.eval(PRICE).await, "55.50");

    valve.changes.send_replace(true);
    is_current(browser).await;
    browser.is_content_but_for_the_network();
}

#[tokio::test]
async fn another_service_proves_nothing_of_what_is_on_the_page() {
    let (page, valve) = behind_a_valve().await;
    let Page { app, browser, .. } = &page;
    // The page is ahead of what the other counts.
    for price in ["40.40", "41.41", "42.42"] {
        run(app, &UPDATE.replace("55.5", price)).await;
        let shown = format!("{PRICE} === '{price}'");
        browser.until("the change", &shown).await;
    }
    let other = Service::warm(&page.database.dsn(), &[]).await;
    valve.stats.send_replace(Some(other.base.clone()));
    valve.changes.send_replace(false);
    run(app, UPDATE).await;
    let words = ["another service tells its health than the one that sends changes"];
    is_stale(browser, &words).await;

    valve.stats.send_replace(None);
    valve.changes.send_replace(true);
    is_current(browser).await;
    browser.is_content_but_for_the_network();
}

#[tokio::test]
async fn a_list_that_does_not_come_is_told() {
    let page = Page::closed(12).await;
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let valve = Valve::before(served).await;
    valve.list.store(false, Ordering::Relaxed);
    browser.open(&valve.base).await;
    let words = ["the list of odds does not come: the valve is shut. There is nothing to see yet"];
    is_stale(browser, &words).await;

    run(app, UPDATE).await;
    valve.list.store(true, Ordering::Relaxed);
    is_current(browser).await;
    // That, and not that the page was starting.
    let bad = "[...document.querySelectorAll('#happened .bad')].every((line) => line.textContent.includes('valve'))";
    assert_eq!(browser.eval(bad).await, true);
    browser.is_content_but_for_the_network();
}

#[tokio::test]
async fn a_change_that_cannot_be_applied_is_not_left_out() {
    let page = Page::closed(12).await;
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    // The first change comes with something that is no market.
    let source = "window.spoilt = 0; const parse = JSON.parse;
        JSON.parse = (text, ...rest) => {
            const value = parse(text, ...rest);
            if (value?.odds?.length && value.betpawa && window.spoilt === 0) {
                window.spoilt += 1;
                value.odds[0].odds[0].markets = [null];
            }
            return value; }";
    browser.before_scripts(source).await;
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    run(app, UPDATE).await;
    browser
        .until("a spoilt change", "window.spoilt === 1")
        .await;
    is_current(browser).await;
    // It is in the console, so that somebody can fix it.
    assert_eq!(browser.complaints(|_| true).len(), 1);
}

#[tokio::test]
async fn a_database_that_a_lock_keeps_from_being_read_is_not_lost() {
    let page = Page::of(12).await;
    let browser = &page.browser;
    let answer = async |age: &str| {
        let script = format!(
            "{{ const json = Response.prototype.json;
             Response.prototype.json = async function () {{
                 const body = await json.call(this);
                 if (!('age_ms' in body)) return body;
                 return {{ ...body, {age} status: 'disconnected since 2026-01-01T00:00:00Z: a lock is in the way' }};
             }}; }}"
        );
        browser.eval(&script).await;
    };
    // First of its true age, which is that of a service that reads.
    answer("").await;
    let heard = format!("{STATUS} === 'disconnected'");
    browser.until("the page hears of it", &heard).await;
    assert_eq!(browser.eval(STALE).await, false);
    answer("age_ms: 6000,").await;
    let words = ["the service cannot read the database: a lock is in the way"];
    is_stale(browser, &words).await;
    browser.is_content();
}
