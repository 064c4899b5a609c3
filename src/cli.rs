//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use log::LevelFilter;

use crate::qmp::{Address, AddressError};

const AFTER_HELP: &str = "\
Example:
  qemu-system-x86_64 -qmp unix:/tmp/vm.sock,server=on,wait=off …
  mkdir mnt; qom-fuse /tmp/vm.sock mnt
  ls mnt/machine; cat mnt/machine/type; echo off > mnt/machine/graphics
  fusermount3 -u mnt

Exit status: 0 when mounted (in the foreground: when unmounted again), 1 for any error.";

/// Mount the QEMU Object Model of a running machine as a filesystem.
#[derive(Debug, Parser)]
#[command(name = "qom-fuse", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// The QMP socket (optional), then the directory to mount on
    #[arg(value_name = "[SOCKET] MOUNTPOINT", num_args = 1..=2, required = true)]
    paths: Vec<OsString>,

    /// QMP socket of the machine: /path, unix:/path, host:port, tcp:host:port, [v6]:port or
    /// fd:N; what was given to QEMU's -qmp works too [env: QMP_SOCKET, QMP_SERVER]
    #[arg(short, long, value_name = "SOCKET", help_heading = "Connection")]
    socket: Option<String>,

    /// Stay in the foreground, with the log on stderr
    #[arg(short, long, help_heading = "Process")]
    foreground: bool,

    /// Append the log to this file
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    log_file: Option<PathBuf>,

    /// Log more: -v what happens, -vv each QMP request with its time [env: RUST_LOG]
    #[arg(short, long, action = ArgAction::Count, help_heading = "Process")]
    verbose: u8,

    /// Mount options, separated by commas: ro, rw, allow_other, allow_root,
    /// default_permissions, no_default_permissions, fsname=NAME, subtype=NAME, uid=N, gid=N,
    /// umask=OCTAL, entry_timeout=SECONDS (how long listings are kept; default 1),
    /// timeout=SECONDS (for each QMP request; default 10), reconnect, no_readahead,
    /// auto_unmount (always on), and the general ones of mount(8)
    #[arg(short, value_name = "OPTION,…", action = ArgAction::Append, help_heading = "Mount")]
    options: Vec<String>,
}

/// What to do, checked as far as that goes without doing it.
#[derive(Debug, Clone)]
pub struct Config {
    pub address: Address,
    /// The address as it was given: what mount(8) shows as the source.
    pub source: String,
    pub mount_point: PathBuf,
    pub foreground: bool,
    pub log_file: Option<PathBuf>,
    pub log_level: LevelFilter,
    pub mount: MountOptions,
}

/// What `-o` says.
#[derive(Debug, Clone, PartialEq)]
pub struct MountOptions {
    pub read_only: bool,
    pub allow_other: bool,
    pub allow_root: bool,
    /// None: when others are let in.
    pub default_permissions: Option<bool>,
    pub fsname: Option<String>,
    pub subtype: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub umask: u32,
    pub entry_timeout: Duration,
    pub timeout: Duration,
    pub reconnect: bool,
    pub readahead: bool,
    pub no_exec: bool,
    pub no_atime: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            allow_other: false,
            allow_root: false,
            default_permissions: None,
            fsname: None,
            subtype: "qom-fuse".into(),
            uid: None,
            gid: None,
            umask: 0,
            entry_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            reconnect: false,
            readahead: true,
            no_exec: false,
            no_atime: false,
        }
    }
}

/// A command line that asks for something impossible. The text names it.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Also help and version, which are no errors.
    #[error(transparent)]
    Clap(#[from] clap::Error),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("no QMP socket given: name it before the mount point, with -s, or in $QMP_SOCKET")]
    NoSocket,
    #[error("the QMP socket is given twice: '{0}' and '{1}'")]
    TwoSockets(String, String),
    #[error("the QMP socket '{0}' is not UTF-8")]
    NotUtf8(String),
    #[error("-o {0}: {1}")]
    Option(String, String),
}

/// Reads a command line (the program's name first) and the environment.
///
/// # Errors
/// [`UsageError`]
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Config, UsageError> {
    let arguments = Arguments::try_parse_from(arguments)?;
    let mut paths = arguments.paths;
    let mount_point = PathBuf::from(paths.pop().unwrap_or_default());
    let positional = match paths.pop() {
        Some(socket) => Some(
            socket
                .into_string()
                .map_err(|s| UsageError::NotUtf8(s.to_string_lossy().into_owned()))?,
        ),
        None => None,
    };
    let source = match (positional, arguments.socket) {
        (Some(one), Some(two)) => return Err(UsageError::TwoSockets(one, two)),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => ["QMP_SOCKET", "QMP_SERVER"]
            .iter()
            .find_map(|name| environment(name).filter(|value| !value.is_empty()))
            .ok_or(UsageError::NoSocket)?,
    };
    let mut mount = MountOptions::default();
    for words in &arguments.options {
        for word in split_words(words) {
            mount.set(&word)?;
        }
    }
    Ok(Config {
        address: source.parse()?,
        source,
        mount_point,
        foreground: arguments.foreground,
        log_file: arguments.log_file,
        log_level: match arguments.verbose {
            0 => LevelFilter::Warn,
            1 => LevelFilter::Info,
            2 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        },
        mount,
    })
}

