//! A client's socket. It ends with a reset if the last answer is cut.
//!
//! An answer to HTTP/1.0 without a length ends with the connection. nginx asks in HTTP/1.0 by default, and passes what
//! it got on as a whole answer. So a connection that ends in the middle of an answer must be reset. The client, or the
//! proxy, then gets an error.
//!
//! The listener sets SO_LINGER to zero, so that each end is a reset, even if a task is aborted or panics, or the
//! process is killed. [`Socket`] removes this option when it is dropped and no answer is cut. The kernel then goes on
//! sending what it has. Unix sockets know no reset.
//!
//! A client of HTTP/2 sends while it reads: it says how much more it can take. The kernel answers bytes that come after
//! the end by a reset, and the client then loses what it has not read yet. So the end of such a connection is in two
//! steps, as RFC 9112 recommends in section 9.6: the socket sends its end, and then reads until the client has ended,
//! too, or sends nothing for [`LINGER`].

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Instant, Sleep, sleep_until},
};

use super::activity::Activity;

/// How long a client that sends nothing has to end its side of a connection that we have ended.
const LINGER: Duration = Duration::from_secs(5);

/// How long it has in any case.
const LINGER_AT_MOST: Duration = Duration::from_secs(30);

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
    /// Set when our end is sent, and the client's has not come.
    lingers: Option<Linger>,
}

#[derive(Debug)]
struct Linger {
    timer: Pin<Box<Sleep>>,
    at_most: Instant,
}

impl Linger {
    fn new() -> Linger {
        let now = Instant::now();
        Linger {
            timer: Box::pin(sleep_until(now + LINGER)),
            at_most: now + LINGER_AT_MOST,
        }
    }

    /// Call it when the client has sent something.
    fn goes_on(&mut self) {
        let until = (Instant::now() + LINGER).min(self.at_most);
        self.timer.as_mut().reset(until);
    }
}

impl Socket {
    pub(crate) fn new(stream: Stream, activity: Arc<Activity>) -> Socket {
        Socket {
            stream,
            activity,
            lingers: None,
        }
    }

    /// Ready when the client has ended the connection, too, or has had its time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(linger) = &mut self.lingers else {
            return Poll::Ready(());
        };
        let mut bytes = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match forward!(&mut self.stream, poll_read, cx, &mut buffer) {
                Poll::Pending => return linger.timer.as_mut().poll(cx),
                Poll::Ready(Ok(()))
                    if !buffer.filled().is_empty() && Instant::now() < linger.at_most =>
                {
                    linger.goes_on();
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
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
        if self.lingers.is_none() {
            ready!(forward!(&mut self.stream, poll_shutdown, cx))?;
            if !self.activity.state(|state| state.is_http2) {
                return Poll::Ready(Ok(()));
            }
            self.lingers = Some(Linger::new());
        }
        self.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
        time::{advance, timeout},
    };

    use super::*;

    const BYTES: usize = 64 * 1024;

    /// A client, and the task that sends it [`BYTES`] over HTTP/2 and ends the connection.
    async fn sending() -> (TcpStream, tokio::task::JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpSocket::new_v4().unwrap();
        // What it has not asked for yet waits on our side, where a reset throws it away.
        client.set_recv_buffer_size(4096).unwrap();
        let client = client.connect(listener.local_addr().unwrap()).await;
        let (stream, _) = listener.accept().await.unwrap();
        SockRef::from(&stream)
            .set_send_buffer_size(4 * BYTES)
            .unwrap();
        let activity = Arc::new(Activity::new());
        activity.is_http2();
        let mut socket = Socket::new(Stream::Tcp(stream), activity);
        let task = tokio::spawn(async move {
            socket.write_all(&[7; BYTES]).await?;
            socket.shutdown().await
        });
        (client.unwrap(), task)
    }

    /// A client that goes on sending after our end gets all that was sent before it.
    #[tokio::test]
    async fn a_client_that_sends_gets_everything() {
        let (mut client, task) = sending().await;
        let (mut all, mut piece) = (0, [0; 1024]);
        loop {
            // The service has ended the connection already: the socket takes all at once.
            let _ = client.write_all(b"more").await;
            tokio::task::yield_now().await;
            match client.read(&mut piece).await.expect("no reset") {
                0 => break,
                read => all += read,
            }
        }
        assert_eq!(all, BYTES);
        drop(client);
        task.await.unwrap().unwrap();
    }

    /// A client that never ends its side holds the connection for a bounded time.
    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_left() {
        let (_client, task) = sending().await;
        let begun = Instant::now();
        let within = timeout(LINGER_AT_MOST, task).await;
        within.expect("it ends").unwrap().unwrap();
        assert!(begun.elapsed() >= LINGER);
    }

    /// So does one that goes on sending.
    #[tokio::test(start_paused = true)]
    async fn a_talking_client_has_its_time_too() {
        let mut linger = Linger::new();
        let begun = Instant::now();
        for _ in 0..100 {
            advance(LINGER / 2).await;
            linger.goes_on();
        }
        assert_eq!(linger.timer.deadline() - begun, LINGER_AT_MOST);
    }
}
