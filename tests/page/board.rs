//! The board and an event's full markets, beside what SQL says.

use std::collections::BTreeMap;

use oddscache_testkit::connect;
use serde_json::Value;

use super::{Served, browser::Browser, loaded, with_odds};

/// `event/bookmaker/outcome` -> odds of a market, by the database's own words.
async fn asked(client: &tokio_postgres::Client, market: &str) -> BTreeMap<String, String> {
    let sql = format!(
        "with latest as (
             select distinct on (event_id) event_id, 'betpawa ' || bookmaker_id as name, id, true as own from odds_snapshots
             order by event_id, id desc),
         latest_competitor as (
             select distinct on (c.id) c.betpawa_event_id, c.source, s.id, false from competitor_events c
             join competitor_odds_snapshots s on s.competitor_event_id = c.id order by c.id, s.id desc)
         select event_id || '/' || l.name || '/' || (o ->> 'name'), to_char((o ->> 'odds')::numeric, 'FM990.00')
         from (select * from latest union all select * from latest_competitor) l
         join (select true as own, snapshot_id, betpawa_market_id, line, outcomes from market_odds
               union all select false, snapshot_id, betpawa_market_id, line, outcomes from competitor_market_odds) m
           on m.own = l.own and m.snapshot_id = l.id
         cross join jsonb_array_elements(m.outcomes) o
         where m.betpawa_market_id || coalesce(' ' || m.line, '') = '{market}'"
    );
    let rows = client.query(&sql, &[]).await.expect("the query");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The same as the board shows it.
const SHOWN: &str = "Object.fromEntries([...document.querySelectorAll('#board td.price')]
    .filter((cell) => cell.firstElementChild.textContent !== '')
    .map((cell) => [`${cell.closest('tr').dataset.event}/${cell.dataset.column}/${cell.dataset.outcome}`,
                    cell.firstElementChild.textContent]))";

fn shown(value: Value) -> BTreeMap<String, String> {
    serde_json::from_value(value).expect("texts")
}

/// A cell of the board.
fn cell(event: i64, column: &str, outcome: &str) -> String {
    format!(
        "document.querySelector('#board tr[data-event=\"{event}\"] td[data-column=\"{column}\"][data-outcome=\"{outcome}\"]')"
    )
}

/// Counts what lights up, from before the page's own scripts on.
async fn count_flashes(browser: &Browser) {
    let source = "window.flashes = []; const animate = Element.prototype.animate;
        Element.prototype.animate = function (frames, timing) {
            window.flashes.push(`${this.closest('tr').dataset.event}/${this.dataset.column}/${this.dataset.outcome}`);
            return animate.call(this, frames, timing); }";
    let source = serde_json::json!({ "source": source });
    browser
        .call("Page.addScriptToEvaluateOnNewDocument", source)
        .await;
}

#[tokio::test]
async fn the_board_shows_what_the_database_says_and_how_it_moves() {
    let database = with_odds(20);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    count_flashes(&browser).await;
    browser.open(&served.base).await;
    browser.until("the list", &loaded(20)).await;

    for market in ["3743", "5000 2.5", "3795"] {
        browser
            .click(&format!("#markets input[value=\"{market}\"]"))
            .await;
        let expected = asked(&app, market).await;
        assert!(expected.len() > 100, "{market}: {}", expected.len());
        let first = serde_json::json!(expected.keys().next());
        let script = format!(
            "{SHOWN}[{first}] && Object.keys({SHOWN}).length === {}",
            expected.len()
        );
        browser.until(market, &script).await;
        assert_eq!(shown(browser.eval(SHOWN).await), expected, "{market}");
    }

    // The greatest odds of each event and outcome are the best, and no others.
    browser.click("#markets input[value=\"3743\"]").await;
    let wrong = "[...document.querySelectorAll('#board tr[data-event]')].flatMap((row) => ['1', 'X', '2'].filter((name) => {
        const cells = [...row.querySelectorAll(`td[data-outcome=\"${name}\"]`)].filter((cell) => cell.firstElementChild.textContent);
        const odds = cells.map((cell) => Number(cell.firstElementChild.textContent));
        const [most, least] = [Math.max(...odds), Math.min(...odds)];
        return cells.some((cell, at) => cell.classList.contains('best') !== (odds[at] === most && most > least));
    }))";
    let one_x_two = "document.querySelectorAll('#board thead tr:last-child th').length === 12 && document.querySelector('td[data-outcome=X]')";
    browser.until("1X2 again", one_x_two).await;
    assert_eq!(browser.eval(wrong).await, serde_json::json!([]));
    assert_eq!(browser.eval("flashes").await, serde_json::json!([]));

    // A committed change shows, lights up, and says where it went; nothing else does.
    let own = cell(7, "betpawa 1", "X");
    let update = "update market_odds set outcomes = jsonb_set(outcomes, '{1,odds}', '99.5') where betpawa_market_id = '3743'
                  and snapshot_id = (select max(id) from odds_snapshots where event_id = 7)";
    app.batch_execute(update).await.unwrap();
    let moved = format!("{own}.textContent.startsWith('99.50') && {own}.dataset.moved === 'up'");
    browser.until("the change", &moved).await;
    assert_eq!(
        browser.eval("flashes").await,
        serde_json::json!(["7/betpawa 1/X"])
    );
    assert_eq!(
        browser
            .eval(&format!("{own}.classList.contains('best')"))
            .await,
        true
    );
    app.batch_execute(&update.replace("99.5", "1.01"))
        .await
        .unwrap();
    let down = format!("{own}.dataset.moved === 'down' && !{own}.classList.contains('best')");
    browser.until("down again", &down).await;
    assert_eq!(
        shown(browser.eval(SHOWN).await),
        asked(&app, "3743").await,
        "after the changes"
    );
    browser.screenshot("board").await;

    // Not to be had: struck out. Gone: not there.
    app.batch_execute(
        "update market_odds set unavailable_at = now() where betpawa_market_id = '3743'
         and snapshot_id = (select max(id) from odds_snapshots where event_id = 8);
         delete from odds_snapshots where event_id = 9; delete from competitor_events where betpawa_event_id = 9",
    )
    .await
    .unwrap();
    let off = format!(
        "{}.querySelector('s') && !document.querySelector('tr[data-event=\"9\"]') && {}",
        cell(8, "betpawa 1", "1"),
        loaded(19)
    );
    browser.until("struck out and gone", &off).await;

    assert_eq!(browser.complaints(|_| true), Vec::<Value>::new());
    for address in browser.requests() {
        assert!(address.starts_with(&served.base), "{address}");
    }
}

