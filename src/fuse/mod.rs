//! The kernel's requests: each is unpacked, given to the filesystem ([`crate::fs`]), and its reply packed.

mod busy_poll;
mod directory;
mod dispatch;
pub mod notify;
mod ops;
pub mod pool;
mod reply;

pub use dispatch::THREADS;
pub use ops::Fuse;
