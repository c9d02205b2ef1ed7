//! How fast the page is with many events. The figures depend on the machine, so a test only prints them.

use std::time::Duration;

use oddscache_testkit::followed::run;
use serde_json::{Value, json};

use tokio::time::sleep;

use super::{Page, browser::Browser, loaded};

/// Notes when the first event is painted, how long each callback of a frame takes, and each task above 50 ms.
const WATCH: &str = "window.seen = { painted: null, calls: [], frames: 0, long: [] };
    const request = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = (call) => request((at) => {
        const begun = performance.now();
        call(at);
        window.seen.calls.push(performance.now() - begun);
    });
    const frame = () => { window.seen.frames += 1; request(frame); };
    request(frame);
    new PerformanceObserver((list) => window.seen.long.push(...list.getEntries().map(({ duration }) => duration)))
        .observe({ type: 'longtask', buffered: true });
    new MutationObserver((_, observer) => {
        if (!document.querySelector('#board tr[data-event]')) return;
        observer.disconnect();
        request(() => setTimeout(() => (window.seen.painted = performance.now())));
    }).observe(document, { subtree: true, childList: true });";

/// A metric of Chromium's main thread, in seconds since it began.
async fn metric(browser: &Browser, name: &str) -> f64 {
    let all = browser.call("Performance.getMetrics", Value::Null).await;
    let all = all["metrics"].as_array().expect("a list");
    let found = all.iter().find(|metric| metric["name"] == name);
    found.expect("the metric")["value"]
        .as_f64()
        .expect("a number")
}

/// What the main thread spends on something.
struct Phase<'a> {
    browser: &'a Browser,
    before: Vec<f64>,
}

const SPENT: [&str; 4] = [
    "TaskDuration",
    "ScriptDuration",
    "LayoutDuration",
    "RecalcStyleDuration",
];

impl Phase<'_> {
    async fn begin(browser: &Browser) -> Phase<'_> {
        browser
            .eval("Object.assign(window.seen, { calls: [], frames: 0 })")
            .await;
        let mut before = Vec::new();
        for name in SPENT {
            before.push(metric(browser, name).await);
        }
        Phase { browser, before }
    }

    /// Prints ms of the processor for each frame, and for each one in which the board was drawn.
    async fn end(self, what: &str) {
        let frames = number(self.browser, "window.seen.frames").await;
        let draws = number(self.browser, "window.seen.calls.length").await;
        let calls = "(() => { const calls = window.seen.calls.toSorted((a, b) => a - b);
            return [0.5, 0.95, 1].map((share) => calls[Math.floor(share * (calls.length - 1))]?.toFixed(1)).join(' '); })()";
        let calls = self.browser.eval(calls).await;
        println!("scripts of a draw by the wall clock: {calls}");
        print!("{what}: {frames} frames, {draws} draws");
        for (name, before) in SPENT.iter().zip(self.before) {
            let spent = 1000.0 * (metric(self.browser, name).await - before);
            print!(
                "; {name} {:.2} a frame, {:.2} a draw",
                spent / frames,
                spent / draws
            );
        }
        println!();
    }
}

async fn number(browser: &Browser, script: &str) -> f64 {
    browser.eval(script).await.as_f64().expect("a number")
}

/// Prints figures: `cargo test --release --test page -- --ignored --nocapture ten_thousand`
#[tokio::test]
#[ignore = "it measures"]
async fn ten_thousand_events() {
    let Some(page) = Page::closed(10_000).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    // Times of the processor, which do not grow when the machine has other work.
    let domain = json!({ "timeDomain": "threadTicks" });
    browser.call("Performance.enable", domain).await;
    browser.before_scripts(WATCH).await;
    for _ in 0..3 {
        browser.open("about:blank").await;
        browser.open(&served.base).await;
        let there = loaded(10_000).replace("10000", "10,000");
        browser.until("the list", &there).await;
        browser.until("painted", "window.seen.painted").await;
        let first = number(
            browser,
            "performance.getEntriesByName('first-contentful-paint')[0].startTime",
        )
        .await;
        let list = "performance.getEntriesByType('resource').find(({ name }) => name.endsWith('/v1/list'))";
        let [begun, answered, ended] = [
            number(browser, &format!("{list}.startTime")).await,
            number(browser, &format!("{list}.responseStart")).await,
            number(browser, &format!("{list}.responseEnd")).await,
        ];
        let painted = number(browser, "window.seen.painted").await;
        let long = browser.eval("window.seen.long.map(Math.round)").await;
        println!(
            "first paint {first:.0} ms; list asked {begun:.0}, answered {answered:.0}, ended {ended:.0} ms; \
             events painted {painted:.0} ms; long tasks {long} ms"
        );
    }

    let phase = Phase::begin(browser).await;
    sleep(Duration::from_secs(5)).await;
    phase.end("nothing changes").await;

    let phase = Phase::begin(browser).await;
    for turn in 0..20 {
        let price = format!("{}.5", 2 + turn % 7);
        let update = format!(
            "update market_odds set outcomes = jsonb_set(outcomes, '{{0,odds}}', '{price}')
             where betpawa_market_id = '3743' and snapshot_id <= 150"
        );
        run(app, &update).await;
        sleep(Duration::from_millis(250)).await;
    }
    phase.end("150 snapshots change, 20 times").await;

    let phase = Phase::begin(browser).await;
    let scroll = "new Promise((resolve) => { let turns = 0; const board = document.getElementById('board');
        const timer = setInterval(() => { board.scrollTop += 100; if (++turns === 120) { clearInterval(timer); resolve(0); } }, 16); })";
    browser.eval(scroll).await;
    phase.end("scrolling 100 px each 16 ms").await;
    browser.is_content();
}
