//! Sockets and connections. A connection that breaks is nobody's error; one that is slow is cut off.

use std::{
    io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::Error;
use crate::{
    api::{Dispatcher, Peer},
    config::sections::{Bind, LimitsSection},
    tasks::Stop,
};

/// Connections that the system holds for us before we accept them.
const BACKLOG: u32 = 1_024;
/// The wait after the system could not give us a connection, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at the same time on one HTTP/2 connection. A client needs a sync and a few others.
const MAX_HTTP2_STREAMS: u32 = 200;

/// A bound socket.
pub(super) enum Socket {
    Network(TcpListener),
    Unix(UnixListener),
}

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    connections: usize,
    head_timeout: Duration,
    grace: Duration,
}

impl From<&LimitsSection> for Limits {
    fn from(section: &LimitsSection) -> Self {
        Self {
            connections: usize::try_from(section.connections)
                .unwrap_or(usize::MAX)
                .min(Semaphore::MAX_PERMITS),
            head_timeout: section.request_head_timeout.0,
            grace: section.shutdown_grace.0,
        }
    }
}

impl Socket {
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Network(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

pub(super) fn bind(bind: &Bind) -> Result<Socket, Error> {
    match bind {
        Bind::Network(address) => bind_network(*address)
            .map(Socket::Network)
            .map_err(|source| Error::Listen {
                address: address.to_string(),
                source,
            }),
        Bind::Unix(path) => bind_unix(path)
            .map(Socket::Unix)
            .map_err(|source| Error::Listen {
                address: path.display().to_string(),
                source,
            }),
    }
}

fn bind_network(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A Unix socket that only the owner of this process reaches. What an earlier process left is taken away.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts connections until `stop`, then lets those there are end their requests.
pub(super) async fn accept(
    socket: Socket,
    acceptor: Option<TlsAcceptor>,
    dispatcher: Arc<Dispatcher>,
    limits: Limits,
    stop: Stop,
) {
    let acceptor = Acceptor {
        tls: acceptor,
        dispatcher,
        builder: connection_builder(limits.head_timeout),
        graceful: GracefulShutdown::new(),
        free: Arc::new(Semaphore::new(limits.connections)),
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.requested() => break,
            accepted = acceptor.next(&socket) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, permit)) => acceptor.start(stream, permit, &mut connections),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    let drained = tokio::time::timeout(limits.grace, acceptor.graceful.shutdown()).await;
    if drained.is_err() {
        tracing::warn!("some requests were not answered in time");
    }
    connections.shutdown().await;
}

struct Acceptor {
    tls: Option<TlsAcceptor>,
    dispatcher: Arc<Dispatcher>,
    builder: auto::Builder<TokioExecutor>,
    graceful: GracefulShutdown,
    free: Arc<Semaphore>,
}

enum Stream {
    Network(tokio::net::TcpStream, Peer),
    Unix(tokio::net::UnixStream),
}

impl Acceptor {
    async fn next(&self, socket: &Socket) -> io::Result<(Stream, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.free)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let stream = match socket {
            Socket::Network(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole; waiting to fill a packet would only delay them.
                stream.set_nodelay(true)?;
                Stream::Network(stream, Peer::Network(address.ip()))
            }
            Socket::Unix(listener) => Stream::Unix(listener.accept().await?.0),
        };
        Ok((stream, permit))
    }

    fn start(&self, stream: Stream, permit: OwnedSemaphorePermit, connections: &mut JoinSet<()>) {
        match (stream, self.tls.clone()) {
            (Stream::Network(stream, peer), Some(tls)) => {
                // The watcher is made inside, when there is a connection to watch: a handshake is no request.
                let serve = self.serve_tls(tls, stream, peer);
                connections.spawn(async move {
                    serve.await;
                    drop(permit);
                });
            }
            (Stream::Network(stream, peer), None) => {
                let serve = self.serve(stream, peer);
                connections.spawn(async move {
                    serve.await;
                    drop(permit);
                });
            }
            (Stream::Unix(stream), _) => {
                let serve = self.serve(stream, Peer::Local);
                connections.spawn(async move {
                    serve.await;
                    drop(permit);
                });
            }
        }
    }

    fn serve_tls(
        &self,
        tls: TlsAcceptor,
        stream: tokio::net::TcpStream,
        peer: Peer,
    ) -> impl Future<Output = ()> + use<> {
        let dispatcher = Arc::clone(&self.dispatcher);
        let builder = self.builder.clone();
        let watcher = self.graceful.watcher();
        async move {
            let Ok(Ok(stream)) =
                tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tls.accept(stream)).await
            else {
                return;
            };
            let service = service_fn(move |request| {
                let dispatcher = Arc::clone(&dispatcher);
                async move { Ok::<_, std::convert::Infallible>(dispatcher.answer(request, peer).await) }
            });
            let connection = builder
                .serve_connection(TokioIo::new(stream), service)
                .into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "a connection broke");
            }
        }
    }

    fn serve<S>(&self, stream: S, peer: Peer) -> impl Future<Output = ()> + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let dispatcher = Arc::clone(&self.dispatcher);
        let service = service_fn(move |request| {
            let dispatcher = Arc::clone(&dispatcher);
            async move { Ok::<_, std::convert::Infallible>(dispatcher.answer(request, peer).await) }
        });
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let watched = self.graceful.watch(connection);
        async move {
            if let Err(error) = watched.await {
                tracing::debug!(%error, "a connection broke");
            }
        }
    }
}

fn connection_builder(head_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS);
    builder
}
