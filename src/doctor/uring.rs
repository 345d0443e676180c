//! Whether the kernel gives this process an io_uring.
#![expect(unsafe_code, reason = "the probe is the system call itself")]

use rustix::{
    io::Errno,
    io_uring::{io_uring_params, io_uring_setup},
};

/// Sets a ring of 8 entries up and drops it.
///
/// # Errors
/// What the kernel says.
pub(super) fn probe() -> Result<(), Errno> {
    let mut params = io_uring_params::default();
    // SAFETY: no flag is set, ATTACH_WQ least of all, so `params` names no file descriptor; the kernel writes into
    // `params` only during the call. The ring's memory is never mapped, and its descriptor closes here.
    unsafe { io_uring_setup(8, &mut params) }.map(drop)
}
