//! The engine of tests: trees in memory. Each row keeps the versions that some view may still read.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bytes::Bytes;

use super::{Batch, Family, Order, batch::Write, number};

/// Rows copied at a time, so that a scan does not hold the lock.
const PAGE: usize = 64;

#[derive(Default)]
pub(super) struct Memory {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: RwLock<State>,
    /// How many views there are of each sequence.
    views: Mutex<BTreeMap<u64, usize>>,
}

#[derive(Default)]
struct State {
    families: BTreeMap<Family, BTreeMap<Bytes, Versions>>,
    sequence: u64,
}

/// Oldest first.
#[derive(Default)]
struct Versions(VecDeque<(u64, Option<Bytes>)>);

pub(super) struct View {
    shared: Arc<Shared>,
    sequence: u64,
}

pub(super) struct Scan<'a> {
    view: &'a View,
    family: Family,
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
    order: Order,
    page: VecDeque<(Bytes, Bytes)>,
    ended: bool,
}

impl Memory {
    /// The same trees once more.
    pub(super) fn same(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }

    pub(super) fn write(&self, batches: &mut dyn Iterator<Item = &Batch>) {
        let mut state = self
            .shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let oldest = self
            .shared
            .views()
            .keys()
            .next()
            .copied()
            .unwrap_or(state.sequence);
        state.sequence += 1;
        let now = Moment {
            sequence: state.sequence,
            oldest,
        };
        for (family, write) in batches.flat_map(Batch::writes) {
            apply(state.families.entry(family).or_default(), write, now);
        }
    }

    pub(super) fn view(&self) -> View {
        let state = self
            .shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        *self.shared.views().entry(state.sequence).or_default() += 1;
        View {
            shared: Arc::clone(&self.shared),
            sequence: state.sequence,
        }
    }
}

impl Shared {
    fn views(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When something is written, and the oldest view that may look.
#[derive(Clone, Copy)]
struct Moment {
    sequence: u64,
    oldest: u64,
}

fn apply(rows: &mut BTreeMap<Bytes, Versions>, write: Write<'_>, now: Moment) {
    match write {
        Write::Put { key, value } => set(rows, key, Some(Bytes::copy_from_slice(value)), now),
        Write::Delete { key } => set(rows, key, None, now),
        Write::DeleteRange { start, end } => {
            for (_key, versions) in
                rows.range_mut::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            {
                versions.set(None, now);
            }
        }
        Write::Add { key, delta } => {
            let before = rows
                .get(key)
                .and_then(|versions| versions.at(now.sequence))
                .map_or(0, |value| number(value));
            let after = before.wrapping_add(number(delta));
            set(
                rows,
                key,
                Some(Bytes::copy_from_slice(&after.to_le_bytes())),
                now,
            );
        }
    }
}

fn set(rows: &mut BTreeMap<Bytes, Versions>, key: &[u8], value: Option<Bytes>, now: Moment) {
    match rows.get_mut(key) {
        Some(versions) => versions.set(value, now),
        None => rows
            .entry(Bytes::copy_from_slice(key))
            .or_default()
            .set(value, now),
    }
}

impl Versions {
    fn set(&mut self, value: Option<Bytes>, now: Moment) {
        if self
            .0
            .back()
            .is_some_and(|(sequence, _value)| *sequence == now.sequence)
        {
            self.0.pop_back();
        }
        self.0.push_back((now.sequence, value));
        while self
            .0
            .get(1)
            .is_some_and(|(sequence, _value)| *sequence <= now.oldest)
        {
            self.0.pop_front();
        }
    }

    fn at(&self, sequence: u64) -> Option<&Bytes> {
        let (_sequence, value) = self
            .0
            .iter()
            .rev()
            .find(|(written, _value)| *written <= sequence)?;
        value.as_ref()
    }
}

impl View {
    pub(super) fn get<R>(
        &self,
        family: Family,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let state = self
            .shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let value = state
            .families
            .get(&family)?
            .get(key)?
            .at(self.sequence)?
            .clone();
        drop(state);
        Some(read(&value))
    }

    pub(super) fn scan(
        &self,
        family: Family,
        start: Vec<u8>,
        end: Vec<u8>,
        order: Order,
    ) -> Scan<'_> {
        let ended = start >= end;
        let (from, to) = (Bound::Included(start), Bound::Excluded(end));
        Scan {
            view: self,
            family,
            from,
            to,
            order,
            page: VecDeque::new(),
            ended,
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let mut views = self.shared.views();
        if let Some(count) = views.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                views.remove(&self.sequence);
            }
        }
    }
}

impl Scan<'_> {
    pub(super) fn next<R>(&mut self, read: impl FnOnce(&[u8], &[u8]) -> R) -> Option<R> {
        if self.page.is_empty() && !self.ended {
            self.fill();
        }
        let (key, value) = self.page.pop_front()?;
        Some(read(&key, &value))
    }

    fn fill(&mut self) {
        let state = self
            .view
            .shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(rows) = state.families.get(&self.family) else {
            self.ended = true;
            return;
        };
        let range = rows.range::<[u8], _>((as_slice(&self.from), as_slice(&self.to)));
        let visible = |(key, versions): (&Bytes, &Versions)| {
            versions
                .at(self.view.sequence)
                .map(|value| (key.clone(), value.clone()))
        };
        self.page = match self.order {
            Order::Forward => range.filter_map(visible).take(PAGE).collect(),
            Order::Backward => range.rev().filter_map(visible).take(PAGE).collect(),
        };
        self.ended = self.page.len() < PAGE;
        if let Some((last, _value)) = self.page.back() {
            match self.order {
                Order::Forward => self.from = Bound::Excluded(last.to_vec()),
                Order::Backward => self.to = Bound::Excluded(last.to_vec()),
            }
            self.ended |= is_empty(&self.from, &self.to);
        }
    }
}

/// Whether a range, of which at least one end has been moved to a row of it, can hold no more; a tree refuses some.
fn is_empty(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from >= to,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}
