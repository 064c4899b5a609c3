//! What is asked of QEMU before the kernel asks.

pub mod ahead;
pub mod batch;
pub mod lookahead;
pub mod walk;
pub mod walks;
