//! A proxy between a client and the server. It disturbs connections as networks do. A test changes its setting while it
//! runs.
//!
//! It listens on 127.0.0.1 and connects to the server. It cuts what PostgreSQL sends into messages of the protocol,
//! without TLS. So it can drop, double, delay and forge single notifications.

mod frames;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use frames::{Frames, Piece, notification};

use super::cluster::Cluster;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    time::sleep,
};

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    Pass,
    /// Bytes vanish. A connection that has lost bytes stays open and silent for ever.
    BlackHole,
    /// Bytes wait, and none are lost.
    Freeze,
    /// Passes this many bytes, then pauses.
    Slow(usize, Duration),
    /// Delays every piece by this time.
    Latency(Duration),
    /// Closes both ends after this many more bytes, most likely in the middle of a message.
    Cut(usize),
}

/// What happens to notifications.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Notices {
    Pass,
    Drop,
    Double,
    Delay(Duration),
    /// After each notification sends some that the server never sent, on other channels and with strange payloads.
    Forge,
}

/// The connections that a setting applies to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Whose {
    All,
    /// Connections that have sent a LISTEN.
    Listeners,
    Others,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    pub whose: Whose,
    /// From the client to the server.
    pub up: Way,
    /// From the server to the client.
    pub down: Way,
    pub notices: Notices,
    /// New connections are closed at once.
    pub refuse: bool,
    /// When this number changes, the proxy closes all connections. It leaves data unsent, so that the peer sees a
    /// reset.
    pub resets: u64,
}

impl Setting {
    pub const PASS: Setting = Setting {
        whose: Whose::All,
        up: Way::Pass,
        down: Way::Pass,
        notices: Notices::Pass,
        refuse: false,
        resets: 0,
    };
}

/// What a proxy connects to.
#[derive(Debug, Clone)]
enum Server {
    /// PostgreSQL, by its socket.
    Socket(PathBuf),
    /// Any server, by TCP. Its messages are not understood.
    Address(SocketAddr),
}

/// A running proxy. Dropping it ends its listener. Connections end with the runtime.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    setting: watch::Sender<Setting>,
    server: Arc<Mutex<Server>>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

/// What the proxy did.
#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU64,
    /// Notifications that the server sent.
    pub notices: AtomicU64,
    /// Notifications that the proxy dropped, doubled, delayed or followed by forged ones.
    pub tampered: AtomicU64,
    /// Bytes that vanished.
    pub vanished: AtomicU64,
}

impl Proxy {
    pub async fn before(cluster: &Cluster) -> Proxy {
        Proxy::start(Server::Socket(socket(cluster))).await
    }

    /// A proxy before any server. It has no notifications.
    pub async fn before_address(server: SocketAddr) -> Proxy {
        Proxy::start(Server::Address(server)).await
    }

