//! A TCP proxy on loopback that does to a connection what networks do.
//!
//! # Example: a peer that goes silent
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
//! use postrider_testkit::proxy::{Direction, FaultProxy};
//! use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::{TcpListener, TcpStream}};
//!
//! let server = TcpListener::bind("127.0.0.1:0").await?;
//! let proxy = FaultProxy::start(server.local_addr()?).await?;
//! let mut client = TcpStream::connect(proxy.address()).await?;
//! let (mut served, _) = server.accept().await?;
//!
//! proxy.stall(Direction::ToServer);
//! client.write_all(b"hello").await?;
//! proxy.heal();
//! let mut received = [0; 5];
//! served.read_exact(&mut received).await?;
//! assert_eq!(&received, b"hello");
//! # Ok(()) }
//! ```

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time,
};

/// A way through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// How the proxy treats what passes.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    to_server: Way,
    to_client: Way,
    delay: Duration,
    drip: bool,
    refuse: bool,
    /// Grows with each cut and each reset.
    breaks: u64,
    how: Break,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Break {
    #[default]
    Cut,
    Reset,
    /// Only for the client.
    Orphan,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Open,
    /// Bytes wait until it is open again.
    Stalled,
    /// Bytes are taken and thrown away.
    Swallowed,
}

impl Weather {
    const fn way(&self, direction: Direction) -> Way {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }

    const fn set(&mut self, direction: Direction, way: Way) {
        match direction {
            Direction::ToServer => self.to_server = way,
            Direction::ToClient => self.to_client = way,
        }
    }
}

/// A TCP proxy on a free port of 127.0.0.1. Dropping it closes all that pass through it.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy to `server`.
    ///
    /// # Errors
    ///
    /// When no port can be listened on.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather::default());
        let open = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, server, weather.subscribe(), open.clone()));
        Ok(Self { address, weather, open, accepting })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections pass through it now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Closes every connection, as a peer does that ends.
    pub fn cut(&self) {
        self.end(Break::Cut);
    }

    /// Resets every connection, as a peer does that has died.
    pub fn reset(&self) {
        self.end(Break::Reset);
    }

    /// Closes every connection to the client and leaves it open to the server, which is not told
    /// and hears nothing any more, as when the client's machine dies. New connections pass.
    pub fn orphan(&self) {
        self.end(Break::Orphan);
    }

    fn end(&self, how: Break) {
        self.weather.send_modify(|weather| {
            weather.breaks += 1;
            weather.how = how;
        });
    }

    /// Keeps back what goes in one direction, until [`heal`](Self::heal).
    pub fn stall(&self, direction: Direction) {
        self.weather.send_modify(|weather| weather.set(direction, Way::Stalled));
    }

    /// Takes what goes in one direction and throws it away, as a peer does that lost its state. In
    /// both directions that is a half-open connection: nobody hears anything, and nobody is told.
    /// What was thrown away stays lost after [`heal`](Self::heal).
    pub fn swallow(&self, direction: Direction) {
        self.weather.send_modify(|weather| weather.set(direction, Way::Swallowed));
    }

    /// Holds each piece back for this time, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Passes one byte at a time.
    pub fn drip(&self) {
        self.weather.send_modify(|weather| weather.drip = true);
    }

    /// Closes new connections at once, as if nobody listened.
    pub fn refuse(&self) {
        self.weather.send_modify(|weather| weather.refuse = true);
    }

    /// Passes everything again as it comes.
    pub fn heal(&self) {
        self.weather.send_modify(|weather| {
            *weather = Weather { breaks: weather.breaks, ..Weather::default() };
        });
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    open: Arc<AtomicUsize>,
) {
    // A failed accept is the client's affair.
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let Weather { refuse, breaks, .. } = *weather.borrow();
        if refuse {
            continue;
        }
        let (weather, open) = (weather.clone(), open.clone());
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::AcqRel);
            // When the server takes no connection, the client's is closed: the same as without us.
            if let Ok(upstream) = TcpStream::connect(server).await {
                pass(client, upstream, weather, breaks).await;
            }
            open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// Passes bytes both ways until one side ends or the weather breaks the connection, which it has
/// done `breaks` times before.
async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    mut weather: watch::Receiver<Weather>,
    breaks: u64,
) {
    // Without this the kernel would gather what was sent byte by byte.
    let _best_effort = (client.set_nodelay(true), server.set_nodelay(true));
    let how = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            () = pump(from_client, to_server, Direction::ToServer, weather.clone()) => Break::Cut,
            () = pump(from_server, to_client, Direction::ToClient, weather.clone()) => Break::Cut,
            how = broken(weather.clone(), breaks) => how,
        }
    };
    if how == Break::Orphan {
        // Until the server gives up on it, or the proxy is dropped.
        let _ended = client.shutdown().await;
        drop(client);
        let dropped = async { while weather.changed().await.is_ok() {} };
        let given_up = async { while let Ok(1..) = server.read(&mut [0; 1024]).await {} };
        tokio::select! {
            () = dropped => {}
            () = given_up => {}
        }
        return;
    }
    for socket in [&mut client, &mut server] {
        // Either fails only when the socket is gone anyway.
        let _ended =
            if how == Break::Reset { socket.set_zero_linger() } else { socket.shutdown().await };
    }
}

