//! A machine that changes, stops or goes: what is shown is never too old.

mod changes;
mod freshness;
mod gone;
mod removed;
mod waiting;
