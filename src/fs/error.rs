//! Errors as the kernel wants them: a number, and the words that go elsewhere.

use log::warn;

use crate::qom::{self, Reason};
use crate::text::printable;

/// A failed operation: the number for the caller and, where QEMU said why, its words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("errno {errno}{}", words.as_deref().map(|w| format!(": {w}")).unwrap_or_default())]
pub struct Error {
    pub errno: i32,
    /// For `user.qom.error`; exactly as QEMU put it.
    pub words: Option<String>,
    /// QEMU no longer has what was asked for, so what we know of it is stale.
    pub stale: bool,
}

pub type Result<T> = std::result::Result<T, Error>;

/// What was being done to QEMU when it refused; the same words mean different numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    List,
    Read,
    Write,
}

impl Error {
    /// The operation was not to wait, and has to.
    pub fn would_block(&self) -> bool {
        self.errno == libc::EWOULDBLOCK
    }

    /// An error of our own making; `why` goes to the log.
    pub fn refused(errno: i32, why: &str) -> Error {
        warn!("{}", printable(why));
        Error {
            errno,
            words: Some(why.to_owned()),
            stale: false,
        }
    }

    /// What QEMU refused, as a number. The words go to the log here, once.
    pub fn from_qom(error: &qom::Error, doing: Doing) -> Error {
        // The path in it is QEMU's text too.
        warn!("{}", printable(&error.to_string()));
        let reason = error.reason();
        let errno = match (reason, doing) {
            (Reason::NotFound, _) => libc::ENOENT,
            (Reason::NotReadable | Reason::NotWritable, _) => libc::EACCES,
            (Reason::TooLate, Doing::Write) => libc::EBUSY,
            (Reason::Refused, Doing::Write) => libc::EINVAL,
            (Reason::Timeout, _) => libc::ETIMEDOUT,
            (Reason::TooLong, _) => libc::EFBIG,
            (Reason::Disconnected, _) => libc::ENOTCONN,
            (Reason::Reconnected, _) => libc::ESTALE,
            (Reason::NoMemory, _) => libc::ENOMEM,
            (Reason::TooLate | Reason::Refused | Reason::NoCommand | Reason::Undecodable, _) => libc::EIO,
        };
        Error {
            errno,
            words: Some(error.words()),
            stale: reason == Reason::NotFound,
        }
    }
}

/// Whether an operation may wait for QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It fails with [`Error::would_block`] instead, and changes nothing.
    No,
    Yes,
}

impl Wait {
    /// To be called before anything that may take long.
    ///
    /// # Errors
    /// [`Error::would_block`]
    pub fn allowed(self) -> Result<()> {
        match self {
            Wait::Yes => Ok(()),
            Wait::No => Err(libc::EWOULDBLOCK.into()),
        }
    }
}

impl From<i32> for Error {
    /// A plain number that needs no words.
    fn from(errno: i32) -> Error {
        Error {
            errno,
            words: None,
            stale: false,
        }
    }
}
