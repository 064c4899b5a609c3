//! Reading and writing properties.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::{Error, Ino, Process, Result, Tree, Wait};
use crate::budget::Charge;
use crate::fs::error::Doing;
use crate::fs::last_write::{LastWrite, Part};
use crate::limits::OPEN_FILE_BYTES;
use crate::qom::{self, Kind, Request};

/// An open property.
pub struct File {
    ino: Ino,
    /// The connection that it was opened on, if there was one: after it there may be another machine.
    connection: Option<u64>,
    pinned: Mutex<Pinned>,
    last_write: Mutex<LastWrite>,
}

/// What a value is read for.
enum Reader {
    /// An open by this process.
    Open(Process),
    /// A descriptor that was opened on this connection.
    Descriptor(Option<u64>),
}

/// What opening a property gave.
#[derive(Debug)]
pub struct Opened {
    pub handle: u64,
    /// The kernel believes that the value is shorter: before the reply, it is to be told by
    /// [`Tree::tell_growth`].
    pub grown_to: Option<u64>,
}

/// How a property is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenMode {
    /// O_WRONLY or O_RDWR
    pub write: bool,
    /// O_TRUNC
    pub truncate: bool,
}

/// The value that reads are served from, so that reading in pieces never mixes two.
#[derive(Default)]
struct Pinned {
    /// None before it was read, and after a write.
    text: Option<Arc<Text>>,
    /// Something was read: offset 0 means "again", as in sysfs.
    begun: bool,
}

/// A value as a file shows it, counted in what open files hold.
struct Text {
    bytes: Vec<u8>,
    _charge: Charge,
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
    pub fn open_file(&self, ino: Ino, mode: OpenMode, process: Process, wait: Wait) -> Result<Opened> {
        let (_, _, entry) = self.property(ino)?;
        match entry.kind {
            Kind::Value => {}
            Kind::Child => return Err(libc::EISDIR.into()),
            Kind::Link => return Err(libc::ELOOP.into()),
        }
        if mode.write && self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        let connection = self.qom.monitor().connection_number();
        let (mut text, mut grown_to) = (None, None);
        if !mode.write {
            let fetched = self.fetch(ino, Reader::Open(process), wait)?;
            let size = fetched.bytes.len() as u64;
            if self.inodes.lock().kernel_must_grow(ino, size) {
                grown_to = Some(size);
            }
            text = Some(fetched);
        }
        if mode.truncate {
            self.inodes.lock().kernel_lowered(ino, 0);
        }
        let handle = self.files.open(File {
            ino,
            connection,
            pinned: Mutex::new(Pinned { text, begun: false }),
            last_write: Mutex::default(),
        });
        Ok(Opened { handle, grown_to })
    }

    /// Tells the kernel of a longer value than it believes, before the reply to the open. May wait for
    /// a READ.
    pub fn tell_growth(&self, ino: Ino, size: u64) {
        if let Some(kernel) = self.kernel.get() {
            kernel.value_grew(ino, size);
        }
    }

    pub fn close_file(&self, handle: u64) {
        self.files.close(handle);
    }

    /// Reads from an open property, fetching its value where it is not pinned yet, or anew
    /// when it is read from the start once more. `caches` is whether the kernel keeps what it gets.
    ///
    /// # Errors
    /// EBADF, or why QEMU does not give the value.
    pub fn read_file(&self, handle: u64, offset: u64, size: u32, caches: bool, wait: Wait) -> Result<Slice> {
        let file = self.files.get(handle).ok_or(libc::EBADF)?;
        let mut pinned = match wait {
            Wait::No => file.pinned.try_lock().ok_or(libc::EWOULDBLOCK)?,
            Wait::Yes => file.pinned.lock(),
        };
        let again = offset == 0 && pinned.begun;
        let text = match &pinned.text {
            Some(text) if !again => text.clone(),
            _ => {
                let text = self.fetch(file.ino, Reader::Descriptor(file.connection), wait)?;
                pinned.text.insert(text).clone()
            }
        };
        pinned.begun = true;
        drop(pinned);
        if caches {
            // A READ for the page cache that gets less than it asked for lowers the kernel's size.
            let mut inodes = self.inodes.lock();
            inodes.kernel_lowered(file.ino, text.bytes.len() as u64);
        }
        Ok(Slice::new(&text, offset, size))
    }

