//! A headless Chromium. Tests drive it with the DevTools protocol over two pipes. It ends when the pipes close, however
//! the test ends.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine};
use oddscache_testkit::programs::optional;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    time::{sleep, timeout},
};

/// A deadline for what a page does by itself, on a machine that is busy with other work.
const PATIENCE: Duration = Duration::from_secs(60);

const PROGRAMS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// Chromium uses the file descriptors 3 and 4 for the protocol. The shell moves its standard input and output there.
const WITH_PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;

/// A browser with one page.
pub(crate) struct Browser {
    _child: Child,
    _profile: tempfile::TempDir,
    to: tokio::sync::Mutex<ChildStdin>,
    heard: Arc<Heard>,
    next: AtomicU64,
    session: String,
}

/// The messages of the browser: who waits for which answer, and the events so far.
#[derive(Default)]
struct Heard {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    events: Mutex<Vec<Value>>,
}

impl Browser {
    /// `None` where no Chromium is installed.
    pub(crate) async fn start() -> Option<Browser> {
        let program = optional(&PROGRAMS, "chromium")?;
        let profile = tempfile::tempdir().expect("a folder for its profile");
        let mut child = Command::new("sh")
            .args(["-c", WITH_PIPES])
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-pipe",
                "--window-size=1440,900",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Chromium starts");
        let heard = Arc::new(Heard::default());
        let from = child.stdout.take().expect("piped");
        tokio::spawn(hear(from, Arc::clone(&heard)));
        let mut browser = Browser {
            to: tokio::sync::Mutex::new(child.stdin.take().expect("piped")),
            _child: child,
            _profile: profile,
            heard,
            next: AtomicU64::new(1),
            session: String::new(),
        };
        let blank = json!({ "url": "about:blank" });
        let target = browser.call("Target.createTarget", blank).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        let session = attached["sessionId"].as_str();
        session.expect("a session").clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        Some(browser)
    }

