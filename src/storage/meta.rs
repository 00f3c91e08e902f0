//! The tables of `storage` itself: what the database is, who follows its log, and its jobs.

use bytes::Bytes;

use crate::clock::Clock;

use super::{
    Batch, Error, Family, Position, Raw, Record, Result, Table, Text,
    engine::{Engine, View},
    migrate,
};

/// Facts about the database by name: see the constants below.
pub(super) static FACTS: Table<(Text,), Raw> = Table::new("facts", Family::Meta, b'm');
/// How far each follower has dealt with the log.
pub(super) static CURSORS: Table<(Text,), Position> = Table::new("cursors", Family::Meta, b'c');

/// u32: see `migrate`.
pub(super) const SCHEMA: &str = "schema";
/// Text; absent until the first start with a configuration.
pub(super) const SERVER_NAME: &str = "server name";
/// 32 random bytes: key of the fingerprints that are used inside this database only.
pub(super) const DATABASE_KEY: &str = "database key";
/// u8: 1 while closed in good order.
pub(super) const CLEAN: &str = "clean";
/// Position of the last batch; names the writer.
pub(super) const LAST: &str = "last position";
/// Position before the first entry that the log still has.
pub(super) const LOG_START: &str = "log start";
/// The last positions of earlier writers, 8 bytes each.
pub(super) const EARLIER: &str = "earlier writers";

/// Positions left out after a crash. What did not wait for the disk may be lost with its positions, and clients may have
/// these in their tokens: no later change may have one of them, or those clients would never see it. More than can be
/// written between two syncs.
const LEFT_OUT_AFTER_CRASH: u64 = 1 << 20;

/// A fact read before the store runs.
pub(super) fn read<V: Record>(view: &View, name: &str) -> Result<Option<V>> {
    let decoded = view.get(FACTS.family(), &FACTS.key(&(Text::from(name),)), V::decode)?;
    decoded.transpose().map_err(|reason| Error::Corrupt {
        table: FACTS.name(),
        reason: format!("{name}: {reason}"),
    })
}

pub(super) fn put(batch: &mut Batch, name: &str, value: &impl Record) {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    batch.put(&FACTS, &(Text::from(name),), &Raw(Bytes::from(bytes)));
}

/// What the store needs to know at its start.
pub(super) struct Facts {
    pub(super) last: Position,
    /// The last positions of earlier writers, oldest first.
    pub(super) earlier: Vec<Position>,
    pub(super) database_key: [u8; 32],
    pub(super) was_clean: bool,
}

/// Whose positions come next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// Those of the writer before.
    Same,
    /// A new one's: the database is a copy, and the original may have given out positions after it.
    Next,
}

/// Reads the facts, or writes those of a new database; marks it as open.
pub(super) fn open(engine: &Engine, clock: &Clock, writer: Writer) -> Result<Facts> {
    let view = engine.view();
    let mut batch = Batch::new();
    let facts = match read(&view, SCHEMA)? {
        None => create(&mut batch, clock),
        Some(schema) => {
            migrate::run(engine, schema)?;
            load(&view, writer, &mut batch)?
        }
    };
    put(&mut batch, CLEAN, &0u8);
    engine.write(&mut std::iter::once(&batch), true)?;
    Ok(facts)
}

fn create(batch: &mut Batch, clock: &Clock) -> Facts {
    let last = Position::new(1, 0);
    let facts = Facts {
        last,
        earlier: Vec::new(),
        database_key: clock.random_bytes(),
        was_clean: true,
    };
    put(batch, SCHEMA, &migrate::SCHEMA);
    put(batch, DATABASE_KEY, &facts.database_key);
    put(batch, LAST, &facts.last);
    facts
}

fn load(view: &View, writer: Writer, batch: &mut Batch) -> Result<Facts> {
    let missing = |name| Error::Corrupt {
        table: FACTS.name(),
        reason: format!("no {name}"),
    };
    let mut last: Position = read(view, LAST)?.ok_or_else(|| missing(LAST))?;
    let earlier: Vec<u8> = read(view, EARLIER)?.unwrap_or_default();
    let (chunks, _rest) = earlier.as_chunks::<8>();
    let mut earlier: Vec<Position> = chunks
        .iter()
        .map(|bytes| Position(u64::from_be_bytes(*bytes)))
        .collect();
    if writer == Writer::Next {
        earlier.push(last);
        put(
            batch,
            EARLIER,
            &earlier
                .iter()
                .flat_map(|position| position.0.to_be_bytes())
                .collect::<Vec<u8>>(),
        );
        let next = last
            .writer()
            .checked_add(1)
            .ok_or_else(|| Error::Open("it was restored too often".to_owned()))?;
        last = Position::new(next, 0);
        put(batch, LAST, &last);
    }
    let was_clean = read(view, CLEAN)? == Some(1u8);
    if !was_clean && writer == Writer::Same {
        last = Position::new(last.writer(), last.sequence() + LEFT_OUT_AFTER_CRASH);
        put(batch, LAST, &last);
    }
    let database_key = read(view, DATABASE_KEY)?.ok_or_else(|| missing(DATABASE_KEY))?;
    Ok(Facts {
        last,
        earlier,
        database_key,
        was_clean,
    })
}
