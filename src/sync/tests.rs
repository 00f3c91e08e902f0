//! Tests of classic sync on a store in memory.
