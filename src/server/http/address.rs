//! Where the HTTP server listens: an address and a port, or a Unix socket.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// The kernel has room for so many bytes of a socket's path.
const MOST_PATH_BYTES: usize = 107;

/// `ADDRESS:PORT` or `unix:/PATH`, as in `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    /// An absolute path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let Some(path) = text.strip_prefix("unix:") else {
            let address = text.parse().map_err(|_| {
                "an address with its port, 127.0.0.1:7979 or [::1]:7979, or unix: and the path of a socket"
            })?;
            return Ok(Address::Tcp(address));
        };
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(
                "after unix: there must be the absolute path of a socket, as in unix:/run/oddscache/http.sock"
                    .to_owned(),
            );
        }
        if path.len() > MOST_PATH_BYTES {
            return Err(format!(
                "the path of a socket has at most {MOST_PATH_BYTES} bytes"
            ));
        }
        Ok(Address::Unix(PathBuf::from(path)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The other end of a connection. The clients of a Unix socket have no address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) Option<SocketAddr>);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_sockets_are_read_and_printed_alike() {
        for text in ["127.0.0.1:7979", "[::1]:0", "unix:/run/oddscache/http.sock"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(MOST_PATH_BYTES));
        for wrong in [
            "",
            "7979",
            "localhost:1",
            "unix:",
            "unix:x",
            "unix:/",
            "unix:/run/",
            &long,
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
