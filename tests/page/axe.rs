//! axe-core looks for what keeps people from using the page with a keyboard, a screen reader or weak eyes.

use std::{fs, process::Command};

use oddscache_testkit::{followed::run, programs::missing};
use serde_json::{Value, json};

use super::{
    Page,
    browser::Browser,
    loaded,
    stale::{STALE, UPDATE},
};

/// The script of axe-core. `None` if it cannot be downloaded, which skips the test.
fn script() -> Option<String> {
    let fetched = Command::new("bash").arg(".ci/axe").output().expect("bash");
    if !fetched.status.success() {
        let errors = String::from_utf8_lossy(&fetched.stderr);
        missing("axe-core, by .ci/axe", errors.trim());
        return None;
    }
    let path = String::from_utf8(fetched.stdout).expect("a path");
    Some(fs::read_to_string(path.trim()).expect("its script"))
}

struct Axe<'a> {
    browser: &'a Browser,
    script: &'a str,
}

/// Fails if axe finds a violation in the page as it is now.
pub(crate) async fn check(browser: &Browser, state: &str) {
    if let Some(script) = script() {
        let axe = Axe {
            browser,
            script: &script,
        };
        axe.finds_nothing(state).await;
    }
}

impl Axe<'_> {
    /// Fails if axe finds a violation in the page as it is now.
    async fn finds_nothing(&self, state: &str) {
        let found = self.look().await;
        assert_eq!(found["violations"], json!([]), "{state}: {found:#}");
        // A run that checked nothing would find nothing.
        let passed = found["passed"].as_u64();
        assert!(passed > Some(20), "{state}: {passed:?} rules passed");
    }

    async fn look(&self) -> Value {
        let there = self.browser.eval("typeof window.axe").await;
        if there != "object" {
            self.browser.eval(self.script).await;
        }
        // Colours of a price that lights up are between two values. The page is looked at when it is at rest.
        self.browser
            .eval(
                "Promise.all(document.getAnimations().map((animation) => animation.finished)).then(() => axe.run())
                 .then(({ violations, passes }) => ({ passed: passes.length, violations: violations.map(({ id, help, nodes }) =>
                     ({ id, help, nodes: nodes.slice(0, 5).map(({ target, failureSummary }) => ({ target, failureSummary })) })) }))",
            )
            .await
    }
}

/// In both colour schemes: the board, a price that moved, the search without a result, an event, an event that is gone,
/// the health panel, a phone, and the page when it is stale.
#[tokio::test]
async fn axe_finds_no_barrier() {
    let Some(script) = script() else { return };
    let Some(page) = Page::closed(30).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    let axe = Axe {
        browser,
        script: &script,
    };
    let hash = async |hash: &str| {
        let script = format!("location.hash = '{hash}'");
        browser.eval(&script).await;
    };
    let off = "update market_odds set unavailable_at = now() where betpawa_market_id = '3743'
        and snapshot_id = (select max(id) from odds_snapshots where event_id = 8);
        update odds_snapshots set last_confirmed_at = now() - interval '20 min' where event_id = 5";
    run(app, off).await;
    for scheme in ["light", "dark"] {
        browser.size(1440, 900).await;
        browser.scheme(scheme).await;
        browser.open("about:blank").await;
        browser.open(&served.base).await;
        browser.until("the list", &loaded(30)).await;
        run(
            app,
            &UPDATE.replace("55.5", if scheme == "dark" { "1.5" } else { "60.5" }),
        )
        .await;
        let moved =
            "document.querySelector('#board td[data-moved=up], #board td[data-moved=down]')";
        browser.until("a move", moved).await;
        let state = async |of: &str| axe.finds_nothing(&format!("{of}, {scheme}")).await;
        state("the board").await;
        browser.screenshot(&format!("board-{scheme}")).await;
        browser.click("#group").await;
        let groups = "document.querySelectorAll('#board tr.group').length === 3";
        browser.until("groups", groups).await;
        state("the board by tournament").await;
        browser.click("#group").await;

        browser.click("#search").await;
        browser.text("nobody").await;
        let none = "!document.getElementById('nothing').hidden";
        browser.until("none", none).await;
        state("a search without a result").await;
        let again = "(() => { const search = document.getElementById('search'); search.value = ''; search.dispatchEvent(new Event('input')); })()";
        browser.eval(again).await;

        hash("#event=3&market=4703").await;
        let marked = "document.querySelector('#detail-body [aria-current]')";
        browser.until("the event", marked).await;
        state("an event").await;
        browser.screenshot(&format!("event-{scheme}")).await;
        hash("#event=4711").await;
        let gone = "document.getElementById('detail-note').textContent.startsWith('This event is no longer shown')";
        browser.until("gone", gone).await;
        state("an event that is gone").await;
        hash("").await;

        browser.size(390, 844).await;
        let cards =
            "getComputedStyle(document.querySelector('#board tr[data-event]')).display === 'grid'";
        browser.until("cards", cards).await;
        state("a phone").await;
        browser.screenshot(&format!("phone-{scheme}")).await;
        browser.click("#health-toggle").await;
        state("the health panel of a phone").await;
        browser.size(1440, 900).await;

        browser.offline(true).await;
        browser.until("stale", STALE).await;
        state("the stale page").await;
        hash("#event=3").await;
        let banner = "!document.getElementById('detail-banner').hidden && document.getElementById('detail-note').textContent.includes('Trying again')";
        browser.until("its banner", banner).await;
        state("an event of the stale page").await;
        browser.offline(false).await;
        browser.until("current again", &loaded(30)).await;
        hash("").await;
    }
    browser.is_content_but_for_the_network();
}

/// axe finds a barrier that is there.
#[tokio::test]
async fn axe_finds_a_barrier_that_is_planted() {
    let Some(script) = script() else { return };
    let Some(page) = Page::of(3).await else {
        return;
    };
    let browser = &page.browser;
    let axe = Axe {
        browser,
        script: &script,
    };
    let plant = "document.querySelector('.search span').remove(); document.getElementById('search').placeholder = '';
        document.getElementById('count').style.color = '#aaa'";
    browser.eval(plant).await;
    let found = axe.look().await;
    let found = found["violations"].as_array().expect("a list");
    let rules: Vec<_> = found.iter().map(|rule| &rule["id"]).collect();
    assert_eq!(rules, ["color-contrast", "label"], "{found:#?}");
}

/// A service that refuses the page: the dialog that asks for a token.
#[tokio::test]
async fn axe_finds_no_barrier_in_the_question_for_a_token() {
    let Some(script) = script() else { return };
    let Some(page) = Page::closed(3).await else {
        return;
    };
    let browser = &page.browser;
    let axe = Axe {
        browser,
        script: &script,
    };
    let base = format!("http://{}", super::token::guard(&page.served.base).await);
    browser.open(&base).await;
    let asked = "document.getElementById('token').open && document.body.dataset.state === 'stale'";
    browser.until("it asks for a token", asked).await;
    for scheme in ["light", "dark"] {
        browser.scheme(scheme).await;
        axe.finds_nothing(scheme).await;
    }
}
