//! The command line.

mod name;
mod options;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, Parser, ValueHint};
use log::LevelFilter;

use crate::qmp::{Address, AddressError};
pub use name::Name;
pub use options::MountOptions;
use options::split_words;

const AFTER_HELP: &str = "\
Mount options:
  ro, rw                    whether properties can be set (default: rw)
  allow_other, allow_root   let other users in, or root only (default: the mounting user only)
  default_permissions       let the kernel judge by owner and mode (default: when others are let
                            in; no_default_permissions: never)
  uri=URI                   the libvirt that has the domain, as qemu:///session (default:
                            $LIBVIRT_DEFAULT_URI, else that of whoever runs it)
  uid=N, gid=N, umask=OCT   owner, group and mode that files show (default: the mounting user, 0)
  entry_timeout=SECONDS     how long a listing is kept (default: 1)
  timeout=SECONDS           for each QMP request, and for connecting (default: 10)
  reconnect                 stay mounted when QEMU goes, and serve again when it is back
  monitor=auto|own|given    whether QEMU makes a monitor for the mount, so that the given one serves
                            others: auto where it can (QEMU 11.1, Unix sockets, not with ro), own
                            or no mount, given never (default: auto)
  idle=SECONDS              let others use the given monitor when nothing was asked for so long, and
                            take it again when something is (default: 0, never; for Proxmox's
                            sockets 1)
  no_readahead              never ask QEMU for anything before it is read
  no_pipelining             send QEMU no request before it has answered the last one (always so
                            behind libvirt's virt-qemu-qmp-proxy, which takes no more)
  fsname=NAME, subtype=NAME what mount(8) shows as source (default: SOCKET) and type (qom-fuse)
  noexec, noatime, and the words that mount(8) and fstab hand on (dev, suid, nofail, x-…)

Examples:
  qom-fuse mnt -- qemu-system-x86_64 -M q35 …     # start a machine and mount it

  qemu-system-x86_64 -qmp unix:/tmp/vm.sock,server=on,wait=off …
  mkdir mnt; qom-fuse /tmp/vm.sock mnt
  ls mnt/machine; cat mnt/machine/type; echo off > mnt/machine/graphics
  fusermount3 -u mnt

Exit status: 0 when mounted (in the foreground: when unmounted again), 1 for any error; with
a QEMU command that of QEMU, 128+N when signal N killed it, 127 when there is no such command,
126 when it cannot be run.";

/// Mount the QEMU Object Model of a running machine as a filesystem.
#[derive(Debug, Parser)]
#[command(
    name = "qom-fuse",
    version,
    override_usage = "qom-fuse [OPTIONS] [SOCKET] MOUNTPOINT\n       qom-fuse [OPTIONS] MOUNTPOINT -- QEMU-COMMAND...",
    after_help = AFTER_HELP,
    max_term_width = 100
)]
struct Arguments {
    /// The machine's name or QMP socket (optional), then the directory to mount on
    #[arg(value_names = ["SOCKET", "MOUNTPOINT"], num_args = 1..=2, required_unless_present = "list")]
    paths: Vec<OsString>,

    /// Start this QEMU and mount it; the mount ends with QEMU, and with its exit status
    #[arg(last = true, value_name = "QEMU-COMMAND")]
    command: Vec<OsString>,

    /// Print the machines that you may see, with their QMP sockets, and exit
    #[arg(short, long, help_heading = "Connection")]
    list: bool,

    /// The machine: its name, id or process id as --list shows them; libvirt:DOMAIN; or its QMP socket:
    /// /path, unix:/path, host:port, tcp:host:port, [v6]:port or fd:N; what was given to QEMU's -qmp works
    /// too [env: QMP_SOCKET, QMP_SERVER]
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

    /// Mount options, separated by commas (see below)
    #[arg(short, value_name = "OPTION,…", action = ArgAction::Append, help_heading = "Mount")]
    options: Vec<String>,
}

