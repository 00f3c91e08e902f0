//! The auth graph of a room: state events and their auth events, as numbers.
//!
//! A parent always has a smaller number than its child, so every question is one or two sweeps over the numbers, without a visited set
//! and without recursion. Memory: 8 bytes per state event and 4 per edge.

use crate::events::{StateKeyNumber, StateNumber};

/// Sets answered by one sweep: the bits of a mask.
const SETS_PER_SWEEP: usize = 64;

/// Auth events per state event.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The key of each state event.
    keys: Vec<u32>,
    /// Where the parents of each state event end; they start where those of the one before end.
    ends: Vec<u32>,
    parents: Vec<u32>,
}

/// A row that does not fit the graph: the room's table is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the auth graph is damaged at state {0:?}")]
pub struct DamagedGraph(pub StateNumber);

impl Graph {
    /// The graph of the rows of a room: number, key and parents, by rising number.
    ///
    /// # Errors
    ///
    /// If a number is left out or a parent is not smaller than its child.
    pub fn load<P: AsRef<[StateNumber]>>(
        rows: impl IntoIterator<Item = (StateNumber, StateKeyNumber, P)>,
    ) -> Result<Self, DamagedGraph> {
        let mut graph = Self::default();
        for (number, key, parents) in rows {
            if number != graph.next() || parents.as_ref().iter().any(|parent| *parent >= number) {
                return Err(DamagedGraph(number));
            }
            graph.push(key, parents.as_ref());
        }
        Ok(graph)
    }

    /// The number that the next state event gets.
    pub fn next(&self) -> StateNumber {
        StateNumber(u32::try_from(self.keys.len()).unwrap_or(u32::MAX))
    }

    /// Adds a state event, whose auth events are known and so have numbers.
    pub fn push(&mut self, key: StateKeyNumber, parents: &[StateNumber]) -> StateNumber {
        let number = self.next();
        assert!(
            parents.iter().all(|parent| *parent < number),
            "an auth event is stored before what cites it"
        );
        self.keys.push(key.0);
        self.parents.extend(parents.iter().map(|parent| parent.0));
        self.ends
            .push(u32::try_from(self.parents.len()).unwrap_or(u32::MAX));
        number
    }

    /// Takes away the state events from `next` on.
    pub fn truncate(&mut self, next: StateNumber) {
        let length = index(next);
        if length >= self.keys.len() {
            return;
        }
        let edges = length.checked_sub(1).and_then(|last| self.ends.get(last));
        let edges = edges.map_or(0, |end| usize::try_from(*end).unwrap_or(usize::MAX));
        self.keys.truncate(length);
        self.ends.truncate(length);
        self.parents.truncate(edges);
    }

    /// The (type, state key) of a state event.
    pub fn key(&self, state: StateNumber) -> Option<StateKeyNumber> {
        self.keys.get(index(state)).copied().map(StateKeyNumber)
    }

    /// The auth events of a state event.
    pub fn parents(&self, state: StateNumber) -> impl Iterator<Item = StateNumber> {
        self.edges(index(state)).iter().copied().map(StateNumber)
    }

    /// Bytes of memory used, for a cache that counts them.
    pub fn memory(&self) -> usize {
        4 * (self.keys.capacity() + self.ends.capacity() + self.parents.capacity())
    }

    fn edges(&self, state: usize) -> &[u32] {
        let end = |state: usize| {
            self.ends
                .get(state)
                .copied()
                .map_or(0, |end| usize::try_from(end).unwrap_or(usize::MAX))
        };
        let start = state.checked_sub(1).map_or(0, end);
        self.parents.get(start..end(state)).unwrap_or_default()
    }

    /// The auth difference of several states: what is in, or in the auth chain of, some of them but not all. By falling number.
    ///
    /// State i is `common` and `sets[i]`. The chain of a state holds its own events, as with other servers: the literal reading of the
    /// spec gives another result in rare cases.
    ///
    /// Spec: rooms/v2, "State resolution".
    pub fn auth_difference(
        &self,
        common: &[StateNumber],
        sets: &[Vec<StateNumber>],
    ) -> Vec<StateNumber> {
        match sets {
            [] | [_] => Vec::new(),
            sets if sets.len() <= SETS_PER_SWEEP => self.difference_of_few(common, sets),
            sets => self.difference_of_many(common, sets),
        }
    }