    /// The value of a property as a file shows it, a newline at its end: QEMU's present answer,
    /// or for a process that reads one after another what was fetched with the one before.
    fn fetch(&self, ino: Ino, reader: Reader, wait: Wait) -> Result<Arc<Text>> {
        let (_, path, entry) = self.property(ino)?;
        let answer = match reader {
            Reader::Open(process) => {
                let value = self.prefetcher.value(self.access(process, &path), &entry, wait);
                value.transpose().ok_or(libc::EWOULDBLOCK)?
            }
            Reader::Descriptor(connection) => {
                wait.allowed()?;
                self.qom.request_on(connection, Request::get(&path, &entry.name))
            }
        };
        let mut text = self.read(ino, answer)?.into_bytes();
        self.ensure_alive(ino)?;
        text.reserve_exact(1); // a push alone would double what it takes
        text.push(b'\n');
        self.set_read_size(ino, text.len());
        match self.open_bytes.charge(text.len()) {
            Some(charge) => Ok(Arc::new(Text {
                bytes: text,
                _charge: charge,
            })),
            None => {
                let name = &entry.name;
                let why = format!("{path} {name}: open files hold more than {OPEN_FILE_BYTES} bytes");
                Err(self.record_error(ino, Error::refused(libc::ENOMEM, &why)))
            }
        }
    }

    /// What became of reading a property or link.
    pub(crate) fn read(&self, ino: Ino, answer: std::result::Result<String, qom::Error>) -> Result<String> {
        match answer {
            Ok(text) => {
                self.inodes.lock().errors.clear(ino);
                Ok(text)
            }
            Err(e) => Err(self.record_error(ino, Error::from_qom(&e, Doing::Read))),
        }
    }

    /// Shows the length of what was read as the size, and makes the kernel forget another.
    pub(crate) fn set_read_size(&self, ino: Ino, size: usize) {
        let changed = self.inodes.lock().set_size(ino, size as u64);
        if changed && let Some(kernel) = self.kernel.get() {
            kernel.attributes_changed(ino);
        }
    }

    /// Sets an open property to what was written, less one newline at its end. `appends` is O_APPEND.
    ///
    /// # Errors
    /// EFBIG for the rest of a value that its writer cut, and for what may arrive cut; EPERM for setting
    /// `realized` to false; EINVAL for what is not UTF-8 and so cannot be a value; or QEMU's verdict.
    pub fn write_file(&self, handle: u64, offset: u64, data: &[u8], appends: bool, wait: Wait) -> Result<()> {
        wait.allowed()?;
        let file = self.files.get(handle).ok_or(libc::EBADF)?;
        let part = file.last_write.lock().next(offset, data, appends);
        match part {
            Part::Value => {}
            Part::Newline(outcome) => return outcome,
            Part::Rest => {
                let why = "the value came in pieces; only the first was set, and needs to be set again with the rest in \
                           one write (dd bs=1M iflag=fullblock, or a program that writes it in one piece)";
                return Err(self.refuse_write(file.ino, libc::EFBIG, why));
            }
        }
        let outcome = self.set_value(&file, data);
        file.last_write.lock().set(offset, data, &outcome);
        file.pinned.lock().text = None;
        outcome
    }

    fn set_value(&self, file: &File, data: &[u8]) -> Result<()> {
        let ino = file.ino;
        let (parent, path, entry) = self.property(ino)?;
        let most = self.max_value.load(Ordering::Relaxed);
        if data.len() > most {
            let why = format!("a value must come in one write of at most {most} bytes");
            return Err(self.refuse_write(ino, libc::EFBIG, &why));
        }
        let Ok(text) = std::str::from_utf8(data) else {
            return Err(self.refuse_write(ino, libc::EINVAL, "the value is not UTF-8; nothing was sent"));
        };
        let text = text.strip_suffix('\n').unwrap_or(text);
        // It does not unplug: QEMU aborts, or goes on without a part that it needs.
        if &*entry.name == "realized" && qom::parse_bool(text) == Some(false) {
            let why = "'realized' cannot be set to false, which would break the machine; what unplugs a device is \
                       device_del (in QMP and in the human monitor; virsh detach-device)";
            return Err(self.refuse_write(ino, libc::EPERM, why));
        }
        let outcome = self.write_to(parent, || {
            self.qom
                .set_text(file.connection, &path, &entry.name, &entry.declared, text)
        });
        match outcome {
            Ok(()) => {
                self.inodes.lock().errors.clear(ino);
                Ok(())
            }
            Err(e) => Err(self.record_error(ino, Error::from_qom(&e, Doing::Write))),
        }
    }

    /// Refuses a write that QEMU is not asked about.
    fn refuse_write(&self, ino: Ino, errno: i32, why: &str) -> Error {
        let what = match self.property(ino) {
            Ok((_, path, entry)) => format!("write to {path} {}: {why}", entry.name),
            Err(_) => why.to_owned(),
        };
        self.record_error(ino, Error::refused(errno, &what))
    }
}
