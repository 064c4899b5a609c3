//! How a mount is started, and by whom.

mod access;
mod by_name;
mod containers;
mod inheritance;
mod list;
mod log;
mod mount8;
mod ordinary_user;
mod session;
mod start;
mod unit_file;