#[tokio::test]
async fn events_are_searched_and_opened() {
    let database = with_odds(300);
    let app = connect(&database.dsn()).await;
    let (served, browser) = (Served::start(&database.dsn()).await, Browser::start().await);
    browser.open(&served.base).await;
    browser.until("the list", &loaded(300)).await;

    // Only the rows in sight exist, wherever one looks, by wheel and by key.
    let rows = "document.querySelectorAll('#board tr[data-event]').length";
    assert!(browser.eval(rows).await.as_u64() < Some(80));
    browser
        .eval("document.getElementById('board').scrollTop = 1e9")
        .await;
    let last =
        "[...document.querySelectorAll('#board tr[data-event]')].at(-1).dataset.event === '300'";
    browser.until("the last event", last).await;
    assert!(browser.eval(rows).await.as_u64() < Some(80));
    assert_eq!(
        browser
            .eval("document.querySelector('tr[data-event=\"300\"]').ariaRowIndex")
            .await,
        "302"
    );
    browser
        .eval("document.getElementById('board').scrollTop = 0")
        .await;
    browser
        .until(
            "the first event",
            "document.querySelector('tr[data-event=\"1\"]')",
        )
        .await;
    browser
        .eval("document.querySelector('tr[data-event=\"1\"] button').focus()")
        .await;
    for _ in 0..60 {
        browser.key("ArrowDown").await;
    }
    let focused = "document.activeElement.closest('tr')?.dataset.event === '61'";
    browser.until("sixty events further down", focused).await;

    // Search: by the beginning of an id, by bookmaker, by both.
    browser.key("/").await;
    browser.text("29").await;
    browser
        .until(
            "ids",
            "document.getElementById('count').textContent === '11 of 300 events'",
        )
        .await;
    browser.text(" sporty").await;
    browser
        .until(
            "ids and bookmaker",
            "document.getElementById('count').textContent === '8 of 300 events'",
        )
        .await;
    browser.text(" nobody").await;
    browser
        .until("none", "!document.getElementById('nothing').hidden")
        .await;
    browser
        .eval("const search = document.getElementById('search'); search.value = '290'; search.dispatchEvent(new Event('input'))")
        .await;

    // One event, with all its markets, which the list has not.
    browser
        .until(
            "290 alone",
            "document.querySelectorAll('#board tr[data-event]').length === 1",
        )
        .await;
    browser.click("tr[data-event=\"290\"]").await;
    let markets = "document.querySelector('#detail').open && document.querySelectorAll('#detail tbody').length === 5";
    browser.until("its markets", markets).await;
    let full = "Object.fromEntries([...document.querySelectorAll('#detail tbody')]
        .filter((group) => group.dataset.market.startsWith('over/under - full time 3.5'))
        .flatMap((group) => [...group.querySelectorAll('td.price')])
        .map((cell) => [`290/${cell.dataset.column}/${cell.dataset.outcome}`, cell.firstElementChild.textContent]))";
    let mut expected = asked(&app, "5000 3.5").await;
    expected.retain(|key, _| key.starts_with("290/"));
    assert_eq!(shown(browser.eval(full).await), expected);
    browser.screenshot("detail").await;

    // It follows too; and the filter leaves what it names.
    app.batch_execute(
        "update market_odds set outcomes = jsonb_set(outcomes, '{0,odds}', '77.25') where betpawa_market_id = '4703'
         and snapshot_id = (select max(id) from odds_snapshots where event_id = 290)",
    )
    .await
    .unwrap();
    let moved = "[...document.querySelectorAll('#detail td[data-moved=up]')].some((cell) => cell.textContent.startsWith('77.25'))";
    browser.until("a move in the full markets", moved).await;
    browser.click("#detail-search").await;
    browser.text("draw no").await;
    let one = "[...document.querySelectorAll('#detail tbody')].filter((group) => !group.hidden).length === 1";
    browser.until("the filter", one).await;
    browser.key("Escape").await;
    browser.key("Escape").await;
    browser
        .until(
            "closed",
            "!document.querySelector('#detail').open && location.hash === ''",
        )
        .await;
    assert_eq!(browser.complaints(|_| true), Vec::<Value>::new());
}