/// Cuts at commas; `\,` is a comma within a word, as for fusermount3.
fn split_words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let word = words.len() - 1;
        match c {
            '\\' => words[word].extend(chars.next()),
            ',' => words.push(String::new()),
            c => words[word].push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

impl MountOptions {
    /// Takes one word of `-o`.
    fn set(&mut self, word: &str) -> Result<(), UsageError> {
        let bad = |why: &str| UsageError::Option(word.to_owned(), why.to_owned());
        if let Some((name, value)) = word.split_once('=') {
            let number = |radix| u32::from_str_radix(value, radix).map_err(|_| bad("not a number"));
            match name {
                "fsname" => self.fsname = Some(value.to_owned()),
                "subtype" => self.subtype = value.to_owned(),
                "uid" => self.uid = Some(number(10)?),
                "gid" => self.gid = Some(number(10)?),
                "umask" => match number(8)? {
                    umask if umask <= 0o777 => self.umask = umask,
                    _ => return Err(bad("at most 777")),
                },
                "entry_timeout" => {
                    self.entry_timeout = seconds(value).ok_or_else(|| bad("not a number of seconds"))?
                }
                "timeout" => {
                    self.timeout = seconds(value)
                        .filter(|t| !t.is_zero())
                        .ok_or_else(|| bad("not a number of seconds above 0"))?;
                }
                name if name.starts_with("x-") || name == "comment" => {}
                _ => return Err(bad("unknown option (see --help)")),
            }
            return Ok(());
        }
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "allow_root" => self.allow_root = true,
            "default_permissions" => self.default_permissions = Some(true),
            "no_default_permissions" => self.default_permissions = Some(false),
            "reconnect" => self.reconnect = true,
            "no_readahead" => self.readahead = false,
            "noexec" => self.no_exec = true,
            "exec" => self.no_exec = false,
            "noatime" => self.no_atime = true,
            "atime" => self.no_atime = false,
            // Always so, or without meaning here, but mount(8) and fstab hand them on.
            "auto_unmount" | "defaults" | "dev" | "nodev" | "suid" | "nosuid" | "sync" | "async"
            | "dirsync" | "diratime" | "nodiratime" | "relatime" | "norelatime" | "strictatime"
            | "nostrictatime" | "lazytime" | "nolazytime" | "auto" | "noauto" | "user" | "nouser"
            | "users" | "owner" | "group" | "_netdev" | "nofail" | "silent" | "loud" | "mand" | "nomand"
            | "iversion" | "noiversion" => {}
            word if word.starts_with("x-") => {}
            _ => return Err(bad("unknown option (see --help)")),
        }
        Ok(())
    }

    /// Whether the kernel judges by owner and mode: always when others are let in, unless the
    /// user says otherwise.
    pub fn kernel_judges(&self) -> bool {
        self.default_permissions
            .unwrap_or(self.allow_other || self.allow_root)
    }
}

/// A time in seconds, with decimals; at most a year.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (0.0..=31_536_000.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str, environment: &[(&str, &str)]) -> Result<Config, UsageError> {
        let arguments = line.split_whitespace().map(OsString::from);
        let find = |name: &str| {
            let found = environment.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        parse(arguments, find)
    }

    #[test]
    fn sockets() {
        for (line, environment, socket) in [
            ("qom-fuse /s mnt", vec![], "/s"),
            ("qom-fuse -s /s mnt", vec![], "/s"),
            ("qom-fuse --socket=tcp:h:1 mnt", vec![], "tcp:h:1"),
            (
                "qom-fuse mnt",
                vec![("QMP_SOCKET", "/a"), ("QMP_SERVER", "/b")],
                "/a",
            ),
            ("qom-fuse mnt", vec![("QMP_SERVER", "/b")], "/b"),
            (
                "qom-fuse mnt",
                vec![("QMP_SOCKET", ""), ("QMP_SERVER", "/b")],
                "/b",
            ),
            ("qom-fuse /s mnt", vec![("QMP_SOCKET", "/a")], "/s"),
        ] {
            let config = parse_line(line, &environment).unwrap();
            assert_eq!(
                (config.source.as_str(), config.mount_point),
                (socket, PathBuf::from("mnt")),
                "{line}"
            );
        }
        assert!(matches!(
            parse_line("qom-fuse mnt", &[]),
            Err(UsageError::NoSocket)
        ));
        assert!(matches!(
            parse_line("qom-fuse -s /a /b mnt", &[]),
            Err(UsageError::TwoSockets(..))
        ));
        assert!(matches!(
            parse_line("qom-fuse host:x mnt", &[]),
            Err(UsageError::Address(_))
        ));
        assert!(matches!(parse_line("qom-fuse", &[]), Err(UsageError::Clap(_))));
    }

    #[test]
    fn options() {
        let all = "qom-fuse /s mnt -o ro,allow_other,dev,suid,nofail,x-systemd.automount,uid=5,umask=027 \
                   -o entry_timeout=0.5,timeout=2,fsname=a\\,b,reconnect,no_readahead";
        let mount = parse_line(all, &[]).unwrap().mount;
        let want = MountOptions {
            read_only: true,
            allow_other: true,
            uid: Some(5),
            umask: 0o27,
            entry_timeout: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            fsname: Some("a,b".into()),
            reconnect: true,
            readahead: false,
            ..MountOptions::default()
        };
        assert_eq!(mount, want);
        assert!(mount.kernel_judges());
        assert!(!MountOptions::default().kernel_judges());
        for bad in [
            "bogus",
            "uid=x",
            "umask=1000",
            "timeout=0",
            "timeout=nan",
            "entry_timeout=-1",
            "timeout=1e99",
            "a=b",
        ] {
            let error = parse_line(&format!("qom-fuse /s mnt -o {bad}"), &[]).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn definition_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