    fn difference_of_few(
        &self,
        common: &[StateNumber],
        sets: &[Vec<StateNumber>],
    ) -> Vec<StateNumber> {
        let mut sweep = Sweep::new(self, common, sets);
        let mut difference = Vec::new();
        while sweep.partial > 0 {
            let Some(state) = sweep.step() else { break };
            if sweep.is_partial(state) {
                sweep.partial -= 1;
                difference.push(StateNumber(u32::try_from(state).unwrap_or(u32::MAX)));
            }
        }
        difference
    }

    /// More states than a mask has bits: what is in the chain of any, less what is in the chains of all.
    fn difference_of_many(
        &self,
        common: &[StateNumber],
        sets: &[Vec<StateNumber>],
    ) -> Vec<StateNumber> {
        let (mut any, mut all) = (vec![false; self.keys.len()], vec![true; self.keys.len()]);
        for sets in sets.chunks(SETS_PER_SWEEP) {
            let mut sweep = Sweep::new(self, common, sets);
            while sweep.step().is_some() {}
            for ((mask, any), all) in sweep.masks.iter().zip(&mut any).zip(&mut all) {
                *any |= *mask != 0;
                *all &= *mask == sweep.full;
            }
        }
        let is_in_some: Vec<bool> = any
            .iter()
            .zip(&all)
            .map(|(any, all)| *any && !*all)
            .collect();
        let mut difference = numbered(&is_in_some);
        difference.reverse();
        difference
    }

    /// The conflicted state subgraph: every event on a path of auth events from one conflicted event to another, with these. By rising number.
    ///
    /// Spec: rooms/v12, "State resolution".
    pub fn conflicted_subgraph(&self, conflicted: &[StateNumber]) -> Vec<StateNumber> {
        let (Some(lowest), Some(highest)) = (conflicted.iter().min(), conflicted.iter().max())
        else {
            return Vec::new();
        };
        let (low, high) = (index(*lowest), index(*highest));
        if high >= self.keys.len() {
            return Vec::new();
        }
        let mut is_conflicted = vec![false; high - low + 1];
        for state in conflicted {
            set(&mut is_conflicted, index(*state) - low);
        }
        let inside = |parent: &u32| index(StateNumber(*parent)).checked_sub(low);

        let mut is_reached = is_conflicted.clone();
        for state in (low..=high).rev() {
            if is_reached.get(state - low) == Some(&true) {
                self.edges(state)
                    .iter()
                    .filter_map(inside)
                    .for_each(|parent| set(&mut is_reached, parent));
            }
        }
        let mut reaches = is_conflicted;
        for state in low..=high {
            if self
                .edges(state)
                .iter()
                .filter_map(inside)
                .any(|parent| reaches.get(parent) == Some(&true))
            {
                set(&mut reaches, state - low);
            }
        }
        let both = is_reached.iter().zip(&reaches).zip(lowest.0..);
        both.filter(|((reached, reaches), _)| **reached && **reaches)
            .map(|(_, state)| StateNumber(state))
            .collect()
    }

    /// All events that `states` cite as auth events, directly or through others. By rising number.
    ///
    /// The create event of a room of version 12 is cited by nobody: whoever answers other servers adds it.
    pub fn auth_chain(&self, states: &[StateNumber]) -> Vec<StateNumber> {
        let Some(highest) = states.iter().max() else {
            return Vec::new();
        };
        let mut is_in_chain = vec![false; index(*highest).min(self.keys.len())];
        let mark = |state: usize, is_in_chain: &mut Vec<bool>| {
            self.edges(state)
                .iter()
                .for_each(|parent| set(is_in_chain, index(StateNumber(*parent))));
        };
        states
            .iter()
            .for_each(|state| mark(index(*state), &mut is_in_chain));
        for state in (0..is_in_chain.len()).rev() {
            if is_in_chain.get(state) == Some(&true) {
                mark(state, &mut is_in_chain);
            }
        }
        numbered(&is_in_chain)
    }

