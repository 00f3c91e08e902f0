//! Tests of migration.

use super::*;
use crate::storage::{Raw, memory::Memory};

fn note(engine: &Engine, name: &str) -> Result<()> {
    let mut batch = Batch::new();
    batch.expect(&meta::FACTS, &(name.into(),), None);
    meta::put(&mut batch, name, &1u8);
    engine.write(&mut std::iter::once(&batch), true)
}

fn has(engine: &Engine, name: &str) -> bool {
    meta::read::<Raw>(&engine.view(), name).unwrap().is_some()
}

#[test]
fn steps_run_in_order_from_the_stored_schema() {
    let steps: [Step; 3] = [
        |engine| note(engine, "1 to 2"),
        |engine| note(engine, "2 to 3"),
        |engine| note(engine, "3 to 4"),
    ];
    let engine = Engine::Memory(Memory::default());
    run_steps(&engine, 2, &steps).unwrap();
    assert!(!has(&engine, "1 to 2") && has(&engine, "2 to 3") && has(&engine, "3 to 4"));
    assert_eq!(
        meta::read(&engine.view(), meta::SCHEMA).unwrap(),
        Some(4u32)
    );
}

#[test]
fn a_failed_step_leaves_the_schema_before_it() {
    let steps: [Step; 2] = [
        |engine| note(engine, "1 to 2"),
        |_engine| Err(Error::Closed),
    ];
    let engine = Engine::Memory(Memory::default());
    assert!(run_steps(&engine, 1, &steps).is_err());
    assert_eq!(
        meta::read(&engine.view(), meta::SCHEMA).unwrap(),
        Some(2u32)
    );
}

#[test]
fn unknown_schemas_are_refused() {
    let engine = Engine::Memory(Memory::default());
    for schema in [0, SCHEMA + 1, u32::MAX] {
        assert!(matches!(run(&engine, schema), Err(Error::Open(_))));
    }
    run(&engine, SCHEMA).unwrap();
}

#[test]
fn the_schema_is_that_after_the_last_step() {
    assert_eq!(usize::try_from(SCHEMA - FIRST_SCHEMA).unwrap(), STEPS.len());
}
