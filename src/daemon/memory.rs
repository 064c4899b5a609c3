//! The heap of a process that is small for hours and large for the seconds of a walk.

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
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it frees nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
