//! This process: its heap, which is small for hours and large for the seconds of a walk, and its descriptors.

use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

/// To be called once, first of all. One heap for all threads: glibc keeps what is free in a
/// thread's own heap, and our threads allocate too little to be in each other's way.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets parameters of malloc, before there is a second thread. What is large is given back
    // when it is freed: else glibc keeps as much as the largest that there ever was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 << 20);
    }
}

/// Returns unused pages of the heap to the system.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it frees nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Closes every descriptor from `first` on but `own`, which nothing here may use any more: what was inherited
/// must not be kept open.
pub fn close_all_but(first: u32, own: RawFd) {
    // SAFETY: plain system calls.
    let close_range =
        |first: u32, last: u32| unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 };
    let own = own as u32;
    if (first >= own || close_range(first, own - 1)) && close_range(own + 1, u32::MAX) {
        return;
    }
    // Before Linux 5.9. No limit is so large that more are in use.
    // SAFETY: as above.
    let most = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) }.clamp(1024, 65536) as u32;
    for other in (first..most).filter(|other| *other != own) {
        // SAFETY: as above.
        unsafe { libc::close(other as RawFd) };
    }
}

/// Lets a program that is to be started have a descriptor of ours.
pub fn pass_descriptor(command: &mut Command, descriptor: RawFd) -> &mut Command {
    // SAFETY: whoever starts the program still has the descriptor, and fcntl is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let descriptor = BorrowedFd::borrow_raw(descriptor);
            Ok(fcntl_setfd(descriptor, FdFlags::empty())?)
        })
    }
}
