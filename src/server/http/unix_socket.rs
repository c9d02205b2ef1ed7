//! A Unix socket to listen on. Its file is there only while the service listens.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// Clients that may wait to be accepted. Tokio gives a TCP listener as many.
const BACKLOG: i32 = 1024;

/// The file of a socket. Dropping it removes the file, unless another process has put its own there. Drop it before the
/// listener.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let removed = fs::remove_file(&self.path);
            if let Err(error) = removed {
                tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
            }
        }
    }
}

/// Listens at `path`. Replaces a socket that a process left behind, but none at which somebody answers. No other user
/// can connect before the file has `mode`. Needs a runtime.
///
/// # Errors
/// Names the path and what is there.
pub(crate) fn listen(path: &Path, mode: u32) -> anyhow::Result<(UnixListener, SocketFile)> {
    let socket = match bind(path, mode) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            remove_stale(path)?;
            bind(path, mode)
        }
        bound => bound,
    };
    let socket = socket.with_context(|| {
        let path = path.display();
        format!("cannot listen on unix:{path}; its folder must exist, and this user must be able to write there")
    })?;
    // From here on an error must remove the file.
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path).context("the socket's file")?,
    };
    // The process's umask may have taken bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context("the socket's mode")?;
    socket.listen(BACKLOG).context("listening")?;
    let listener = StdListener::from(OwnedFd::from(socket));
    Ok((UnixListener::from_std(listener).context("listening")?, file))
}

fn bind(path: &Path, mode: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // The file gets the mode of the descriptor, less the umask. So it never allows more than `mode`.
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Removes a socket at which nobody listens.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let there = fs::symlink_metadata(path).with_context(|| format!("looking at {shown}"))?;
    if !there.file_type().is_socket() {
        bail!("{shown} is there and is no socket: remove it, or choose another path with --listen");
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).context("a socket")?;
    // A listener whose queue is full would block us.
    probe.set_nonblocking(true).context("a socket")?;
    match probe.connect(&SockAddr::unix(path).context("the path of a socket")?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %shown, "replacing a socket at which nobody listens");
            fs::remove_file(path).with_context(|| format!("removing the old socket {shown}"))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!(
                "{shown} belongs to another user, and may be in use: choose another path with --listen"
            )
        }
        _ => bail!(
            "another process listens on {shown}: end it, or choose another path with --listen"
        ),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_at_which_nobody_listens_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http.sock");
        let (listener, file) = listen(&path, 0o660).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let refused = listen(&path, 0o660).unwrap_err().to_string();
        assert!(refused.contains("another process listens"), "{refused}");
        // Somebody has removed the file, and another process listens there.
        fs::remove_file(&path).unwrap();
        let (second, second_file) = listen(&path, 0o600).unwrap();
        drop((file, listener));
        assert!(path.exists());
        // As after SIGKILL: the listener is gone and the file is not.
        drop(second);
        assert!(path.exists());
        let (third, third_file) = listen(&path, 0o660).unwrap();
        drop((third_file, third));
        assert!(!path.exists());
        drop(second_file);
        fs::write(&path, "text").unwrap();
        let refused = listen(&path, 0o660).unwrap_err().to_string();
        assert!(refused.contains("is no socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
