//! The state that readers see, and how the next state replaces it.

pub(crate) mod changes;
pub(crate) mod draft;
pub(crate) mod publish;
pub(crate) mod snapshot_index;
pub(crate) mod state;
pub(crate) mod table;
