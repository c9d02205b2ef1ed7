//! Which versions of PostgreSQL the crate is for.

use std::sync::Once;

use crate::error::Error;

/// The major versions of PostgreSQL that the scripts and the follower are tested with. An older server is refused, a newer
/// one is warned of.
pub const SERVER_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;

/// A major version of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Major(pub(crate) u32);

impl Major {
    /// From `server_version`: `15.18 (Debian 15.18-1)`, `18beta1`, `17devel`.
    pub(crate) fn parse(version: &str) -> Option<Major> {
        let end = version.find(|c: char| !c.is_ascii_digit());
        version[..end.unwrap_or(version.len())]
            .parse()
            .ok()
            .map(Major)
    }

    /// From `server_version_num`: 150018.
    pub(crate) fn of_number(number: u32) -> Major {
        Major(number / 10_000)
    }

    /// Refuses a server that lacks what the feed needs. Warns of one that is newer than any tested, once in a process.
    pub(crate) fn check(self) -> Result<(), Error> {
        static WARNED: Once = Once::new();
        let Major(found) = self;
        if found < *SERVER_VERSIONS.start() {
            return Err(Error::ServerVersion {
                found,
                oldest: *SERVER_VERSIONS.start(),
            });
        }
        if found > *SERVER_VERSIONS.end() {
            WARNED.call_once(|| {
                tracing::warn!(
                    found,
                    newest_tested = SERVER_VERSIONS.end(),
                    "the server is newer than any version of PostgreSQL that oddscache was tested with; look for a newer \
                     oddscache, and run `oddscache doctor`"
                );
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_and_packagers_write_them() {
        for (text, major) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("18beta1", Some(18)),
            ("17devel", Some(17)),
            ("14.23", Some(14)),
            ("", None),
            ("PostgreSQL", None),
        ] {
            assert_eq!(Major::parse(text), major.map(Major), "{text}");
        }
        assert_eq!(Major::of_number(180_004), Major(18));
        assert_eq!(Major::of_number(90_603), Major(9));
    }

    #[test]
    fn too_old_is_refused_and_newer_than_tested_is_not() {
        for number in [140_000, 150_018, 180_004, 190_000, 990_000] {
            assert!(Major::of_number(number).check().is_ok(), "{number}");
        }
        for number in [90_603, 120_022, 130_023] {
            let error = Major::of_number(number).check().unwrap_err().to_string();
            assert!(error.contains("PostgreSQL 14 or newer"), "{error}");
        }
    }
}
