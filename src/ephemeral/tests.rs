//! Typing, presence and receipts on a store in memory.
