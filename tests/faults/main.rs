//! Errors, bad monitors, and the connection that goes and comes back.

mod attempts;
mod errors;
mod late_replies;
mod libvirt;
mod libvirt_domain;
mod one_at_a_time;
mod protocol;
mod reconnect;
