//! A copy of all events. It updates only those events that a change names.

use std::collections::BTreeMap;

use oddscache::{Change, View};
use serde_json::Value;

use crate::{normal, same};

#[derive(Debug, Clone, Default)]
pub struct Replica(BTreeMap<i64, Value>);

impl Replica {
    /// Copies all events of a view.
    pub fn of(view: &View) -> Replica {
        let mut replica = Replica::default();
        for id in view.event_ids() {
            replica.take(view, id);
        }
        replica
    }

    /// Copies the events that a change names from a view.
    pub fn apply(&mut self, change: &Change, view: &View) {
        for id in change.event_ids() {
            self.take(view, id);
        }
    }

    fn take(&mut self, view: &View, id: i64) {
        let event = view.event(id).map(serde_json::to_value);
        match event {
            Some(event) => self.0.insert(id, normal(event.expect("JSON"))),
            None => self.0.remove(&id),
        };
    }

    /// Compares the copy with a view. Fails with the first difference.
    pub fn equals(&self, view: &View) -> Result<(), String> {
        let held: Vec<Value> = self.0.values().cloned().collect();
        same(&crate::dump(view), &held)
    }
}
