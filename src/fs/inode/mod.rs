//! Inodes: the table of them, and what `stat` and extended attributes tell.

pub mod attributes;
mod by_name;
mod last_errors;
pub mod table;
pub mod xattr;
