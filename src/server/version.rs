//! What this binary is: for `--version` and for `oddscache_build_info`.

/// The commit that the binary was built from: `unknown` if neither `ODDSCACHE_COMMIT` nor cargo's own file in the
/// package named one when it was built.
pub(crate) const COMMIT: &str = env!("ODDSCACHE_BUILT_FROM");

/// The version and the commit, for people.
pub(crate) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("ODDSCACHE_BUILT_FROM"),
    ")"
);
