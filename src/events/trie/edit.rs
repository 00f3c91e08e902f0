//! Changing a trie: new nodes on the paths of the changed keys, everything else shared.

use std::{collections::HashMap, sync::Arc};

use smallvec::SmallVec;

use crate::events::{
    NodeNumber, StateKeyNumber, StateNumber,
    trie::{EMPTY, Entry, LEAF_KEYS, Node, NodeSource, child, digit, find, walk},
};

/// The result of [`edit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// The edited trie; the old root if nothing changed.
    pub root: NodeNumber,
    /// The new nodes, numbered upwards without holes; children before their parents.
    pub nodes: Vec<(NodeNumber, Node)>,
}

/// A key with its new value, `None` to remove it.
type Change = (StateKeyNumber, Option<StateNumber>);

/// Sets and removes keys. Of several changes to one key the last counts.
///
/// `next` is the first free node number. The caller makes sure that numbers are left: at most eight for each change, and one for
/// every two keys when a state is built.
///
/// # Errors
///
/// Those of `source`.
pub fn edit<S: NodeSource>(
    source: &S,
    root: NodeNumber,
    changes: &[Change],
    next: NodeNumber,
) -> Result<Edited, S::Error> {
    // Stable, so that of equal keys the last stays last.
    let mut sorted = changes.to_vec();
    sorted.sort_by_key(|change| change.0);
    sorted.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 = later.1;
        }
        same
    });

    let mut editor = Editor {
        source,
        loaded: load_paths(source, root, &sorted)?,
        next,
        nodes: Vec::new(),
    };
    let root = match editor.subtree(root, 0, &sorted)? {
        (Subtree::Kept(number), _) => number,
        (Subtree::Leaf(entries), _) if entries.is_empty() => EMPTY,
        (Subtree::Leaf(entries), _) => editor.write(Node::Leaf(entries)),
        (Subtree::Inner(node), _) => editor.write(node),
    };
    Ok(Edited {
        root,
        nodes: editor.nodes,
    })
}

/// The nodes on the paths of the changed keys, read level by level.
fn load_paths<S: NodeSource>(
    source: &S,
    root: NodeNumber,
    changes: &[Change],
) -> Result<HashMap<NodeNumber, Arc<Node>>, S::Error> {
    let mut loaded = HashMap::new();
    let mut wanted: Vec<(NodeNumber, Vec<Change>)> = Vec::new();
    if root != EMPTY && !changes.is_empty() {
        wanted.push((root, changes.to_vec()));
    }
    let mut level = 0;
    while !wanted.is_empty() {
        let numbers: Vec<NodeNumber> = wanted.iter().map(|(number, _)| *number).collect();
        let nodes = source.nodes(&numbers)?;
        let mut below = Vec::new();
        for ((number, changes), node) in wanted.into_iter().zip(nodes) {
            if let Node::Inner {
                bitmap, children, ..
            } = &*node
            {
                let parts = by_digit(&changes, level, |change| change.0);
                below.extend(parts.into_iter().zip(0_u16..).filter_map(|(part, digit)| {
                    let number = child(*bitmap, children, digit)?;
                    (!part.is_empty()).then_some((number, part))
                }));
            }
            loaded.insert(number, node);
        }
        wanted = below;
        level += 1;
    }
    Ok(loaded)
}

/// Items by the digit of their key, each part in the order of the whole.
fn by_digit<T: Copy>(items: &[T], level: u32, key: impl Fn(&T) -> StateKeyNumber) -> [Vec<T>; 16] {
    let mut parts: [Vec<T>; 16] = Default::default();
    for item in items {
        if let Some(part) = parts.get_mut(usize::from(digit(key(item), level))) {
            part.push(*item);
        }
    }
    parts
}

/// An edited subtree. What may still be merged into its parent has no number yet.
enum Subtree {
    Kept(NodeNumber),
    /// Empty if the subtree is.
    Leaf(Vec<Entry>),
    Inner(Node),
}

struct Editor<'a, S> {
    source: &'a S,
    loaded: HashMap<NodeNumber, Arc<Node>>,
    next: NodeNumber,
    nodes: Vec<(NodeNumber, Node)>,
}

