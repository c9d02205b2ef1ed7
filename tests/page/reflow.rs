//! The page in small windows, which is what a zoom of 200 % or 400 % makes of a large one.

use std::collections::BTreeSet;

use oddscache_testkit::followed::run;
use serde_json::{Value, json};

use super::{Page, browser::Browser, loaded};

/// JavaScript that lists what is cut off: text beyond the window that nothing scrolls to, text in a box that hides a
/// part of it, and the page itself if it scrolls sideways.
const CUT: &str = "(() => {
    const found = document.documentElement.scrollWidth > innerWidth ? ['the page'] : [];
    const scrolls = (element) => element && (/auto|scroll/.test(getComputedStyle(element).overflowX)
        && element.scrollWidth > element.clientWidth || scrolls(element.parentElement));
    const outside = document.querySelector('dialog[open]') ?? document.body;
    for (const element of outside.querySelectorAll('*')) {
        if (!element.checkVisibility() || element.closest('.unseen, svg, noscript')) continue;
        if (element.closest('thead') && getComputedStyle(element.closest('thead')).clipPath !== 'none') continue;
        const style = getComputedStyle(element);
        const name = `${element.tagName} ${element.id} ${element.className} ${element.textContent.slice(0, 40)}`;
        const hides = (overflow) => /hidden|clip/.test(overflow);
        if (hides(style.overflowX) && element.scrollWidth > element.clientWidth + 1) found.push(`wide: ${name}`);
        if (hides(style.overflowY) && element.scrollHeight > element.clientHeight + 1) found.push(`high: ${name}`);
        for (const node of element.childNodes) {
            if (node.nodeType !== Node.TEXT_NODE || !node.data.trim()) continue;
            const range = document.createRange();
            range.selectNode(node);
            const box = range.getBoundingClientRect();
            if ((box.right > innerWidth + 1 || box.left < -1) && !scrolls(element)) found.push(`beyond: ${name}`);
        }
    }
    return found; })()";

/// JavaScript that describes the element with the focus, and whether it is in sight and nothing covers it.
const FOCUS: &str = "(() => {
    const element = document.activeElement;
    const box = element.getBoundingClientRect();
    // Of a large region its upper left corner counts. A radio button is as large as its label.
    const [x, y] = [box.x + Math.min(box.width / 2, 30), box.y + Math.min(box.height / 2, 12)];
    const top = document.elementFromPoint(x, y);
    const seen = top !== null && (element.contains(top) || element.closest('label')?.contains(top) === true);
    const name = element.id || element.closest('[data-event]') && 'an event' || element.value
        || element.closest('#detail-body') && 'a market' || element.tagName;
    return [name, seen, `${x} ${y} ${top?.outerHTML.slice(0, 80)}`]; })()";

/// Presses Tab until the focus leaves the page. Returns what had the focus.
async fn tab_through(browser: &Browser, most: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    browser.eval("document.activeElement.blur()").await;
    for _ in 0..most {
        browser.key("Tab").await;
        // A row that comes into sight is drawn at the next frame.
        let frame =
            "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))";
        browser.eval(frame).await;
        let found = browser.eval(FOCUS).await;
        let name = found[0].as_str().expect("a name");
        if name == "BODY" {
            break;
        }
        assert_eq!(found[1], json!(true), "{name} is not in sight: {found}");
        names.insert(name.to_owned());
    }
    names
}

fn assert_has(names: &BTreeSet<String>, wanted: &[&str], state: &str) {
    for name in wanted {
        assert!(names.contains(*name), "{state}: no {name} in {names:?}");
    }
}

/// At 200 % and at 400 %: nothing is cut off, the page does not scroll sideways, and keys reach everything.
#[tokio::test]
async fn a_zoomed_page_is_whole() {
    let Some(page) = Page::of(12).await else {
        return;
    };
    let Page { app, browser, .. } = &page;
    let rename = "update events set home_team = 'Borussia Mönchengladbach', away_team = 'Wolverhampton Wanderers' where id = 2";
    run(app, rename).await;
    let name =
        "document.querySelector('tr[data-event=\"2\"] b').textContent.startsWith('Borussia')";
    browser.until("a long name", name).await;
    let uncut = async |state: &str| {
        let cut = browser.eval(CUT).await;
        if cut != json!([]) {
            browser.screenshot("cut").await;
        }
        assert_eq!(cut, json!([]), "{state}");
    };
    for (width, height) in [(1440, 900), (800, 500), (720, 450), (640, 400), (320, 256)] {
        browser.zoomed(width, height).await;
        let state = |of: &str| format!("{of} at {width} x {height}");
        browser
            .until("the size", &format!("innerWidth === {width}"))
            .await;
        browser.until("the list", &loaded(12)).await;
        uncut(&state("the board")).await;
        browser.screenshot(&format!("zoomed-{width}")).await;
        let names = tab_through(browser, 60).await;
        let wanted = [
            "health-toggle",
            "search",
            "3743",
            "group",
            "board",
            "an event",
        ];
        assert_has(&names, &wanted, &state("the board"));

        let health = "document.getElementById('health')";
        let toggle = "document.getElementById('health-toggle').click()";
        let was = browser.eval(&format!("{health}.hidden")).await;
        if was == json!(true) {
            browser.eval(toggle).await;
        }
        uncut(&state("the health panel")).await;
        if was == json!(true) {
            browser.eval(toggle).await;
        }

        browser.eval("location.hash = '#event=2'").await;
        let there = "document.querySelectorAll('#detail tbody').length === 5";
        browser.until("the event", there).await;
        uncut(&state("an event")).await;
        let names = tab_through(browser, 12).await;
        let wanted = ["detail-search", "detail-close", "detail-body", "a market"];
        assert_has(&names, &wanted, &state("an event"));
        browser.screenshot(&format!("zoomed-event-{width}")).await;
        browser.key("Escape").await;
        let closed: &str = "!document.getElementById('detail').open";
        browser.until("closed", closed).await;
    }

    // A banner takes room from the board. The page scrolls instead.
    browser.offline(true).await;
    browser.until("stale", super::stale::STALE).await;
    uncut("the banner").await;
    let room = "document.getElementById('board').clientHeight";
    assert!(browser.eval(room).await.as_u64() > Some(200));
    let Value::Bool(true) = browser
        .eval("document.documentElement.scrollHeight > innerHeight")
        .await
    else {
        panic!("the page does not scroll");
    };
}
