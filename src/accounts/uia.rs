//! User-interactive authentication: stages that a client completes before an operation is done.
//!
//! A session is bound to its operation, so that what was authorized for one thing cannot be used for another. It is stored,
//! as the stages may come to another node or after a restart. A client that completes a flow in its first request needs none.
//!
//! Spec: c2s, "User-Interactive Authentication API".

use ruma::{
    OwnedUserId,
    api::client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo, UserIdentifier},
    api::error::{ErrorKind, StandardErrorBody},
};
use serde_json::value::RawValue;

use super::{
    Accounts, Error, LocalUser, UserNumber,
    rows::{INTERACTIVE, Interactive, TokenHash},
};
use crate::storage::{Batch, Expiring, Millis48};

/// A session that is not completed ends after this time.
pub(super) const SESSION_LIFETIME_MS: u64 = 30 * 60_000;
const SESSION_ID_CHARS: usize = 24;

/// What is to be authorized.
#[derive(Clone, Debug)]
pub struct Operation<'a> {
    /// Which kind of operation: the endpoint.
    pub name: &'static str,
    /// What of the request must stay the same, so that a session does not authorize something else.
    pub bound: &'a [&'a str],
    /// Who asks; absent for registration.
    pub user: Option<&'a LocalUser>,
    /// The flows to choose from: each a list of stages.
    pub flows: &'a [&'a [AuthType]],
}

/// The proof that a flow was completed. [`Accounts::spend`] or [`Passed::spend_in`] ends its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a completed session must be ended once the operation is done"]
pub struct Passed {
    session: Option<TokenHash>,
    /// The registration token that was given, and holds a use for this registration.
    pub registration_token: Option<String>,
}

impl Passed {
    /// Adds the end of the session to the batch of the operation.
    pub fn spend_in(&self, batch: &mut Batch) {
        if let Some(session) = self.session {
            batch.delete(&INTERACTIVE, &(session,));
        }
    }
}

/// A session, new or loaded.
struct Open {
    id: String,
    row: Interactive,
    is_stored: bool,
}

enum Outcome {
    Passed,
    Failed(ErrorKind, String),
}

impl Accounts {
    /// Checks the stage that `auth` completes.
    ///
    /// # Errors
    /// [`Error::Interactive`] with what the client must do next: no stage yet, more to do, or a stage that failed.
    /// [`Error::BadCredentials`] if the stage names another user than the one who asks.
    pub async fn authorize(
        &self,
        operation: &Operation<'_>,
        auth: Option<&AuthData>,
    ) -> Result<Passed, Error> {
        let mut open = self
            .open(operation, auth.and_then(AuthData::session))
            .await?;
        let outcome = match auth {
            None => None,
            Some(auth) => match auth.auth_type() {
                // Only the session: the client asks how things stand.
                None => None,
                Some(stage) if open.row.completed.iter().any(|done| done == stage.as_str()) => None,
                Some(stage) if !is_next(operation.flows, &open.row.completed, &stage) => {
                    Some(Outcome::Failed(
                        ErrorKind::Unrecognized,
                        format!("The stage {stage} is not one that comes next"),
                    ))
                }
                Some(stage) => {
                    let outcome = self.check_stage(operation, &mut open, auth).await?;
                    if matches!(outcome, Outcome::Passed) {
                        open.row.completed.push(stage.as_str().to_owned());
                    }
                    Some(outcome)
                }
            },
        };
        if is_complete(operation.flows, &open.row.completed) {
            let session = open.is_stored.then(|| TokenHash::of(&open.id));
            if open.is_stored {
                self.store_session(&open).await?;
            }
            return Ok(Passed {
                session,
                registration_token: open.row.registration_token,
            });
        }
        if !open.is_stored || matches!(outcome, Some(Outcome::Passed)) {
            self.store_session(&open).await?;
        }
        Err(Error::Interactive(Box::new(challenge(
            operation.flows,
            open,
            outcome,
        ))))
    }

    /// Ends the session of a completed flow.
    pub async fn spend(&self, passed: &Passed) -> Result<(), Error> {
        let mut batch = Batch::new();
        passed.spend_in(&mut batch);
        if !batch.is_empty() {
            self.inner.store.submit(batch).await?;
        }
        Ok(())
    }

