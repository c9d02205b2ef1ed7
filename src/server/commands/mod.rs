//! The commands, except the demo.

pub(crate) mod doctor;
pub(crate) mod dump;
pub(crate) mod explain;
pub(crate) mod probe;
pub(crate) mod serve;
pub(crate) mod sql;
