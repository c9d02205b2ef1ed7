//! The page never shows old prices as if they were current. It says since when and why it is stale.

use oddscache_testkit::{
    cluster::Cluster,
    connect, eventually,
    followed::run,
    service::{Service, command},
};
use serde_json::json;

use super::{Page, browser::Browser, loaded, odds};

pub(crate) const STALE: &str =
    "document.body.dataset.state === 'stale' && !document.getElementById('banner').hidden";

/// Waits until the page says that it is stale, with these words.
pub(crate) async fn is_stale(browser: &Browser, words: &[&str]) {
    browser.until("it says so", STALE).await;
    let banner = "document.getElementById('banner').textContent";
    let banner = browser.eval(banner).await;
    let banner = banner.as_str().unwrap();
    for word in words {
        assert!(banner.contains(word), "no {word:?} in {banner}");
    }
}

/// Waits until the page is current and shows the price of [`UPDATE`].
pub(crate) async fn is_current(browser: &Browser) {
    let current = format!("{} && {PRICE} === '55.50'", loaded(12));
    browser.until("current again", &current).await;
}

/// JavaScript for the price of event 3 on the board.
pub(crate) const PRICE: &str = "document.querySelector('tr[data-event=\"3\"] td[data-column=\"betpawa 1\"][data-outcome=\"1\"]').firstElementChild.textContent";

pub(crate) const UPDATE: &str = "update market_odds set outcomes = jsonb_set(outcomes, '{0,odds}', '55.5') where betpawa_market_id = '3743'
    and snapshot_id = (select max(id) from odds_snapshots where event_id = 3)";

/// The page says since when its odds are old and why, and keeps showing them.
#[tokio::test]
async fn the_page_says_that_the_database_is_away_and_shows_its_return() {
    let cluster = Cluster::with_feed(&odds(12));
    let served = Service::warm(&cluster.dsn("postgres"), &[]).await;
    let Some(browser) = Browser::start().await else {
        return;
    };
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    let price = browser.eval(PRICE).await;

    cluster.stop("immediate").unwrap();
    let words = [
        "Stale since ",
        "the service cannot read what is new: ",
        "What you see is the state of ",
    ];
    is_stale(&browser, &words).await;
    assert_eq!(browser.eval(PRICE).await, price, "the old prices stay");
    browser.screenshot("stale").await;

    cluster.boot().unwrap();
    let app = connect(&cluster.dsn("postgres")).await;
    run(&app, UPDATE).await;
    is_current(&browser).await;
    let told = "document.getElementById('banner').hidden && /epoch [2-9]/.test(document.getElementById('happened').textContent)
        && document.getElementById('happened').textContent.includes('current again')";
    browser.until("the page says what happened", told).await;
    browser.is_content();
}

/// While triggers do not log every change, the page is not stale. It names the fault, and how late a change shows that
/// is not logged.
#[tokio::test]
async fn the_page_says_that_the_feed_is_not_whole() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    run(app, "alter table market_odds disable trigger user").await;
    let banner = "document.getElementById('banner').hidden ? '' : document.getElementById('banner').textContent";
    let says = |word: &str| format!("({banner}).includes('{word}')");
    for word in [
        "Degraded since ",
        "market_odds",
        "ALTER TABLE",
        "shows within ",
    ] {
        browser.until(word, &says(word)).await;
    }
    let pill = "document.getElementById('status').textContent === 'degraded'";
    browser.until("the pill", pill).await;
    run(app, UPDATE).await;
    browser
        .until(
            "a change that is not logged",
            &format!("{PRICE} === '55.50'"),
        )
        .await;
    for kind in ["insert", "update", "delete", "truncate"] {
        let enable = format!("alter table market_odds enable always trigger oddscache_{kind}");
        run(app, &enable).await;
    }
    is_current(browser).await;
    browser
        .until("no banner", "document.getElementById('banner').hidden")
        .await;
}

/// Without the service the page is stale. It is current again without a reload of the page.
#[tokio::test]
async fn the_page_says_that_the_service_is_away_and_shows_its_return() {
    let Some(mut page) = Page::of(12).await else {
        return;
    };
    let (browser, dsn) = (&page.browser, page.database.dsn());

    // The browser is offline until the service is warm again. So the page misses a change, and only learns that it
    // missed something.
    browser.offline(true).await;
    page.served.child.start_kill().unwrap();
    page.served.ended().await;
    is_stale(browser, &["no connection to the service"]).await;
    // No service reports this change.
    run(&page.app, UPDATE).await;
    assert_ne!(browser.eval(PRICE).await, "55.50");

    let listen = page.served.address().to_string();
    let mut again = command(&["serve", "--listen", &listen, "--log-format", "json"]);
    again.env("DATABASE_URL", dsn);
    let again = Service::spawn(again).await;
    again.ready().await;
    browser.offline(false).await;
    is_current(browser).await;
    browser.is_content_but_for_the_network();
}