    /// The session with this ID if it is one of this operation; otherwise a new one.
    async fn open(&self, operation: &Operation<'_>, id: Option<&str>) -> Result<Open, Error> {
        let bound = operation_hash(operation);
        if let Some(id) = id {
            let key = (TokenHash::of(id),);
            let row = self
                .inner
                .store
                .read(move |snapshot| Ok::<_, Error>(snapshot.get(&INTERACTIVE, &key)?))
                .await?;
            let now_ms = self.inner.clock.now_ms();
            let is_valid = |Expiring(expires, row): &Expiring<Interactive>| {
                expires.0 > now_ms && row.operation == bound
            };
            if let Some(Expiring(_, row)) = row.filter(is_valid) {
                return Ok(Open {
                    id: id.to_owned(),
                    row,
                    is_stored: true,
                });
            }
        }
        let id = self.inner.clock.random_string(SESSION_ID_CHARS);
        let row = Interactive {
            operation: bound,
            completed: Vec::new(),
            registration_token: None,
        };
        Ok(Open {
            id,
            row,
            is_stored: false,
        })
    }

    async fn store_session(&self, open: &Open) -> Result<(), Error> {
        let expires_ms = self.inner.clock.now_ms() + SESSION_LIFETIME_MS;
        let mut batch = Batch::new();
        let row = Expiring(Millis48(expires_ms), open.row.clone());
        batch.put(&INTERACTIVE, &(TokenHash::of(&open.id),), &row);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    async fn check_stage(
        &self,
        operation: &Operation<'_>,
        open: &mut Open,
        auth: &AuthData,
    ) -> Result<Outcome, Error> {
        match auth {
            AuthData::Dummy(_) => Ok(Outcome::Passed),
            AuthData::Password(password) => {
                let named = match &password.identifier {
                    UserIdentifier::Matrix(identifier) => self.find_login(&identifier.user),
                    _ => None,
                };
                self.check_password(operation, named, &password.password)
                    .await
            }
            AuthData::RegistrationToken(given) => {
                match self.reserve_registration_token(&given.token).await? {
                    true => {
                        open.row.registration_token = Some(given.token.clone());
                        Ok(Outcome::Passed)
                    }
                    false => {
                        let text = "The registration token is not valid".to_owned();
                        Ok(Outcome::Failed(ErrorKind::Unauthorized, text))
                    }
                }
            }
            _ => Ok(Outcome::Failed(
                ErrorKind::Unrecognized,
                "This stage is not supported".to_owned(),
            )),
        }
    }

    async fn check_password(
        &self,
        operation: &Operation<'_>,
        named: Option<OwnedUserId>,
        password: &str,
    ) -> Result<Outcome, Error> {
        let Some(user) = operation.user else {
            return Ok(Outcome::Failed(
                ErrorKind::Unrecognized,
                "This stage is not supported".to_owned(),
            ));
        };
        if named.is_some_and(|named| named != user.id) {
            return Err(Error::BadCredentials);
        }
        Ok(match self.is_password(user.number, password).await? {
            true => Outcome::Passed,
            false => Outcome::Failed(ErrorKind::Forbidden, "Invalid password".to_owned()),
        })
    }
}

fn operation_hash(operation: &Operation<'_>) -> TokenHash {
    let mut hasher = blake3::Hasher::new();
    let UserNumber(user) = operation.user.map_or(UserNumber(0), |user| user.number);
    hasher.update(&user.to_be_bytes());
    for part in std::iter::once(&operation.name).chain(operation.bound) {
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    TokenHash(hasher.finalize().into())
}

/// Whether `stage` follows what is `completed` in one of the flows.
fn is_next(flows: &[&[AuthType]], completed: &[String], stage: &AuthType) -> bool {
    flows
        .iter()
        .any(|flow| starts_with(flow, completed) && flow.get(completed.len()) == Some(stage))
}

fn is_complete(flows: &[&[AuthType]], completed: &[String]) -> bool {
    flows
        .iter()
        .any(|flow| flow.len() == completed.len() && starts_with(flow, completed))
}

fn starts_with(flow: &[AuthType], completed: &[String]) -> bool {
    completed.len() <= flow.len()
        && flow
            .iter()
            .zip(completed)
            .all(|(stage, done)| stage.as_str() == done)
}

fn challenge(flows: &[&[AuthType]], open: Open, outcome: Option<Outcome>) -> UiaaInfo {
    let mut info = UiaaInfo::new(
        flows
            .iter()
            .map(|flow| AuthFlow::new(flow.to_vec()))
            .collect(),
    );
    info.completed = open
        .row
        .completed
        .iter()
        .map(|stage| AuthType::from(stage.as_str()))
        .collect();
    info.params = RawValue::from_string("{}".to_owned()).ok();
    info.session = Some(open.id);
    if let Some(Outcome::Failed(kind, text)) = outcome {
        info.auth_error = Some(Box::new(StandardErrorBody::new(kind, text)));
    }
    info
}
