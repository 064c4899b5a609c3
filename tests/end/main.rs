//! How a mount ends, alone and together with a QEMU that it started.

mod background;
mod command;
mod ends;
mod kernel;
mod life;
mod parents;
mod pidfd;
mod signals;
