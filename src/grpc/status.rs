//! Error replies as gRPC statuses. Clients decide by the code whether to try again.

use tonic::{Code, Status};

/// The code for the beginning of an error reply, the first that fits.
const CODES: &[(&str, Code)] = &[
    ("NOAUTH ", Code::Unauthenticated),
    ("WRONGPASS ", Code::Unauthenticated),
    ("NOPERM ", Code::PermissionDenied),
    // Protected mode: it is the server's settings that must change.
    ("DENIED ", Code::FailedPrecondition),
    ("READONLY ", Code::FailedPrecondition),
    ("WRONGTYPE ", Code::FailedPrecondition),
    // Certainly without effect, here and now: try again, or try another node.
    ("LOADING ", Code::Unavailable),
    ("NOTWRITTEN ", Code::Unavailable),
    ("STALE ", Code::Unavailable),
    // A node of a newer version serves it.
    ("UNSUPPORTED ", Code::Unavailable),
    ("ERR this node ", Code::Unavailable),
    ("ERR database ", Code::Unavailable),
    // It may have taken effect.
    ("UNCERTAIN ", Code::Unknown),
    ("ERR max number of clients", Code::ResourceExhausted),
    ("ERR the record would have ", Code::ResourceExhausted),
    ("ERR the reply ", Code::ResourceExhausted),
    ("ERR a transaction can write at most ", Code::ResourceExhausted),
    ("OOM ", Code::ResourceExhausted),
    ("ERR the record of this key ", Code::FailedPrecondition),
    ("ERR this key is reserved ", Code::InvalidArgument),
];

/// `text`: the error reply, its code first.
pub fn of_error(text: &[u8]) -> Status {
    let code = CODES.iter().find(|(begin, _)| text.starts_with(begin.as_bytes()));
    Status::new(
        code.map_or(Code::Internal, |&(_, code)| code),
        String::from_utf8_lossy(text),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whether_to_try_again() {
        let code = |text: &str| of_error(text.as_bytes()).code();
        assert_eq!(code("NOTWRITTEN the broker is away"), Code::Unavailable);
        assert_eq!(code("UNSUPPORTED database 0 uses"), Code::Unavailable);
        assert_eq!(
            code("READONLY database 0 shows topic t read-only"),
            Code::FailedPrecondition
        );
        assert_eq!(code("ERR something else"), Code::Internal);
        assert_eq!(of_error(b"ERR \xff").message(), "ERR \u{fffd}");
    }
}
