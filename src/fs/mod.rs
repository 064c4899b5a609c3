//! The filesystem without FUSE: inodes, listings, values, links, and what fails with which
//! number. It speaks to QEMU through [`crate::qom`] and to the kernel through [`Kernel`].

pub mod dir;
mod error;
mod fetch;
mod file;
mod handles;
mod inode;
mod last_write;
pub mod link;
mod prefetch;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use nix::unistd::{getgid, getuid};
use parking_lot::Mutex;

use crate::budget::Budget;
use crate::limits::OPEN_FILE_BYTES;
pub use crate::qom::Kind;
use crate::qom::{Path, Qom};

use dir::cache::ListingCache;
use dir::listing::{Entries, Entry, Listing};
pub use dir::open::{Directory, Item, Shown};
pub use error::{Error, Result, Wait};
use file::File;
pub use file::{OpenMode, Opened};
use handles::Handles;
pub use inode::attributes::Attributes;
use inode::table::Inodes;
pub use inode::table::{Ino, ROOT};
use inode::xattr::Descriptions;
use prefetch::Prefetcher;

/// How a mount behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How long a listing is served after it was asked for.
    pub entry_timeout: Duration,
    /// The owner that files show.
    pub uid: u32,
    pub gid: u32,
    /// Permission bits that are taken away.
    pub umask: u32,
    pub read_only: bool,
    /// Where the mount is, absolute: link targets below it can be given as absolute paths.
    pub mount_point: PathBuf,
    /// Whether requests may be sent before the kernel asks.
    pub readahead: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            entry_timeout: Duration::from_secs(1),
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            umask: 0,
            read_only: false,
            mount_point: PathBuf::new(),
            readahead: true,
        }
    }
}

/// What the kernel must be told of its own caches.
pub trait Kernel: Send + Sync {
    /// The attributes of this inode changed.
    fn attributes_changed(&self, ino: Ino);
    /// The value of this inode is so long, in bytes, and ends with a newline: reads through the page cache
    /// (`splice`, `sendfile`, `mmap`) end where the kernel believes that it ends. May wait for a READ.
    fn value_grew(&self, ino: Ino, size: u64);
    /// The name is gone from the directory. May be carried out later: while a request for
    /// this directory is being answered, the kernel cannot act on it.
    fn entry_gone(&self, parent: Ino, file: &str);
}

/// An inode as the kernel gets it from a lookup, and how long it may rely on it.
#[derive(Debug, Clone)]
pub struct Found {
    pub attributes: Attributes,
    pub lifetime: Duration,
}

/// The process that a request comes from, as the kernel numbers it.
pub type Process = u32;

/// The mounted tree.
pub struct Tree {
    this: Weak<Tree>,
    qom: Arc<Qom>,
    settings: Settings,
    started: SystemTime,
    kernel: OnceLock<Box<dyn Kernel>>,
    entries: Entries,
    inodes: Mutex<Inodes>,
    listings: ListingCache,
    files: Handles<File>,
    /// What open files hold.
    open_bytes: Arc<Budget>,
    directories: Handles<Directory>,
    /// A thread waits for the end of temporary links.
    links_watched: AtomicBool,
    descriptions: Mutex<Descriptions>,
    prefetcher: Prefetcher,
    max_value: AtomicUsize,
}

impl Tree {
    /// An empty tree: QEMU is asked when somebody looks.
    pub fn new(qom: Qom, settings: Settings) -> Arc<Tree> {
        let qom = Arc::new(qom);
        Arc::new_cyclic(|this| Tree {
            this: this.clone(),
            prefetcher: Prefetcher::new(qom.clone(), &settings, {
                let tree = this.clone();
                move |path| {
                    tree.upgrade()
                        .is_some_and(|tree| tree.known_listing(path).is_some())
                }
            }),
            qom,
            started: SystemTime::now(),
            kernel: OnceLock::new(),
            entries: Entries::default(),
            inodes: Mutex::default(),
            listings: ListingCache::new(settings.entry_timeout),
            files: Handles::default(),
            open_bytes: Budget::new(OPEN_FILE_BYTES),
            directories: Handles::default(),
            links_watched: AtomicBool::new(false),
            descriptions: Mutex::default(),
            max_value: AtomicUsize::new(usize::MAX),
            settings,
        })
    }

    /// Says whom to tell of changes; before that, nobody is told.
    pub fn set_kernel(&self, kernel: Box<dyn Kernel>) {
        let _ = self.kernel.set(kernel);
    }

    /// Sets the length, in bytes, of the largest value that is sure to arrive in one write.
    pub fn set_max_value(&self, bytes: usize) {
        self.max_value.store(bytes, Ordering::Relaxed);
    }

