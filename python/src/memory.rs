//! Gives freed memory back to the system.

use oddscache::Changes;

/// Does so after each warmup and reload, which need several megabytes for a moment. The C library would keep them: an
/// arena gives back only what is free at its end.
pub(crate) async fn release_after_reloads(mut changes: Changes) {
    let mut epoch = 0;
    while let Some(change) = changes.next().await {
        if let Ok(change) = change
            && change.epoch != epoch
        {
            epoch = change.epoch;
            release();
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn release() {
    // SAFETY: it takes a number and has no requirements.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn release() {}
