//! The trie of a room state: which state event holds each (type, state key).
//!
//! The shape depends only on the content: the child of a key at level L is `(key >> 4L) & 15`; a subtree of at most [`LEAF_KEYS`] keys is
//! one leaf, a larger one an inner node; removal collapses. So a state change writes one node per level, equal subtrees share nodes,
//! and two states are compared by walking only where their node numbers differ.
//!
//! Nodes come from a [`NodeSource`], asked once per level for all nodes of that level.

mod codec;
mod edit;

use std::sync::Arc;

use smallvec::SmallVec;

pub use self::{
    codec::DamagedNode,
    edit::{Edited, edit},
};
use crate::events::{NodeNumber, StateKeyNumber, StateNumber};

/// Most keys of a leaf.
pub const LEAF_KEYS: usize = 64;

/// The number of the trie without entries.
pub const EMPTY: NodeNumber = NodeNumber(0);

/// An entry of a state.
pub type Entry = (StateKeyNumber, StateNumber);

/// A node, immutable once stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Sorted by key.
    Leaf(Vec<Entry>),
    Inner {
        /// Keys below this node, more than [`LEAF_KEYS`].
        count: u32,
        /// Bit d is set if there is a child for digit d.
        bitmap: u16,
        /// The children, by rising digit.
        children: SmallVec<[NodeNumber; 16]>,
    },
}

impl Node {
    /// Keys in this node and below it.
    pub fn count(&self) -> u32 {
        match self {
            Self::Leaf(entries) => u32::try_from(entries.len()).unwrap_or(u32::MAX),
            Self::Inner { count, .. } => *count,
        }
    }
}

/// Where nodes are found. [`EMPTY`] is never asked for.
pub trait NodeSource {
    type Error;

    /// The nodes of these numbers, in their order. A missing node is an error: the row is damaged.
    fn nodes(&self, numbers: &[NodeNumber]) -> Result<Vec<Arc<Node>>, Self::Error>;
}

/// A key whose value differs between two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    pub key: StateKeyNumber,
    pub before: Option<StateNumber>,
    pub after: Option<StateNumber>,
}

/// The digit of `key` at `level`.
fn digit(key: StateKeyNumber, level: u32) -> u16 {
    let bits = (key.0 >> (4 * level)) & 15;
    u16::try_from(bits).unwrap_or(0)
}

/// The child of an inner node for a digit.
fn child(bitmap: u16, children: &[NodeNumber], digit: u16) -> Option<NodeNumber> {
    let bit = 1_u16 << digit;
    if bitmap & bit == 0 {
        return None;
    }
    let below = (bitmap & (bit - 1)).count_ones();
    usize::try_from(below)
        .ok()
        .and_then(|index| children.get(index))
        .copied()
}

fn find(entries: &[Entry], key: StateKeyNumber) -> Option<StateNumber> {
    let index = entries.binary_search_by_key(&key, |entry| entry.0).ok()?;
    entries.get(index).map(|entry| entry.1)
}

/// The value of one key.
///
/// # Errors
///
/// Those of `source`.
pub fn get<S: NodeSource>(
    source: &S,
    root: NodeNumber,
    key: StateKeyNumber,
) -> Result<Option<StateNumber>, S::Error> {
    let mut values = get_many(source, root, &[key])?;
    Ok(values.pop().flatten())
}

/// The values of several keys, in their order.
///
/// # Errors
///
/// Those of `source`.
pub fn get_many<S: NodeSource>(
    source: &S,
    root: NodeNumber,
    keys: &[StateKeyNumber],
) -> Result<Vec<Option<StateNumber>>, S::Error> {
    let mut values = vec![None; keys.len()];
    // Per node of this level, the positions of the keys looked for below it.
    let mut wanted: Vec<(NodeNumber, Vec<usize>)> = Vec::new();
    if root != EMPTY && !keys.is_empty() {
        wanted.push((root, (0..keys.len()).collect()));
    }
    let mut level = 0;
    while !wanted.is_empty() {
        let numbers: Vec<NodeNumber> = wanted.iter().map(|(number, _)| *number).collect();
        let nodes = source.nodes(&numbers)?;
        let mut below = Vec::new();
        for (node, (_, positions)) in nodes.iter().zip(wanted) {
            match &**node {
                Node::Leaf(entries) => look_up(entries, keys, &positions, &mut values),
                Node::Inner {
                    bitmap, children, ..
                } => {
                    let digit_of =
                        |position: usize| keys.get(position).map(|key| digit(*key, level));
                    below.extend(by_child(*bitmap, children, &positions, digit_of));
                }
            }
        }
        wanted = below;
        level += 1;
    }
    Ok(values)
}

fn look_up(
    entries: &[Entry],
    keys: &[StateKeyNumber],
    positions: &[usize],
    values: &mut [Option<StateNumber>],
) {
    for &position in positions {
        if let (Some(key), Some(value)) = (keys.get(position), values.get_mut(position)) {
            *value = find(entries, *key);
        }
    }
}

/// Positions by the child of an inner node that their digit leads to; those that lead nowhere are left out.
fn by_child(
    bitmap: u16,
    children: &[NodeNumber],
    positions: &[usize],
    digit_of: impl Fn(usize) -> Option<u16>,
) -> Vec<(NodeNumber, Vec<usize>)> {
    let mut parts: Vec<(NodeNumber, Vec<usize>)> = Vec::new();
    for &position in positions {
        let Some(number) = digit_of(position).and_then(|digit| child(bitmap, children, digit))
        else {
            continue;
        };
        match parts.iter_mut().find(|(other, _)| *other == number) {
            Some((_, part)) => part.push(position),
            None => parts.push((number, vec![position])),
        }
    }
    parts
}

