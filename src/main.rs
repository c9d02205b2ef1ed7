//! The `oddscache` binary.
fn main() {}
