//! What commands print. The results go to standard output, everything else to standard error.

use std::io::Write as _;

/// Prints a result.
pub(super) fn print(text: &str) {
    // If nobody reads (a closed pipe), there is nobody to tell.
    let _written = std::io::stdout().write_all(text.as_bytes()).is_ok();
}

/// Prints what is not a result: problems, progress, hints.
pub(super) fn print_error(text: &str) {
    // See above.
    let _written = std::io::stderr().write_all(text.as_bytes()).is_ok();
}
