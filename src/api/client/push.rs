//! Push rules and pushers.
//!
//! Spec: c2s, "Push Notifications".

use std::sync::Arc;

use ruma::{
    api::{
        IncomingRequest as _,
        client::push::{
            PushRule, delete_pushrule, get_notifications, get_pushers, get_pushrule,
            get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
            get_pushrules_global_scope, set_pusher, set_pusher::v3::PusherAction, set_pushrule,
            set_pushrule_actions, set_pushrule_enabled,
        },
        error::DeserializationError,
    },
    push::{RuleKind, Ruleset},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    accounts::{Error as AccountsError, PushRuleChange, PushRuleError, Session},
    api::{
        content::{Read, Reading, fields},
        error::Error,
        routes::{RawJson, Routes},
    },
    push::Others,
    rooms::{
        Wanted,
        client_event::{EventForm, event_json},
    },
    server::Server,
    storage::{Position, Snapshot},
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_pushrules_all)
        .endpoint(get_pushrules_global_scope)
        .endpoint(get_pushrule)
        .endpoint(get_pushrule_actions)
        .endpoint(get_pushrule_enabled)
        .endpoint(set_pushrule)
        .endpoint(set_pushrule_actions)
        .endpoint(set_pushrule_enabled)
        .endpoint(delete_pushrule)
        .endpoint(get_pushers)
        .endpoint(set_pusher)
        .endpoint(get_notifications)
}

/// Spec: c2s, "Listing notifications".
async fn get_notifications(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_notifications::v3::Request,
) -> Result<get_notifications::v3::Response, Error> {
    const DEFAULT_LIMIT: usize = 20;
    const MAX_LIMIT: usize = 100;
    let from = request.from.as_deref().map(str::parse);
    let before = from
        .transpose()
        .map_err(|_not_a_number| Error::invalid_param("from is not a token of this list"))?;
    let limit = request.limit.and_then(|limit| usize::try_from(limit).ok());
    let wanted = Wanted {
        before: before.map(Position),
        limit: limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT),
        only_highlights: request.only.as_deref() == Some("highlight"),
    };
    let (rooms, now_ms) = (server.rooms.clone(), server.clock.now_ms());
    let page = move |snapshot: &Snapshot| -> Result<_, Error> {
        let who = (session.user_number, &*session.user);
        let page = rooms.notifications(snapshot, who, wanted)?;
        let mut notifications = Vec::with_capacity(page.found.len());
        for found in page.found {
            let room_id = rooms.room_id(found.room);
            let room_id = room_id.ok_or_else(|| Error::not_found("The room is gone"))?;
            let unsigned = rooms.unsigned(snapshot, found.room, &[Arc::clone(&found.event)])?;
            let unsigned = unsigned.into_iter().next().unwrap_or_default();
            let event = event_json(&found.event, EventForm::Sync, &unsigned, now_ms);
            notifications.push(get_notifications::v3::Notification::new(
                found.actions,
                Raw::from_json(event),
                found.is_read,
                room_id,
                found.event.pdu.origin_server_ts,
            ));
        }
        let mut response = get_notifications::v3::Response::new(notifications);
        response.next_token = page.next.map(|next| next.0.to_string());
        Ok(response)
    };
    server.store.read(page).await
}

async fn get_pushrules_all(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: get_pushrules_all::v3::Request,
) -> Result<RawJson, Error> {
    Ok(RawJson(
        content(&server, &session).await?.get().to_owned().into(),
    ))
}

async fn get_pushrules_global_scope(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: get_pushrules_global_scope::v3::Request,
) -> Result<RawJson, Error> {
    #[derive(Deserialize)]
    struct Content {
        global: Box<RawValue>,
    }
    let content: Content =
        serde_json::from_str(content(&server, &session).await?.get()).map_err(Error::internal)?;
    Ok(RawJson(content.global.get().to_owned().into()))
}

async fn get_pushrule(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_pushrule::v3::Request,
) -> Result<get_pushrule::v3::Response, Error> {
    let rule = rule(
        &*rules(&server, &session).await?,
        request.kind,
        &request.rule_id,
    )?;
    Ok(get_pushrule::v3::Response::new(rule))
}

async fn get_pushrule_actions(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_pushrule_actions::v3::Request,
) -> Result<get_pushrule_actions::v3::Response, Error> {
    let rule = rule(
        &*rules(&server, &session).await?,
        request.kind,
        &request.rule_id,
    )?;
    Ok(get_pushrule_actions::v3::Response::new(rule.actions))
}

