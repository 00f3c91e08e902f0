//! `hearth health`: exit code 0 if the server is ready. For containers.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use clap::Args;

use super::{
    Exit, Global,
    output::{print, print_error},
};
use crate::config::{
    Config,
    sections::{Bind, Resource},
};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The address to ask. Default: the first plain listener that serves health.
    address: Option<SocketAddr>,
}

pub(super) fn run(global: &Global, options: &Options) -> Exit {
    let address = match options.address {
        Some(address) => address,
        None => match global
            .load(&global.sources())
            .map(|loaded| health_address(&loaded.config))
        {
            Ok(Some(address)) => address,
            Ok(None) => {
                print_error("No plain listener serves health.\n");
                return Exit::NoServer;
            }
            Err(exit) => return exit,
        },
    };
    match ask(address) {
        Ok(answer) => {
            let is_ready = answer.starts_with("HTTP/1.1 200");
            if !global.quiet {
                let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                print(&format!("{body}\n"));
            }
            if is_ready {
                Exit::Done
            } else {
                Exit::ChecksFailed
            }
        }
        Err(error) => {
            print_error(&format!("{address} does not answer: {error}\n"));
            Exit::NoServer
        }
    }
}

/// Where a server with this configuration answers about its health. A listener on all addresses is reached by loopback.
fn health_address(config: &Config) -> Option<SocketAddr> {
    let listener = config
        .listeners
        .iter()
        .find_map(|listener| match listener.bind {
            Bind::Network(address)
                if !listener.tls && listener.resources.contains(&Resource::Health) =>
            {
                Some(address)
            }
            _ => None,
        })?;
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Some(SocketAddr::new(ip, listener.port()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "asks our own server, for which `outbound` has no use"
)]
fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream
        .write_all(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