    async fn start(server: Server) -> Proxy {
        let server = Arc::new(Mutex::new(server));
        let current = Arc::clone(&server);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (setting, watched) = watch::channel(Setting::PASS);
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counting.connections.fetch_add(1, Ordering::Relaxed);
                if watched.borrow().refuse {
                    continue;
                }
                let server = current.lock().expect("not poisoned").clone();
                let watched = watched.clone();
                let counting = Arc::clone(&counting);
                tokio::spawn(async move { connection(client, server, watched, counting).await });
            }
        });
        Proxy {
            address,
            setting,
            server,
            counts,
            task,
        }
    }

    /// Leads new connections to another server. `None`: to no server.
    pub fn switch_to(&self, cluster: Option<&Cluster>) {
        let server = cluster.map(socket).unwrap_or_default();
        *self.server.lock().expect("not poisoned") = Server::Socket(server);
    }

    /// Leads new connections to a server at this address.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().expect("not poisoned") = Server::Address(server);
    }

    /// Changes the setting of existing and new connections.
    pub fn set(&self, change: impl FnOnce(&mut Setting)) {
        self.setting.send_modify(change);
    }

    /// Makes the network ordinary again. Connections that have lost bytes stay silent.
    pub fn heal(&self) {
        self.set(|setting| {
            *setting = Setting {
                resets: setting.resets,
                ..Setting::PASS
            };
        });
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

fn socket(cluster: &Cluster) -> PathBuf {
    let name = format!(".s.PGSQL.{}", cluster.port());
    cluster.socket_dir().join(name)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What both directions of a connection share.
#[derive(Debug, Default)]
struct Kind {
    listens: AtomicBool,
}

impl Kind {
    fn is(&self, whose: Whose) -> bool {
        let listens = self.listens.load(Ordering::Relaxed);
        match whose {
            Whose::All => true,
            Whose::Listeners => listens,
            Whose::Others => !listens,
        }
    }
}

async fn connection(
    client: TcpStream,
    server: Server,
    setting: watch::Receiver<Setting>,
    counts: Arc<Counts>,
) {
    let _ = client.set_nodelay(true);
    match server {
        Server::Socket(path) => {
            let Ok(server) = UnixStream::connect(path).await else {
                return;
            };
            let ends = server.into_split();
            join(client, ends, Some(Frames::default()), setting, counts).await;
        }
        Server::Address(address) => {
            let Ok(server) = TcpStream::connect(address).await else {
                return;
            };
            let _ = server.set_nodelay(true);
            join(client, server.into_split(), None, setting, counts).await;
        }
    }
}

/// Joins a client and a server until one of them ends.
async fn join(
    client: TcpStream,
    (server_in, server_out): (impl AsyncReadExt + Unpin, impl AsyncWriteExt + Unpin),
    frames: Option<Frames>,
    setting: watch::Receiver<Setting>,
    counts: Arc<Counts>,
) {
    let kind = Arc::new(Kind::default());
    let (client_in, client_out) = client.into_split();
    let pump = |up, frames| Pump {
        up,
        frames,
        setting: setting.clone(),
        kind: Arc::clone(&kind),
        counts: Arc::clone(&counts),
        lost: false,
        budget: None,
    };
    let (up, down) = (pump(true, None), pump(false, frames));
    let mut watched = setting;
    let resets = watched.borrow().resets;
    let reset = async {
        loop {
            let (now, whose) = {
                let setting = watched.borrow_and_update();
                (setting.resets, setting.whose)
            };
            if now != resets && kind.is(whose) {
                return;
            }
            if watched.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    // When one direction ends, both connections are closed.
    tokio::select! {
        () = up.run(client_in, server_out) => {}
        () = down.run(server_in, client_out) => {}
        () = reset => {}
    }
}

struct Pump {
    up: bool,
    /// How to cut what the server sends. `None`: not at all.
    frames: Option<Frames>,
    setting: watch::Receiver<Setting>,
    kind: Arc<Kind>,
    counts: Arc<Counts>,
    /// Whether bytes of this direction vanished. Then the bytes after them make no sense.
    lost: bool,
    /// The number of bytes that may still pass before the cut.
    budget: Option<usize>,
}

impl Pump {
    fn now(&self) -> Setting {
        let setting = *self.setting.borrow();
        if self.kind.is(setting.whose) {
            setting
        } else {
            Setting::PASS
        }
    }

    fn way(&self) -> Way {
        let setting = self.now();
        if self.up { setting.up } else { setting.down }
    }

    async fn run(
        mut self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
    ) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            self.thaw().await;
            let read = tokio::select! {
                read = from.read(&mut buffer) => read,
                // A freeze or a cut that begins meanwhile takes effect at once.
                _ = self.setting.changed() => continue,
            };
            let count = match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            let bytes = &buffer[..count];
            if self.up && bytes.windows(7).any(|window| window == b"LISTEN ") {
                self.kind.listens.store(true, Ordering::Relaxed);
            }
            let Some(frames) = &mut self.frames else {
                if !self.send(&mut to, bytes).await {
                    return;
                }
                continue;
            };
            for piece in frames.cut(bytes) {
                if !self.pass(&mut to, piece).await {
                    return;
                }
            }
        }
    }

    async fn thaw(&mut self) {
        while self.way() == Way::Freeze {
            if self.setting.changed().await.is_err() {
                return;
            }
        }
    }

    /// Passes on a message or a part of one. Returns whether the connection stays open.
    async fn pass(&mut self, to: &mut (impl AsyncWriteExt + Unpin), piece: Piece) -> bool {
        if !piece.notification {
            return self.send(to, &piece.bytes).await;
        }
        self.counts.notices.fetch_add(1, Ordering::Relaxed);
        let notices = self.now().notices;
        if notices != Notices::Pass {
            self.counts.tampered.fetch_add(1, Ordering::Relaxed);
        }
        match notices {
            Notices::Pass => self.send(to, &piece.bytes).await,
            Notices::Drop => true,
            Notices::Double => {
                self.send(to, &piece.bytes).await && self.send(to, &piece.bytes).await
            }
            Notices::Delay(delay) => {
                sleep(delay).await;
                self.send(to, &piece.bytes).await
            }
            Notices::Forge => {
                let mut all = piece.bytes;
                for (channel, payload) in [
                    ("oddscache", "{\"events\": [1]}"),
                    ("other", "\u{1}drop table"),
                    ("", ""),
                ] {
                    all.extend(notification(channel, payload));
                }
                self.send(to, &all).await
            }
        }
    }

    async fn send(&mut self, to: &mut (impl AsyncWriteExt + Unpin), mut bytes: &[u8]) -> bool {
        if self.lost {
            return self.vanish(bytes);
        }
        while !bytes.is_empty() {
            self.thaw().await;
            let mut count = bytes.len();
            match self.way() {
                Way::Pass | Way::Freeze => self.budget = None,
                Way::BlackHole => return self.vanish(bytes),
                Way::Slow(most, pause) => {
                    count = count.min(most.max(1));
                    sleep(pause).await;
                }
                Way::Latency(delay) => sleep(delay).await,
                Way::Cut(after) => {
                    let budget = self.budget.get_or_insert(after);
                    if *budget == 0 {
                        return false;
                    }
                    count = count.min(*budget);
                    *budget -= count;
                }
            }
            let (now, rest) = bytes.split_at(count);
            if to.write_all(now).await.is_err() {
                return false;
            }
            bytes = rest;
        }
        to.flush().await.is_ok()
    }

    fn vanish(&mut self, bytes: &[u8]) -> bool {
        self.lost = true;
        self.counts
            .vanished
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        true
    }
}
