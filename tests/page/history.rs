//! The charts of an event's panel: how the prices of a market moved.

use oddscache_testkit::{followed::run, service::Service};

use super::{Page, axe, loaded};

/// Twenty older snapshots of each bookmaker of event 3. One bookmaker does not offer the market for a while.
const MOVES: &str = r#"
    insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
        select -n, 3, 1, now() at time zone 'UTC' - n * interval '30 minutes' from generate_series(1, 20) n;
    insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
        select -n, '5000', 'Over/Under - Full Time', l, jsonb_build_array(
            jsonb_build_object('name', 'Over', 'odds', 1.5 + n / 20.0, 'is_active', true),
            jsonb_build_object('name', 'Under', 'odds', 2.5 - n / 50.0, 'is_active', n % 7 > 0))
        from generate_series(1, 20) n, unnest(array[2.5, 3.5]) l where n not between 5 and 8;
    insert into competitor_odds_snapshots (id, competitor_event_id, captured_at)
        select -n, id, now() at time zone 'UTC' - n * interval '17 minutes'
        from competitor_events, generate_series(1, 20) n where betpawa_event_id = 3 and source = 'bet9ja';
    insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
        select -n, '5000', 'Over/Under - Full Time', 2.5, jsonb_build_array(
            jsonb_build_object('name', 'Over', 'odds', 1.7 + n / 40.0, 'is_active', true),
            jsonb_build_object('name', 'Under', 'odds', 2.1, 'is_active', true))
        from generate_series(1, 20) n;
"#;

const TEXTS: &str =
    "[...document.querySelectorAll('#detail-history figcaption')].map((text) => text.textContent)";

#[tokio::test]
async fn a_market_shows_how_its_prices_moved() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    run(app, MOVES).await;
    browser
        .open(&format!("{}/#event=3&market=5000/2.5", served.base))
        .await;
    browser.until("the list", &loaded(12)).await;
    let marked = "document.querySelector('#detail-body [aria-current]')";
    browser.until("the event", marked).await;
    let open = format!("{marked}.parentElement.querySelector('button').click()");
    browser.eval(&open).await;
    let charts = "document.querySelectorAll('#detail-history canvas').length === 2
        && document.getElementById('detail-body').hidden";
    browser.until("a chart for each outcome", charts).await;

    // The text beside each chart says where each bookmaker's line begins and ends.
    let ends = async |outcome: usize| {
        let sql = format!(
            "select source || ' ' || to_char(first, 'FM90.00') || ' → ' || to_char(latest, 'FM90.00')
             from (select source, (array_agg(odds order by captured_at))[1] as first,
                          (array_agg(odds order by captured_at desc))[1] as latest
                from (select 'betPawa' as source, s.captured_at, (m.outcomes #>> '{{{outcome},odds}}')::numeric as odds,
                             m.outcomes #>> '{{{outcome},is_active}}' as active
                        from odds_snapshots s join market_odds m on m.snapshot_id = s.id
                       where s.event_id = 3 and m.betpawa_market_id = '5000' and m.line = 2.5
                      union all
                      select c.source, s.captured_at, (m.outcomes #>> '{{{outcome},odds}}')::numeric,
                             m.outcomes #>> '{{{outcome},is_active}}'
                        from competitor_events c join competitor_odds_snapshots s on s.competitor_event_id = c.id
                        join competitor_market_odds m on m.snapshot_id = s.id
                       where c.betpawa_event_id = 3 and m.betpawa_market_id = '5000' and m.line = 2.5) p
                where active = 'true' group by source) e order by source <> 'betPawa', source"
        );
        let rows = app.query(&sql, &[]).await.expect("the ends");
        let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        texts.join(", ")
    };
    let (over, under) = (ends(0).await, ends(1).await);
    let texts =
        format!("JSON.stringify({TEXTS}) === JSON.stringify(['Over {over}', 'Under {under}'])");
    browser.until(&format!("{over}; {under}"), &texts).await;
    let legend = "document.querySelector('#detail-history .u-legend').textContent";
    browser
        .until(
            "a line for each bookmaker",
            &format!("/betPawa.*bet9ja/s.test({legend})"),
        )
        .await;
    // A new price goes on with the line, without another question.
    let asked = browser
        .requests()
        .iter()
        .filter(|path| path.contains("/history"))
        .count();
    run(
        app,
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (9999, 3, 1, now() at time zone 'UTC' + interval '1 second');
         insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) values (9999, '5000',
            'Over/Under - Full Time', 2.5, '[{\"name\": \"Over\", \"odds\": 2.77, \"is_active\": true}]')",
    )
    .await;
    browser
        .until("the new price", &format!("{TEXTS}[0].includes('→ 2.77')"))
        .await;
    assert_eq!(
        browser
            .requests()
            .iter()
            .filter(|path| path.contains("/history"))
            .count(),
        asked
    );
    browser.is_content();
    axe::check(browser, "the charts").await;
    browser.screenshot("history").await;

    // A shorter time begins later.
    let short = "(() => { const spans = document.querySelector('#detail-history select');
        spans.value = '6 hours'; spans.dispatchEvent(new Event('change')); })()";
    browser.eval(short).await;
    browser
        .until(
            "another beginning",
            &format!("{TEXTS}.length === 2 && !{TEXTS}[0].startsWith('Over {over}'.split('→')[0])"),
        )
        .await;

    // Back to the markets; the focus is where it was.
    browser
        .eval("document.querySelector('#detail-history button').click()")
        .await;
    let back = "document.getElementById('detail-history').hidden && !document.getElementById('detail-body').hidden
        && document.activeElement.textContent === 'History'";
    browser.until("the markets", back).await;

    // An index is missing: the panel says so.
    run(app, "drop index idx_market_odds_snapshot").await;
    let served = Service::warm(&page.database.dsn(), &[]).await;
    browser
        .open(&format!("{}/?again#event=3&market=5000/2.5", served.base))
        .await;
    browser.until("the event", marked).await;
    browser.eval(&open).await;
    let said = "document.querySelector('#detail-history [role=status]').textContent";
    browser
        .until("the reason", &format!("{said}.includes('CREATE INDEX')"))
        .await;
}
