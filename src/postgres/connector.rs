//! Connectors for TLS: rustls and the user's own, behind one type.

use std::{
    error::Error as StdError,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};

type BoxError = Box<dyn StdError + Send + Sync>;

/// A connector of any type. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector(Arc<dyn Make>);

/// [`MakeTlsConnect`] without its types.
trait Make: Send + Sync {
    fn make(&self, domain: &str) -> Result<Handshake, BoxError>;
}

impl<C> Make for C
where
    C: MakeTlsConnect<Socket> + Clone + Send + Sync,
    C::TlsConnect: Send + 'static,
    C::Stream: Send + 'static,
    <C::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn make(&self, domain: &str) -> Result<Handshake, BoxError> {
        // `make_tls_connect` needs `&mut self`, but two connections may be opened at once.
        let connect = self.clone().make_tls_connect(domain).map_err(Into::into)?;
        Ok(Handshake(Box::new(move |socket| {
            Box::pin(async move {
                let stream = connect.connect(socket).await.map_err(Into::into)?;
                Ok(Stream(Box::pin(stream)))
            })
        })))
    }
}

/// Takes the place of a connector with `sslmode=disable`, with which the driver makes no handshake.
struct Refusing;

impl Make for Refusing {
    fn make(&self, _: &str) -> Result<Handshake, BoxError> {
        Ok(Handshake(Box::new(|_| {
            Box::pin(async { Err("no TLS connector".into()) })
        })))
    }
}

impl Connector {
    pub(crate) fn new<C>(connector: C) -> Connector
    where
        C: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        C::TlsConnect: Send + 'static,
        C::Stream: Send + 'static,
        <C::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Connector(Arc::new(connector))
    }

    /// For connections without TLS.
    pub(crate) fn none() -> Connector {
        Connector(Arc::new(Refusing))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = Handshake;
    type Error = BoxError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, BoxError> {
        self.0.make(domain)
    }
}

type Shake = dyn FnOnce(Socket) -> BoxFuture<'static, Result<Stream, BoxError>> + Send;

/// A handshake that has not begun.
pub(crate) struct Handshake(Box<Shake>);

impl TlsConnect<Socket> for Handshake {
    type Stream = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn connect(self, socket: Socket) -> Self::Future {
        self.0(socket)
    }
}

/// What a TLS connection reads and writes.
pub(crate) struct Stream(Pin<Box<dyn TlsStream + Send>>);

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{config::Config, error::Error};

    /// Lets the handshake happen on a stream of another type, then breaks it.
    #[derive(Clone)]
    struct Breaking(io::ErrorKind);

    impl MakeTlsConnect<Socket> for Breaking {
        type Stream = Stream;
        type TlsConnect = Handshake;
        type Error = BoxError;

        fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, BoxError> {
            let error = io::Error::new(self.0, format!("handshake with {domain}"));
            Ok(Handshake(Box::new(|_| {
                Box::pin(async { Err(error.into()) })
            })))
        }
    }

    /// Run by `.ci/run` with and without the feature `tls`: a connector of the user's own works in both.
    #[tokio::test]
    async fn a_connector_is_asked_once_the_server_offers_tls() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = server.local_addr().expect("an address").port();
        let offers = tokio::spawn(async move {
            while let Ok((mut socket, _)) = server.accept().await {
                let mut request = [0; 8];
                socket.read_exact(&mut request).await.expect("SSLRequest");
                socket.write_all(b"S").await.expect("an answer");
            }
        });
        let dsn = format!("host=db.example hostaddr=127.0.0.1 port={port} user=u sslmode=require");
        let open = async |kind| {
            let config = Config::new(&dsn).expect("a configuration");
            let opened = config.tls_connector(Breaking(kind)).open().await;
            opened.map(drop).expect_err("no TLS there")
        };
        let error = open(io::ErrorKind::InvalidData).await;
        assert!(
            matches!(&error, Error::Tls { reason, .. } if reason.contains("handshake with db.example")),
            "{error:?}"
        );
        let error = open(io::ErrorKind::ConnectionReset).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        offers.abort();
    }
}
