//! What is asked of QEMU, and when.

mod evaluations;
mod fallback;
mod one_reply;
mod overlap;
mod requests;
