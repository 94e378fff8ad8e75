//! A TCP proxy between one process and one server, which cuts, slows down or swallows what goes through it.
//!
//! Invariant: what it lets through arrives unchanged and in order; it never holds more than a buffer each way.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

const BUFFER_BYTES: usize = 16 * 1024;

/// What happens to traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Pass,
    /// Every piece waits for so long.
    Delay(Duration),
    /// Connections are accepted and kept, and nothing is forwarded.
    Hole,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    mode: Mode,
    cuts: u64,
}

/// A running proxy; it ends when dropped.
pub struct Proxy {
    pub port: u16,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens at a port of its own for connections to `target`.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, seen) = watch::channel(State::default());
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(tokio::spawn(forward(client, target, seen.clone()))),
                    // Out of file descriptors, or the client is gone already.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        Self {
            port,
            state,
            accepting,
        }
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Closes all connections there are.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let traffic = state.clone();
    let forwarding = async {
        let server = TcpStream::connect(target).await?;
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            ended = pump(from_client, to_server, traffic.clone()) => ended,
            ended = pump(from_server, to_client, traffic) => ended,
        }
    };
    tokio::select! {
        _ = forwarding => {}
        // Also when the proxy itself is gone.
        _ = state.wait_for(|state| state.cuts != cuts) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let passing = state.wait_for(|state| state.mode != Mode::Hole).await;
        let mode = passing.map(|state| state.mode).unwrap_or_default();
        if let Mode::Delay(delay) = mode {
            tokio::time::sleep(delay).await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

#[tokio::test]
async fn a_proxy_passes_swallows_and_cuts() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    let (mut served, _) = server.accept().await.unwrap();
    let mut buffer = [0; 4];
    client.write_all(b"ping").await.unwrap();
    served.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");

    proxy.set(Mode::Hole);
    client.write_all(b"held").await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(served.read_exact(&mut buffer)).is_none());
    proxy.set(Mode::Delay(Duration::from_millis(1)));
    served.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"held");

    proxy.cut();
    assert_eq!(
        client.read(&mut buffer).await.unwrap_or(0),
        0,
        "closed at both ends"
    );
    assert_eq!(served.read(&mut buffer).await.unwrap_or(0), 0);
}