    /// The power levels that `states` were sent under, those under which these were sent, and so on; among them those of `states` that
    /// are power levels themselves. By rising number.
    pub fn power_ancestry(
        &self,
        states: &[StateNumber],
        power_levels: StateKeyNumber,
    ) -> Vec<StateNumber> {
        let Some(highest) = states.iter().max() else {
            return Vec::new();
        };
        let length = (index(*highest) + 1).min(self.keys.len());
        let mut is_wanted = vec![false; length];
        states
            .iter()
            .for_each(|state| set(&mut is_wanted, index(*state)));
        let is_power_levels = |state: usize| self.keys.get(state) == Some(&power_levels.0);
        for state in (0..length).rev() {
            if is_wanted.get(state) == Some(&true) {
                let parents = self
                    .edges(state)
                    .iter()
                    .map(|parent| index(StateNumber(*parent)));
                parents
                    .filter(|parent| is_power_levels(*parent))
                    .for_each(|parent| set(&mut is_wanted, parent));
            }
        }
        numbered(&is_wanted)
            .into_iter()
            .filter(|state| is_power_levels(index(*state)))
            .collect()
    }
}

fn index(state: StateNumber) -> usize {
    usize::try_from(state.0).unwrap_or(usize::MAX)
}

fn set(flags: &mut [bool], index: usize) {
    if let Some(flag) = flags.get_mut(index) {
        *flag = true;
    }
}

fn numbered(flags: &[bool]) -> Vec<StateNumber> {
    flags
        .iter()
        .zip(0..)
        .filter(|(flag, _)| **flag)
        .map(|(_, state)| StateNumber(state))
        .collect()
}

/// A sweep from the highest number down, which tells each event in which states' chains it is.
struct Sweep<'a> {
    graph: &'a Graph,
    /// Bit i: in the chain of state i.
    masks: Vec<u64>,
    full: u64,
    /// The events from here on are done.
    position: usize,
    /// Events not yet done whose mask is neither empty nor full.
    partial: usize,
}

impl<'a> Sweep<'a> {
    fn new(graph: &'a Graph, common: &[StateNumber], sets: &[Vec<StateNumber>]) -> Self {
        let full = u64::MAX >> (SETS_PER_SWEEP - sets.len().clamp(1, SETS_PER_SWEEP));
        let length = graph.keys.len();
        let mut sweep = Self {
            graph,
            masks: vec![0; length],
            full,
            position: length,
            partial: 0,
        };
        common
            .iter()
            .for_each(|state| sweep.add(index(*state), full));
        for (set, bit) in sets.iter().zip(0..) {
            set.iter()
                .for_each(|state| sweep.add(index(*state), 1 << bit));
        }
        sweep
    }

    /// Adds `bits` to an event not yet done.
    fn add(&mut self, state: usize, bits: u64) {
        let Some(mask) = self.masks.get_mut(state) else {
            return;
        };
        let (before, after) = (*mask, *mask | bits);
        *mask = after;
        let is_partial = |mask| mask != 0 && mask != self.full;
        match (is_partial(before), is_partial(after)) {
            (false, true) => self.partial += 1,
            (true, false) => self.partial -= 1,
            _ => {}
        }
    }

    fn is_partial(&self, state: usize) -> bool {
        self.masks
            .get(state)
            .is_some_and(|mask| *mask != 0 && *mask != self.full)
    }

    /// Hands the mask of the next event on to its parents.
    fn step(&mut self) -> Option<usize> {
        self.position = self.position.checked_sub(1)?;
        let state = self.position;
        let mask = self.masks.get(state).copied().unwrap_or(0);
        if mask != 0 {
            for parent in self.graph.edges(state) {
                self.add(index(StateNumber(*parent)), mask);
            }
        }
        Some(state)
    }
}

#[cfg(test)]
mod tests;
