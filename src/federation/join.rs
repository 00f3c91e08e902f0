//! Joining rooms: locally where this server is in the room, through a server that is where not.
//!
//! Servers are tried in turn. What a server answers to `send_join` is checked as a whole before the room becomes ours:
//! format, hashes, signatures here, the rules in [`Rooms::adopt`](crate::rooms::Rooms::adopt). Events that fail are left
//! out, as the room may well stand without them. Nothing of the room is locked while the network is waited for; two users
//! who join the same room at once wait for each other, so that the second joins locally.
//!
//! Spec: s2s, "Joining Rooms".

mod answer;

use std::time::Duration;

use ruma::{
    EventId, OwnedRoomId, OwnedServerName, RoomId, ServerName, UserId,
    api::federation::membership::prepare_join_event, events::room::member::MembershipState,
};

use self::answer::Answer;
pub(super) use self::answer::{Expected, event_ids as events_of_answer, wanted};
use super::{
    Error, Federation,
    client::Limits,
    membership::{Draft, MembershipError, rules_of},
};
use crate::{
    events::{Verified, version},
    rooms::{self, Adoption, Extra, Residence},
    storage::Snapshot,
};

/// How long a server may take to compose the state of a large room and to send it.
pub(super) const SEND_JOIN_TIMEOUT: Duration = Duration::from_secs(300);
/// The largest answer to `send_join`: several times that of the largest rooms there are.
pub(super) const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Answers to `send_join` that are received and checked at the same time.
pub(super) const MAX_JOINING: usize = 8;
/// How long `make_join` may take: servers that are gone must not hold up those that are there.
pub(super) const MAKE_TIMEOUT: Duration = Duration::from_secs(20);

impl Federation {
    /// Joins a room; joining again changes nothing. `via` are servers that may be in the room.
    ///
    /// # Errors
    /// The rules refuse the join; nobody could be asked; the most telling of what those said that were.
    pub async fn join(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
        extra: Extra,
    ) -> Result<(), MembershipError> {
        let room_id = room_id.to_owned();
        if self.join_here(user, &room_id, via, &extra).await? {
            return Ok(());
        }
        let _turn = self.inner.joins.lock(room_id.clone()).await;
        // Who had the turn before may have brought the room here.
        if self.join_here(user, &room_id, via, &extra).await? {
            return Ok(());
        }
        let candidates = self.join_candidates(user, &room_id, via).await?;
        // Boxed, as it holds what becomes of several servers' answers.
        let through = self.join_through_any(user, &room_id, candidates, extra.clone());
        let joined = Box::pin(through).await;
        match joined {
            Err(error) if error.may_try_another() && self.is_ours_to_join(&room_id) => {
                // Nobody else has the room, so it is this server's to open again; or nobody else can be reached.
                match self.inner.rooms.join(user, &room_id, extra).await {
                    Ok(()) => Ok(()),
                    Err(_refused) => Err(error),
                }
            }
            joined => joined,
        }
    }

    fn is_partial(&self, room_id: &RoomId) -> bool {
        let rooms = &self.inner.rooms;
        let room = rooms.number(room_id);
        room.is_some_and(|room| rooms.is_partial(room))
    }

    /// Whether a room may be joined without others, who did not help.
    fn is_ours_to_join(&self, room_id: &RoomId) -> bool {
        match self.inner.rooms.residence(room_id) {
            Residence::Deserted => true,
            Residence::Resident => self.is_partial(room_id),
            Residence::Away => false,
        }
    }

    /// A join that needs no other server; false if it does.
    async fn join_here(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        via: &[OwnedServerName],
        extra: &Extra,
    ) -> Result<bool, MembershipError> {
        let rooms = &self.inner.rooms;
        match rooms.residence(room_id) {
            // Others know whether the user may join, and this server not yet.
            Residence::Resident if self.is_partial(room_id) => return Ok(false),
            Residence::Resident => {}
            Residence::Deserted => {
                let is_invited = self.outside(user, room_id).await?.is_some();
                if is_invited || !self.askable(via.iter().cloned()).is_empty() {
                    return Ok(false);
                }
            }
            Residence::Away => return Ok(false),
        }
        match rooms.join(user, room_id, extra.clone()).await {
            Err(rooms::Error::UnableToAuthorizeJoin | rooms::Error::UnableToGrantJoin)
                if !self.others_in(room_id).await?.is_empty() =>
            {
                Ok(false)
            }
            joined => Ok(joined.map(|()| true)?),
        }
    }

