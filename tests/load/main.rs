//! Much at once, for long: what takes both cores. `scripts/soak` runs it for longer.

mod cycles;
mod load;
mod machines;
