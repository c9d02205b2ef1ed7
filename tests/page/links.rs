//! Addresses that people share: of an event, of one of its markets, of a market on the board.

use oddscache_testkit::followed::run;

use super::{Page, loaded};

const HASH: &str = "location.hash";
const OPEN: &str = "document.getElementById('detail').open";
const NOTE: &str = "document.getElementById('detail-note').textContent";

/// JavaScript that is true once the panel shows the markets of an event.
fn shows(event: i64) -> String {
    format!(
        "{OPEN} && {NOTE}.startsWith('5 markets') && document.querySelector('#detail-body a').hash.startsWith('#event={event}&')"
    )
}

/// JavaScript that is true if this market, and no other, is marked, has the focus and is in sight.
fn marked(key: &str) -> String {
    format!(
        "(() => {{ const [link, ...more] = document.querySelectorAll('#detail-body [aria-current]');
            const [box, room] = [link.getBoundingClientRect(), document.getElementById('detail-body').getBoundingClientRect()];
            return more.length === 0 && link.hash.endsWith('&market={key}') && link === document.activeElement
                && box.top >= room.top && box.bottom <= room.bottom; }})()"
    )
}

/// The links of the page lead to the same event and market after a reload. The browser's Back closes an event.
#[tokio::test]
async fn an_address_opens_the_event_and_the_market_that_it_names() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let (served, browser) = (&page.served, &page.browser);
    let reload = async |hash: &str| {
        // Without another path the browser would not load the page again.
        browser.open("about:blank").await;
        browser.open(&format!("{}/{hash}", served.base)).await;
        browser.until("the list", &loaded(12)).await;
    };

    // A click puts the event into the address, and the link of a market puts that there, too.
    browser.click("tr[data-event=\"7\"] a").await;
    browser.until("event 7", &shows(7)).await;
    assert_eq!(browser.eval(HASH).await, "#event=7");
    let link = "#detail-body a[href$='market=5000/3.5']";
    browser.click(link).await;
    browser.until("the market", &marked("5000/3.5")).await;
    assert_eq!(browser.eval(HASH).await, "#event=7&market=5000/3.5");

    // A low window shows that the page scrolls to the market.
    browser.size(1440, 330).await;
    reload("#event=7&market=4703").await;
    browser.until("event 7", &shows(7)).await;
    browser.until("the market", &marked("4703")).await;
    browser.size(1440, 900).await;
    // A program that passed the address on has escaped the slash.
    reload("#event=7&market=%35000/2.5").await;
    browser.until("the market", &marked("5000/2.5")).await;

    // Back goes to what was there before, and closes the event at last.
    reload("").await;
    browser.click("tr[data-event=\"4\"] a").await;
    browser.until("event 4", &shows(4)).await;
    browser.eval("history.back()").await;
    let closed = format!("!{OPEN} && {HASH} === ''");
    browser.until("closed", &closed).await;

    // The market of the board has an address, to which the end of an event returns.
    browser.click("#markets input[value=\"5000/2.5\"]").await;
    let over = "document.querySelector('#board td[data-outcome=Over]') && location.hash === '#market=5000/2.5'";
    browser.until("over and under", over).await;
    browser.click("tr[data-event=\"4\"] a").await;
    browser.until("event 4", &shows(4)).await;
    browser.key("Escape").await;
    browser.until("the board's market", over).await;
    reload("#market=5000/2.5").await;
    browser.until("over and under again", over).await;
    browser.is_content();
}

/// An address that leads nowhere says so in words.
#[tokio::test]
async fn an_address_of_what_is_no_longer_shown_says_so() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let gone = format!("{OPEN} && {NOTE}.startsWith('This event is no longer shown, or not yet.')");
    browser.open(&format!("{}/#event=4711", served.base)).await;
    browser.until("no such event", &gone).await;
    browser.screenshot("gone").await;
    // It comes, and the panel shows it without a reload.
    let comes = "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) values (4711, 'sr4711', 'Late', '', '', now() at time zone 'UTC' + interval '1 hour');
        insert into odds_snapshots (event_id, bookmaker_id) values (4711, 1)";
    run(app, comes).await;
    let come = format!("{NOTE} === '0 markets' && document.title === 'Late · oddscache'");
    browser.until("it came", &come).await;

    let hash = async |hash: &str| {
        let script = format!("location.hash = '{hash}'");
        browser.eval(&script).await;
    };
    hash("#event=7&market=none/9").await;
    let remark = format!("{NOTE} === '5 markets. No bookmaker offers the market of this address.'");
    browser.until("no such market", &remark).await;
    hash("#event=7&market=4703").await;
    browser.until("a market", &marked("4703")).await;
    let plain = format!("{NOTE} === '5 markets'");
    browser.until("no remark", &plain).await;
    hash("#event=seven").await;
    let none = format!("{NOTE}.startsWith('The address names no event')");
    browser.until("no event", &none).await;
    hash("#event=%&market=%").await;
    browser.until("no event", &none).await;
    hash("").await;
    browser.until("closed", &format!("!{OPEN}")).await;
    browser.is_content_but_for_the_network();
}
