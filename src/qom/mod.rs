//! Objects and properties of a running QEMU, as QMP tells them.
//!
//! This layer knows what a property is, which requests there are for it, and how a value
//! looks as text. It knows nothing of files.

pub mod canonical;
mod client;
mod error;
mod identity;
mod path;
mod property;
mod requests;
pub mod value;

pub use crate::budget::Charge;
pub use client::{Features, PendingReply, Qom, Urgency};
pub use error::{Error, Reason};
pub use identity::Identity;
pub use path::Path;
pub use property::{Description, Kind, Property, Valued, child_type};
pub use requests::Request;
pub use value::parse_bool;
