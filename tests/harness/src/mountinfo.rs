//! The kernel's own list of mounts, which can be read without touching a mount.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Where it is mounted.
    pub point: PathBuf,
    /// The options of the mount, such as `rw,nosuid,nodev`.
    pub options: String,
    /// The type, such as `fuse.qom-fuse`.
    pub kind: String,
    /// The source.
    pub source: OsString,
    /// The options of the filesystem, such as `rw,user_id=0,allow_other`.
    pub super_options: String,
}

/// All mounts of this process's namespace.
pub fn mounts() -> Vec<MountInfo> {
    let text = fs::read("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| parse(line).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(line))))
        .collect()
}

/// The topmost mount at a path, which must be canonical.
pub fn mount_at(point: &Path) -> Option<MountInfo> {
    mounts().into_iter().rfind(|mount| mount.point == point)
}

/// `ID PARENT DEVICE ROOT POINT OPTIONS [TAG...] - TYPE SOURCE SUPER-OPTIONS`
pub fn parse(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let point = unescape(fields.nth(4)?);
    let options = text(fields.next()?);
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = text(fields.next()?);
    Some(MountInfo {
        point: OsString::from_vec(point).into(),
        options,
        kind,
        source,
        super_options,
    })
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = octal {
            let value = digits
                .iter()
                .fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            plain.push(value as u8);
            rest = &after[3..];
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    plain
}
