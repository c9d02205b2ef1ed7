//! What the page says when it cannot know: never old prices as if they were current.

use oddscache_testkit::{Database, cluster::Cluster, connect, eventually};
use serde_json::Value;

use super::{Served, browser::Browser, loaded, odds, with_odds};

pub(crate) const STALE: &str =
    "document.body.dataset.state === 'stale' && !document.getElementById('banner').hidden";
pub(crate) const BANNER: &str = "document.getElementById('banner').textContent";

/// The price that event 3 has on the board.
pub(crate) const PRICE: &str = "document.querySelector('tr[data-event=\"3\"] td[data-column=\"betpawa 1\"][data-outcome=\"1\"]').firstElementChild.textContent";

pub(crate) const UPDATE: &str = "update market_odds set outcomes = jsonb_set(outcomes, '{0,odds}', '55.5') where betpawa_market_id = '3743'
    and snapshot_id = (select max(id) from odds_snapshots where event_id = 3)";

/// What is no fault of the page: the browser itself notes each answer that did not come.
pub(crate) fn but_network(source: &str) -> bool {
    source != "network"
}

#[tokio::test]
async fn a_database_that_is_away_is_told_and_its_return_shown() {
    let cluster = Cluster::start(&["fsync = off"]).expect("a cluster");
    for arguments in [
        ["-qf", "src/demo/schema.sql"],
        ["-qf", "sql/install.sql"],
        ["-qc", &odds(12)],
    ] {
        let output = cluster.psql("postgres", &arguments).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    }
    let (served, browser) = (
        Served::start(&cluster.dsn("postgres")).await,
        Browser::start().await,
    );
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    let price = browser.eval(PRICE).await;

    cluster.stop("immediate").unwrap();
    browser.until("it says so", STALE).await;
    let banner = browser.eval(BANNER).await;
    let banner = banner.as_str().unwrap();
    assert!(banner.starts_with("Stale since "), "{banner}");
    assert!(
        banner.contains("the service cannot read the database: "),
        "{banner}"
    );
    assert!(banner.contains("What you see is the state of "), "{banner}");
    assert_eq!(browser.eval(PRICE).await, price, "the old prices stay");
    browser.screenshot("stale").await;

    cluster.boot().unwrap();
    let app = connect(&cluster.dsn("postgres")).await;
    app.batch_execute(UPDATE).await.unwrap();
    browser.until("current again", &loaded(12)).await;
    browser
        .until("what was changed since", &format!("{PRICE} === '55.50'"))
        .await;
    let told = "document.getElementById('banner').hidden && /epoch [2-9]/.test(document.getElementById('happened').textContent)
        && document.getElementById('happened').textContent.includes('current again')";
    browser.until("what happened is told", told).await;
    assert_eq!(browser.complaints(|_| true), Vec::<Value>::new());
}

#[tokio::test]
async fn a_service_that_is_away_is_told_and_its_return_shown() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (mut served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;

    // Away for the browser until it is warm again: then what it missed is not told, only that something was.
    browser.offline(true).await;
    served.child.start_kill().unwrap();
    served.child.wait().await.unwrap();
    browser.until("it says so", STALE).await;
    let banner = browser.eval(BANNER).await;
    assert!(
        banner
            .as_str()
            .unwrap()
            .contains("no connection to the service"),
        "{banner}"
    );
    // Nobody tells of this one.
    app.batch_execute(UPDATE).await.unwrap();
    assert_ne!(browser.eval(PRICE).await, "55.50");

    let listen = served.base.replace("http://", "");
    let _served = Served::at(&database.dsn(), &listen).await;
    browser.offline(false).await;
    browser.until("current again", &loaded(12)).await;
    browser
        .until("what was changed since", &format!("{PRICE} === '55.50'"))
        .await;
    assert_eq!(browser.complaints(but_network), Vec::<Value>::new());
}

