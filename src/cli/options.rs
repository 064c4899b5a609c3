//! The words of `-o`.

use std::time::Duration;

use super::UsageError;
use crate::fs::Settings;
use crate::qmp::{Address, MonitorChoice, MonitorOptions};

/// Where Proxmox has the one monitor of each machine, which its own tools need for moments every few seconds.
const PROXMOX: [&str; 2] = ["/run/qemu-server", "/var/run/qemu-server"];
/// After how long it is let go of there.
const PROXMOX_IDLE: Duration = Duration::from_secs(1);

/// How to mount, which `-o` says.
#[derive(Debug, Clone, PartialEq)]
pub struct MountOptions {
    /// How the files are shown.
    pub fs: Settings,
    pub allow_other: bool,
    pub allow_root: bool,
    /// None: when others are let in.
    pub default_permissions: Option<bool>,
    /// The source that mount(8) shows. None: the address as it was given.
    pub fsname: Option<String>,
    /// What mount(8) shows as type, after `fuse.`.
    pub subtype: String,
    /// For each request to QEMU, and for connecting.
    pub timeout: Duration,
    /// Which libvirt has the domain, where that is not the one to be expected.
    pub uri: Option<String>,
    pub reconnect: bool,
    pub monitor: MonitorChoice,
    /// After how long the given monitor is let go of when nothing is asked; zero: never. None: as the address has it.
    pub idle: Option<Duration>,
    /// Whether a request may be sent before the one before it was answered.
    pub pipelining: bool,
    pub no_exec: bool,
    pub no_atime: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            fs: Settings::default(),
            allow_other: false,
            allow_root: false,
            default_permissions: None,
            fsname: None,
            subtype: "qom-fuse".into(),
            timeout: Duration::from_secs(10),
            uri: None,
            reconnect: false,
            monitor: MonitorChoice::Auto,
            idle: None,
            pipelining: true,
            no_exec: false,
            no_atime: false,
        }
    }
}

/// Cuts at commas; `\,` is a comma within a word, as for fusermount3.
pub(super) fn split_words(text: &str) -> Vec<String> {
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
    pub(super) fn set(&mut self, word: &str) -> Result<(), UsageError> {
        let bad = |why: &str| UsageError::Option(word.to_owned(), why.to_owned());
        if let Some((name, value)) = word.split_once('=') {
            let number = |radix| u32::from_str_radix(value, radix).map_err(|_| bad("not a number"));
            match name {
                "fsname" => self.fsname = Some(value.to_owned()),
                "subtype" => self.subtype = value.to_owned(),
                "uri" => self.uri = Some(value.to_owned()),
                "uid" => self.fs.uid = number(10)?,
                "gid" => self.fs.gid = number(10)?,
                "umask" => match number(8)? {
                    umask if umask <= 0o777 => self.fs.umask = umask,
                    _ => return Err(bad("at most 777")),
                },
                "entry_timeout" => {
                    self.fs.entry_timeout = seconds(value).ok_or_else(|| bad("not a number of seconds"))?
                }
                "timeout" => {
                    self.timeout = seconds(value)
                        .filter(|t| !t.is_zero())
                        .ok_or_else(|| bad("not a number of seconds above 0"))?;
                }
                "monitor" => {
                    self.monitor = match value {
                        "auto" => MonitorChoice::Auto,
                        "own" => MonitorChoice::Own,
                        "given" => MonitorChoice::Given,
                        _ => return Err(bad("auto, own or given")),
                    }
                }
                "idle" => {
                    self.idle = Some(seconds(value).ok_or_else(|| bad("not a number of seconds"))?);
                }
                name if name.starts_with("x-") || name == "comment" => {}
                _ => return Err(bad("unknown option (see --help)")),
            }
            return Ok(());
        }
        match word {
            "ro" => self.fs.read_only = true,
            "rw" => self.fs.read_only = false,
            "allow_other" => self.allow_other = true,
            "allow_root" => self.allow_root = true,
            "default_permissions" => self.default_permissions = Some(true),
            "no_default_permissions" => self.default_permissions = Some(false),
            "reconnect" => self.reconnect = true,
            "no_readahead" => self.fs.readahead = false,
            "no_pipelining" => self.pipelining = false,
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

    /// How the monitor at an address is used.
    pub fn monitor_options(&self, address: &Address) -> MonitorOptions {
        let usual = || match address.found() {
            Some(Address::Unix(path)) if PROXMOX.iter().any(|folder| path.starts_with(folder)) => {
                PROXMOX_IDLE
            }
            _ => Duration::ZERO,
        };
        let idle = self.idle.unwrap_or_else(usual);
        MonitorOptions {
            timeout: self.timeout,
            pipelining: self.pipelining,
            reconnect: self.reconnect,
            choice: match self.monitor {
                // A mount that changes nothing has QEMU make nothing, unless it is told to.
                MonitorChoice::Auto if self.fs.read_only => MonitorChoice::Given,
                choice => choice,
            },
            idle: (!idle.is_zero()).then_some(idle),
        }
    }

    /// Whether others than the mounting user are let in, as far as modes and `allow_root` let them.
    pub fn lets_others_in(&self) -> bool {
        self.allow_other || self.allow_root
    }

    /// Whether the kernel judges by owner and mode: always when others are let in, unless the
    /// user says otherwise.
    pub fn kernel_judges(&self) -> bool {
        self.default_permissions.unwrap_or(self.lets_others_in())
    }

    /// The type of the filesystem, as mount(2) and mount(8) have it.
    pub fn fs_type(&self) -> String {
        format!("fuse.{}", self.subtype)
    }
}

/// A time in seconds, with decimals; at most a year.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (0.0..=31_536_000.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}
