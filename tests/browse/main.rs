//! Looking around in a mount: names, attributes, whole trees, and what cannot be done there.

mod copies;
mod escape;
mod immutable;
mod mirror;
mod names;
mod namespace;
mod recipes;
mod tools;
mod xattr;
