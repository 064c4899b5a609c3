//! Directories: what is in them, under which names, and for how long that is known.

pub mod cache;
pub mod listing;
pub mod names;
pub mod open;
