//! Policy servers: a room may name a server whose signature every event of it should have.
//!
//! A room uses no network, so who can ask policy servers takes the questions from a queue. The room is not held while the
//! answer is waited for: the event keeps the place in the graph that it was made for, and is taken in like one that comes
//! from elsewhere.
//!
//! Spec: s2s, "Policy Servers".

use std::time::Duration;

use ruma::{SigningKeyAlgorithm, events::room::policy::RoomPolicyEventContent};
use tokio::sync::{mpsc, oneshot};

use super::{Error, Intake, NewEvent, Received, RoomNumber, RoomWriter, Rooms, writer::Sent};
use crate::{
    events::Verified,
    storage::{Batch, Snapshot},
};

/// The event type that names a room's policy server.
const POLICY: &str = "m.room.policy";

/// Events that wait for signatures.
const MAX_WAITING: usize = 256;
/// How long an event waits, with its turn in the queue.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An event of ours that needs the signature of a policy server.
pub struct Signing {
    pub room: RoomNumber,
    pub policy: RoomPolicyEventContent,
    pub event: Verified,
    /// Takes the signed event, or what the policy server has against it.
    pub reply: oneshot::Sender<Result<Verified, String>>,
}

impl Rooms {
    /// Events that need the signature of a policy server, from now on. One taker at most.
    pub fn take_signings(&self) -> mpsc::Receiver<Signing> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        *self
            .signings
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Sends an event in the turn of `writer`. In a room with a policy server the turn ends before that is asked, so that
    /// what the caller has read of the room may be of the past by then; the rules are applied again.
    pub(super) async fn send_in_turn(
        &self,
        mut writer: RoomWriter,
        event: NewEvent,
    ) -> Result<Sent, Error> {
        let Some(policy) = writer.policy_for(&event).await? else {
            return writer.send(event).await;
        };
        if let Some(sent) = writer.sent_before(&event).await? {
            return Ok(sent);
        }
        let draft = writer.draft(event.clone()).await?;
        let room = writer.room();
        drop(writer);
        let signed = self.signed(room, policy, draft).await?;
        self.write(room).await?.send_signed(event, signed).await
    }

    async fn signed(
        &self,
        room: RoomNumber,
        policy: RoomPolicyEventContent,
        event: Verified,
    ) -> Result<Verified, Error> {
        let away = || Error::Forbidden("the policy server of the room cannot be reached".into());
        let sender = self
            .signings
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
            .ok_or_else(away)?;
        let (reply, answer) = oneshot::channel();
        let signing = Signing {
            room,
            policy,
            event,
            reply,
        };
        let ask = async {
            sender.send(signing).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(TIMEOUT, ask).await {
            Ok(Some(Ok(signed))) => Ok(signed),
            Ok(Some(Err(refusal))) => Err(Error::Forbidden(refusal.into())),
            Ok(None) | Err(_) => Err(away()),
        }
    }
}

impl RoomWriter {
    /// The policy server that the room uses now.
    ///
    /// Spec: s2s, "Determining if a Policy Server is enabled in a room".
    pub async fn policy_server(&mut self) -> Result<Option<RoomPolicyEventContent>, Error> {
        let Some(event) = self.state(POLICY, "").await? else {
            return Ok(None);
        };
        let Ok(policy) = event.pdu.content_as::<RoomPolicyEventContent>() else {
            return Ok(None);
        };
        let keys = &policy.public_keys;
        if !keys.contains_key(&SigningKeyAlgorithm::Ed25519) {
            return Ok(None);
        }
        self.settled().await?;
        let (rooms, room, via) = (self.rooms().clone(), self.room(), policy.via.clone());
        let is_joined = move |snapshot: &Snapshot| rooms.is_server_joined(snapshot, room, &via);
        let is_joined = self.rooms().store.read(is_joined).await?;
        Ok(is_joined.then_some(policy))
    }

    /// The policy server that has to sign this event.
    async fn policy_for(
        &mut self,
        event: &NewEvent,
    ) -> Result<Option<RoomPolicyEventContent>, Error> {
        match &event.state_key {
            Some(key) if key.is_empty() && event.event_type.to_string() == POLICY => Ok(None),
            _ => self.policy_server().await,
        }
    }

    /// Takes in an event of ours that has been signed meanwhile.
    async fn send_signed(&mut self, event: NewEvent, signed: Verified) -> Result<Sent, Error> {
        if let Some(sent) = self.sent_before(&event).await? {
            return Ok(sent);
        }
        let room = self.room();
        let received = self.receive(signed, Intake::Vouched, Batch::new()).await?;
        let Received::Settled {
            event: stored,
            commit,
            ..
        } = received
        else {
            return Err(Error::Forbidden("the event came too late".into()));
        };
        let event_id = stored.pdu.event_id.clone();
        if let Some((key, transaction)) = self
            .rooms()
            .transaction_key(room, &event)
            .zip(event.transaction.as_ref())
        {
            let mut batch = Batch::new();
            let place = (room, stored.number);
            self.rooms()
                .insert_transaction(&mut batch, (&key, transaction), place, &event_id);
            self.remember_transaction(key, event_id.clone());
            drop(self.rooms().store.submit(batch));
        }
        Ok(Sent { event_id, commit })
    }
}
