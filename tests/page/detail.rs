//! The full markets of an event when the service cannot send them. The page shows neither old prices as current nor an
//! empty note.

use std::sync::atomic::Ordering;

use oddscache_testkit::followed::run;

use super::{Page, loaded, proxy::Valve, stale::UPDATE};

const NOTE: &str = "document.getElementById('detail-note').textContent";

/// The note stays until the event is current again.
#[tokio::test]
async fn the_page_says_that_an_open_event_is_gone_or_may_be_old() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let valve = Valve::before(served).await;
    browser.open(&format!("{}/#event=9", valve.base)).await;
    browser.until("the list", &loaded(12)).await;
    let ages = "document.getElementById('detail-ages').textContent.startsWith('last confirmed')";
    let prices = "document.querySelectorAll('#detail td.price').length";
    let there = format!("{NOTE} === '5 markets' && {ages} && {prices} > 0");
    browser.until("the event", &there).await;

    let delete = "delete from odds_snapshots where event_id = 9; delete from competitor_events where betpawa_event_id = 9";
    run(app, delete).await;
    let gone = format!(
        "{NOTE}.startsWith('This event is no longer shown, or not yet. The service says: event 9 is not held') && {prices} === 0"
    );
    browser.until("it is gone", &gone).await;
    // The note stays. The page redraws the ages every second, which must not replace it.
    let stands = "new Promise((resolve) => setTimeout(resolve, 2_000))";
    browser.eval(stands).await;
    assert_eq!(browser.eval(&gone).await, true);

    // The service does not answer after a change. The page keeps the odds and says that they may be old.
    let again = format!("{}/?again#event=3", valve.base);
    browser.open(&again).await;
    browser.until("the event", &there).await;
    valve.event.store(false, Ordering::Relaxed);
    run(app, UPDATE).await;
    let old = format!("{NOTE}.startsWith('What you see may be old: the valve is shut')");
    browser.until("it is not answered", &old).await;
    browser.eval(stands).await;
    assert_eq!(browser.eval(&old).await, true);
    valve.event.store(true, Ordering::Relaxed);
    let shown = "[...document.querySelectorAll('#detail td.price')]
        .some((cell) => cell.textContent.startsWith('55.50'))";
    let current = format!("{there} && {shown}");
    browser.until("it is there", &current).await;
    browser.is_content_but_for_the_network();
}
