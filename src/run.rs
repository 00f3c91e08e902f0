//! A running server: its listeners, its background work, and how it stops.

mod listeners;
mod tls;

use std::{fmt, net::SocketAddr, path::Path, sync::Arc};

use crate::{
    api::{self, Dispatcher, limits::Limits},
    config::sections::Bind,
    server::Server,
    tasks::{Stage, Stop, Tasks},
};

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// A server that answers requests. It goes on until [`Running::stop`].
pub struct Running {
    pub server: Arc<Server>,
    /// The addresses of the network listeners, in the order of the configuration. Port 0 has become a real one.
    pub addresses: Vec<SocketAddr>,
}

/// Puts listeners before `server`. To be called on the runtime that shall serve.
///
/// # Errors
/// A listener cannot be bound.
pub fn start(server: Arc<Server>) -> Result<Running, Error> {
    let limits = Arc::new(Limits::new(
        server.clock.clone(),
        server.config.rate_limits.clone(),
        &server.metrics,
    ));
    let certificates = tls::Certificates::open(&server.config.tls)?;
    let acceptor = match &certificates {
        Some(certificates) => Some(certificates.acceptor()?),
        None => None,
    };
    let mut bound = Vec::new();
    for listener in &server.config.listeners {
        bound.push((listener, listeners::bind(&listener.bind)?));
    }
    start_background(&server);
    let mut addresses = Vec::new();
    for (config, socket) in bound {
        addresses.extend(socket.address());
        let routes = api::routes(&config.resources);
        let dispatcher = Arc::new(Dispatcher::new(
            Arc::clone(&server),
            Arc::clone(&limits),
            routes,
        ));
        let acceptor = if config.tls { acceptor.clone() } else { None };
        let limits = listeners::Limits::from(&server.config.limits);
        let stop = server.tasks.stop_signal(Stage::Listeners);
        let accepting = listeners::accept(socket, acceptor, dispatcher, limits, stop);
        server.tasks.spawn("listener", Stage::Listeners, accepting);
    }
    if let Some(certificates) = certificates {
        let stop = server.tasks.stop_signal(Stage::Followers);
        let follow = async move { certificates.follow(&stop).await };
        server.tasks.spawn("certificates", Stage::Followers, follow);
    }
    serve_admin_socket(&server, &limits)?;
    Ok(Running { server, addresses })
}

/// Where the command line finds a running server. None for a server that has no folder: a test's.
fn serve_admin_socket(server: &Arc<Server>, limits: &Arc<Limits>) -> Result<(), Error> {
    let path = server.config.admin_socket();
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let socket = listeners::bind(&Bind::Unix(path))?;
    let dispatcher = Arc::new(Dispatcher::new(
        Arc::clone(server),
        Arc::clone(limits),
        api::socket_routes(),
    ));
    let limits = listeners::Limits::from(&server.config.limits);
    let stop = server.tasks.stop_signal(Stage::Listeners);
    let accepting = listeners::accept(socket, None, dispatcher, limits, stop);
    server
        .tasks
        .spawn("admin socket", Stage::Listeners, accepting);
    Ok(())
}

/// Starts what goes on beside requests.
fn start_background(server: &Arc<Server>) {
    let (accounts, rooms, encryption) = (&server.accounts, &server.rooms, &server.encryption);
    let tasks = &server.tasks;
    follow(tasks, "accounts", accounts, |accounts, stop| async move {
        accounts.keep_house(stop).await
    });
    follow(tasks, "profiles", rooms, |rooms, stop| async move {
        rooms.follow_profiles(stop).await
    });
    follow(tasks, "loose ends", rooms, |rooms, stop| async move {
        rooms.merge_ends(stop).await
    });
    follow(
        tasks,
        "devices",
        encryption,
        |encryption, stop| async move { encryption.follow_devices(stop).await },
    );
    server.federation.start(&server.tasks);
    server.federation.start_inbox(&server.tasks);
    server.federation.start_resync(&server.tasks);
}

/// Starts the work of a part that goes on until the server stops, after all requests are answered.
fn follow<P, F, E>(
    tasks: &Tasks,
    name: &'static str,
    part: &P,
    work: impl Fn(P, Stop) -> F + Send + 'static,
) where
    P: Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: fmt::Display + Send + 'static,
{
    let part = part.clone();
    tasks.start(name, Stage::Followers, move |stop| work(part.clone(), stop));
}

impl Running {
    /// Stops in order: no new connections, answers to those who wait, an end to the background work, the store.
    pub async fn stop(self) {
        let grace = self.server.config.limits.shutdown_grace.0;
        // Both at once: a listener ends when its connections have, and these wait for requests that wait for news.
        self.server.tasks.signal(Stage::Listeners);
        self.server.tasks.signal(Stage::Requests);
        self.server.tasks.stop(Stage::Listeners, grace).await;
        self.server.tasks.stop(Stage::Requests, grace).await;
        self.server.tasks.stop(Stage::Followers, grace).await;
        if let Err(error) = self.server.close().await {
            tracing::error!(%error, "the database was not closed in good order");
        }
    }
}
