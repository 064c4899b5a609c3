//! What is mounted where: /proc/self/mountinfo.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A line of /proc/self/mountinfo.
pub struct Line {
    pub id: u64,
    /// Major and minor of the filesystem.
    pub device: String,
    pub point: PathBuf,
    pub fs_type: String,
}

/// All mounts that this process sees, in the order in which they lie over each other.
///
/// # Errors
/// When /proc cannot be read.
pub fn mount_lines() -> io::Result<Vec<Line>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// `36 35 98:0 /root /point options… - type source …`, with odd bytes as `\ooo`.
fn parse_line(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|b| *b == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let point = unescape(fields.nth(1)?)?;
    let mut rest = fields.skip_while(|field| *field != b"-");
    let fs_type = String::from_utf8_lossy(rest.nth(1)?).into_owned();
    Some(Line {
        id,
        device,
        point: PathBuf::from(OsString::from_vec(point)),
        fs_type,
    })
}

/// Undoes the `\ooo` of blanks, backslashes and the like.
fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    let mut parts = field.split(|b| *b == b'\\');
    let mut out = parts.next()?.to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(3)?;
        out.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()?);
        out.extend(rest);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn mountinfo() {
        let line = parse_line(br"36 35 0:98 / /mnt/a\040b\134c rw,nosuid shared:1 - fuse.qom-fuse /tmp/x rw")
            .unwrap();
        assert_eq!(
            (line.id, line.fs_type.as_str(), line.device.as_str()),
            (36, "fuse.qom-fuse", "0:98")
        );
        assert_eq!(line.point, Path::new(r"/mnt/a b\c"));
        assert!(parse_line(b"").is_none());
        assert!(
            mount_lines()
                .unwrap()
                .iter()
                .any(|line| line.point == Path::new("/"))
        );
    }
}
