//! Symbolic links, which link properties are: where they lead, and setting them.

pub mod set;
pub mod text;
