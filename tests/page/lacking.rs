//! Some responses do not arrive. The page shows the age of the odds on the page, and not the age that the service
//! reports.

use std::sync::{Arc, atomic::Ordering};

use oddscache_testkit::{followed::run, nginx::Nginx, service::Service};

use super::{
    Page, loaded,
    proxy::Valve,
    stale::{PRICE, STALE, UPDATE, is_current, is_stale},
};

const STATUS: &str = "document.getElementById('status').textContent";

/// A page that reaches its service only through a valve. The valve is open.
async fn behind_a_valve() -> Option<(Page, Arc<Valve>)> {
    let page = Page::closed(12).await?;
    let valve = Valve::before(&page.served).await;
    page.browser.open(&valve.base).await;
    page.browser.until("the list", &loaded(12)).await;
    Some((page, valve))
}

/// The page compares its version with the one in `/v1/stats`, so a silent stream does not look current.
#[tokio::test]
async fn changes_that_do_not_arrive_make_the_page_stale() {
    let Some((page, valve)) = behind_a_valve().await else {
        return;
    };
    let Page { app, browser, .. } = &page;

    // The service has the change and says so in its health. The stream stays open and sends nothing. If the stream
    // ended, the page would give another reason.
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

/// Behind a load balancer, `/v1/stats` may come from another process. Its versions say nothing about this page.
#[tokio::test]
async fn statistics_of_another_service_do_not_prove_the_page_current() {
    let Some((page, valve)) = behind_a_valve().await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    // The page has a later version than the other service will count.
    for price in ["40.40", "41.41", "42.42"] {
        run(app, &UPDATE.replace("55.5", price)).await;
        let shown = format!("{PRICE} === '{price}'");
        browser.until("the change", &shown).await;
    }
    let other = Service::warm(&page.database.dsn(), &[]).await;
    valve.stats.send_replace(Some(other.base.clone()));
    valve.changes.send_replace(false);
    run(app, UPDATE).await;
    let words = ["one service reports its health, and another one sends the changes"];
    is_stale(browser, &words).await;

    valve.stats.send_replace(None);
    valve.changes.send_replace(true);
    is_current(browser).await;
    browser.is_content_but_for_the_network();
}

/// If a request for the list fails, the page names the request and the reason.
#[tokio::test]
async fn the_page_says_that_the_list_does_not_come() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let valve = Valve::before(served).await;
    valve.list.store(false, Ordering::Relaxed);
    browser.open(&valve.base).await;
    let words = ["the list of odds does not come: the valve is shut. There is nothing to see yet"];
    is_stale(browser, &words).await;

    run(app, UPDATE).await;
    valve.list.store(true, Ordering::Relaxed);
    is_current(browser).await;
    // Every line names this reason. None says that the page is still starting.
    let bad = "[...document.querySelectorAll('#happened .bad')].every((line) => line.textContent.includes('valve'))";
    assert_eq!(browser.eval(bad).await, true);
    browser.is_content_but_for_the_network();
}

/// A change that the page cannot apply must not be skipped silently.
#[tokio::test]
async fn the_page_recovers_from_a_change_that_it_cannot_apply() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    // A script damages the first change: it replaces a list of markets by `[null]`.
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
    // The error is in the console, where a developer finds it.
    assert_eq!(browser.complaints(|_| true).len(), 1);
}

/// While the view is young, the status `disconnected` alone does not make the page stale.
#[tokio::test]
async fn a_short_lock_does_not_make_the_page_stale() {
    let Some(page) = Page::of(12).await else {
        return;
    };
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
    // At first the service reports its true age, which is low because it reads.
    answer("").await;
    let heard = format!("{STATUS} === 'disconnected'");
    browser.until("the page hears of it", &heard).await;
    assert_eq!(browser.eval(STALE).await, false);
    answer("age_ms: 6000,").await;
    let words = ["the service cannot read what is new: a lock is in the way"];
    is_stale(browser, &words).await;
    browser.is_content();
}

/// Behind nginx with its defaults the page stayed on "loading".
#[tokio::test]
async fn the_page_works_behind_nginx() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let Page {
        app,
        browser,
        served,
        ..
    } = &page;
    let location = "proxy_pass http://oddscache;";
    let Some(nginx) = Nginx::start(served.address(), location).await else {
        return;
    };
    browser.open(&format!("http://{}", nginx.address())).await;
    browser.until("the list", &loaded(12)).await;
    run(app, UPDATE).await;
    let shown = format!("{PRICE} === '55.50'");
    browser.until("the change", &shown).await;
    is_current(browser).await;
}

/// A proxy may buffer the stream although the service forbids it. The page then shows the odds, and says why they are
/// old.
#[tokio::test]
async fn the_page_shows_odds_also_without_changes() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let Page {
        browser, served, ..
    } = &page;
    let location = "proxy_pass http://oddscache; proxy_ignore_headers X-Accel-Buffering;";
    let Some(nginx) = Nginx::start(served.address(), location).await else {
        return;
    };
    browser.open(&format!("http://{}", nginx.address())).await;
    let shown = "document.getElementById('count').textContent === '12 events'";
    browser.until("the list", shown).await;
    is_stale(
        browser,
        &["changes do not arrive", "a proxy may hold it back"],
    )
    .await;
}
