//! What answers under `/v1`.

pub(super) mod changes;
pub(super) mod detail;
pub(super) mod encoding;
pub(super) mod events;
pub(super) mod fields;
pub(super) mod histories;
pub(super) mod history;
mod ids;
pub(super) mod list;
pub(super) mod lists;
pub(super) mod pieces;
pub(super) mod query;
pub(super) mod select;
pub(super) mod state;
pub(super) mod stats;
pub(super) mod view;
