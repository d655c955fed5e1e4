//! The id that a provider's service gave to the last call of this thread. It is
//! noted where answers are read, many layers below the audit log.

use std::cell::RefCell;

thread_local! {
    static REQUEST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes the id of a call that was answered.
pub fn note(id: &str) {
    if !id.is_empty() {
        REQUEST.set(Some(id.to_owned()));
    }
}

/// The id noted since this was last called.
pub(super) fn take() -> Option<String> {
    REQUEST.take()
}
