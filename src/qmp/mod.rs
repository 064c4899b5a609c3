//! One connection to a QEMU monitor that speaks QMP.
//!
//! This layer knows the protocol and nothing of objects or files: where a monitor is
//! ([`Address`]), how a line looks (`wire`), how requests and replies are matched
//! (`connection`) and how a lost monitor is found again ([`Monitor`]).

mod address;
mod budget;
mod connection;
mod error;
mod handshake;
mod lines;
mod locate;
mod monitor;
mod outgoing;
mod reader;
mod rooted;
mod slot;
pub mod wire;

pub use address::{Address, AddressError, connect_held};
pub use budget::Charge;
pub use connection::Pending;
pub use error::{Closed, ConnectError, Error};
pub use locate::Locate;
pub use monitor::{Monitor, Notice};
pub use wire::{Event, Greeting, command, request};
