//! The members of a room who are users of this server, as its writer keeps them: to find who is named by a text, and who
//! has push rules of their own.
//!
//! A name is found by its longest word, so a text costs one look-up per word, however many members there are.

use std::collections::HashMap;

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use smallvec::SmallVec;

use crate::{
    accounts::UserNumber,
    events::{Pdu, trie},
    rooms::{Class, Error, Rooms, StoredEvent, head::Head, membership_of, state::Source},
};

#[derive(Clone, Debug, Default)]
pub(super) struct Locals {
    members: HashMap<UserNumber, Member>,
    numbers: HashMap<OwnedUserId, UserNumber>,
    /// By the longest word of a name, in lower case.
    names: HashMap<Box<str>, SmallVec<[UserNumber; 1]>>,
    /// Names without a word, or with wildcards, that are searched for one by one.
    odd_names: Vec<(Box<str>, UserNumber)>,
}

#[derive(Clone, Debug)]
struct Member {
    id: OwnedUserId,
    name: Box<str>,
}

#[derive(Deserialize)]
struct Content {
    displayname: Option<String>,
}

impl Locals {
    /// The members of the current state, what is in flight included.
    pub(super) fn load(rooms: &Rooms, head: &Head, source: &Source<'_>) -> Result<Self, Error> {
        let states: Vec<_> = trie::walk(source, head.root.members)?
            .into_iter()
            .map(|(_, state)| state)
            .collect();
        let mut found = Vec::with_capacity(states.len());
        let mut missing = Vec::new();
        for row in source.graph_many(&states)? {
            match source
                .fresh
                .iter()
                .find_map(|fresh| fresh.events.get(&row.event))
            {
                Some(event) => found.push(std::sync::Arc::clone(event)),
                None => missing.push(row.event),
            }
        }
        if !missing.is_empty() {
            let snapshot = source.snapshot.ok_or(Error::NotInMemory)?;
            found.extend(
                rooms
                    .events(snapshot, head.room, &missing)?
                    .into_iter()
                    .flatten(),
            );
        }
        let joined = found.iter().filter_map(|event| joined_local(rooms, event));
        let joined: Vec<_> = joined.collect();
        let ids: Vec<&UserId> = joined.iter().map(|(id, _)| &**id).collect();
        if ids.is_empty() {
            return Ok(Self::default());
        }
        let snapshot = source.snapshot.ok_or(Error::NotInMemory)?;
        let numbers = rooms.accounts.user_numbers(snapshot, &ids)?;
        let mut locals = Self::default();
        for ((id, pdu), number) in joined.iter().zip(numbers) {
            if let Some(number) = number {
                locals.add(number, id, pdu);
            }
        }
        Ok(locals)
    }

    /// Follows a change of the membership of `user`; `None`: there is none any more.
    pub(super) fn change(&mut self, rooms: &Rooms, user: UserNumber, pdu: Option<&Pdu>) {
        self.remove(user);
        let Some(pdu) = pdu else { return };
        let id = pdu
            .state_key
            .as_deref()
            .and_then(|key| UserId::parse(key).ok());
        if let Some(id) = id.filter(|id| rooms.accounts.is_local(id))
            && is_join(pdu)
        {
            self.add(user, &id, pdu);
        }
    }

    fn add(&mut self, user: UserNumber, id: &OwnedUserId, pdu: &Pdu) {
        let name = pdu
            .content_as::<Content>()
            .ok()
            .and_then(|content| content.displayname);
        let name = name.unwrap_or_else(|| id.localpart().to_owned());
        for name in [name.as_str(), id.localpart()] {
            let name = name.to_lowercase();
            match key_word(&name) {
                Some(word) => {
                    let users = self.names.entry(word.into()).or_default();
                    if !users.contains(&user) {
                        users.push(user);
                    }
                }
                None => self.odd_names.push((name.into(), user)),
            }
        }
        self.numbers.insert(id.clone(), user);
        let member = Member {
            id: id.clone(),
            name: name.into(),
        };
        self.members.insert(user, member);
    }

    fn remove(&mut self, user: UserNumber) {
        let Some(member) = self.members.remove(&user) else {
            return;
        };
        for name in [&*member.name, member.id.localpart()] {
            let name = name.to_lowercase();
            if let Some(word) = key_word(&name)
                && let Some(users) = self.names.get_mut(word)
            {
                users.retain(|other| *other != user);
            }
        }
        self.odd_names.retain(|(_, other)| *other != user);
        self.numbers.remove(&member.id);
    }

    pub(super) fn has(&self, user: UserNumber) -> bool {
        self.members.contains_key(&user)
    }

    pub(super) fn number(&self, user: &UserId) -> Option<UserNumber> {
        self.numbers.get(user).copied()
    }

    /// The number, ID and name in the room of a member.
    pub(super) fn member(&self, user: UserNumber) -> Option<(UserNumber, OwnedUserId, String)> {
        let member = self.members.get(&user)?;
        Some((user, member.id.clone(), member.name.to_string()))
    }

    /// Adds the members whose name or user name may stand in `text`, and maybe a few more.
    pub(super) fn named_in(&self, text: &str, found: &mut Vec<UserNumber>) {
        let text = text.to_lowercase();
        for word in words(&text) {
            if let Some(users) = self.names.get(word) {
                found.extend(users);
            }
        }
        for (name, user) in &self.odd_names {
            if name.contains(['*', '?']) || text.contains(&**name) {
                found.push(*user);
            }
        }
    }
}

fn joined_local<'a>(rooms: &Rooms, event: &'a StoredEvent) -> Option<(OwnedUserId, &'a Pdu)> {
    let id = UserId::parse(event.pdu.state_key.as_deref()?).ok()?;
    let is_joined = Class::of(&membership_of(event)) == Class::Join;
    (is_joined && rooms.accounts.is_local(&id)).then_some((id, &*event.pdu))
}

fn is_join(pdu: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Membership {
        membership: String,
    }
    pdu.content_as::<Membership>()
        .is_ok_and(|content| content.membership == "join")
}

/// The words of a text, as push rules see them.
///
/// Spec: c2s, "Push Rules", `event_match`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(move |letter| !is_word(letter))
        .filter(|word| !word.is_empty())
}

/// The word by which a name is found.
fn key_word(name: &str) -> Option<&str> {
    if name.contains(['*', '?']) {
        return None;
    }
    words(name).max_by_key(|word| word.len())
}