async fn get_pushrule_enabled(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_pushrule_enabled::v3::Request,
) -> Result<get_pushrule_enabled::v3::Response, Error> {
    let rule = rule(
        &*rules(&server, &session).await?,
        request.kind,
        &request.rule_id,
    )?;
    Ok(get_pushrule_enabled::v3::Response::new(rule.enabled))
}

/// A rule to be stored. ruma's own type asks for conditions, which the specification does not.
struct SetPushRule(PushRuleChange);

impl Reading for SetPushRule {
    type Of = set_pushrule::v3::Request;

    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let mut body = fields(request.body())?;
        body.entry("conditions")
            .or_insert_with(|| Value::Array(Vec::new()));
        let body = serde_json::to_vec(&body)?;
        let request = request.map(|_| body.as_slice());
        let set_pushrule::v3::Request {
            rule,
            after,
            before,
            ..
        } = set_pushrule::v3::Request::try_from_http_request_inner(request, path_args)?;
        Ok(Self(PushRuleChange::Put {
            rule,
            after,
            before,
        }))
    }
}

async fn set_pushrule(
    server: Arc<Server>,
    session: Arc<Session>,
    Read(SetPushRule(change)): Read<SetPushRule>,
) -> Result<set_pushrule::v3::Response, Error> {
    server
        .accounts
        .change_push_rule(session.user_number, &session.user, change)
        .await?;
    Ok(set_pushrule::v3::Response::new())
}

async fn set_pushrule_actions(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_pushrule_actions::v3::Request,
) -> Result<set_pushrule_actions::v3::Response, Error> {
    let set_pushrule_actions::v3::Request {
        kind,
        rule_id,
        actions,
        ..
    } = request;
    let change = PushRuleChange::SetActions {
        kind,
        rule_id,
        actions,
    };
    server
        .accounts
        .change_push_rule(session.user_number, &session.user, change)
        .await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

async fn set_pushrule_enabled(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_pushrule_enabled::v3::Request,
) -> Result<set_pushrule_enabled::v3::Response, Error> {
    let set_pushrule_enabled::v3::Request {
        kind,
        rule_id,
        enabled,
        ..
    } = request;
    let change = PushRuleChange::Enable {
        kind,
        rule_id,
        enabled,
    };
    server
        .accounts
        .change_push_rule(session.user_number, &session.user, change)
        .await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

async fn delete_pushrule(
    server: Arc<Server>,
    session: Arc<Session>,
    request: delete_pushrule::v3::Request,
) -> Result<delete_pushrule::v3::Response, Error> {
    let delete_pushrule::v3::Request { kind, rule_id, .. } = request;
    let change = PushRuleChange::Delete { kind, rule_id };
    server
        .accounts
        .change_push_rule(session.user_number, &session.user, change)
        .await?;
    Ok(delete_pushrule::v3::Response::new())
}

async fn content(server: &Server, session: &Session) -> Result<Box<RawValue>, Error> {
    let (accounts, user) = (server.accounts.clone(), session.user_number);
    Ok(server
        .store
        .read(move |snapshot| accounts.push_rules_content(snapshot, user))
        .await?)
}

async fn rules(server: &Server, session: &Session) -> Result<Arc<Ruleset>, Error> {
    let (accounts, user) = (server.accounts.clone(), session.user_number);
    Ok(server
        .store
        .read(move |snapshot| accounts.push_rules(snapshot, user))
        .await?)
}

fn rule(rules: &Ruleset, kind: RuleKind, rule_id: &str) -> Result<PushRule, Error> {
    let rule = rules
        .get(kind, rule_id)
        .ok_or(AccountsError::PushRule(PushRuleError::NotFound))?;
    Ok(rule.into())
}

async fn get_pushers(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: get_pushers::v3::Request,
) -> Result<get_pushers::v3::Response, Error> {
    let (push, user) = (server.push.clone(), session.user_number);
    let pushers = server
        .store
        .read(move |snapshot| push.pushers(snapshot, user))
        .await?;
    Ok(get_pushers::v3::Response::new(pushers))
}

async fn set_pusher(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_pusher::v3::Request,
) -> Result<set_pusher::v3::Response, Error> {
    let user = session.user_number;
    match request.action {
        PusherAction::Post(data) => {
            let device = session
                .device
                .as_ref()
                .ok_or(AccountsError::UnknownDevice)?;
            let others = if data.append {
                Others::Keep
            } else {
                Others::Remove
            };
            server.push.set(user, device, data.pusher, others).await?;
        }
        PusherAction::Delete(ids) => server.push.delete(user, &ids).await?,
        _ => return Err(Error::invalid_param("The kind of a pusher is not known")),
    }
    Ok(set_pusher::v3::Response::new())
}
