//! Mounts the QEMU Object Model (QOM) of a running machine as a filesystem, over QMP.
//!
//! The layers, each of which knows only the one below it: `fuse` (the kernel's requests),
//! [`tree`] (the filesystem without FUSE), [`qom`] (objects, properties, values) and [`qmp`]
//! (one monitor connection).

pub mod cli;
pub mod discover;
pub mod fuse;
pub mod limits;
pub mod logging;
pub mod memory;
pub mod mount;
pub mod pool;
pub mod qmp;
pub mod qom;
pub mod text;
pub mod tree;
