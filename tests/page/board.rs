//! The board, and the full markets of an event, compared with what SQL returns.

use std::collections::BTreeMap;

use oddscache_testkit::followed::run;
use serde_json::{Value, json};

use super::{Page, browser::Browser, loaded};

/// The odds of a market by `event/bookmaker/outcome`, as the database has them.
async fn odds_in_database(
    client: &tokio_postgres::Client,
    market: &str,
) -> BTreeMap<String, String> {
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
         where m.betpawa_market_id || coalesce('/' || m.line, '') = '{market}'"
    );
    let rows = client.query(&sql, &[]).await.expect("the query");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// JavaScript that returns the same odds as the board shows them.
const SHOWN: &str = "Object.fromEntries([...document.querySelectorAll('#board td.price')]
    .filter((cell) => cell.firstElementChild.textContent !== '')
    .map((cell) => [`${cell.closest('tr').dataset.event}/${cell.dataset.column}/${cell.dataset.outcome}`,
                    cell.firstElementChild.textContent]))";

fn shown(value: Value) -> BTreeMap<String, String> {
    serde_json::from_value(value).expect("texts")
}

/// JavaScript that finds a cell of the board.
fn cell(event: i64, column: &str, outcome: &str) -> String {
    format!(
        "document.querySelector('#board tr[data-event=\"{event}\"] td[data-column=\"{column}\"][data-outcome=\"{outcome}\"]')"
    )
}

/// Records every cell that lights up. Begins before the scripts of the page run.
async fn count_flashes(browser: &Browser) {
    let source = "window.flashes = [];
        new MutationObserver((changes) => {
            for (const { target, oldValue } of changes) {
                if (!target.matches('td.lit') || / lit\\b/.test(oldValue)) continue;
                window.flashes.push(`${target.closest('tr').dataset.event}/${target.dataset.column}/${target.dataset.outcome}`);
            }
        }).observe(document, { subtree: true, attributes: true, attributeFilter: ['class'], attributeOldValue: true });";
    browser.before_scripts(source).await;
}

/// The board equals the database, marks the best odds, and shows each change.
#[tokio::test]
async fn the_board_shows_what_the_database_has_and_how_odds_move() {
    let Some(page) = Page::closed(20).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    count_flashes(browser).await;
    browser.open(&served.base).await;
    browser.until("the list", &loaded(20)).await;

    for market in ["3743", "5000/2.5", "3795"] {
        let choose = format!("#markets input[value=\"{market}\"]");
        browser.click(&choose).await;
        let expected = odds_in_database(app, market).await;
        assert!(expected.len() > 100, "{market}: {}", expected.len());
        let first = json!(expected.keys().next());
        let script = format!(
            "{SHOWN}[{first}] && Object.keys({SHOWN}).length === {}",
            expected.len()
        );
        browser.until(market, &script).await;
        assert_eq!(shown(browser.eval(SHOWN).await), expected, "{market}");
    }

    // Exactly the greatest odds of each event and outcome are marked as best.
    browser.click("#markets input[value=\"3743\"]").await;
    let wrong = "[...document.querySelectorAll('#board tr[data-event]')].flatMap((row) => ['1', 'X', '2'].filter((name) => {
        const cells = [...row.querySelectorAll(`td[data-outcome=\"${name}\"]`)].filter((cell) => cell.firstElementChild.textContent);
        const odds = cells.map((cell) => Number(cell.firstElementChild.textContent));
        const [most, least] = [Math.max(...odds), Math.min(...odds)];
        return cells.some((cell, at) => cell.classList.contains('best') !== (odds[at] === most && most > least));
    }))";
    let one_x_two = "document.querySelectorAll('#board thead tr:last-child th').length === 12 && document.querySelector('td[data-outcome=X]')";
    browser.until("1X2 again", one_x_two).await;
    assert_eq!(browser.eval(wrong).await, json!([]));
    assert_eq!(browser.eval("flashes").await, json!([]));

    // A committed change is visible and lights up, and the page says in which direction the odds moved. Nothing else
    // lights up.
    let own = cell(7, "betpawa 1", "X");
    let update = "update market_odds set outcomes = jsonb_set(outcomes, '{1,odds}', '99.5') where betpawa_market_id = '3743'
                  and snapshot_id = (select max(id) from odds_snapshots where event_id = 7)";
    run(app, update).await;
    let moved = format!("{own}.textContent.startsWith('99.50') && {own}.dataset.moved === 'up'");
    browser.until("the change", &moved).await;
    let flashes = browser.eval("flashes").await;
    assert_eq!(flashes, json!(["7/betpawa 1/X"]));
    let best = format!("{own}.classList.contains('best')");
    assert_eq!(browser.eval(&best).await, true);
    run(app, &update.replace("99.5", "1.01")).await;
    let down = format!("{own}.dataset.moved === 'down' && !{own}.classList.contains('best')");
    browser.until("down again", &down).await;
    let shown_now = shown(browser.eval(SHOWN).await);
    assert_eq!(
        shown_now,
        odds_in_database(app, "3743").await,
        "after the changes"
    );
    browser.screenshot("board").await;

    // An unavailable market is struck out. A deleted event disappears.
    run(
        app,
        "update market_odds set unavailable_at = now() where betpawa_market_id = '3743'
         and snapshot_id = (select max(id) from odds_snapshots where event_id = 8);
         delete from odds_snapshots where event_id = 9; delete from competitor_events where betpawa_event_id = 9",
    )
    .await;
    let off = format!(
        "{}.querySelector('s') && !document.querySelector('tr[data-event=\"9\"]') && {}",
        cell(8, "betpawa 1", "1"),
        loaded(19)
    );
    browser.until("one struck out and one gone", &off).await;

    browser.is_content();
    for address in browser.requests() {
        assert!(address.starts_with(&served.base), "{address}");
    }
}