    /// Whom to ask. In a room that this server is in, those who are in it as well; else those that the client names and
    /// the one who invited; else those who were in the room when this server was, and the one that the room is named after.
    async fn join_candidates(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        via: &[OwnedServerName],
    ) -> Result<Vec<OwnedServerName>, MembershipError> {
        if self.inner.rooms.residence(room_id) == Residence::Resident {
            return self.others_in(room_id).await;
        }
        let inviting = match self.outside(user, room_id).await? {
            Some((_, row)) => row.servers,
            None => Vec::new(),
        };
        let named = self.askable(via.iter().cloned().chain(inviting));
        if !named.is_empty() {
            return Ok(named);
        }
        let mut known = self.others_in(room_id).await?;
        known.extend(room_id.server_name().map(ToOwned::to_owned));
        Ok(self.askable(known))
    }

    /// Other servers in a room, as far as this server knows.
    pub(super) async fn others_in(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<OwnedServerName>, MembershipError> {
        let Ok(room) = self.inner.rooms.resident(room_id) else {
            return Ok(Vec::new());
        };
        let rooms = self.inner.rooms.clone();
        let read = move |snapshot: &Snapshot| rooms.servers(snapshot, room);
        Ok(self.askable(self.inner.store.read(read).await?))
    }

    async fn join_through_any(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        candidates: Vec<OwnedServerName>,
        extra: Extra,
    ) -> Result<(), MembershipError> {
        let content = self.own_content(user, MembershipState::Join, extra).await?;
        let draft = Draft {
            room_id,
            user,
            membership: MembershipState::Join,
            content,
        };
        let mut failed = MembershipError::NoCandidates;
        for server in candidates {
            match self.join_through(&server, &draft).await {
                Ok(()) => {
                    self.inner.rooms.settle_in(user, room_id).await?;
                    return Ok(());
                }
                Err(error) if error.may_try_another() => {
                    tracing::info!(%server, %room_id, %error, "could not join through this server");
                    failed = failed.or(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    async fn join_through(
        &self,
        server: &OwnedServerName,
        draft: &Draft<'_>,
    ) -> Result<(), MembershipError> {
        let mut request =
            prepare_join_event::v1::Request::new(draft.room_id.clone(), draft.user.to_owned());
        request.ver = version::SERVED.to_vec();
        let limits = Limits {
            timeout: MAKE_TIMEOUT,
            ..self.client().default_limits()
        };
        let made = self.client().send_within(server, request, limits).await?;
        let version = made.room_version.unwrap_or(ruma::RoomVersionId::V1);
        let rules = rules_of(&version)?;
        let join = self.sign_draft(server, draft, &made.event, rules)?;
        // An answer may be large: only some are in memory at the same time.
        let _permit = self.inner.joining.acquire().await;
        // In a room that this server is in already all of the state is better than a part of it.
        let is_here = self.inner.rooms.residence(draft.room_id) == Residence::Resident;
        let omits_members =
            self.inner.config.partial_joins && (!is_here || self.is_partial(draft.room_id));
        let body = self
            .send_join(server, draft.room_id, &join, omits_members)
            .await?;
        let expected = Expected {
            server: server.clone(),
            room_id: draft.room_id.clone(),
            rules,
        };
        let Answer {
            join,
            state,
            auth_chain,
            partial,
        } = answer::check(self, &expected, join, body).await?;
        if partial.is_some() && !omits_members {
            let reason = "it left members out of the state unasked";
            return Err(MembershipError::bad_answer(server, reason));
        }
        let adoption = Adoption {
            room_id: draft.room_id.clone(),
            version,
            join,
            state,
            auth_chain,
            partial,
        };
        match self.inner.rooms.adopt(adoption).await {
            Ok(room) => {
                self.complete_soon(room, Some(server.clone()));
                Ok(())
            }
            // The state does not allow the join that its server allowed, or is none: another may have the truth.
            Err(error @ rooms::Error::NotAllowed(_)) => {
                Err(MembershipError::Forbidden(error.to_string().into()))
            }
            Err(error @ rooms::Error::Invalid(_)) => {
                Err(MembershipError::bad_answer(server, error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn send_join(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        join: &Verified,
        omits_members: bool,
    ) -> Result<bytes::Bytes, Error> {
        let mut path = sending_path("v2/send_join", room_id, &join.event_id);
        if omits_members {
            path.push_str("?omit_members=true");
        }
        let limits = Limits {
            timeout: SEND_JOIN_TIMEOUT,
            max_bytes: MAX_ANSWER_BYTES,
        };

        let answer = self
            .client()
            .put_canonical(server, &path, join.json.clone(), limits)
            .await?;
        Ok(answer.into_body())
    }
}

/// The path of `send_join` and its like.
pub(super) fn sending_path(endpoint: &str, room_id: &RoomId, event_id: &EventId) -> String {
    let (room_id, event_id) = (escaped(room_id.as_str()), escaped(event_id.as_str()));
    format!("/_matrix/federation/{endpoint}/{room_id}/{event_id}")
}

/// Percent-encodes a part of a path.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
