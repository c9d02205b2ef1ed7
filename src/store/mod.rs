//! The state that readers see, and how it is replaced.

pub(crate) mod changes;
pub(crate) mod draft;
pub(crate) mod publish;
pub(crate) mod snapshot_index;
pub(crate) mod state;
pub(crate) mod table;
