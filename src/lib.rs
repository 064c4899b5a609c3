//! Mounts the QEMU Object Model (QOM) of a running machine as a filesystem, over QMP.
//!
//! The layers, each of which knows only the one below it: [`daemon`] (the life of a mount), [`fuse`] (the kernel's
//! requests), [`fs`] (the filesystem without FUSE), [`qom`] (objects, properties, values) and [`qmp`] (one monitor
//! connection).

pub mod cli;
pub mod daemon;
pub mod fs;
pub mod fuse;
pub mod limits;
pub mod qmp;
pub mod qom;
pub mod text;
