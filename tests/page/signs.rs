//! What a colour says, a sign, a word or a shape says, too.

use oddscache_testkit::followed::run;
use serde_json::json;

use super::{Page, stale::UPDATE};

/// With two colours, as some users set their system, the page still tells all that it tells.
#[tokio::test]
async fn nothing_is_said_by_colour_alone() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    browser.prefers("forced-colors", "active").await;
    let forced = "matchMedia('(forced-colors: active)').matches";
    assert_eq!(browser.eval(forced).await, true);
    let cell = "document.querySelector('tr[data-event=\"3\"] td[data-column=\"betpawa 1\"][data-outcome=\"1\"]')";
    let sign = |of: &str, sign: &str| {
        format!("getComputedStyle({of}, '::before').content === '\"{sign}\"'")
    };

    // A price that went up and is the best one: an arrow, a frame, bold digits, and words for a screen reader.
    run(app, UPDATE).await;
    browser.until("up", &sign(cell, "▲")).await;
    let best = format!(
        "(({{ outlineStyle, outlineWidth, fontWeight }}) => [outlineStyle, outlineWidth, fontWeight])(getComputedStyle({cell}.firstElementChild))"
    );
    assert_eq!(browser.eval(&best).await, json!(["solid", "1px", "700"]));
    let words = format!("/^55.50, best, up from \\d+\\.\\d+$/.test({cell}.textContent)");
    assert_eq!(browser.eval(&words).await, true);
    run(app, &UPDATE.replace("55.5", "1.01")).await;
    browser.until("down", &sign(cell, "▼")).await;

    // A price that was not confirmed for long.
    let old = "update odds_snapshots set last_confirmed_at = now() - interval '20 min' where event_id = 3";
    run(app, old).await;
    let age = "document.querySelector('tr[data-event=\"3\"] .age')";
    browser.until("old", &sign(age, "! ")).await;
    let title = format!("{age}.title.startsWith('not lately, last confirmed: ')");
    assert_eq!(browser.eval(&title).await, true);

    // The market that is chosen, and lines of what happened.
    let chosen =
        "getComputedStyle(document.querySelector('#markets input:checked + span')).outlineStyle";
    assert_eq!(browser.eval(chosen).await, "solid");
    let live = "document.querySelector('#happened .live span')";
    browser.until("live", &sign(live, "✓ ")).await;
    browser.screenshot("two-colours").await;

    // Old odds: the pill, a word beside the number of events, and the banner.
    browser.offline(true).await;
    let stale = "document.body.dataset.state === 'stale'";
    browser.until("stale", stale).await;
    browser
        .until("pill", &sign("document.getElementById('status')", "▲"))
        .await;
    let word = "getComputedStyle(document.getElementById('count'), '::after').content === '\" · old odds\"'";
    assert_eq!(browser.eval(word).await, true);
    let bad = "document.querySelector('#happened .bad span')";
    browser.until("bad", &sign(bad, "▲ ")).await;
    let banner = "!document.getElementById('banner').hidden";
    assert_eq!(browser.eval(banner).await, true);
}