/// A browser has six connections per host. Each tab with the page would otherwise keep one for ever.
#[tokio::test]
async fn a_hidden_page_gives_its_stream_back() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let streams = async || served.metric("oddscache_change_streams").await;
    assert_eq!(streams().await, 1.0);
    let hide = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.eval(&hide(true)).await;
    eventually("no stream is open", async || streams().await == 0.0).await;
    // The page notices that it has no changes. It reports no problem, because nothing is wrong.
    let resting = "document.body.dataset.state === 'stale'";
    browser.until("it has no changes", resting).await;
    run(app, UPDATE).await;
    browser.eval(&hide(false)).await;
    is_current(browser).await;
    let bad = "document.querySelectorAll('#happened .bad').length";
    assert_eq!(browser.eval(bad).await, 0);
    browser.is_content();
}

/// The tiles show what the service measures, and the page fits a narrow screen.
#[tokio::test]
async fn health_is_shown_and_the_page_fits_a_phone() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let browser = &page.browser;
    let snapshots = page.database.psql(
        "select (select count(*) from odds_snapshots) + (select count(*) from competitor_odds_snapshots)",
    );
    let memory = format!(
        "document.querySelector('#tile-memory .note').textContent.startsWith('{snapshots} snapshots')"
    );
    browser.until("what is held", &memory).await;
    let live = "document.getElementById('status').textContent === 'live' && document.querySelector('#happened .live')";
    browser.until("live", live).await;
    run(&page.app, UPDATE).await;
    let counted =
        "/[1-9]\\d* in all/.test(document.querySelector('#tile-updates .note').textContent)";
    browser.until("updates", counted).await;
    let timed = "/^p50 [0-9.]+ m?s$/.test(document.querySelector('#tile-commit-to-visible .value').textContent)";
    browser.until("how long it took", timed).await;
    let drawn = "document.querySelector('#tile-age .line').getAttribute('d').includes('L')";
    browser.until("a line in the chart", drawn).await;

    // `take` gets a histogram that only grows. It returns the quantiles of the entries that are new since the call
    // before. `lately` returns the quantiles over the last minute. Both are in ms, and NaN if nothing is new.
    let quantiles = "import('/page/quantiles.js').then(({ Quantiles }) => {
        const [seen, of] = [new Quantiles(), (small, large) => [{ le_seconds: 0.001, count: small }, { le_seconds: null, count: large }]];
        const later = new Quantiles();
        later.take(of(0, 90));
        later.take(of(7, 93));
        const all = [seen.take(of(90, 0)), seen.take(of(97, 3)), seen.take(of(97, 3)), seen.lately(), later.lately()];
        return all.map((pair) => pair.map(String)); })";
    let (none, new) = (["NaN", "NaN"], ["1", "Infinity"]);
    let expected = json!([none, new, none, new, new]);
    assert_eq!(browser.eval(quantiles).await, expected);

    // A time of day has a date unless it is today.
    let clocks = "import('/page/format.js').then(({ clock }) => {
        const days = (count) => clock(new Date().setHours(23, 59, 58, 0) - count * 86_400_000);
        return [days(0), /^[A-Z][a-z]{2} \\d+ [A-Z][a-z]+ 23:59:58$/.test(days(3)), clock(NaN)]; })";
    let expected = json!(["23:59:58", true, "–"]);
    assert_eq!(browser.eval(clocks).await, expected);

    // A pause before an attempt leaves no listener behind.
    let left = "import('/page/service.js').then(async ({ pause }) => {
        let left = 0;
        const count = (name, by) => {
            const original = EventTarget.prototype[name];
            EventTarget.prototype[name] = function (type, ...rest) {
                if (type === 'now') left += by;
                return original.call(this, type, ...rest);
            };
        };
        count('addEventListener', 1);
        count('removeEventListener', -1);
        await Promise.all([pause(0), pause(0)]);
        return left; })";
    assert_eq!(browser.eval(left).await, 0);

    browser.size(390, 844).await;
    let folded = "document.documentElement.scrollWidth <= 390 && getComputedStyle(document.querySelector('#board tr[data-event]')).display === 'grid'";
    browser.until("cards", folded).await;
    browser.screenshot("phone").await;
    browser.click("#health-toggle").await;
    let health = "!document.getElementById('health').hidden";
    browser.until("health", health).await;
    browser.screenshot("phone-health").await;
    browser.is_content();
}
