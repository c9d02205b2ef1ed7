//! The names of events, tournaments and bookmakers on the board.

use oddscache_testkit::followed::run;
use serde_json::json;

use super::Page;

/// People find an event by its teams, see it by tournament, and see each name as text, even if it holds HTML.
#[tokio::test]
async fn events_are_known_by_their_names() {
    let Some(page) = Page::of(20).await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    let counts = async |events: &str| {
        let script = format!("document.getElementById('count').textContent === '{events}'");
        browser.until(events, &script).await;
    };
    let name = |event: i64| {
        format!("document.querySelector('tr[data-event=\"{event}\"] a b')?.textContent")
    };

    // The name of the bookmaker is the column's head. A name that changes shows at once.
    let head = "document.querySelector('#board thead .first').textContent === 'betPawa'";
    browser.until("the bookmaker", head).await;
    let shown = format!("{} === 'Home v Away'", name(7));
    browser.until("the teams", &shown).await;
    let rename = "update events set home_team = 'Arsenal', away_team = 'Chelsea' where id = 7;
        update events set home_team = '\"</script><img src=x onerror=alert(1)>', away_team = 'الأهلي' where id = 8;
        update events set name = '', home_team = '', away_team = '' where id = 9";
    run(app, rename).await;
    let shown = format!("{} === 'Arsenal v Chelsea'", name(7));
    browser.until("the new teams", &shown).await;
    let odd = format!(
        "{} === '\"</script><img src=x onerror=alert(1)> v الأهلي' && !document.querySelector('#board img')",
        name(8)
    );
    browser.until("any text", &odd).await;
    let nameless = format!("{} === '#9'", name(9));
    browser.until("no name", &nameless).await;

    // Grouped, each tournament has a row of its own. Those without a tournament come last.
    browser.click("#group").await;
    let groups =
        "[...document.querySelectorAll('#board tr.group th')].map((group) => group.textContent)";
    let all = [
        "England · Premier League",
        "Italy · Serie A",
        "No tournament",
    ];
    let grouped = format!("JSON.stringify({groups}) === '{}'", json!(all));
    browser.until("three groups", &grouped).await;
    counts("20 events").await;
    let between = "[...document.querySelectorAll('#board tr.group, #board tr[data-event]')].map((row) => row.dataset.event ?? '-').join(' ')";
    assert_eq!(
        browser.eval(between).await,
        "- 2 4 6 8 12 14 16 18 - 1 3 5 7 9 11 13 15 17 19 - 10 20"
    );
    // The keys go from event to event.
    browser
        .eval("document.querySelector('tr[data-event=\"18\"] a').focus()")
        .await;
    browser.key("ArrowDown").await;
    let focused = "document.activeElement.closest('tr')?.dataset.event === '1'";
    browser.until("the next event", focused).await;
    browser.screenshot("names").await;

    // Search by a team, by a tournament, and by a bookmaker's name.
    browser.key("/").await;
    for (text, events) in [
        ("chels", "1 of 20 events"),
        ("italy", "10 of 20 events"),
        ("premier bet9ja", "8 of 20 events"),
        ("betpawa", "20 events"),
    ] {
        let search = format!(
            "const search = document.getElementById('search'); search.value = '{text}'; search.dispatchEvent(new Event('input'))"
        );
        browser.eval(&format!("(() => {{ {search} }})()")).await;
        counts(events).await;
    }

    // The panel of an event has its names, too.
    browser
        .eval("document.querySelector('tr[data-event=\"7\"] a').click()")
        .await;
    let title =
        "document.getElementById('detail-title').textContent === 'Arsenal v Chelsea · Italy · Serie A'
        && document.title === 'Arsenal v Chelsea · Italy · Serie A · oddscache'
        && document.querySelector('#detail thead').textContent === 'OutcomebetPawabet9jasportybet'";
    browser.until("the title", title).await;
    browser.is_content();
}
