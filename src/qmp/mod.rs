//! One connection to a QEMU monitor that speaks QMP.
//!
//! This layer knows the protocol and nothing of objects or files: where a monitor is
//! ([`Address`]), how a line looks (`wire`), how requests and replies are matched
//! (`connection`) and how a lost monitor is found again ([`Monitor`]).

mod address;
pub mod compound;
mod connect;
mod connection;
mod error;
mod handshake;
mod idle;
mod lines;
mod locate;
mod monitor;
mod options;
mod own;
mod pending;
mod reader;
mod reply;
mod rooted;
pub mod wire;
mod writer;

pub use address::{Address, AddressError};
pub use connect::{connect, connect_held, hold};
pub use error::{Closed, Error};
pub use locate::Locate;
pub use monitor::{EventSink, Monitor, MonitorEvent, MonitorOptions};
pub use options::Options;
pub use own::MonitorChoice;
pub use pending::Pending;
pub use wire::{Greeting, command, request};
