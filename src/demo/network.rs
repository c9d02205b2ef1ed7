//! A network between the cache and the server that can be cut. While it is cut, no byte moves, none is lost, and
//! neither side gets an error.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// The pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Listens on 127.0.0.1 and passes bytes on to the server's socket, until dropped.
#[derive(Debug)]
pub(super) struct Network {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Network {
    /// Starts a network that leads to the server on `socket`.
    pub(super) async fn start(socket: PathBuf) -> anyhow::Result<Network> {
        const DOING: &str = "making a network that can be cut";
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context(DOING)?;
        let address = listener.local_addr().context(DOING)?;
        let (open, opened) = watch::channel(true);
        let task = tokio::spawn(async move {
            // Ends with the task, and its connections with it.
            let mut connections = JoinSet::new();
            loop {
                match listener.accept().await {
                    Ok((client, _)) => {
                        connections.spawn(connection(client, socket.clone(), opened.clone()));
                    }
                    // The client is gone, or descriptors are used up. The next accept may succeed.
                    Err(error) => {
                        tracing::warn!(%error, "the demo's network could not accept a connection");
                        sleep(PAUSE).await;
                    }
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Network {
            address,
            open,
            task,
        })
    }

    /// The connection string of a database of the server, through this network.
    pub(super) fn dsn(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database}",
            self.address.port()
        )
    }

    /// From now on all connections are open and silent, new ones too.
    pub(super) fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Opens it again. Bytes that were held up arrive.
    pub(super) fn heal(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries both directions. The end of one ends the other.
async fn connection(client: TcpStream, socket: PathBuf, mut open: watch::Receiver<bool>) {
    // An error means that the network is gone.
    if open.wait_for(|open| *open).await.is_err() {
        return;
    }
    let Ok(server) = UnixStream::connect(socket).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let _ = tokio::select! {
        ended = carry(from_client, to_server, open.clone()) => ended,
        ended = carry(from_server, to_client, open) => ended,
    };
}

/// Carries bytes as long as the network is open, and waits while it is not.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut open: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        // Even the end of a connection waits until the network is open again.
        if open.wait_for(|open| *open).await.is_err() || count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::UnixListener, time::timeout};

    use super::*;

    #[tokio::test]
    async fn what_a_cut_holds_up_arrives_when_it_is_healed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("server");
        let server = UnixListener::bind(&socket).unwrap();
        let network = Network::start(socket).await.unwrap();
        let mut client = TcpStream::connect(network.address).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut byte = [0];
        client.write_all(b"a").await.unwrap();
        served.read_exact(&mut byte).await.unwrap();
        served.write_all(b"b").await.unwrap();
        client.read_exact(&mut byte).await.unwrap();

        network.cut();
        let mut second = TcpStream::connect(network.address).await.unwrap();
        second.write_all(b"x").await.unwrap();
        client.write_all(b"c").await.unwrap();
        served.write_all(b"d").await.unwrap();
        let silence = Duration::from_millis(100);
        assert!(timeout(silence, served.read(&mut byte)).await.is_err());
        assert!(timeout(silence, client.read(&mut byte)).await.is_err());
        assert!(timeout(silence, server.accept()).await.is_err());

        network.heal();
        served.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"c");
        client.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"d");
        let (mut served, _) = server.accept().await.unwrap();
        served.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"x");
    }
}