/// A user finds an event by scrolling, by keys and by search, and opens its full markets.
#[tokio::test]
async fn events_are_searched_and_opened() {
    let Some(page) = Page::of(300).await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    let scroll = async |to: &str| {
        let script = format!("document.getElementById('board').scrollTop = {to}");
        browser.eval(&script).await;
    };
    let row = |event: i64| format!("document.querySelector('tr[data-event=\"{event}\"]')");
    let counts = async |events: &str| {
        let script = format!("document.getElementById('count').textContent === '{events}'");
        browser.until(events, &script).await;
    };

    // Only the visible rows exist, after scrolling with the wheel and with keys.
    let rows = "document.querySelectorAll('#board tr[data-event]').length";
    assert!(browser.eval(rows).await.as_u64() < Some(80));
    scroll("1e9").await;
    let last =
        "[...document.querySelectorAll('#board tr[data-event]')].at(-1).dataset.event === '300'";
    browser.until("the last event", last).await;
    assert!(browser.eval(rows).await.as_u64() < Some(80));
    let index = format!("{}.ariaRowIndex", row(300));
    assert_eq!(browser.eval(&index).await, "302");
    scroll("0").await;
    browser.until("the first event", &row(1)).await;
    let focus = format!("{}.querySelector('a').focus()", row(1));
    browser.eval(&focus).await;
    for _ in 0..60 {
        browser.key("ArrowDown").await;
    }
    let focused = "document.activeElement.closest('tr')?.dataset.event === '61'";
    browser.until("sixty events further down", focused).await;

    // Search by the beginning of an id, by bookmaker, and by both.
    browser.key("/").await;
    browser.text("29").await;
    counts("11 of 300 events").await;
    browser.text(" sporty").await;
    counts("8 of 300 events").await;
    browser.text(" nobody").await;
    let none = "!document.getElementById('nothing').hidden";
    browser.until("none", none).await;
    let search = "const search = document.getElementById('search'); search.value = '290'; search.dispatchEvent(new Event('input'))";
    browser.eval(search).await;

    // Open one event. It shows all its markets, and the list has only some of them.
    let alone = format!("{rows} === 1");
    browser.until("290 alone", &alone).await;
    browser.click("tr[data-event=\"290\"]").await;
    let markets = "document.querySelector('#detail').open && document.querySelectorAll('#detail tbody').length === 5";
    browser.until("its markets", markets).await;
    let full = "Object.fromEntries([...document.querySelectorAll('#detail tbody')]
        .filter((group) => group.dataset.market.startsWith('over/under - full time 3.5'))
        .flatMap((group) => [...group.querySelectorAll('td.price')])
        .map((cell) => [`290/${cell.dataset.column}/${cell.dataset.outcome}`, cell.firstElementChild.textContent]))";
    let mut expected = odds_in_database(app, "5000/3.5").await;
    expected.retain(|key, _| key.starts_with("290/"));
    assert_eq!(shown(browser.eval(full).await), expected);
    browser.screenshot("detail").await;

    // The full markets change with the database. The filter hides all markets but those whose names match.
    run(
        app,
        "update market_odds set outcomes = jsonb_set(outcomes, '{0,odds}', '77.25') where betpawa_market_id = '4703'
         and snapshot_id = (select max(id) from odds_snapshots where event_id = 290)",
    )
    .await;
    let moved = "[...document.querySelectorAll('#detail td[data-moved=up]')].some((cell) => cell.textContent.startsWith('77.25'))";
    browser.until("a move in the full markets", moved).await;
    browser.click("#detail-search").await;
    browser.text("draw no").await;
    let one = "[...document.querySelectorAll('#detail tbody')].filter((group) => !group.hidden).length === 1";
    browser.until("the filter", one).await;
    browser.key("Escape").await;
    browser.key("Escape").await;
    let closed = "!document.querySelector('#detail').open && location.hash === ''";
    browser.until("closed", closed).await;
    browser.is_content();
}
