//! A client's socket. It ends with a reset if the last answer is cut.
//!
//! An answer to HTTP/1.0 without a length ends with the connection. nginx asks in HTTP/1.0 by default, and passes what
//! it got on as a whole answer. So a connection that ends in the middle of an answer must be reset. The client, or the
//! proxy, then gets an error.
//!
//! The listener sets SO_LINGER to zero, so that each end is a reset, even if a task is aborted or panics, or the
//! process is killed. [`Socket`] removes this option when it is dropped and no answer is cut. The kernel then goes on
//! sending what it has. Unix sockets know no reset.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::activity::Activity;

/// A connection of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Calls a method of a connection of any kind.
macro_rules! forward {
    ($stream:expr, $method:ident $(, $argument:expr)*) => {
        match $stream {
            Stream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

/// A socket that counts the bytes it takes. Dropping it resets the connection if an answer is cut.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream,
    activity: Arc<Activity>,
}

impl Socket {
    pub(crate) fn new(stream: Stream, activity: Arc<Activity>) -> Socket {
        Socket { stream, activity }
    }

    fn taken(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.activity.take(bytes);
        }
        written
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Stream::Tcp(stream) = &self.stream
            && !self.activity.is_unsent()
        {
            // It fails only if the connection has ended already.
            let _ = SockRef::from(stream).set_linger(None);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(&mut self.stream, poll_read, cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = forward!(&mut self.stream, poll_write, cx, bytes);
        self.taken(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = forward!(&mut self.stream, poll_write_vectored, cx, bytes);
        self.taken(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(&mut self.stream, poll_flush, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(&mut self.stream, poll_shutdown, cx)
    }
}
