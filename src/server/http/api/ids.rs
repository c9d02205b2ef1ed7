//! The list of ids in a request.

/// More ids than this are refused; ask for all instead.
pub(crate) const MOST_IDS: usize = 5_000;

/// The ids in `1,2,3`, each once, in order; or what is wrong with it.
pub(crate) fn parse(list: &str) -> Result<Vec<i64>, String> {
    let ids = list
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .map(str::parse);
    let ids: Result<Vec<i64>, _> = ids.collect();
    let mut ids = ids.map_err(|_| "ids is a list of whole numbers: ids=1,2,3".to_owned())?;
    if ids.len() > MOST_IDS {
        return Err(format!(
            "more than {MOST_IDS} ids; leave ids out to get all"
        ));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
