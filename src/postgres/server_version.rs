//! Which versions of PostgreSQL oddscache supports.

use std::sync::Once;

use crate::error::Error;

/// The major versions of PostgreSQL with which the scripts and the follower are tested. A follower refuses an older
/// server, and warns about a newer one.
pub const SERVER_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;

/// A major version of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Major(pub(crate) u32);

impl Major {
    /// Parses `server_version`, such as `15.18 (Debian 15.18-1)`, `18beta1` or `17devel`.
    pub(crate) fn parse(version: &str) -> Option<Major> {
        let end = version.find(|c: char| !c.is_ascii_digit());
        version[..end.unwrap_or(version.len())]
            .parse()
            .ok()
            .map(Major)
    }

    /// From `server_version_num`, such as 150018.
    pub(crate) fn of_number(number: u32) -> Major {
        Major(number / 10_000)
    }

    /// Fails on a server that is too old. Warns about one that is newer than any tested version, once per process.
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
                    "the server is newer than any version of PostgreSQL that oddscache was tested with; look for a \
                     newer oddscache, and run `oddscache doctor`"
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
    fn versions_parse_as_servers_and_packagers_write_them() {
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
    fn older_servers_are_refused_and_newer_ones_are_not() {
        for number in [140_000, 150_018, 180_004, 190_000, 990_000] {
            assert!(Major::of_number(number).check().is_ok(), "{number}");
        }
        for number in [90_603, 120_022, 130_023] {
            let error = Major::of_number(number).check().unwrap_err().to_string();
            assert!(error.contains("PostgreSQL 14 or newer"), "{error}");
        }
    }
}
