//! Other servers as administrators see them.

use ruma::{
    OwnedServerName, ServerName, api::federation::discovery::get_server_version::v1 as version,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use crate::{federation, server::Server};

/// What can be asked about other servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FederationCommand {
    /// How a server is found.
    Show { server: String },
    /// Whether a server answers.
    Ping { server: String },
    /// The servers that have not got everything.
    Status,
    /// Tries a server again at once that is waited for; without a name all of them.
    Retry { server: Option<String> },
}

pub(super) async fn run(server: &Server, command: FederationCommand) -> Result<Value, Error> {
    match command {
        FederationCommand::Show { server: name } => show(server, &parse(&name)?).await,
        FederationCommand::Ping { server: name } => ping(server, &parse(&name)?).await,
        FederationCommand::Status => Ok(json!(server.federation.destinations())),
        FederationCommand::Retry { server: Some(name) } => retry(server, &parse(&name)?),
        FederationCommand::Retry { server: None } => Ok(retry_all(server)),
    }
}

fn parse(name: &str) -> Result<OwnedServerName, Error> {
    ServerName::parse(name).map_err(|_error| Error::Refused(format!("{name} is no server name")))
}

async fn show(server: &Server, name: &ServerName) -> Result<Value, Error> {
    let Some(discovery) = server.federation.client().discovery() else {
        return Err(Error::Refused("this server has no network".to_owned()));
    };
    let route = discovery
        .route(name)
        .await
        .map_err(|error| Error::Problems(vec![error.to_string()]))?;
    let endpoints: Vec<String> = route
        .target
        .endpoints
        .iter()
        .map(|endpoint| format!("{}:{}", endpoint.host, endpoint.port))
        .collect();
    Ok(json!({
        "server": name,
        "allowed": server.federation.is_allowed(name),
        "delegated_to": route.delegated,
        "found_by": route.rule.name(),
        "endpoints": endpoints.join(" "),
        "certificate_for": route.target.certificate_name,
        "host_header": route.target.authority,
    }))
}

async fn ping(server: &Server, name: &ServerName) -> Result<Value, Error> {
    let start = server.clock.instant();
    let client = server.federation.client();
    let answer = client
        .send(name, version::Request::new())
        .await
        .map_err(|error| match error {
            federation::Error::Denied(_) => Error::Refused(error.to_string()),
            error => Error::Problems(vec![error.to_string()]),
        })?;
    let took = server.clock.instant().saturating_duration_since(start);
    let (software, version) = answer
        .server
        .map_or((None, None), |server| (server.name, server.version));
    Ok(json!({
        "server": name,
        "software": software,
        "version": version,
        "round_trip_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }))
}

fn retry(server: &Server, name: &ServerName) -> Result<Value, Error> {
    match server.federation.retry(name) {
        true => Ok(json!([{ "server": name, "retried": true }])),
        false => Err(Error::NotFound(format!(
            "{name} among the servers waited for"
        ))),
    }
}

fn retry_all(server: &Server) -> Value {
    let all = server.federation.destinations().into_iter();
    let retried = all.filter(|destination| server.federation.retry(&destination.server));
    retried
        .map(|destination| json!({ "server": destination.server, "retried": true }))
        .collect()
}
