//! Room for connections: each takes a file descriptor, and the usual limit of 1024 is soon reached.
#![expect(
    unsafe_code,
    reason = "there is no safe interface to resource limits in what we depend on"
)]

/// Raises the number of files that this process may open to what the system allows. Returns that number.
pub(super) fn raise_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid, exclusive pointer to an `rlimit` for the time of the call.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if read != 0 {
        return None;
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid pointer to an `rlimit`, which is only read.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        if set != 0 {
            return None;
        }
    }
    Some(limit.rlim_cur)
}
