//! A QEMU that a guest has taken over floods whoever asks it: memory stays bounded, the log short and clean, and the
//! mount answers or ends as documented.

mod floods;
mod trees;

use std::time::Duration;

use parking_lot::Mutex;

const LONG: Duration = Duration::from_secs(60);

/// One at a time: each takes memory, here too.
static ALONE: Mutex<()> = Mutex::new(());
