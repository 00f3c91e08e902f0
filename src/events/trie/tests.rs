//! The trie against a `BTreeMap`, and its shape against one built at once.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    convert::Infallible,
};

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Memory {
    nodes: HashMap<NodeNumber, Arc<Node>>,
    calls: Cell<u32>,
}

impl NodeSource for Memory {
    type Error = Infallible;

    fn nodes(&self, numbers: &[NodeNumber]) -> Result<Vec<Arc<Node>>, Infallible> {
        assert!(!numbers.is_empty(), "nothing is asked for");
        self.calls.set(self.calls.get() + 1);
        Ok(numbers
            .iter()
            .map(|number| Arc::clone(&self.nodes[number]))
            .collect())
    }
}

type Content = BTreeMap<StateKeyNumber, StateNumber>;
type Change = (StateKeyNumber, Option<StateNumber>);

impl Memory {
    /// Edits, and stores the new nodes by their stored form.
    fn edit(&mut self, root: NodeNumber, changes: &[Change]) -> NodeNumber {
        let next = NodeNumber(1 + u32::try_from(self.nodes.len()).expect("tests are small"));
        let Ok(edited) = edit(self, root, changes, next);
        for ((number, node), expected) in edited.nodes.into_iter().zip(next.0..) {
            assert_eq!(number.0, expected, "numbers have no holes");
            let stored = Node::decode(&node.encode());
            assert_eq!(stored.as_ref(), Ok(&node));
            self.nodes.insert(number, Arc::new(node));
        }
        edited.root
    }

    /// The subtree in a form in which equal shape and content are equal text.
    fn shape(&self, number: NodeNumber) -> String {
        match self.nodes.get(&number).map(|node| &**node) {
            None => "-".to_owned(),
            Some(Node::Leaf(entries)) => format!("{entries:?}"),
            Some(Node::Inner {
                count,
                bitmap,
                children,
            }) => {
                let children: Vec<String> =
                    children.iter().map(|child| self.shape(*child)).collect();
                format!("({count} {bitmap} {children:?})")
            }
        }
    }

    fn content(&self, root: NodeNumber) -> Content {
        let Ok(entries) = walk(self, root);
        let content: Content = entries.iter().copied().collect();
        assert_eq!(content.len(), entries.len(), "no key is there twice");
        content
    }
}

fn apply(content: &mut Content, changes: &[Change]) {
    for (key, value) in changes {
        match value {
            Some(value) => content.insert(*key, *value),
            None => content.remove(key),
        };
    }
}

/// Keys that share many digits, keys that share few, and any.
fn any_key() -> impl Strategy<Value = StateKeyNumber> {
    prop_oneof![8 => 0..400_u32, 2 => (0..200_u32).prop_map(|key| key << 12), 1 => any::<u32>()]
        .prop_map(StateKeyNumber)
}

fn any_changes() -> impl Strategy<Value = Vec<Change>> {
    let value =
        prop_oneof![3 => (0..5_u32).prop_map(|value| Some(StateNumber(value))), 2 => Just(None)];
    prop::collection::vec((any_key(), value), 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn edits_give_the_content_and_the_shape_of_a_trie_built_at_once(edits in prop::collection::vec(any_changes(), 1..8)) {
        let (mut memory, mut root, mut content) = (Memory::default(), EMPTY, Content::new());
        for changes in edits {
            let (before, old) = (content.clone(), root);
            root = memory.edit(root, &changes);
            apply(&mut content, &changes);
            prop_assert_eq!(memory.content(root), content.clone());

            let mut all_at_once: Vec<Change> = content.iter().map(|(key, value)| (*key, Some(*value))).collect();
            all_at_once.reverse();
            let mut other = Memory::default();
            let built = other.edit(EMPTY, &all_at_once);
            prop_assert_eq!(memory.shape(root), other.shape(built));
            prop_assert_eq!(root == EMPTY, content.is_empty());
            prop_assert_eq!(root == old, before == content, "a trie keeps its root if and only if nothing changed");

            let Ok(mut differences) = diff(&memory, old, root);
            differences.sort();
            let keys = before.keys().chain(content.keys()).copied().collect::<std::collections::BTreeSet<_>>();
            let expected: Vec<Difference> = keys
                .into_iter()
                .map(|key| Difference { key, before: before.get(&key).copied(), after: content.get(&key).copied() })
                .filter(|difference| difference.before != difference.after)
                .collect();
            prop_assert_eq!(differences, expected);
        }
    }

    #[test]
    fn look_ups_find_what_is_there(changes in any_changes(), wanted in prop::collection::vec(any_key(), 0..50)) {
        let (mut memory, mut content) = (Memory::default(), Content::new());
        let root = memory.edit(EMPTY, &changes);
        apply(&mut content, &changes);

        let Ok(found) = get_many(&memory, root, &wanted);
        prop_assert_eq!(found, wanted.iter().map(|key| content.get(key).copied()).collect::<Vec<_>>());
        for key in wanted {
            let Ok(found) = get(&memory, root, key);
            prop_assert_eq!(found, content.get(&key).copied());
        }
    }

    #[test]
    fn bytes_that_are_a_node_are_its_only_form(bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..40)) {
        if let Ok(node) = Node::decode(&bytes) {
            prop_assert_eq!(node.encode(), bytes);
        }
    }
}