    /// Sends a command of the protocol. Returns its result.
    pub(crate) async fn call(&self, method: &str, params: Value) -> Value {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        self.heard.waiting.lock().unwrap().insert(id, tell);
        let mut message = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let mut to = self.to.lock().await;
        to.write_all(&bytes).await.expect("Chromium runs");
        drop(to);
        let answer = timeout(PATIENCE, told).await;
        let answer = answer.unwrap_or_else(|_| panic!("Chromium does not answer {method}"));
        let answer = answer.expect("Chromium runs");
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    pub(crate) async fn open(&self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
    }

    /// Evaluates an expression in the page. Returns its value.
    pub(crate) async fn eval(&self, script: &str) -> Value {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params).await;
        let trouble = &answer["exceptionDetails"];
        assert!(trouble.is_null(), "{script}: {trouble}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    pub(crate) async fn until(&self, what: &str, script: &str) {
        let deadline = Instant::now() + PATIENCE;
        // The script may run while the page is being replaced, and fail.
        let script =
            format!("(() => {{ try {{ return !!({script}) }} catch {{ return false }} }})()");
        while self.eval(&script).await != json!(true) {
            if Instant::now() > deadline {
                self.screenshot("waited-in-vain").await;
                let text = self.eval("document.body.innerText.slice(0, 1500)").await;
                let complaints = self.complaints(|_| true);
                panic!("timed out: {what}\n{text}\n{complaints:#?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Clicks into the middle of the first element that a selector finds.
    pub(crate) async fn click(&self, selector: &str) {
        let script = format!(
            "(() => {{ const box = document.querySelector({}).getBoundingClientRect();
                      return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            json!(selector)
        );
        let middle = self.eval(&script).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let press = json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", press).await;
        }
    }

    /// Types text into the element that has the focus.
    pub(crate) async fn text(&self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Presses a key: one that types nothing, such as `Escape`, or one letter.
    pub(crate) async fn key(&self, key: &str) {
        let code = match key {
            "ArrowDown" => 40,
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let mut press =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && (key.len() == 1 || key == "Enter") {
                press["text"] = json!(if key == "Enter" { "\r" } else { key });
            }
            self.call("Input.dispatchKeyEvent", press).await;
        }
    }

    /// Sets the size of the window. A width below 500 pixels imitates a phone.
    pub(crate) async fn size(&self, width: u32, height: u32) {
        let mobile = width < 500;
        let scale = if mobile { 2 } else { 1 };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Sets the size of the window of a desktop, CSS pixels. A zoom of 200 % halves both sides.
    pub(crate) async fn zoomed(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Cuts the browser off from the network, or connects it again.
    pub(crate) async fn offline(&self, offline: bool) {
        self.network(offline, 0, -1).await;
    }

    /// Makes the network slow: so many ms until an answer begins, then so many bytes a second. -1 means no limit.
    pub(crate) async fn slow(&self, latency: u32, throughput: i32) {
        self.network(false, latency, throughput).await;
    }

    async fn network(&self, offline: bool, latency: u32, throughput: i32) {
        let conditions = json!({
            "offline": offline, "latency": latency,
            "downloadThroughput": throughput, "uploadThroughput": throughput,
        });
        let method = "Network.emulateNetworkConditions";
        self.call(method, conditions).await;
    }

    /// Sets the color scheme that the user prefers: `dark` or `light`.
    pub(crate) async fn scheme(&self, scheme: &str) {
        self.prefers("prefers-color-scheme", scheme).await;
    }

    /// Sets one feature of the media to what the user prefers, and the others back.
    pub(crate) async fn prefers(&self, name: &str, value: &str) {
        let features = json!({ "features": [{ "name": name, "value": value }] });
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// Sets the time zone of the user, by its name.
    pub(crate) async fn time_zone(&self, name: &str) {
        let zone = json!({ "timezoneId": name });
        self.call("Emulation.setTimezoneOverride", zone).await;
    }

    /// Writes `<name>.png` into the folder for screenshots.
    pub(crate) async fn screenshot(&self, name: &str) {
        let png = json!({ "format": "png" });
        let shot = self.call("Page.captureScreenshot", png).await;
        let folder = std::env::var_os("ODDSCACHE_SCREENSHOTS").map(PathBuf::from);
        let usual = || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
        let folder = folder.unwrap_or_else(usual);
        std::fs::create_dir_all(&folder).expect("a folder for screenshots");
        let png = BASE64_STANDARD.decode(shot["data"].as_str().expect("a picture"));
        let path = folder.join(format!("{name}.png"));
        std::fs::write(path, png.expect("base64")).expect("a screenshot is written");
    }

    /// Runs a script in each page that is opened, before the page's own scripts.
    pub(crate) async fn before_scripts(&self, source: &str) {
        let source = json!({ "source": source });
        let method = "Page.addScriptToEvaluateOnNewDocument";
        self.call(method, source).await;
    }

    /// Fails the test if the browser has any complaints.
    pub(crate) fn is_content(&self) {
        assert_eq!(self.complaints(|_| true), Vec::<Value>::new());
    }

    /// The same, but ignores complaints about the network. The browser itself complains about each request that fails.
    pub(crate) fn is_content_but_for_the_network(&self) {
        let complaints = self.complaints(|source| source != "network");
        assert_eq!(complaints, Vec::<Value>::new());
    }

    fn events(&self) -> Vec<Value> {
        self.heard.events.lock().unwrap().clone()
    }

    /// The errors and warnings of the console, and uncaught exceptions. `counts` decides by the source of a message,
    /// such as `network`, `security` or `javascript`, whether it counts.
    pub(crate) fn complaints(&self, counts: impl Fn(&str) -> bool) -> Vec<Value> {
        let wrong = |event: &Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                matches!(event["params"]["type"].as_str(), Some("error" | "warning"))
            }
            Some("Log.entryAdded") => {
                let entry = &event["params"]["entry"];
                matches!(entry["level"].as_str(), Some("error" | "warning"))
                    && counts(entry["source"].as_str().unwrap_or_default())
            }
            _ => false,
        };
        self.events().into_iter().filter(wrong).collect()
    }

    /// The addresses of all requests of the page.
    pub(crate) fn requests(&self) -> Vec<String> {
        let mut events = self.events();
        events.retain(|event| event["method"] == "Network.requestWillBeSent");
        let urls = events
            .iter()
            .map(|event| &event["params"]["request"]["url"]);
        urls.map(|url| url.as_str().expect("a URL").to_owned())
            .collect()
    }
}

/// Reads messages until the browser ends. Each message ends with a zero byte.
async fn hear(from: ChildStdout, heard: Arc<Heard>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while from.read_until(0, &mut bytes).await.unwrap_or(0) > 0 {
        bytes.pop();
        let message: Value = serde_json::from_slice(&bytes).expect("the protocol speaks JSON");
        bytes.clear();
        match message["id"].as_u64() {
            Some(id) => {
                let waiting = heard.waiting.lock().unwrap().remove(&id);
                waiting.map(|tell| tell.send(message));
            }
            None => heard.events.lock().unwrap().push(message),
        }
    }
    // Tell those who still wait that no answer will come.
    heard.waiting.lock().unwrap().clear();
}
