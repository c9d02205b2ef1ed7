//! Explores every interleaving of the protocols of src, up to a bound. [README.md](README.md) says what is modelled.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod database;
mod explore;
mod relay;
