//! A proxy between a client and the server that can do what networks do, switched while it runs.
//!
//! It listens on 127.0.0.1 and speaks to the server's socket. What the server sends is cut into the protocol's messages
//! (type byte and length; no TLS), so that notifications can be lost, doubled, delayed and forged one by one.

mod frames;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
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
    /// Bytes vanish, for ever on the connections that lost some: the connection stays open and silent.
    BlackHole,
    /// Nothing moves, nothing is lost.
    Freeze,
    /// This many bytes, then a pause.
    Slow(usize, Duration),
    /// Every piece comes later by this.
    Latency(Duration),
    /// After this many more bytes, most likely in the middle of a message, both ends are closed.
    Cut(usize),
}

/// What happens to notifications.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Notices {
    Pass,
    Drop,
    Double,
    Delay(Duration),
    /// Each is followed by some that the server never sent, of other channels and with strange payloads.
    Forge,
}

/// Which connections a setting is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Whose {
    All,
    /// Those that have sent a LISTEN.
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
    /// Connections there are get closed when this changes; with unsent data, so that the peer sees a reset.
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

/// Ends its listener when dropped; connections end with the runtime.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    setting: watch::Sender<Setting>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

/// What the proxy did.
#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU64,
    /// Notifications seen; and those dropped, doubled, delayed or followed by forged ones.
    pub notices: AtomicU64,
    pub tampered: AtomicU64,
    /// Bytes that vanished.
    pub vanished: AtomicU64,
}

impl Proxy {
    pub async fn before(cluster: &Cluster) -> Proxy {
        let server = cluster.socket_dir();
        let server = server.join(format!(".s.PGSQL.{}", cluster.port()));
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
                let (server, watched) = (server.clone(), watched.clone());
                let counting = Arc::clone(&counting);
                tokio::spawn(async move { connection(client, server, watched, counting).await });
            }
        });
        Proxy {
            address,
            setting,
            counts,
            task,
        }
    }

    /// Puts a setting in place of the one before, for connections there are and those to come.
    pub fn set(&self, change: impl FnOnce(&mut Setting)) {
        self.setting.send_modify(change);
    }

    /// Back to an ordinary network, for all that did not lose anything.
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

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What both directions of a connection know.
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
    server: PathBuf,
    setting: watch::Receiver<Setting>,
    counts: Arc<Counts>,
) {
    let Ok(server) = UnixStream::connect(server).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let kind = Arc::new(Kind::default());
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let pump = |up| Pump {
        up,
        setting: setting.clone(),
        kind: Arc::clone(&kind),
        counts: Arc::clone(&counts),
        lost: false,
        budget: None,
    };
    let (up, down) = (pump(true), pump(false));
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
    // Whichever ends first drops both ends of both.
    tokio::select! {
        () = up.run(client_in, server_out) => {}
        () = down.run(server_in, client_out) => {}
        () = reset => {}
    }
}

struct Pump {
    up: bool,
    setting: watch::Receiver<Setting>,
    kind: Arc<Kind>,
    counts: Arc<Counts>,
    /// Bytes of this direction vanished: what follows would make no sense.
    lost: bool,
    /// What may still pass before the cut.
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
        let mut frames = Frames::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            self.thaw().await;
            let read = tokio::select! {
                read = from.read(&mut buffer) => read,
                // A freeze or a cut that begins meanwhile takes hold at once.
                _ = self.setting.changed() => continue,
            };
            let count = match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            let bytes = &buffer[..count];
            if self.up {
                if bytes.windows(7).any(|window| window == b"LISTEN ") {
                    self.kind.listens.store(true, Ordering::Relaxed);
                }
                if !self.send(&mut to, bytes).await {
                    return;
                }
                continue;
            }
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

    /// One message or part of one. Says whether the connection lives on.
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
