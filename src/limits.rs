//! Every bound of memory and count: QEMU may be compromised, and so may whoever asks. `docs/security.md` quotes
//! them, and the test here compares the two.

use std::time::Duration;

/// The longest line taken from a monitor, in bytes. QEMU limits its own input alike.
pub const LINE_BYTES: usize = 64 << 20;
/// The most values (array elements, object members) taken in one line.
pub const LINE_VALUES: usize = 2 << 20;
/// The longest greeting or error that is decoded, in bytes.
pub const WORDS_BYTES: usize = 1 << 20;
/// What all replies together may take that are being decoded, in bytes; one that takes more is let in alone.
pub const DECODING_BYTES: usize = 64 << 20;
/// How long a reply waits for others, which only have to be decoded. Then it is refused.
pub const DECODING_WAIT: Duration = Duration::from_secs(5);
/// What replies that nobody has come to yet may take beside those, in bytes, counted alike. What does not fit is
/// asked for again.
pub const REPLIES_AHEAD_BYTES: usize = 32 << 20;
/// Requests for listings ahead of all walks together, and as many for single values.
pub const REQUESTS_AHEAD: usize = 32;
/// Values that came ahead, in bytes. What does not fit is asked for one by one.
pub const VALUES_AHEAD_BYTES: usize = 16 << 20;

/// The most properties that one object may have; real ones have some hundreds.
pub const OBJECT_PROPERTIES: usize = 250_000;
/// What listings may take beside one more, in bytes; small ones may take half as much again. Those of 200
/// CPUs take a twentieth.
pub const LISTING_BYTES: usize = 64 << 20;
/// What inodes may take, in bytes: a hostile tree is endless, and the kernel forgets only when the whole
/// machine is short of memory. Real trees take a tenth of it.
pub const INODE_BYTES: usize = 192 << 20;
/// What all open files together may hold, in bytes: a value may be as long as a line.
pub const OPEN_FILE_BYTES: usize = 128 << 20;
/// What the descriptions of types that are remembered may take, in bytes, or those of one type alone: a real
/// QEMU has about 1,500 types, and says some KiB of each.
pub const DESCRIPTION_BYTES: usize = 16 << 20;
/// The longest extended attribute that there can be, in bytes.
pub const ATTRIBUTE_BYTES: usize = 64 << 10;
/// What the last errors of all files take, in bytes; the oldest go first.
pub const ERROR_BYTES: usize = 1 << 20;
/// Symbolic links that are to be renamed over others.
pub const TEMPORARY_LINKS: usize = 64;

/// Threads that may wait for QEMU, beside those that take requests from the kernel. More requests queue up.
pub const WORKER_THREADS: usize = 64;
/// The same for READs, which others may wait for.
pub const READ_THREADS: usize = 16;
/// How many files may grow at once in the kernel: each may wait there for a READ, which may wait for QEMU.
pub const SIZE_THREADS: usize = 4;
/// Names that are gone, and as many values that have grown, of which the kernel was not told yet. It forgets the
/// others when their time is up.
pub const MESSAGES_WAITING: usize = 1024;

/// Lines from warnings on down to info that may come at once: a peer can provoke as many as it likes.
pub const LOG_BURST: f64 = 200.0;
/// The same for each second after that.
pub const LOG_PER_SECOND: f64 = 20.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_these_numbers() {
        let words: Vec<&str> = include_str!("../docs/security.md").split_whitespace().collect();
        let page = words.join(" ");
        let mib = |bytes: usize| bytes >> 20;
        for sentence in [
            format!(
                "A line is at most {} MiB and {} Mi values",
                mib(LINE_BYTES),
                LINE_VALUES >> 20
            ),
            format!(
                "an object has at most {},000 properties",
                OBJECT_PROPERTIES / 1000
            ),
            format!("open files hold at most {} MiB", mib(OPEN_FILE_BYTES)),
            format!("inodes about {} MiB", mib(INODE_BYTES)),
            format!("listings {} MiB and one more", mib(LISTING_BYTES * 3 / 2)),
            format!("values fetched ahead {} MiB", mib(VALUES_AHEAD_BYTES)),
            format!("descriptions {} MiB or one type's", mib(DESCRIPTION_BYTES)),
            format!("errors {} MiB", mib(ERROR_BYTES)),
            format!("take at most {} MiB together", mib(DECODING_BYTES)),
            format!("refused with ENOMEM after {} s", DECODING_WAIT.as_secs()),
            format!(
                "at most {}, and take at most {} MiB more",
                2 * REQUESTS_AHEAD,
                mib(REPLIES_AHEAD_BYTES)
            ),
            format!(
                "error or greeting of QEMU's to a length of {} MiB",
                mib(WORDS_BYTES)
            ),
            format!("{} threads that wait for QEMU", WORKER_THREADS + READ_THREADS),
            format!("{LOG_PER_SECOND} per second after the first {LOG_BURST}"),
        ] {
            assert!(
                page.contains(&sentence),
                "docs/security.md does not say: {sentence}"
            );
        }
    }
}