/// Waits until the weather breaks the connection and says how.
async fn broken(mut weather: watch::Receiver<Weather>, breaks: u64) -> Break {
    let broken = weather.wait_for(|weather| weather.breaks != breaks).await;
    // When the proxy is dropped, that is a cut.
    broken.map_or(Break::Cut, |weather| weather.how)
}

/// Passes bytes in one direction until an end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let open = weather.wait_for(|now| now.way(direction) != Way::Stalled).await;
        let Ok(now) = open.map(|now| *now) else { return };
        if now.way(direction) == Way::Swallowed {
            continue;
        }
        if !now.delay.is_zero() {
            time::sleep(now.delay).await;
        }
        let piece = if now.drip { 1 } else { count };
        for bytes in buffer[..count].chunks(piece) {
            if to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    struct Line {
        proxy: FaultProxy,
        client: TcpStream,
        server: TcpStream,
    }

    async fn line() -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        Line { proxy, client, server }
    }

    async fn read(from: &mut TcpStream) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 1024];
        let count = from.read(&mut buffer).await?;
        Ok(buffer[..count].to_vec())
    }

    async fn is_silent(from: &mut TcpStream) -> bool {
        timeout(Duration::from_millis(50), read(from)).await.is_err()
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_an_end_is_passed_on() {
        let Line { proxy, mut client, mut server } = line().await;
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read(&mut server).await.unwrap(), b"ping");
        server.write_all(b"pong").await.unwrap();
        assert_eq!(read(&mut client).await.unwrap(), b"pong");
        assert_eq!(proxy.connections(), 1);
        drop(client);
        assert_eq!(read(&mut server).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_cut_is_an_end_and_a_reset_an_error() {
        let Line { proxy, mut client, mut server } = line().await;
        proxy.cut();
        assert_eq!(read(&mut client).await.unwrap(), b"");
        assert_eq!(read(&mut server).await.unwrap(), b"");

        let Line { proxy, mut client, mut server } = line().await;
        proxy.reset();
        for side in [&mut client, &mut server] {
            let error = read(side).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn an_orphan_is_an_end_for_the_client_alone() {
        let Line { proxy, mut client, mut server } = line().await;
        proxy.orphan();
        assert_eq!(read(&mut client).await.unwrap(), b"");
        assert!(is_silent(&mut server).await);
        server.write_all(b"anybody there?").await.unwrap();
        drop(proxy);
        assert!(!matches!(read(&mut server).await, Ok(bytes) if !bytes.is_empty()));
    }

    #[tokio::test]
    async fn a_stalled_way_loses_nothing_and_a_swallowed_one_everything() {
        let Line { proxy, mut client, mut server } = line().await;
        proxy.stall(Direction::ToServer);
        client.write_all(b"late").await.unwrap();
        assert!(is_silent(&mut server).await);
        server.write_all(b"other way").await.unwrap();
        assert_eq!(read(&mut client).await.unwrap(), b"other way");
        proxy.heal();
        assert_eq!(read(&mut server).await.unwrap(), b"late");

        proxy.swallow(Direction::ToServer);
        client.write_all(b"lost").await.unwrap();
        assert!(is_silent(&mut server).await);
        proxy.heal();
        client.write_all(b"found").await.unwrap();
        assert_eq!(read(&mut server).await.unwrap(), b"found");
    }

    #[tokio::test]
    async fn it_drips_delays_and_refuses() {
        let Line { proxy, mut client, mut server } = line().await;
        proxy.drip();
        client.write_all(b"abc").await.unwrap();
        let mut whole = Vec::new();
        while whole.len() < 3 {
            whole.extend(read(&mut server).await.unwrap());
        }
        assert_eq!(whole, b"abc");

        proxy.heal();
        proxy.delay(Duration::from_millis(120));
        client.write_all(b"slow").await.unwrap();
        assert!(is_silent(&mut server).await);
        assert_eq!(read(&mut server).await.unwrap(), b"slow");

        proxy.refuse();
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(!matches!(read(&mut refused).await, Ok(bytes) if !bytes.is_empty()));
    }

    #[tokio::test]
    async fn dropping_it_closes_what_passes() {
        let Line { proxy, mut client, mut server } = line().await;
        drop(proxy);
        assert_eq!(read(&mut client).await.unwrap(), b"");
        assert_eq!(read(&mut server).await.unwrap(), b"");
    }
}