/// A browser has six connections to a host, and each tab with the page would take one for good.
#[tokio::test]
async fn a_hidden_page_gives_its_stream_back() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    let streams = async || {
        let metrics = reqwest::get(format!("{}/metrics", served.base)).await;
        let text = metrics.unwrap().text().await.unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("oddscache_change_streams "));
        line.expect("the metric").ends_with(" 1")
    };
    assert!(streams().await);
    let hide = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.eval(&hide(true)).await;
    eventually("no stream is open", async || !streams().await).await;
    // Which the page notices, and does not tell of: nothing is wrong.
    let resting = "document.body.dataset.state === 'stale'";
    browser.until("it has no changes", resting).await;
    app.batch_execute(UPDATE).await.unwrap();
    browser.eval(&hide(false)).await;
    browser.until("current again", &loaded(12)).await;
    browser
        .until("what was changed since", &format!("{PRICE} === '55.50'"))
        .await;
    let bad = "document.querySelectorAll('#happened .bad').length";
    assert_eq!(browser.eval(bad).await, 0);
    assert_eq!(browser.complaints(|_| true), Vec::<Value>::new());
}

#[tokio::test]
async fn health_is_shown_and_the_page_fits_a_phone() {
    let database = with_odds(12);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    browser.open(&served.base).await;
    browser.until("the list", &loaded(12)).await;
    let snapshots = Database::psql(
        &database,
        "select (select count(*) from odds_snapshots) + (select count(*) from competitor_odds_snapshots)",
    );
    let memory = format!(
        "document.querySelector('#tile-memory .note').textContent.startsWith('{snapshots} snapshots')"
    );
    browser.until("what is held", &memory).await;
    let live = "document.getElementById('status').textContent === 'live' && document.querySelector('#happened .live')";
    browser.until("live", live).await;
    app.batch_execute(UPDATE).await.unwrap();
    let counted =
        "/[1-9]\\d* in all/.test(document.querySelector('#tile-updates .note').textContent)";
    browser.until("updates", counted).await;
    let timed = "/^p50 [0-9.]+ m?s$/.test(document.querySelector('#tile-commit-to-visible .value').textContent)";
    browser.until("how long it took", timed).await;
    let drawn = "document.querySelector('#tile-age .line').getAttribute('d').includes('L')";
    browser.until("a line in the chart", drawn).await;

    // The quantiles of what is new in a histogram that grows, and over all intervals; in ms, null where nothing is new.
    let quantiles = "import('/page/quantiles.js').then(({ Quantiles }) => {
        const [seen, of] = [new Quantiles(), (small, large) => [{ le_seconds: 0.001, count: small }, { le_seconds: null, count: large }]];
        const later = new Quantiles();
        later.take(of(0, 90));
        later.take(of(7, 93));
        const all = [seen.take(of(90, 0)), seen.take(of(97, 3)), seen.take(of(97, 3)), seen.lately(), later.lately()];
        return all.map((pair) => pair.map(String)); })";
    assert_eq!(
        browser.eval(quantiles).await,
        serde_json::json!([
            ["NaN", "NaN"],
            ["1", "Infinity"],
            ["NaN", "NaN"],
            ["1", "Infinity"],
            ["1", "Infinity"]
        ])
    );

    // A time of day says its day where that is not today.
    let clocks = "import('/page/format.js').then(({ clock }) => {
        const days = (count) => clock(new Date().setHours(23, 59, 58, 0) - count * 86_400_000);
        return [days(0), /^[A-Z][a-z]{2} \\d+ [A-Z][a-z]+ 23:59:58$/.test(days(3)), clock(NaN)]; })";
    assert_eq!(
        browser.eval(clocks).await,
        serde_json::json!(["23:59:58", true, "–"])
    );

    // Attempts leave nothing behind that waits for the next.
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
    browser
        .until("health", "!document.getElementById('health').hidden")
        .await;
    browser.screenshot("phone-health").await;
    assert_eq!(browser.complaints(|_| true), Vec::<Value>::new());
}
