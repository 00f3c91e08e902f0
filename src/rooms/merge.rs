//! Rooms whose graph has many loose ends: an event that is not shown ties them together.
//!
//! Whatever is sent in such a room does the same, so this is for rooms in which users of this server are silent. With many
//! ends each event from elsewhere would have to be held against many states. engine.md section 8.

use std::time::Duration;

use ruma::{CanonicalJsonObject, OwnedUserId, events::TimelineEventType};

use super::{Class, Error, NewEvent, RoomNumber, Rooms};
use crate::{events::extremities::MAX_CITED, storage::Snapshot, tasks::Stop};

/// The type of the events that do it, which other servers know and do not show either.
pub(super) const MERGE_TYPE: &str = "org.matrix.dummy_event";

/// How often rooms are looked through.
const PAUSE: Duration = Duration::from_secs(60);
/// A room with more ends than this does not wait for that.
const TOO_MANY_ENDS: usize = 30;
/// Events that one room gets in a round.
const MAX_MERGES: usize = 5;
/// Members among whom one is looked for who may send the event.
const MAX_MEMBERS_ASKED: usize = 1_000;

impl Rooms {
    /// Ties loose ends together, until it is stopped.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn merge_ends(&self, stop: Stop) -> Result<(), Error> {
        while !stop.is_requested() {
            for room in self.with_many_ends() {
                match self.merge(room).await {
                    // Nobody here may send it: others have to.
                    Ok(()) | Err(Error::NotAllowed(_) | Error::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            tokio::select! {
                () = self.clock.sleep(PAUSE) => {}
                () = self.loose_ends.notified() => {}
                () = stop.requested() => {}
            }
        }
        Ok(())
    }

    /// Has a room seen to that has got another end.
    pub(super) fn note_ends(&self, count: usize) {
        if count > TOO_MANY_ENDS {
            self.loose_ends.notify_one();
        }
    }

    fn with_many_ends(&self) -> Vec<RoomNumber> {
        let published = self
            .published
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let loose = published
            .iter()
            .filter(|(_, room)| room.head.local > 0 && room.head.extremities.len() > MAX_CITED);
        loose.map(|(room, _)| *room).collect()
    }

    /// Ties the loose ends of a room together.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no user of this server may send the event.
    pub(super) async fn merge(&self, room: RoomNumber) -> Result<(), Error> {
        let sender = self.local_sender(room).await?.ok_or(Error::NotFound)?;
        for _ in 0..MAX_MERGES {
            let writer = self.write(room).await?;
            if writer.head().extremities.len() <= MAX_CITED {
                break;
            }
            let event = NewEvent {
                sender: sender.clone(),
                event_type: TimelineEventType::from(MERGE_TYPE),
                state_key: None,
                content: CanonicalJsonObject::new(),
                redacts: None,
                transaction: None,
                timestamp: None,
            };
            let _in_flight = self.send_in_turn(writer, event).await?;
        }
        self.write(room).await?.settled().await
    }

    /// A joined user of this server who may send the event.
    async fn local_sender(&self, room: RoomNumber) -> Result<Option<OwnedUserId>, Error> {
        let levels = self.write(room).await?.power_levels().await?;
        let rooms = self.clone();
        self.store
            .read(move |snapshot: &Snapshot| -> Result<_, Error> {
                let event_type = TimelineEventType::from(MERGE_TYPE);
                for (user, ..) in rooms.members(snapshot, room, Class::Join, MAX_MEMBERS_ASKED)? {
                    let user = rooms.accounts.user_id(snapshot, user)?;
                    if rooms.accounts.is_local(&user) && levels.may_send_message(&user, &event_type)
                    {
                        return Ok(Some(user));
                    }
                }
                Ok(None)
            })
            .await
    }
}
