//! The state that all handlers share.

use std::sync::Arc;

use axum::extract::FromRef;
use oddscache::{InlineMarkets, OddsCache};

use super::{changes::Hub, detail::Detail, histories::Histories, lists::Lists, select::Order};
use crate::server::http::metrics::Requests;

/// Everything that answers are made from. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) cache: OddsCache,
    pub(crate) hub: Hub,
    pub(crate) requests: Requests,
    pub(crate) inline: InlineMarkets,
    pub(crate) lists: Arc<Lists>,
    pub(crate) order: Arc<Order>,
    /// `None` if the service reads no history.
    pub(crate) histories: Option<Histories>,
    /// How much the address tells of the cache's state.
    pub(crate) detail: Detail,
}

impl FromRef<Api> for OddsCache {
    fn from_ref(api: &Api) -> OddsCache {
        api.cache.clone()
    }
}