/// A trie with these keys, each with itself as value.
fn of_keys(keys: impl IntoIterator<Item = u32>) -> (Memory, NodeNumber) {
    let mut memory = Memory::default();
    let changes: Vec<Change> = keys
        .into_iter()
        .map(|key| (StateKeyNumber(key), Some(StateNumber(key))))
        .collect();
    let root = memory.edit(EMPTY, &changes);
    memory.calls.set(0);
    (memory, root)
}

#[test]
fn a_leaf_splits_at_one_key_more_and_collapses_at_one_less() {
    let (mut memory, leaf) = of_keys(0..64);
    assert!(matches!(*memory.nodes[&leaf], Node::Leaf(_)));
    let inner = memory.edit(leaf, &[(StateKeyNumber(64), Some(StateNumber(64)))]);
    assert!(matches!(
        *memory.nodes[&inner],
        Node::Inner {
            count: 65,
            bitmap: 0xffff,
            ..
        }
    ));
    let again = memory.edit(inner, &[(StateKeyNumber(64), None)]);
    assert_eq!(memory.nodes[&again], memory.nodes[&leaf]);
}

#[test]
fn a_change_in_a_large_state_touches_one_node_per_level() {
    let (mut memory, root) = of_keys(0..100_000);
    assert_eq!(memory.nodes.len(), 4369);
    let changes = [(StateKeyNumber(77_777), Some(StateNumber(1)))];
    let Ok(edited) = edit(&memory, root, &changes, NodeNumber(10_000));
    assert_eq!((edited.nodes.len(), memory.calls.take()), (4, 4));

    let changed = memory.edit(root, &changes);
    memory.calls.set(0);
    let Ok(differences) = diff(&memory, root, changed);
    assert_eq!((differences.len(), memory.calls.take()), (1, 4));
    let keys: Vec<StateKeyNumber> = (0..100_000).step_by(1000).map(StateKeyNumber).collect();
    let Ok(found) = get_many(&memory, root, &keys);
    assert_eq!(
        (found.iter().flatten().count(), memory.calls.take()),
        (100, 4)
    );
}

#[test]
fn the_stored_form_of_nodes_does_not_change() {
    let leaf = Node::Leaf(vec![
        (StateKeyNumber(3), StateNumber(300)),
        (StateKeyNumber(200), StateNumber(0)),
    ]);
    assert_eq!(leaf.encode(), [1, 2, 3, 0xac, 0x02, 0xc5, 0x01, 0]);
    let children = [NodeNumber(1), NodeNumber(0x0102_0304)]
        .into_iter()
        .collect();
    let inner = Node::Inner {
        count: 130,
        bitmap: 0b1000_0000_0000_0010,
        children,
    };
    assert_eq!(
        inner.encode(),
        [2, 0x82, 0x01, 0x80, 0x02, 0, 0, 0, 1, 1, 2, 3, 4]
    );
}
