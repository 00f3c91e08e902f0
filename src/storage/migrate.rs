//! The schema of the database, and the steps from one to the next.
//!
//! A step is a function of this list that takes the database from schema n to n + 1. It runs before the store does,
//! and in pieces: each piece is a batch, and a step that is cut short begins anew, so it must be able to.

use super::{Batch, Error, Result, engine::Engine, meta};

/// The schema this program writes: that after the last step.
pub(super) const SCHEMA: u32 = 1;
/// The schema that the first step starts from.
const FIRST_SCHEMA: u32 = 1;
const STEPS: [Step; 0] = [];

type Step = fn(&Engine) -> Result<()>;

/// Brings a database of schema `stored` to ours.
///
/// # Errors
/// [`Error::Open`] if a newer program has written it, or one so old that the steps are gone.
pub(super) fn run(engine: &Engine, stored: u32) -> Result<()> {
    run_steps(engine, stored, &STEPS)
}

fn run_steps(engine: &Engine, stored: u32, steps: &[Step]) -> Result<()> {
    let newest = (FIRST_SCHEMA..).nth(steps.len()).unwrap_or(u32::MAX);
    if !(FIRST_SCHEMA..=newest).contains(&stored) {
        let text = format!(
            "it has schema {stored}; this version of Hearth knows {FIRST_SCHEMA} to {newest}"
        );
        return Err(Error::Open(text));
    }
    for (schema, step) in (FIRST_SCHEMA..)
        .zip(steps)
        .skip_while(|(schema, _step)| *schema < stored)
    {
        tracing::info!(schema, "bringing the database to the next schema");
        step(engine)?;
        let mut batch = Batch::new();
        meta::put(&mut batch, meta::SCHEMA, &(schema + 1));
        engine.write(&mut std::iter::once(&batch), true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
