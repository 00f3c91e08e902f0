//! Sweeps against sets.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Numbers = BTreeSet<u32>;

/// The parents of each state event, by its number.
type Edges = Vec<Numbers>;

fn any_edges() -> impl Strategy<Value = Edges> {
    prop::collection::vec(
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        1..60,
    )
    .prop_map(|events| {
        let parents = |(number, picks): (usize, Vec<prop::sample::Index>)| {
            picks
                .iter()
                .filter(|_| number > 0)
                .filter_map(|pick| u32::try_from(pick.index(number)).ok())
                .collect()
        };
        events.into_iter().enumerate().map(parents).collect()
    })
}

fn any_states(most: usize) -> impl Strategy<Value = Vec<Vec<prop::sample::Index>>> {
    prop::collection::vec(
        prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        0..most,
    )
}

fn graph(edges: &Edges) -> Graph {
    let rows = edges.iter().zip(0_u32..).map(|(parents, number)| {
        (
            StateNumber(number),
            StateKeyNumber(number % 5),
            states(parents),
        )
    });
    Graph::load(rows).expect("parents are smaller")
}

fn states(numbers: &Numbers) -> Vec<StateNumber> {
    numbers.iter().copied().map(StateNumber).collect()
}

fn pick(picks: &[prop::sample::Index], edges: &Edges) -> Numbers {
    picks
        .iter()
        .filter_map(|pick| u32::try_from(pick.index(edges.len())).ok())
        .collect()
}

/// Everything reached from `from` over at least one edge.
fn ancestors(edges: &Edges, from: &Numbers) -> Numbers {
    let mut found = Numbers::new();
    let mut next: Vec<u32> = from.iter().copied().collect();
    while let Some(number) = next.pop() {
        let parents = &edges[number as usize];
        next.extend(parents.difference(&found).copied());
        found.extend(parents);
    }
    found
}

proptest! {
    #[test]
    fn the_auth_difference_is_the_union_less_the_intersection(
        edges in any_edges(),
        common in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        sets in prop_oneof![4 => any_states(6), 1 => any_states(150)],
    ) {
        let common = pick(&common, &edges);
        let sets: Vec<Numbers> = sets.iter().map(|set| pick(set, &edges)).collect();
        let chains: Vec<Numbers> = sets.iter().map(|set| {
            let state: Numbers = set.union(&common).copied().collect();
            ancestors(&edges, &state).union(&state).copied().collect()
        }).collect();
        let union: Numbers = chains.iter().flatten().copied().collect();
        let expected: Numbers = union.into_iter().filter(|number| !chains.iter().all(|chain| chain.contains(number))).collect();

        let sets: Vec<Vec<StateNumber>> = sets.iter().map(states).collect();
        let mut difference = graph(&edges).auth_difference(&states(&common), &sets);
        difference.reverse();
        prop_assert_eq!(difference, states(&expected));
    }

    #[test]
    fn the_subgraph_is_what_lies_between_conflicted_events(
        edges in any_edges(),
        conflicted in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let conflicted = pick(&conflicted, &edges);
        let below = ancestors(&edges, &conflicted);
        let all = 0..u32::try_from(edges.len()).expect("tests are small");
        let between = |number: &u32| below.contains(number) && !ancestors(&edges, &[*number].into()).is_disjoint(&conflicted);
        let expected: Numbers = all.filter(|number| conflicted.contains(number) || between(number)).collect();

        prop_assert_eq!(graph(&edges).conflicted_subgraph(&states(&conflicted)), states(&expected));
    }

    #[test]
    fn the_auth_chain_is_everything_reached(edges in any_edges(), from in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let from = pick(&from, &edges);
        prop_assert_eq!(graph(&edges).auth_chain(&states(&from)), states(&ancestors(&edges, &from)));
    }

    #[test]
    fn the_power_ancestry_follows_power_levels_only(edges in any_edges(), from in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        const POWER_LEVELS: u32 = 2;
        let from = pick(&from, &edges);
        let is_power_levels = |number: &u32| number % 5 == POWER_LEVELS;
        let only_power: Edges = edges.iter().map(|parents| parents.iter().copied().filter(is_power_levels).collect()).collect();
        let reached = ancestors(&only_power, &from);
        let expected: Numbers = reached.union(&from).copied().filter(is_power_levels).collect();

        prop_assert_eq!(graph(&edges).power_ancestry(&states(&from), StateKeyNumber(POWER_LEVELS)), states(&expected));
    }
}

#[test]
fn a_graph_with_a_hole_or_a_parent_that_is_not_smaller_is_damaged() {
    let row = |number: u32, parents: &[u32]| {
        (
            StateNumber(number),
            StateKeyNumber(0),
            parents.iter().copied().map(StateNumber).collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        Graph::load([row(0, &[]), row(2, &[0])]).map(|_| ()),
        Err(DamagedGraph(StateNumber(2)))
    );
    assert_eq!(
        Graph::load([row(0, &[]), row(1, &[1])]).map(|_| ()),
        Err(DamagedGraph(StateNumber(1)))
    );
    let graph = Graph::load([row(0, &[]), row(1, &[0])]).expect("the rows are in order");
    assert_eq!(
        graph.parents(StateNumber(1)).collect::<Vec<_>>(),
        [StateNumber(0)]
    );
    assert_eq!(graph.next(), StateNumber(2));
}
