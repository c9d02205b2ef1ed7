//! How the owner of a running scraper pauses, resumes and stops it.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Run,
    Pause,
    Stop,
}

/// Both are in one value, so that one step decides whether a transaction may begin and counts it.
#[derive(Debug, Clone, Copy)]
struct State {
    request: Request,
    in_flight: usize,
}

/// A handle on a running scraper; clones control the same one.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    state: Arc<watch::Sender<State>>,
}

/// The right to have one transaction in flight, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    state: Arc<watch::Sender<State>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.in_flight -= 1);
    }
}

impl Default for Control {
    fn default() -> Control {
        Control::new()
    }
}

impl Control {
    /// A control that lets the scraper run.
    pub(crate) fn new() -> Control {
        let state = State {
            request: Request::Run,
            in_flight: 0,
        };
        Control {
            state: Arc::new(watch::Sender::new(state)),
        }
    }

    /// Lets no transaction begin, and returns once none is in flight: the tables then stay as they are.
    pub(crate) async fn pause(&self) {
        self.request(Request::Pause);
        self.idle().await;
    }

    /// Ends a pause.
    pub(crate) fn resume(&self) {
        self.request(Request::Run);
    }

    /// Makes the scraper's `run` return, and waits until no transaction is in flight.
    pub(crate) async fn stop(&self) {
        self.request(Request::Stop);
        self.idle().await;
    }

    /// Changes the request, unless it is a stop: that is final.
    fn request(&self, request: Request) {
        self.state.send_modify(|state| {
            if state.request != Request::Stop {
                state.request = request;
            }
        });
    }

    async fn idle(&self) {
        self.until(|state| state.in_flight == 0).await;
    }

    async fn until(&self, mut condition: impl FnMut(&State) -> bool) {
        // The sender lives as long as we do, so this cannot fail.
        let _ = self
            .state
            .subscribe()
            .wait_for(|state| condition(state))
            .await;
    }

    /// Waits until a transaction may begin. `None` after a stop.
    pub(crate) async fn permit(&self) -> Option<Permit> {
        loop {
            let mut granted = false;
            self.state.send_if_modified(|state| {
                granted = state.request == Request::Run;
                state.in_flight += usize::from(granted);
                granted
            });
            if granted {
                return Some(Permit {
                    state: Arc::clone(&self.state),
                });
            }
            if self.is_stopped() {
                return None;
            }
            self.until(|state| state.request != Request::Pause).await;
        }
    }

    /// Whether [`Control::stop`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.borrow().request == Request::Stop
    }

    /// Returns once a pause or a stop is requested.
    pub(crate) async fn interrupted(&self) {
        self.until(|state| state.request != Request::Run).await;
    }

    /// Returns once a stop is requested.
    pub(crate) async fn stopped(&self) {
        self.until(|state| state.request == Request::Stop).await;
    }
}