/// All entries, in no particular order (but always the same).
///
/// # Errors
///
/// Those of `source`.
pub fn walk<S: NodeSource>(source: &S, root: NodeNumber) -> Result<Vec<Entry>, S::Error> {
    let mut entries = Vec::new();
    let mut numbers: Vec<NodeNumber> = if root == EMPTY {
        Vec::new()
    } else {
        vec![root]
    };
    while !numbers.is_empty() {
        let nodes = source.nodes(&numbers)?;
        numbers.clear();
        for node in &nodes {
            match &**node {
                Node::Leaf(leaf) => entries.extend_from_slice(leaf),
                Node::Inner { children, .. } => numbers.extend_from_slice(children),
            }
        }
    }
    Ok(entries)
}

/// One side of a comparison: a subtree not yet read, or entries that the other side's shape has cut out of a leaf.
enum Side {
    Number(NodeNumber),
    Entries(Vec<Entry>),
}

/// The same, read.
enum Read {
    Node(Arc<Node>),
    Entries(Vec<Entry>),
}

/// The keys whose values differ, in no particular order (but always the same).
///
/// # Errors
///
/// Those of `source`.
pub fn diff<S: NodeSource>(
    source: &S,
    before: NodeNumber,
    after: NodeNumber,
) -> Result<Vec<Difference>, S::Error> {
    let mut differences = Vec::new();
    let mut pairs = Vec::new();
    push_pair(Side::Number(before), Side::Number(after), &mut pairs);
    let mut level = 0;
    while !pairs.is_empty() {
        let numbers: Vec<NodeNumber> = pairs
            .iter()
            .flat_map(|(before, after)| unread(before).chain(unread(after)))
            .collect();
        let mut nodes = source.nodes(&numbers)?.into_iter();
        let mut below = Vec::new();
        for (before, after) in pairs {
            let (before, after) = (read(before, &mut nodes), read(after, &mut nodes));
            compare(&before, &after, level, &mut differences, &mut below);
        }
        pairs = below;
        level += 1;
    }
    Ok(differences)
}

fn unread(side: &Side) -> impl Iterator<Item = NodeNumber> + use<> {
    match side {
        Side::Number(number) if *number != EMPTY => Some(*number),
        _ => None,
    }
    .into_iter()
}

fn read(side: Side, nodes: &mut impl Iterator<Item = Arc<Node>>) -> Read {
    match side {
        Side::Entries(entries) => Read::Entries(entries),
        Side::Number(EMPTY) => Read::Entries(Vec::new()),
        Side::Number(_) => nodes.next().map_or(Read::Entries(Vec::new()), Read::Node),
    }
}

fn push_pair(before: Side, after: Side, pairs: &mut Vec<(Side, Side)>) {
    match (&before, &after) {
        (Side::Number(before), Side::Number(after)) if before == after => {}
        (Side::Entries(before), Side::Entries(after)) if before.is_empty() && after.is_empty() => {}
        _ => pairs.push((before, after)),
    }
}

fn compare(
    before: &Read,
    after: &Read,
    level: u32,
    differences: &mut Vec<Difference>,
    below: &mut Vec<(Side, Side)>,
) {
    if let (Some(before), Some(after)) = (entries(before), entries(after)) {
        merge(before, after, differences);
        return;
    }
    for digit in 0..16 {
        push_pair(part(before, level, digit), part(after, level, digit), below);
    }
}

fn entries(side: &Read) -> Option<&[Entry]> {
    match side {
        Read::Entries(entries) => Some(entries),
        Read::Node(node) => match &**node {
            Node::Leaf(entries) => Some(entries),
            Node::Inner { .. } => None,
        },
    }
}

/// What `side` holds for `digit`.
fn part(side: &Read, level: u32, wanted: u16) -> Side {
    let of_digit = |entries: &[Entry]| {
        Side::Entries(
            entries
                .iter()
                .copied()
                .filter(|(key, _)| digit(*key, level) == wanted)
                .collect(),
        )
    };
    match side {
        Read::Entries(entries) => of_digit(entries),
        Read::Node(node) => match &**node {
            Node::Leaf(entries) => of_digit(entries),
            Node::Inner {
                bitmap, children, ..
            } => match child(*bitmap, children, wanted) {
                Some(number) => Side::Number(number),
                None => Side::Entries(Vec::new()),
            },
        },
    }
}

/// Compares two sorted lists of entries.
fn merge(before: &[Entry], after: &[Entry], differences: &mut Vec<Difference>) {
    let (mut before, mut after) = (
        before.iter().copied().peekable(),
        after.iter().copied().peekable(),
    );
    loop {
        let key = match (before.peek(), after.peek()) {
            (None, None) => return,
            (Some(entry), None) | (None, Some(entry)) => entry.0,
            (Some(before), Some(after)) => before.0.min(after.0),
        };
        let before = before.next_if(|entry| entry.0 == key).map(|entry| entry.1);
        let after = after.next_if(|entry| entry.0 == key).map(|entry| entry.1);
        if before != after {
            differences.push(Difference { key, before, after });
        }
    }
}

#[cfg(test)]
mod tests;
