//! How the owner of a running scraper pauses, resumes and stops it.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    Stop,
}

/// Both in one value: whether a transaction may begin is decided, and that it has begun is recorded, in one step.
#[derive(Debug, Clone, Copy)]
struct State {
    wish: Wish,
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
    /// Running.
    pub(crate) fn new() -> Control {
        let state = State {
            wish: Wish::Run,
            in_flight: 0,
        };
        Control {
            state: Arc::new(watch::Sender::new(state)),
        }
    }

    /// Lets no transaction begin, and returns once none is in flight: the tables then stay as they are.
    pub(crate) async fn pause(&self) {
        self.wish(Wish::Pause);
        self.idle().await;
    }

    /// Ends a pause.
    pub(crate) fn resume(&self) {
        self.wish(Wish::Run);
    }

    /// Makes `run` return, and returns itself once no transaction is in flight.
    pub(crate) async fn stop(&self) {
        self.wish(Wish::Stop);
        self.idle().await;
    }

    /// A stop is final.
    fn wish(&self, wish: Wish) {
        self.state.send_modify(|state| {
            if state.wish != Wish::Stop {
                state.wish = wish;
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

    /// Waits until a transaction may begin. `None`: never again.
    pub(crate) async fn permit(&self) -> Option<Permit> {
        loop {
            let mut granted = false;
            self.state.send_if_modified(|state| {
                granted = state.wish == Wish::Run;
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
            self.until(|state| state.wish != Wish::Pause).await;
        }
    }

    /// Whether [`Control::stop`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.borrow().wish == Wish::Stop
    }

    /// Returns once a pause or a stop is wished for.
    pub(crate) async fn interrupted(&self) {
        self.until(|state| state.wish != Wish::Run).await;
    }

    /// Returns once a stop is wished for.
    pub(crate) async fn stopped(&self) {
        self.until(|state| state.wish == Wish::Stop).await;
    }
}
