//! Monitors that others need too.

mod idle;
mod own;

use harness::*;

/// A machine with one more monitor, by TCP on the port that is returned too.
#[track_caller]
fn on_tcp(which: Which) -> (u16, Qemu) {
    let start = |_| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its number").port();
        drop(free); // another process may take it: then once more
        let address = format!("tcp:127.0.0.1:{port},server=on,wait=off");
        Some((port, Qemu::try_start(which, "none", &["-qmp", &address]).ok()?))
    };
    (0..20).find_map(start).expect("a QEMU that listens on a port")
}

/// A machine whose monitor is at a path that the next one can have too.
#[track_caller]
fn at(socket: &std::path::Path, which: Which, kind: &str) -> Qemu {
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    Qemu::start(which, kind, &["-qmp", &monitor])
}
