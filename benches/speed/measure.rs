//! Doing the work through a mount, and taking the time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, hint};

use harness::Mount;

/// Beyond the default `entry_timeout`: nothing learned before is relied on after that.
pub const EXPIRY: Duration = Duration::from_millis(1100);

const CHILD: &str = "--read-again";

/// A mount about which nothing is cached, neither in the kernel nor in the process.
pub fn cold_mount(socket: &Path) -> Mount {
    let mount = Mount::start(socket, &[]);
    sleep(EXPIRY);
    mount
}

/// `find MOUNT`; the time, and how many lines it printed.
pub fn find(mount: &Mount) -> (Duration, usize) {
    time(Command::new("find").arg(mount.path()))
}

/// `grep -rs . MOUNT`; `-s`, for some properties cannot be read.
pub fn grep(mount: &Mount) -> (Duration, usize) {
    time(Command::new("grep").args(["-rs", "."]).arg(mount.path()))
}

/// Opens, reads and closes one file so many times in one process; that process's own time.
pub fn read_again(mount: &Mount, file: &str, times: usize) -> Duration {
    let program = env::current_exe().expect("the path of this program");
    let output = Command::new(program)
        .arg(CHILD)
        .arg(mount.join(file))
        .arg(times.to_string())
        .output()
        .expect("run this program again");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let seconds = said.parse().unwrap_or_else(|_| panic!("{output:?}"));
    Duration::from_secs_f64(seconds)
}

/// What this process has to do if it was started by [`read_again`].
pub fn child_work() -> Option<impl FnMut() -> io::Result<ExitCode>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [flag, file, times] = arguments.as_slice() else {
        return None;
    };
    let (file, times) = (file.clone(), times.parse::<usize>().ok()?);
    (flag == CHILD).then_some(move || {
        let mut buffer = [0; 4096];
        let mut once = || -> io::Result<()> {
            hint::black_box(File::open(&file)?.read(&mut buffer)?);
            Ok(())
        };
        let start = Instant::now();
        for _ in 0..times {
            once()?;
        }
        println!("{:.6}", start.elapsed().as_secs_f64());
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs a command to its end, with its output in a file: `grep` stops early when that is /dev/null.
fn time(command: &mut Command) -> (Duration, usize) {
    let output = tempfile::NamedTempFile::new().expect("make a file");
    let sink = output.reopen().expect("share a file");
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(sink)
        .stderr(Stdio::null());
    let start = Instant::now();
    command
        .status()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let elapsed = start.elapsed();
    let text = fs::read(output.path()).expect("read what a command said");
    (elapsed, text.iter().filter(|byte| **byte == b'\n').count())
}

/// The resident memory of the process that serves a mount, in MiB. Its guard, which waits for
/// its end, is the smaller one.
pub fn resident(mount: &Mount) -> f64 {
    let of_process = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
    };
    let kib = mount
        .pids()
        .into_iter()
        .filter_map(of_process)
        .fold(0.0, f64::max);
    assert!(kib > 0.0, "no process serves {}", mount.path().display());
    kib / 1024.0
}

/// Makes the kernel forget all inodes that are not in use, which only root may.
pub fn drop_inodes() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    sleep(Duration::from_millis(500)); // the daemon takes what it is told to forget
    Ok(())
}

/// The middle one of some numbers.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}