impl<S: NodeSource> Editor<'_, S> {
    /// The edited subtree and by how many keys it grew.
    fn subtree(
        &mut self,
        number: NodeNumber,
        level: u32,
        changes: &[Change],
    ) -> Result<(Subtree, i64), S::Error> {
        if changes.is_empty() {
            return Ok((Subtree::Kept(number), 0));
        }
        let node = match self.loaded.get(&number) {
            None => Arc::new(Node::Leaf(Vec::new())),
            Some(node) => Arc::clone(node),
        };
        match &*node {
            Node::Leaf(entries) => Ok(self.leaf(number, level, entries, changes)),
            Node::Inner {
                count,
                bitmap,
                children,
            } => self.inner(
                number,
                level,
                &Inner {
                    count: *count,
                    bitmap: *bitmap,
                    children,
                },
                changes,
            ),
        }
    }

    fn leaf(
        &mut self,
        number: NodeNumber,
        level: u32,
        before: &[Entry],
        changes: &[Change],
    ) -> (Subtree, i64) {
        if changes
            .iter()
            .all(|(key, value)| find(before, *key) == *value)
        {
            return (Subtree::Kept(number), 0);
        }
        let after = merged(before, changes);
        let grown = length(&after) - length(before);
        (self.build(after, level), grown)
    }

    fn inner(
        &mut self,
        number: NodeNumber,
        level: u32,
        before: &Inner<'_>,
        changes: &[Change],
    ) -> Result<(Subtree, i64), S::Error> {
        let mut grown = 0;
        let mut parts = Vec::with_capacity(16);
        for (changes, digit) in by_digit(changes, level, |change| change.0)
            .iter()
            .zip(0_u16..)
        {
            let old = child(before.bitmap, before.children, digit).unwrap_or(EMPTY);
            let (part, more) = self.subtree(old, level + 1, changes)?;
            grown += more;
            parts.push((digit, part));
        }
        if parts
            .iter()
            .all(|(_, part)| matches!(part, Subtree::Kept(_)))
        {
            return Ok((Subtree::Kept(number), 0));
        }
        let count = i64::from(before.count) + grown;
        let subtree = match u32::try_from(count) {
            Ok(count) if as_usize(count) > LEAF_KEYS => self.join(count, parts),
            _ => Subtree::Leaf(self.collapse(parts)?),
        };
        Ok((subtree, grown))
    }

    /// An inner node over `parts`, which get their numbers now.
    fn join(&mut self, count: u32, parts: Vec<(u16, Subtree)>) -> Subtree {
        let (mut bitmap, mut children) = (0, SmallVec::new());
        for (digit, part) in parts {
            let number = match part {
                Subtree::Kept(number) => number,
                Subtree::Leaf(entries) if entries.is_empty() => EMPTY,
                Subtree::Leaf(entries) => self.write(Node::Leaf(entries)),
                Subtree::Inner(node) => self.write(node),
            };
            if number != EMPTY {
                bitmap |= 1 << digit;
                children.push(number);
            }
        }
        Subtree::Inner(Node::Inner {
            count,
            bitmap,
            children,
        })
    }

    /// The entries of `parts`, which together fit a leaf.
    fn collapse(&self, parts: Vec<(u16, Subtree)>) -> Result<Vec<Entry>, S::Error> {
        let mut all = Vec::new();
        for (_, part) in parts {
            match part {
                Subtree::Leaf(entries) => all.extend(entries),
                Subtree::Kept(number) => all.extend(walk(self.source, number)?),
                Subtree::Inner(_) => unreachable!("a subtree has no more keys than the tree"),
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// The canonical subtree of sorted `entries`.
    fn build(&mut self, entries: Vec<Entry>, level: u32) -> Subtree {
        if entries.len() <= LEAF_KEYS {
            return Subtree::Leaf(entries);
        }
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let parts = by_digit(&entries, level, |entry| entry.0);
        let parts = parts
            .into_iter()
            .zip(0_u16..)
            .map(|(part, digit)| (digit, self.build(part, level + 1)))
            .collect();
        self.join(count, parts)
    }

    fn write(&mut self, node: Node) -> NodeNumber {
        let number = self.next;
        self.next = NodeNumber(number.0 + 1);
        self.nodes.push((number, node));
        number
    }
}

/// The fields of an inner node.
struct Inner<'a> {
    count: u32,
    bitmap: u16,
    children: &'a [NodeNumber],
}

fn as_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn length(entries: &[Entry]) -> i64 {
    i64::try_from(entries.len()).unwrap_or(i64::MAX)
}

/// Sorted entries with sorted changes applied.
fn merged(before: &[Entry], changes: &[Change]) -> Vec<Entry> {
    let mut after = Vec::with_capacity(before.len() + changes.len());
    let mut before = before.iter().copied().peekable();
    for (key, value) in changes {
        while let Some(entry) = before.next_if(|entry| entry.0 < *key) {
            after.push(entry);
        }
        before.next_if(|entry| entry.0 == *key);
        after.extend(value.map(|value| (*key, value)));
    }
    after.extend(before);
    after
}