    /// The QEMU behind it.
    pub fn qom(&self) -> &Qom {
        &self.qom
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// ENOENT, or what kept QEMU from telling.
    pub fn lookup(&self, parent: Ino, file: &str, wait: Wait) -> Result<Found> {
        if let Some(found) = self.temporary_link(parent, file) {
            return Ok(found);
        }
        let listing = self.listing(parent, wait)?;
        self.lookup_in(parent, file, &listing)
    }

    fn lookup_in(&self, parent: Ino, file: &str, listing: &Arc<Listing>) -> Result<Found> {
        let (index, entry) = listing.find(file).ok_or(libc::ENOENT)?;
        let lifetime = self.listings.ttl(parent, listing);
        self.enter(parent, entry, listing.reserved(index), None, lifetime)
    }

    /// Counts an entry as given to the kernel, with the size of its value if that is known and none was
    /// opened yet.
    ///
    /// # Errors
    /// ENOMEM when there are too many.
    fn enter(
        &self,
        parent: Ino,
        entry: &Arc<Entry>,
        reserved: Ino,
        size: Option<u64>,
        lifetime: Duration,
    ) -> Result<Found> {
        let mut inodes = self.inodes.lock();
        let Some(ino) = inodes.lookup(parent, entry, reserved, size) else {
            drop(inodes); // what is said to the log is said under no lock
            return Err(Error::refused(
                libc::ENOMEM,
                "the kernel holds too many files of this mount",
            ));
        };
        let size = inodes.tell_size(ino);
        drop(inodes);
        Ok(Found {
            attributes: self.attributes_of(ino, entry.kind, size),
            lifetime,
        })
    }

    /// The kernel gives back `count` references to an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        let mut inodes = self.inodes.lock();
        let few = inodes.forget(ino, count);
        let gone = inodes.get(ino).is_none();
        drop(inodes);
        if gone {
            self.listings.forget(ino);
        }
        if few {
            self.give_memory_back();
        }
    }

    /// Lets go of what only a walk that is over needed.
    fn give_memory_back(&self) {
        self.prefetcher.forget_old();
        self.listings.forget_old();
        self.entries.forget_unused();
        crate::process::give_memory_back();
    }

    /// The object that a directory shows.
    fn object(&self, ino: Ino) -> Result<Path> {
        let inodes = self.inodes.lock();
        if let Some(path) = inodes.object(ino) {
            return Ok(path);
        }
        let (_, entry) = inodes.get(ino).ok_or(libc::ENOENT)?;
        drop(inodes);
        if entry.kind != Kind::Child {
            return Err(libc::ENOTDIR.into());
        }
        let why = format!("QEMU cannot find an object named '{}' by a path", entry.name);
        Err(Error::refused(libc::ENOENT, &why))
    }

    /// What an inode other than a directory stands for: its object's inode and path, and itself.
    fn property(&self, ino: Ino) -> Result<(Ino, Path, Arc<Entry>)> {
        let found = self.inodes.lock().get(ino);
        let (parent, entry) = found.ok_or(libc::ENOENT)?;
        Ok((parent, self.object(parent)?, entry))
    }

    /// Makes sure that an answer is about what was asked: while it was on its way, QEMU may have
    /// announced the end of the object, and another one have taken its path.
    fn ensure_alive(&self, ino: Ino) -> Result<()> {
        self.inodes.lock().get(ino).map(drop).ok_or(libc::ENOENT.into())
    }

    /// Remembers why something failed, and drops what is no longer true of it.
    fn record_error(&self, ino: Ino, error: Error) -> Error {
        let Some(words) = &error.words else {
            return error;
        };
        self.inodes.lock().errors.set(ino, words);
        if error.stale {
            // QEMU names the object if that is what it does not find, and not the property.
            let object = self
                .property(ino)
                .ok()
                .filter(|(_, path, entry)| entry.kind != Kind::Child && words.contains(&format!("'{path}'")));
            self.forget_object(object.map_or(ino, |(parent, ..)| parent));
        }
        error
    }

    /// Sets a property of an object. Even a refused or unanswered write may have changed values, and added and
    /// removed properties.
    fn write_to<T>(&self, object: Ino, set: impl FnOnce() -> T) -> T {
        self.listings.note_change();
        let outcome = set();
        self.listings.drop_one(object);
        outcome
    }

    /// QEMU no longer has the object or property of this inode.
    fn forget_object(&self, ino: Ino) {
        let mut inodes = self.inodes.lock();
        let Some((parent, entry)) = inodes.get(ino).filter(|_| ino != ROOT) else {
            return;
        };
        inodes.detach(ino);
        drop(inodes);
        self.listings.drop_one(ino);
        self.listings.drop_one(parent);
        if let Some(kernel) = self.kernel.get() {
            kernel.entry_gone(parent, &entry.file);
        }
    }

    /// QEMU says that the device at this path was unplugged. Values fetched ahead may be its own.
    pub fn device_deleted(&self, path: &str) {
        let Some(path) = Path::parse(path) else {
            return;
        };
        self.listings.note_change();
        let mut at = ROOT;
        for name in path.names() {
            let Some(below) = self.inodes.lock().child(at, name) else {
                // Not known to the kernel; its parent's listing may still hold it.
                return self.listings.drop_one(at);
            };
            at = below;
        }
        self.forget_object(at);
    }

    /// Nothing that was learned can be relied on any more: it may be another QEMU.
    pub fn invalidate_all(&self) {
        self.listings.drop_all();
        self.prefetcher.clear();
        *self.descriptions.lock() = Descriptions::default();
    }
}
