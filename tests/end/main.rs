//! How a mount ends, alone and together with a QEMU that it started.

mod command;
mod ends;
mod life;
mod parents;
mod pidfd;
