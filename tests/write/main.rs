//! Setting values and links.

mod cut_writes;
mod dangerous;
mod read_only;
mod setlink;
mod write_calls;
mod writes;