/// What to do, checked as far as that goes without doing it.
#[derive(Debug, Clone)]
pub struct Config {
    pub machine: Wanted,
    /// The address as it was given, or the program's name: what mount(8) shows as the source.
    pub source: String,
    /// As it was given.
    pub mount_point: PathBuf,
    /// Always so with a QEMU of our own, which keeps the terminal.
    pub foreground: bool,
    pub log_file: Option<PathBuf>,
    pub log_level: LevelFilter,
    pub mount: MountOptions,
}

/// The environment variables that name a default socket, the first one first.
pub const SOCKET_VARIABLES: [&str; 2] = ["QMP_SOCKET", "QMP_SERVER"];

/// Which machine to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The one with this monitor.
    At(Address),
    /// The one that is called so.
    Named(Name),
    /// One to be started by this command.
    Command(Vec<OsString>),
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Task {
    Mount(Box<Config>),
    /// Show the machines that there are.
    List,
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
    #[error("give the QMP socket '{0}' or a QEMU command after --, not both")]
    SocketAndCommand(String),
    #[error("libvirt: wants the name of a domain: libvirt:DOMAIN")]
    NoDomain,
    #[error("the QMP socket '{0}' is not UTF-8")]
    NotUtf8(String),
    #[error("-o {0}: {1}")]
    Option(String, String),
}

/// The definition of the command line, from which the man page and the completions are made.
pub fn command() -> clap::Command {
    Arguments::command()
        .mut_arg("paths", |paths| paths.value_hint(ValueHint::AnyPath))
        .mut_arg("command", |command| command.value_hint(ValueHint::AnyPath))
        .mut_arg("socket", |socket| socket.value_hint(ValueHint::AnyPath))
        .mut_arg("log_file", |file| file.value_hint(ValueHint::FilePath))
}

/// What a user means by SOCKET: a domain of libvirt's, an address, or else the name of a machine. What exists as a
/// file is an address, be it of no socket: a mistake must not lead elsewhere.
fn wanted(text: &str) -> Result<Wanted, UsageError> {
    if let Some(domain) = text.strip_prefix("libvirt:") {
        let named = Wanted::Named(Name::Domain(domain.to_owned()));
        return if domain.is_empty() {
            Err(UsageError::NoDomain)
        } else {
            Ok(named)
        };
    }
    let address = text.parse()?;
    let is_name = match &address {
        Address::Unix(path) => !text.contains(['/', ':']) && path.symlink_metadata().is_err(),
        _ => false,
    };
    Ok(match is_name {
        true => Wanted::Named(Name::Machine(text.to_owned())),
        false => Wanted::At(address),
    })
}

