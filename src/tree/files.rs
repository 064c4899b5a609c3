//! Reading and writing properties.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::error::Doing;
use super::{Error, Ino, Process, Result, Tree};
use crate::qom::{self, Kind, Request};

/// The most that all open files together may hold, in bytes: QEMU may be compromised, and a
/// value may be as long as a line.
const MOST_HELD: usize = 128 << 20;

/// How much open files hold.
pub type Held = Arc<AtomicUsize>;

/// An open property.
pub struct File {
    ino: Ino,
    pinned: Mutex<Pinned>,
}

/// The value that reads are served from, so that reading in pieces never mixes two.
#[derive(Default)]
struct Pinned {
    /// None before it was read, and after a write.
    text: Option<Arc<Text>>,
    /// Something was read: offset 0 means "again", as in sysfs.
    begun: bool,
    /// Where the last write ended, if it looks like the first part of a longer one.
    cut_at: Option<u64>,
}

/// Buffers are cut at multiples of this: a write of so many bytes without a newline at its end,
/// followed by another right behind it, was one value for its writer.
const BUFFER: usize = 4096;

/// A value as a file shows it, counted in what open files hold.
struct Text {
    bytes: Vec<u8>,
    held: Held,
}

impl Text {
    fn hold(bytes: Vec<u8>, held: &Held) -> Option<Arc<Text>> {
        let before = held.fetch_add(bytes.len(), Ordering::Relaxed);
        let fits = before + bytes.len() <= MOST_HELD;
        // Dropped again at once if not, and uncounted so.
        let text = Text {
            bytes,
            held: held.clone(),
        };
        fits.then(|| Arc::new(text))
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// A part of a pinned value.
pub struct Slice {
    text: Arc<Text>,
    range: Range<usize>,
}

impl Slice {
    fn new(text: &Arc<Text>, offset: u64, size: u32) -> Slice {
        let length = text.bytes.len();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(length);
        let end = start.saturating_add(size as usize).min(length);
        Slice {
            text: text.clone(),
            range: start..end,
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.text.bytes[self.range.clone()]
    }
}

impl Tree {
    /// Opens a property. For reading alone, its value is fetched here, so that the caller
    /// gets QEMU's error from `open` and the exact size from `fstat`.
    ///
    /// # Errors
    /// EISDIR, EROFS, or why QEMU does not give the value.
    pub fn open_file(&self, ino: Ino, read: bool, write: bool, process: Process) -> Result<u64> {
        let (_, _, entry) = self.property(ino)?;
        match entry.kind {
            Kind::Value => {}
            Kind::Child => return Err(libc::EISDIR.into()),
            Kind::Link => return Err(libc::ELOOP.into()),
        }
        if write && self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        let text = if read && !write {
            Some(self.fetch(ino, Some(process))?)
        } else {
            None
        };
        Ok(self.files.open(File {
            ino,
            pinned: Mutex::new(Pinned {
                text,
                ..Pinned::default()
            }),
        }))
    }

    /// Whether the value of a property came with others that the process reads, so that opening it
    /// waits for nothing.
    pub fn is_value_at_hand(&self, ino: Ino, process: Process) -> bool {
        self.property(ino)
            .is_ok_and(|(_, path, entry)| self.ahead.has_value(process, &path, &entry.name))
    }

    pub fn close_file(&self, handle: u64) {
        self.files.close(handle);
    }

    /// Reads from an open property, if that can be done without asking QEMU.
    pub fn read_pinned(&self, handle: u64, offset: u64, size: u32) -> Option<Result<Slice>> {
        let Some(file) = self.files.get(handle) else {
            return Some(Err(libc::EBADF.into()));
        };
        let mut pinned = file.pinned.try_lock()?;
        if offset == 0 && pinned.begun {
            return None;
        }
        let slice = Slice::new(pinned.text.as_ref()?, offset, size);
        pinned.begun = true;
        Some(Ok(slice))
    }

    /// Reads from an open property, fetching its value where it is not pinned yet, or anew
    /// when it is read from the start once more.
    ///
    /// # Errors
    /// EBADF, or why QEMU does not give the value.
    pub fn read_file(&self, handle: u64, offset: u64, size: u32) -> Result<Slice> {
        let file = self.files.get(handle).ok_or(libc::EBADF)?;
        let mut pinned = file.pinned.lock();
        let again = offset == 0 && pinned.begun;
        let text = match &pinned.text {
            Some(text) if !again => text.clone(),
            _ => {
                let text = self.fetch(file.ino, None)?;
                pinned.text.insert(text).clone()
            }
        };
        pinned.begun = true;
        Ok(Slice::new(&text, offset, size))
    }

    /// The value of a property as a file shows it, a newline at its end: QEMU's present answer,
    /// or for a process that reads one after another what was fetched with the one before.
    fn fetch(&self, ino: Ino, process: Option<Process>) -> Result<Arc<Text>> {
        let (parent, path, entry) = self.property(ino)?;
        let answer = match process {
            Some(process) => self.value_for(parent, &path, &entry, process),
            None => self.qom().request(Request::get(&path, &entry.name)),
        };
        let mut text = self.read(ino, answer)?.into_bytes();
        self.still_there(ino)?;
        text.push(b'\n');
        self.show_size(ino, text.len());
        Text::hold(text, &self.held).ok_or_else(|| {
            let why = format!(
                "{path} {}: open files hold more than {MOST_HELD} bytes",
                entry.name
            );
            self.failed(ino, Error::refused(libc::ENOMEM, &why))
        })
    }

    /// What became of reading a property or link.
    pub(super) fn read(&self, ino: Ino, answer: std::result::Result<String, qom::Error>) -> Result<String> {
        match answer {
            Ok(text) => {
                self.errors.lock().clear(ino);
                Ok(text)
            }
            Err(e) => Err(self.failed(ino, Error::from_qom(&e, Doing::Read))),
        }
    }

    /// Shows the length of what was read as the size, and makes the kernel forget another.
    pub(super) fn show_size(&self, ino: Ino, size: usize) {
        let changed = self.inodes.lock().set_size(ino, size as u64);
        if changed && let Some(kernel) = self.kernel.get() {
            kernel.attributes_changed(ino);
        }
    }

    /// Sets an open property to what was written, less one newline at its end.
    ///
    /// # Errors
    /// EFBIG for what is or may be a part of a longer write, EINVAL for what is not UTF-8 and so
    /// cannot be a value, or QEMU's verdict.
    pub fn write_file(&self, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        let file = self.files.get(handle).ok_or(libc::EBADF)?;
        let (parent, path, entry) = self.property(file.ino)?;
        let refused = |errno, why: &str| {
            let why = format!("write to {path} {}: {why}", entry.name);
            Err(self.failed(file.ino, Error::refused(errno, &why)))
        };
        let most = self.max_value.load(Ordering::Relaxed);
        if data.len() > most {
            let why = format!("a value must come in one write of at most {most} bytes");
            return refused(libc::EFBIG, &why);
        }
        let looks_cut = data.len().is_multiple_of(BUFFER) && !data.ends_with(b"\n");
        let end = offset.saturating_add(data.len() as u64);
        let before = std::mem::replace(&mut file.pinned.lock().cut_at, looks_cut.then_some(end));
        if before == Some(offset) {
            let why = "the writer cut the value; only its first part was set, and needs to be set again \
                       in one write (dd bs=1M, or a program that does not buffer)";
            return refused(libc::EFBIG, why);
        }
        let Ok(text) = std::str::from_utf8(data) else {
            return refused(libc::EINVAL, "the value is not UTF-8; nothing was sent");
        };
        let text = text.strip_suffix('\n').unwrap_or(text);
        self.ahead.wrote();
        let outcome = self.qom.set_text(&path, &entry.name, &entry.declared, text);
        // Even a refused or unanswered write may have changed something.
        self.ahead.wrote();
        file.pinned.lock().text = None;
        self.written(parent, &entry.file);
        match outcome {
            Ok(()) => {
                self.errors.lock().clear(file.ino);
                Ok(())
            }
            Err(e) => Err(self.failed(file.ino, Error::from_qom(&e, Doing::Write))),
        }
    }
}
