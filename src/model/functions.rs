//! Libraries of functions in the topic: one record each, in partition 0 of database 0, whose key is
//! [`FUNCTION_KEY`] and the library's name, and whose value is the library's text. Each change of a
//! library also writes the record without a name. All changes rest on that one, so that two nodes
//! cannot change libraries at one time without noticing.

use bytes::Bytes;

/// What the keys of these records begin with.
pub const FUNCTION_KEY: &[u8; 20] = b"\0highwater:function:";

/// The feature of the topic's format.
pub const FUNCTION: &str = "function";

/// The key of a library's record.
pub fn function_key(library: &[u8]) -> Bytes {
    [&FUNCTION_KEY[..], library].concat().into()
}

/// The library whose record has this key. It is empty for the record that all changes rest on.
pub fn function_of(record_key: &[u8]) -> Option<&[u8]> {
    record_key.strip_prefix(&FUNCTION_KEY[..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::is_control;

    #[test]
    fn a_library_has_a_control_record() {
        let key = function_key(b"lib");
        assert!(is_control(&key));
        assert_eq!(function_of(&key), Some(&b"lib"[..]));
        assert_eq!(function_of(b"\0highwater:function:"), Some(&b""[..]));
        assert_eq!(function_of(b"\0highwater:functions"), None);
    }
}
