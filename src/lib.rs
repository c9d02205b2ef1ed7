//! The latest betting odds of every upcoming event, held in memory and kept equal to PostgreSQL.
#![warn(missing_docs)]

pub mod sql;
