//! Reading values: what is shown, of which size, and to whichever program.

mod reading;
mod sizes;
mod splice;
mod values;