/// Reads a command line (the program's name first) and the environment.
///
/// # Errors
/// [`UsageError`]
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Task, UsageError> {
    let arguments = Arguments::try_parse_from(arguments)?;
    if arguments.list {
        return Ok(Task::List);
    }
    let mut paths = arguments.paths;
    let mount_point = PathBuf::from(paths.pop().unwrap_or_default());
    let not_utf8 = |s: OsString| UsageError::NotUtf8(s.to_string_lossy().into_owned());
    let positional = paths.pop().map(OsString::into_string).transpose();
    let positional = positional.map_err(not_utf8)?;
    let foreground = arguments.foreground || !arguments.command.is_empty();
    let (machine, source) = if arguments.command.is_empty() {
        let source = match (positional, arguments.socket) {
            (Some(one), Some(two)) => return Err(UsageError::TwoSockets(one, two)),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => SOCKET_VARIABLES
                .iter()
                .find_map(|name| environment(name).filter(|value| !value.is_empty()))
                .ok_or(UsageError::NoSocket)?,
        };
        (wanted(&source)?, source)
    } else {
        if let Some(socket) = positional.or(arguments.socket) {
            return Err(UsageError::SocketAndCommand(socket));
        }
        let program = arguments.command.first().map(std::path::Path::new);
        let name = program.and_then(std::path::Path::file_name).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        (Wanted::Command(arguments.command), name)
    };
    let mut mount = MountOptions::default();
    for words in &arguments.options {
        for word in split_words(words) {
            mount.set(&word)?;
        }
    }
    let lasting = matches!(machine, Wanted::Command(_) | Wanted::At(Address::Fd(_)));
    if let Some(idle) = mount.idle.filter(|idle| lasting && !idle.is_zero()) {
        let word = format!("idle={}", idle.as_secs_f64());
        return Err(UsageError::Option(
            word,
            "nobody else can use this monitor".into(),
        ));
    }
    Ok(Task::Mount(Box::new(Config {
        machine,
        source,
        mount_point,
        foreground,
        log_file: arguments.log_file,
        log_level: match arguments.verbose {
            0 => LevelFilter::Warn,
            1 => LevelFilter::Info,
            2 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        },
        mount,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Settings;
    use crate::qmp::MonitorChoice;
    use std::time::Duration;

    fn parse_line(line: &str, environment: &[(&str, &str)]) -> Result<Config, UsageError> {
        let arguments = line.split_whitespace().map(OsString::from);
        let find = |name: &str| {
            let found = environment.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match parse(arguments, find)? {
            Task::Mount(config) => Ok(*config),
            Task::List => panic!("it does not ask for a mount: {line}"),
        }
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
        let config = parse_line("qom-fuse -o ro mnt -- /opt/qemu -M none", &[("QMP_SOCKET", "/a")]).unwrap();
        let command = ["/opt/qemu", "-M", "none"].map(OsString::from).to_vec();
        assert_eq!(
            (config.machine, config.source.as_str()),
            (Wanted::Command(command), "qemu")
        );
        assert!(matches!(
            parse_line("qom-fuse /s mnt -- qemu", &[]),
            Err(UsageError::SocketAndCommand(_))
        ));
    }

    #[test]
    fn options() {
        let all = "qom-fuse /s mnt -o ro,allow_other,dev,suid,nofail,x-systemd.automount,uid=5,umask=027 \
                   -o entry_timeout=0.5,timeout=2,fsname=a\\,b,reconnect,no_readahead,no_pipelining,monitor=own,idle=0.5";
        let mount = parse_line(all, &[]).unwrap().mount;
        let want = MountOptions {
            fs: Settings {
                read_only: true,
                uid: 5,
                umask: 0o27,
                entry_timeout: Duration::from_millis(500),
                readahead: false,
                ..Settings::default()
            },
            allow_other: true,
            timeout: Duration::from_secs(2),
            fsname: Some("a,b".into()),
            reconnect: true,
            pipelining: false,
            monitor: MonitorChoice::Own,
            idle: Some(Duration::from_millis(500)),
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
            "monitor=mine",
            "idle=-1",
        ] {
            let error = parse_line(&format!("qom-fuse /s mnt -o {bad}"), &[]).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn when_a_monitor_is_let_go() {
        let idle = |line: &str| {
            let config = parse_line(line, &[]).unwrap();
            match config.machine {
                Wanted::At(address) => config.mount.monitor_options(&address).idle,
                Wanted::Named(_) | Wanted::Command(_) => None,
            }
        };
        let second = Duration::from_secs(1);
        for (line, want) in [
            ("qom-fuse /s mnt", None),
            ("qom-fuse -o idle=1 /s mnt", Some(second)),
            ("qom-fuse /run/qemu-server/100.qmp mnt", Some(second)),
            ("qom-fuse /var/run/qemu-server/100.qmp mnt", Some(second)),
            ("qom-fuse /run/qemu-server2/100.qmp mnt", None),
            ("qom-fuse -o idle=0 /run/qemu-server/100.qmp mnt", None),
            ("qom-fuse -o idle=2 /run/qemu-server/1.qmp mnt", Some(2 * second)),
            ("qom-fuse -o idle=0 fd:3 mnt", None),
        ] {
            assert_eq!(idle(line), want, "{line}");
        }
        for line in ["qom-fuse -o idle=1 fd:3 mnt", "qom-fuse -o idle=1 mnt -- qemu"] {
            let error = parse_line(line, &[]).unwrap_err().to_string();
            assert!(error.contains("idle=1: nobody else"), "{error}");
        }
    }

    #[test]
    fn definition_is_consistent() {
        command().debug_assert();
    }
}
